"""From a pretrained model: pruned by ALPS, trained on for equal tokens with its graph left alone, or moving."""

from dataclasses import dataclass, replace

from ..train.dynamics.config import FractionConfig, SparsityConfig, TopologyConfig
from ..train.tasks import LanguageModelRecipe, train_language_model
from .dense_models import dense_model, models_folder, pruned_model
from .language import TOP, held_out, perplexity_of, recipe_of, size_of
from .language_paper import arm, dense_arm
from .measure import outcome_of, step_clock
from .study import DENSE, Claim, Outcome, Run, Study, sparsity_of

_DENSE_STEPS = 3600
_DENSE_RATE = 2e-3
"""Of projections: what the search of `language-long` chose for dense."""
_STEPS = 600
_TUNING_STEPS = 200
_UPDATES = 15
_SHARE = (3, 4)
_OTHER_ORDER = 100
"""Added to a run's seed: it does not see the text in the order of the dense training again."""

_PRUNED = TopologyConfig(kind="nonzero")
_FEW = FractionConfig(kind="cosine", initial=0.1)
"""Links replaced in an update: alike for all, so that what is compared is their choice."""
_MOVING = ("SET", "RigL", "CHTs")
_ARMS = (
    dense_arm(),
    arm("static", method="static", topology=_PRUNED),
    arm("SET", method="set", topology=_PRUNED, distribution="uniform", fraction=_FEW),
    arm("RigL", method="rigl", topology=_PRUNED, distribution="uniform", fraction=_FEW),
    arm("CHTs", method="chts", topology=_PRUNED, regrowth=TOP, fraction=_FEW),
)


@dataclass(frozen=True)
class PretrainedStudy(Study):
    """Perplexity of held-out documents, as in `LanguageStudy`; each seed has a dense model of its own to begin with.

    Args:
        dense_steps: of the dense model's training.
        steps: of the training that is compared, of the pruned model.
        tuning_steps: of that training in a run of the search; its updates are as many as its length has room for.
        updates: in the first three quarters of a reported run.
    """

    dense_steps: int = _DENSE_STEPS
    steps: int = _STEPS
    tuning_steps: int = _TUNING_STEPS
    updates: int = _UPDATES

    def perform(self, run: Run) -> Outcome:
        """Train the dense model and prune it, where that was not done yet; train on, and score."""
        first = self.dense_recipe(run.seed)
        start = dense_model(first, models_folder())
        if run.density < 1:
            start = pruned_model(start, run.density, first)
        recipe = self.recipe(run)
        with step_clock() as clock:
            result = train_language_model(replace(recipe, model=replace(recipe.model, pretrained=str(start))))
        return outcome_of(result, clock, perplexity_of(result.model, held_out(result, run.purpose)))

    def dense_recipe(self, seed: int) -> LanguageModelRecipe:
        """Of the dense model that runs of a seed begin with."""
        run = Run(DENSE, 1.0, _DENSE_RATE, seed, "report")
        return recipe_of(run, self.dense_steps, SparsityConfig(method="dense", density=1.0))

    def recipe(self, run: Run) -> LanguageModelRecipe:
        """Of the training that is compared: one rate for all parameters."""
        steps = self.tuning_steps if run.purpose == "tuning" else self.steps
        updates = max(1, self.updates * steps // self.steps)
        recipe = recipe_of(run, steps, sparsity_of(run, steps, updates, _SHARE))
        optimization = replace(recipe.optimization, learning_rate=run.rate, seed=_OTHER_ORDER + run.seed)
        return replace(recipe, optimization=optimization)


PRETRAINED = PretrainedStudy(
    name="pretrained",
    title="From a pretrained model",
    metric="perplexity",
    higher_is_better=False,
    arms=_ARMS,
    densities=(0.3, 0.1),
    rates=(3e-4, 1e-3, 3e-3),
    seeds=(1, 2, 3),
    budget=(
        f"{size_of(_DENSE_STEPS)}, dense, {_DENSE_RATE:g} for projections and 3e-3 for the rest; ALPS; then {_STEPS} "
        f"steps, {_UPDATES} updates in the first three quarters of them; AdamW, the chosen rate for all parameters; "
        f"{_TUNING_STEPS} steps in the search"
    ),
    claims=tuple(
        Claim(
            f"{name}, moving from a pruned mask, beats that mask left alone, at {density:.0%}",
            name,
            ("static",),
            density,
        )
        for density in (0.3, 0.1)
        for name in _MOVING
    ),
    note="Whether a moving graph helps a model that was trained before. A dense Llama of each seed is pruned by ALPS, "
    "with as many links in every layer, and trained on for a sixth of its first length: *static* keeps the mask that "
    "ALPS chose; SET, RigL and CHTs move from it. All three replace 10% of the links in the first update, and fewer "
    "along a cosine, and differ in which. Links start warm as in the table at the paper's schedule, and CHTs takes the "
    "highest scores. *dense* is the dense model, trained on for as long.",
    control="static",
)
