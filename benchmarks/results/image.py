"""Image classification at 1% density: the perceptrons and data sets of arXiv 2501.19107, for fewer epochs.

Legend: I images, F features an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ...train.data.images import load_images
from ...train.dynamics.chains import model_chains, remove_chains
from ...train.dynamics.config import FractionConfig, RemovalConfig, TopologyConfig
from ...train.tasks import ImageRecipe
from ...train.tasks.image import test_accuracy, train_image_classifier
from ...train.tasks.image_recipe import DataSetName, ImageData, MlpShape, SgdConfig
from .measure import outcome_of, step_clock
from .study import DENSE, Arm, Claim, Outcome, Run, Study, sparsity_of

_EPOCHS = {"mnist": 4, "fashion-mnist": 4, "cifar-10": 2}
_BATCH = 100
_HIDDEN = 1568
_HIDDEN_LAYERS = 3
_TUNING_IMAGES = 5000
_UPDATES = 8
_FEATURES = {"mnist": 784, "fashion-mnist": 784, "cifar-10": 3072}
_IMAGES = {"mnist": 60_000, "fashion-mnist": 60_000, "cifar-10": 50_000}
_SAME = "The paper's data set and perceptron; it trains for 100 epochs in batches of 32."
_NOTES = {
    "mnist": _SAME,
    "fashion-mnist": _SAME,
    "cifar-10": "The paper's data set; its perceptron has 6,144 hidden nodes a layer and trains for 100 epochs.",
}

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
    """

    data: DataSetName = "mnist"

    def perform(self, run: Run) -> Outcome:
        """Train a perceptron and count what it gets right."""
        with step_clock() as clock:
            result = train_image_classifier(_recipe(self.data, run))
        images = load_images(self.data, "auto")
        if run.purpose == "tuning":
            apart = slice(-_TUNING_IMAGES, None)
            images = replace(images, test=images.train[apart], test_labels=images.train_labels[apart])
        active = active_share(result.model, result.masks)
        return outcome_of(result, clock, 100 * test_accuracy(result.model, images), active=active)


def image_study(data: DataSetName) -> ImageStudy:
    """The study on one data set."""
    return ImageStudy(
        name=f"image-{data}",
        title=f"Image classification: {data}",
        metric="accuracy, %",
        higher_is_better=True,
        arms=_ARMS,
        densities=(0.01,),
        rates=(0.02, 0.06, 0.18, 0.54),
        seeds=(1, 2, 3),
        budget=(
            f"{_FEATURES[data]}-" + f"{_HIDDEN}-" * _HIDDEN_LAYERS + f"10, {_EPOCHS[data]} epochs of "
            f"{_IMAGES[data] - _TUNING_IMAGES:,} images, batches of {_BATCH}; {_UPDATES} updates; SGD with momentum"
        ),
        claims=(Claim("CHTs at 1% is at least as good as dense", "CHTs", (DENSE.name,), 0.01),),
        note=_NOTES[data],
        data=data,
    )


def _recipe(data: DataSetName, run: Run) -> ImageRecipe:
    images = _IMAGES[data] - _TUNING_IMAGES
    optimization = SgdConfig(
        epochs=_EPOCHS[data], batch_size=_BATCH, learning_rate=run.rate, seed=run.seed, initialisation="swi"
    )
    return ImageRecipe(
        model=MlpShape(hidden_layers=_HIDDEN_LAYERS, width=_HIDDEN / _FEATURES[data]),
        data=ImageData(name=data, train_images=images),
        optimization=optimization,
        sparsity=sparsity_of(run, _EPOCHS[data] * images // _BATCH, _UPDATES),
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
