"""Distillation: the loss by its definition, accumulation, and what has other tokens is refused."""

import pytest
import torch
from tiny import make_llama

from hebbline.artifacts import InputError
from hebbline.artifacts.masks import load_masks
from hebbline.cli import main
from hebbline.train.distill import Distillation, DistillConfig
from hebbline.train.tasks import read_recipe, train_language_model


def distilled(taught, *options):
    made, _ = read_recipe(str(taught / "recipe.yaml"), [f"--distill.teacher={taught / 'teacher'}", *options])
    return train_language_model(made)


def losses(result):
    return [record["loss"] for record in result.trained.log if "loss" in record]


def test_the_loss_is_that_of_its_definition():
    torch.manual_seed(0)
    teacher = make_llama(64).eval()
    ids = torch.randint(0, 64, (3, 9))
    logits = torch.randn(3, 9, 64)
    found = Distillation(teacher, DistillConfig("t", 0.3, 2.0)).loss(
        torch.tensor(1.5), logits, {"input_ids": ids, "labels": ids}
    )
    of_teacher = (teacher(ids).logits[:, :-1].double() / 2).softmax(dim=-1)
    of_student = (logits[:, :-1].double() / 2).softmax(dim=-1)
    divergence = (of_teacher * (of_teacher / of_student).log()).sum(dim=-1).mean()
    assert float(found) == pytest.approx(0.7 * 1.5 + 0.3 * 4 * float(divergence), rel=1e-5)


def test_a_model_has_nothing_to_learn_from_itself(taught):
    pretrained = f"--model.pretrained={taught / 'teacher'}"
    same = distilled(taught, pretrained, "--distill.weight=1", "--optimization.steps=1")
    assert abs(losses(same)[0]) < 1e-5
    halved = ["--sparsity.method=static", "--sparsity.density=0.3", "--optimization.projection_learning_rate=0.003"]
    cut = losses(distilled(taught, pretrained, "--distill.weight=1", *halved))
    assert cut[0] > 1e-3 and sum(cut[-5:]) < 0.8 * sum(cut[:5]), "what the links lost comes back"


def test_accumulated_batches_give_the_gradient_of_one(taught):
    options = ["--distill.weight=0.5", "--distill.temperature=2", "--optimization.steps=3"]
    whole = distilled(taught, *options)
    parts = distilled(taught, *options, "--optimization.batch_size=2", "--optimization.accumulate=2")
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["static", "chts"])
def test_a_sparse_model_is_trained_on_from_its_mask(taught, method, tmp_path):
    """In bfloat16 products, with a teacher: static keeps the links, a method that moves them keeps their number."""
    recipe, teacher = str(taught / "recipe.yaml"), str(taught / "teacher")
    pruned, out = tmp_path / "pruned", tmp_path / "model"
    base = ["--optimization.steps=4", "--sparsity.density=0.4", "--optimization.precision=bfloat16"]
    start = ["train", recipe, *base, f"--model.pretrained={teacher}", "--sparsity.method=static", f"--out={pruned}"]
    assert main(start) == 0
    on = [f"--model.pretrained={pruned}", f"--sparsity.method={method}", "--sparsity.topology.kind=nonzero"]
    on += ["--sparsity.update.every=1", f"--distill.teacher={teacher}", f"--out={out}"]
    assert main(["train", recipe, *base, *on]) == 0
    before, after = (load_masks(folder / "masks.safetensors") for folder in (pruned, out))
    assert {name: int(mask.sum()) for name, mask in before.items()} == {
        name: int(mask.sum()) for name, mask in after.items()
    }
    assert all((before[name] == after[name]).all() for name in before) == (method == "static")


def test_another_vocabulary_is_refused(taught):
    with pytest.raises(InputError, match=r"distill.teacher '.*' has another tokenizer .* of 300 and 290 tokens"):
        distilled(taught, "--model.vocab_size=290")
    with pytest.raises(InputError, match=r"distill.teacher: 'nowhere' is no directory, and on the hub"):
        distilled(taught, "--distill.teacher=nowhere")
    with pytest.raises(InputError, match=r"distill.weight 1.5 is outside"):
        DistillConfig(weight=1.5)
