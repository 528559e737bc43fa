"""Image classification at 1% density: the perceptrons and data sets of arXiv 2501.19107, for fewer epochs or for all.

Legend: I images, F features an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..data.images import load_images
from ..train.dynamics.chains import model_chains, remove_chains
from ..train.dynamics.config import FractionConfig, RemovalConfig, SparsityConfig, TopologyConfig
from ..train.tasks import ImageRecipe
from ..train.tasks.image import test_accuracy, train_image_classifier
from ..train.tasks.image_recipe import DataSetName, ImageData, MlpShape, SgdConfig
from .measure import outcome_of, step_clock
from .study import DENSE, Arm, Claim, Outcome, Run, Study, sparsity_of

_HIDDEN = 1568
_HIDDEN_LAYERS = 3
_TUNING_IMAGES = 5000
_FEATURES = {"mnist": 784, "fashion-mnist": 784, "cifar-10": 3072}
_IMAGES = {"mnist": 60_000, "fashion-mnist": 60_000, "cifar-10": 50_000}
_SAME = "The paper's data set and perceptron; it trains for 100 epochs in batches of 32."
_PAPER = (
    "The paper's data set, perceptron and schedule: an update an epoch in the first three quarters. Learning rates are "
    "searched at a tenth of the length."
)
_NOTES = {
    "mnist": _SAME,
    "fashion-mnist": _SAME,
    "cifar-10": "The paper's data set; its perceptron has 6,144 hidden nodes a layer and trains for 100 epochs.",
}


@dataclass(frozen=True)
class Schedule:
    """How long a run is, and how often its graphs change.

    Args:
        epochs: of a reported run.
        tuning_epochs: of a run of the search.
        batch: images a step.
        updates: of the graphs, in a reported run; in the search as many as its length has room for.
        share: of a run's steps, those in which there are updates: (4, 5) is four fifths.
    """

    epochs: int
    tuning_epochs: int
    batch: int
    updates: int
    share: tuple[int, int] = (4, 5)

    def sparsity(self, run: Run, images: int) -> SparsityConfig:
        """The sparsity of a run over so many images an epoch."""
        updates = self.updates * self.epochs_of(run) // self.epochs
        return sparsity_of(run, self.epochs_of(run) * images // self.batch, updates, self.share)

    def epochs_of(self, run: Run) -> int:
        """The epochs of a run."""
        return self.tuning_epochs if run.purpose == "tuning" else self.epochs


_SHORT = {
    name: Schedule(epochs, epochs, 100, 8) for name, epochs in (("mnist", 4), ("fashion-mnist", 4), ("cifar-10", 2))
}
PAPER_SCHEDULE = Schedule(100, 10, 32, 75, (3, 4))

_THIRD = FractionConfig(kind="constant", initial=0.3)
_CHAINS = RemovalConfig(chains=True)


def _arm(name: str, **settings: Any) -> Arm:
    """Layers of links alone: at 1% they are the fast ones."""
    return Arm(name, {"compute": "links", "exclude": ["head"], **settings})


_ARMS = (
    DENSE,
    _arm("static ER", method="static", topology=TopologyConfig(kind="er")),
    _arm("static BRF", method="static", topology=TopologyConfig(kind="brf", r=0.25)),
    _arm("SET", method="set", distribution="uniform"),
    _arm("RigL", method="rigl", distribution="uniform"),
    _arm("CHT", method="cht"),
    _arm("CHTs", method="chts", fraction=_THIRD, removal=_CHAINS),
    _arm("CHTss", method="chtss", initial_density=0.05, fraction=_THIRD, removal=_CHAINS),
)


@dataclass(frozen=True)
class ImageStudy(Study):
    """Test accuracy; the last training images are kept apart, and choose learning rates.

    Args:
        data: the data set.
        schedule: how long runs are.
    """

    data: DataSetName = "mnist"
    schedule: Schedule = PAPER_SCHEDULE

    def perform(self, run: Run) -> Outcome:
        """Train a perceptron and count what it gets right."""
        with step_clock() as clock:
            result = train_image_classifier(_recipe(self.data, self.schedule, run))
        images = load_images(self.data, "auto")
        if run.purpose == "tuning":
            apart = slice(-_TUNING_IMAGES, None)
            images = replace(images, test=images.train[apart], test_labels=images.train_labels[apart])
        active = active_share(result.model, result.masks)
        return outcome_of(result, clock, 100 * test_accuracy(result.model, images), active=active)


def image_study(data: DataSetName) -> ImageStudy:
    """The study on one data set, of some epochs."""
    return _study(f"image-{data}", f"Image classification: {data}", data, _SHORT[data], _NOTES[data])


def paper_study(data: DataSetName) -> ImageStudy:
    """The study on one data set at the paper's schedule."""
    title = f"Image classification: {data}, 100 epochs"
    study = _study(f"image-{data}-paper", title, data, PAPER_SCHEDULE, _PAPER)
    return replace(study, rates=(0.01, 0.025, 0.06, 0.15))


def _study(name: str, title: str, data: DataSetName, schedule: Schedule, note: str) -> ImageStudy:
    return ImageStudy(
        name=name,
        title=title,
        metric="accuracy, %",
        higher_is_better=True,
        arms=_ARMS,
        densities=(0.01,),
        rates=(0.02, 0.06, 0.18, 0.54),
        seeds=(1, 2, 3),
        budget=(
            f"{_FEATURES[data]}-" + f"{_HIDDEN}-" * _HIDDEN_LAYERS + f"10, {schedule.epochs} epochs of "
            f"{_IMAGES[data] - _TUNING_IMAGES:,} images, batches of {schedule.batch}; {schedule.updates} updates; SGD "
            "with momentum"
        ),
        claims=(Claim("CHTs at 1% is at least as good as dense", "CHTs", (DENSE.name,), 0.01),),
        note=note,
        data=data,
        schedule=schedule,
    )


def _recipe(data: DataSetName, schedule: Schedule, run: Run) -> ImageRecipe:
    images = _IMAGES[data] - _TUNING_IMAGES
    optimization = SgdConfig(
        epochs=schedule.epochs_of(run),
        batch_size=schedule.batch,
        learning_rate=run.rate,
        seed=run.seed,
        initialisation="swi",
    )
    return ImageRecipe(
        model=MlpShape(hidden_layers=_HIDDEN_LAYERS, width=_HIDDEN / _FEATURES[data]),
        data=ImageData(name=data, train_images=images),
        optimization=optimization,
        sparsity=schedule.sparsity(run, images),
    )


def active_share(model: nn.Module, masks: Mapping[str, Tensor]) -> float:
    """Of the hidden nodes, those on a path from an input to a class (active after percolation, arXiv 2501.19107).

    Args:
        model: whose sparse layers follow one another; the last one's nodes all lead on.
        masks: of those layers, bool [out, in], first to last.
    """
    links = dict(masks)
    remove_chains(links, model_chains(model, list(links)))
    nodes = [mask_NK.any(dim=1) for mask_NK in links.values()]
    return sum(int(alive.sum()) for alive in nodes) / sum(alive.numel() for alive in nodes) if nodes else 1.0
