"""A teacher's distributions on disk: what is learned from them, what they take, and what is refused."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from tiny import make_llama

from hebbline.artifacts import InputError
from hebbline.cli import main
from hebbline.train import training
from hebbline.train.distill import Distillation, DistillConfig
from hebbline.train.teacher_cache import cache_facts, open_cache

VOCABULARY = 64


def facts_of(teacher, blocks, **changed):
    settings = {"kept": 8, "temperature": 2.0, "precision": "float32"} | changed
    return cache_facts(teacher, {"hidden_size": 96}, {"a": 0, "b": 1}, blocks, **settings)


@pytest.fixture
def setting():
    teacher = make_llama(VOCABULARY)
    blocks = torch.randint(0, VOCABULARY, (6, 9), generator=torch.Generator().manual_seed(1))
    return teacher, blocks


def loss(teacher, cache, ids, logits):
    config = DistillConfig("t", 1.0, 2.0)
    return Distillation(teacher, config, cache).loss(torch.tensor(0.0), logits, {"input_ids": ids, "labels": ids})


def test_with_the_whole_vocabulary_the_loss_is_that_of_the_same_step(setting, tmp_path):
    teacher, blocks = setting
    cache = open_cache(tmp_path / "cache", facts_of(teacher, blocks, kept=VOCABULARY), blocks)
    logits = torch.randn(3, 9, VOCABULARY, requires_grad=True)
    losses = [loss(teacher, used, blocks[:3], logits) for used in (None, cache, cache)]
    gradients = [torch.autograd.grad(found, logits)[0] for found in losses]
    for found, gradient in zip(losses[1:], gradients[1:], strict=True):
        torch.testing.assert_close(found, losses[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-7)
    assert torch.equal(losses[1], losses[2]), "what was kept gives the bits of what was made"


def test_kept_tokens_give_the_divergence_of_the_distributions_with_all_others_as_one(setting, tmp_path):
    teacher, blocks = setting
    cache = open_cache(tmp_path / "cache", facts_of(teacher, blocks), blocks)
    logits = torch.randn(2, 9, VOCABULARY)
    found = float(loss(teacher, cache, blocks[:2], logits))
    of_teacher = (teacher(blocks[:2]).logits[:, :-1].double() / 2).softmax(dim=-1)
    of_student = (logits[:, :-1].double() / 2).softmax(dim=-1)
    taught = of_teacher.topk(8, dim=-1).indices
    pairs = [part.gather(2, taught) for part in (of_teacher, of_student)]
    pairs = [torch.cat([part, 1 - part.sum(dim=2, keepdim=True)], dim=2) for part in pairs]
    expected = 4 * float((pairs[0] * (pairs[0] / pairs[1]).log()).sum(dim=2).mean())
    assert found == pytest.approx(expected, rel=1e-4)
    assert found < float(loss(teacher, None, blocks[:2], logits)), "never above that of the whole distributions"


def test_a_distribution_that_leaves_nothing_to_the_others_has_a_finite_loss_and_gradient(setting, tmp_path):
    teacher, blocks = setting
    cache = open_cache(tmp_path / "cache", facts_of(teacher, blocks), blocks)

    def certain(ids):
        return torch.full((1, ids.shape[1], VOCABULARY), -1e4).index_fill(2, torch.tensor([3]), 1e4)

    kept = cache.distributions(blocks[:1], certain)
    assert not kept.others_BP.exp().any()
    logits = torch.randn(1, 9, VOCABULARY, requires_grad=True)
    found = loss(teacher, cache, blocks[:1], logits)
    (gradient,) = torch.autograd.grad(found, logits)
    assert torch.isfinite(found) and torch.isfinite(gradient).all()


def test_the_teacher_is_asked_once_for_each_block_and_not_at_all_when_all_are_there(setting, tmp_path):
    teacher, blocks = setting
    facts, asked = facts_of(teacher, blocks), []

    def counted(ids):
        asked.append(ids)
        return teacher(ids).logits

    cache = open_cache(tmp_path / "cache", facts, blocks)
    first = cache.distributions(blocks[[4, 2]], counted)
    again = open_cache(tmp_path / "cache", facts, blocks)
    assert again.filled == 2 and not again.complete
    second = again.distributions(blocks[[2, 1]], counted)
    assert len(asked) == 3 and torch.equal(first.log_probs_BPK[1], second.log_probs_BPK[0])
    again.distributions(blocks, counted)
    assert len(asked) == len(blocks)
    whole = open_cache(tmp_path / "cache", facts, blocks)
    assert whole.complete and Distillation(teacher, DistillConfig("t"), whole)._teacher is None


def test_a_row_that_was_cut_is_made_again(setting, tmp_path):
    teacher, blocks = setting
    facts = facts_of(teacher, blocks)
    before = open_cache(tmp_path / "cache", facts, blocks).distributions(blocks, lambda ids: teacher(ids).logits)
    path = tmp_path / "cache/distributions.bin"
    assert path.stat().st_size == facts.bytes == 6 * (8 * (8 * 4 + 9 * 4) + 4)
    rows = np.memmap(path, np.uint8, "r+", shape=(6, facts.bytes // 6))
    rows[3, 40:80] = 7
    rows.flush()
    damaged = open_cache(tmp_path / "cache", facts, blocks)
    assert damaged.filled == 5
    after = damaged.distributions(blocks, lambda ids: teacher(ids).logits)
    assert torch.equal(before.log_probs_BPK, after.log_probs_BPK) and torch.equal(before.ids_BPK, after.ids_BPK)


def test_a_cache_of_something_else_is_refused(setting, tmp_path):
    teacher, blocks = setting
    facts = facts_of(teacher, blocks)
    open_cache(tmp_path / "cache", facts, blocks)
    for what, other in (
        ("teacher", facts_of(make_llama(VOCABULARY, seed=1), blocks)),
        ("text", facts_of(teacher, blocks.flip(0))),
        ("kept", facts_of(teacher, blocks, kept=9)),
        ("temperature", facts_of(teacher, blocks, temperature=1.0)),
        (
            "tokenizer",
            cache_facts(teacher, {"hidden_size": 96}, {"a": 0}, blocks, kept=8, temperature=2.0, precision="float32"),
        ),
    ):
        with pytest.raises(InputError, match=rf"is of another {what} than this run"):
            open_cache(tmp_path / "cache", other, blocks)
    (tmp_path / "cache/distributions.bin").write_bytes(b"short")
    with pytest.raises(InputError, match="is not the file that"):
        open_cache(tmp_path / "cache", facts, blocks)
    (tmp_path / "cache/cache.json").write_text("{")
    with pytest.raises(InputError, match=r"cache\.json is damaged"):
        open_cache(tmp_path / "cache", facts, blocks)


def test_a_disk_without_room_is_seen_before_training(setting, tmp_path, monkeypatch):
    teacher, blocks = setting

    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(InputError, match=r"No space left on device.*smaller distill\.cache_top_k"):
            open_cache(tmp_path / "cache", facts_of(teacher, blocks), blocks)
    assert not list((tmp_path / "cache").iterdir())
    open_cache(tmp_path / "cache", facts_of(teacher, blocks), blocks)
    assert (tmp_path / "cache/distributions.bin").stat().st_blocks > 0, "the disk's place is taken"


def train(taught, out, *options):
    base = [str(taught / "recipe.yaml"), "--sparsity.method=static", f"--distill.teacher={taught / 'teacher'}"]
    base.append("--optimization.steps=6")
    return main(["train", *base, f"--out={out}", *options])


def cut_at_step_5(self, args, state, control, **others):
    if state.global_step == 5:
        raise KeyboardInterrupt


def test_a_run_that_goes_on_ends_in_the_bits_of_one_that_was_not_cut(taught, tmp_path, monkeypatch):
    """Also where the cache holds more than the checkpoint, and in a second run, which finds all of it."""
    outs = [tmp_path / name for name in ("whole", "cut", "second")]
    caches = [f"--distill.cache={tmp_path / name}" for name in ("cache-whole", "cache-cut", "cache-whole")]
    assert train(taught, outs[0], caches[0]) == 0
    with monkeypatch.context() as patched:
        patched.setattr(training._ProgressCallback, "on_step_end", cut_at_step_5)
        assert train(taught, outs[1], caches[1], "--checkpoint.every=3") == 130
    assert train(taught, outs[1], caches[1], "--checkpoint.every=3", "--resume") == 0
    assert train(taught, outs[2], caches[2]) == 0
    weights = [(out / "model.safetensors").read_bytes() for out in outs]
    assert weights[0] == weights[1] == weights[2]


def test_the_command_refuses_a_cache_of_another_text(taught, tmp_path, capsys):
    cache = f"--distill.cache={tmp_path / 'cache'}"
    assert train(taught, tmp_path / "out", cache, "--optimization.steps=1") == 0
    assert "has the teacher's distributions of 0 of" in " ".join(capsys.readouterr().err.split())
    assert train(taught, tmp_path / "other", cache, "--data.sequence_length=8", "--optimization.steps=1") == 2
    assert "is of another text, blocks, tokens than this run" in " ".join(capsys.readouterr().err.split())
    facts = json.loads((tmp_path / "cache/cache.json").read_text())
    assert facts["kept"] == 64 and facts["tokens"] == 16
    with pytest.raises(InputError, match=r"name distill\.teacher too"):
        DistillConfig(cache="somewhere")
