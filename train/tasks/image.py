"""Image classification: from a recipe to a trained perceptron and its test accuracy.

Legend: I images, F features an image.
"""

from dataclasses import replace

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import set_seed

from ...data.images import Images, load_images
from ...data.rows import Rows, as_is
from ..dynamics.plan import plan_layers
from ..settings import LoopPlan, RunSettings
from ..trainer import world_size
from ..training import Training, run_training
from .image_recipe import ImageRecipe
from .mlp import Mlp, MlpConfig, scale_to_links
from .result import TrainingResult

_CSTI_SAMPLES = 10_000
_TEST_BATCH = 1000


def train_image_classifier(recipe: ImageRecipe, settings: RunSettings | None = None) -> TrainingResult:
    """Load the images, train the perceptron, and test it. The same recipe gives the same bits on the same machine.

    Args:
        recipe: what to train.
        settings: where checkpoints and logs go; without them, there are none.
    """
    images = load_images(recipe.data.name, recipe.data.source, recipe.data.train_images)
    set_seed(recipe.optimization.seed)
    plan = recipe.optimization.loop(len(images.train), world_size())
    recipe = replace(recipe, sparsity=recipe.sparsity.for_run(plan.steps))
    model = build_mlp(recipe, images)
    training = Training(
        model=model,
        dataset=Rows({"pixels": images.train, "labels": images.train_labels}),
        collate=as_is,
        optimizer=_optimizer(recipe, model),
        schedule=lambda optimizer: _linear_schedule(optimizer, plan, recipe.optimization.final_rate),
        sparsity=recipe.sparsity,
        loop=plan,
        unit="images",
        units_a_step=plan.batch_size * plan.accumulate * world_size(),
        inputs=images.train[:_CSTI_SAMPLES].numpy(),
        in_memory=True,
    )
    trained = run_training(training, settings)
    accuracy = test_accuracy(model.eval(), images)
    facts = {"test_accuracy": accuracy, "test_images": len(images.test), "steps": plan.steps}
    summary = (
        f"test accuracy {accuracy:.2%} on {len(images.test):,} images of {recipe.data.name}, after {plan.steps:,} "
        f"steps in {trained.seconds:.0f} s"
    )
    return TrainingResult(model, None, trained, summary, facts)


def build_mlp(recipe: ImageRecipe, images: Images) -> Mlp:
    """A perceptron with random weights, for these images."""
    features = images.train.shape[1]
    hidden = (round(recipe.model.width * features),) * recipe.model.hidden_layers
    model = Mlp(MlpConfig(features, hidden, images.classes))
    if recipe.optimization.initialisation == "swi":
        plans = plan_layers(model, recipe.sparsity)
        scale_to_links(model, {name: plan.densities[0] for name, plan in plans.items()})
    return model


@torch.inference_mode()
def test_accuracy(model: nn.Module, images: Images) -> float:
    """The share of test images whose class is found."""
    device = next(model.parameters()).device
    right = 0
    for pixels_BF, labels_B in zip(images.test.split(_TEST_BATCH), images.test_labels.split(_TEST_BATCH), strict=True):
        right += int((model(pixels_BF.to(device)).logits.argmax(dim=1).cpu() == labels_B).sum())
    return right / len(images.test)


def _optimizer(recipe: ImageRecipe, model: nn.Module) -> torch.optim.SGD:
    optimization = recipe.optimization
    return torch.optim.SGD(
        model.parameters(),
        lr=optimization.learning_rate,
        momentum=optimization.momentum,
        nesterov=optimization.momentum > 0,
        weight_decay=optimization.weight_decay,
        fused=True,
    )


def _linear_schedule(optimizer: Optimizer, plan: LoopPlan, final_rate: float) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 1 - (1 - final_rate) * step / plan.steps)
