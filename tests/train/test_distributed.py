"""Two real processes over gloo, by torchrun: masks are the same everywhere, and the result is that of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_text
from transformers import LlamaForCausalLM

from hebbline.artifacts import load_masks
from hebbline.serve.triton.process import free_ports

sys.path.insert(0, str(Path(__file__).parent))
from distributed_run import train, train_images

SCRIPT = Path(__file__).with_name("distributed_run.py")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def run(*command):
    done = subprocess.run([*map(str, command)], env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]


def torchrun(processes, *command):
    """Run a Python script or `-m` module in several processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    run(*launch, "--master-addr=127.0.0.1", f"--master-port={free_ports().grpc}", *command)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("distributed")
    torchrun(2, SCRIPT, out)
    return out


@pytest.mark.parametrize(("kind", "method"), [("ddp", "rigl"), ("fsdp2", "mest")])
def test_two_processes_agree_with_each_other_and_with_one(results, kind, method):
    first, second = (load_file(results / f"{kind}-{rank}.safetensors") for rank in (0, 1))
    alone, _ = train("single", method)
    assert first.keys() == second.keys() == alone.keys()
    masks = [name for name in first if name.startswith("mask:")]
    assert len(masks) == 14
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    for name in masks:
        weight = first[name.removeprefix("mask:") + ".weight"]
        assert not weight[first[name] == 0].any()
        # Sums over processes round otherwise than over a batch: a link at the edge of a choice may differ.
        differing = int((first[name] != alone[name]).sum())
        assert differing <= 0.01 * int(alone[name].sum()), f"{name}: {differing}"


def test_a_step_of_two_processes_is_as_large_as_one_of_the_whole_batch(results):
    first, second = (load_file(results / f"images-{rank}.safetensors") for rank in (0, 1))
    alone = train_images(1)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-5)


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(make_text(40)))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
model: {{hidden_size: 32, intermediate_size: 48, layers: 2, heads: 2, kv_heads: 1, context_length: 64, vocab_size: 300}}
data: {{source: {tmp_path}/text.txt, validation_share: 0.2, sequence_length: 16}}
optimization: {{steps: 8, batch_size: 4, warmup_steps: 2}}
sparsity: {{method: granet, update: {{every: 2, stop: 6}}}}
checkpoint: {{every: 4}}
"""
    )
    return path


def test_train_command_under_torchrun_checkpoints_and_publishes(recipe, tmp_path):
    torchrun(2, "-m", "hebbline", "train", recipe, "--out", tmp_path / "model")
    masks = load_masks(tmp_path / "model/masks.safetensors")
    assert len(masks) == 14 and all(mask.any() for mask in masks.values())
    assert not (tmp_path / "model.run/checkpoints").exists()


FSDP2 = """
distributed_type: FSDP
use_cpu: true
num_machines: 1
num_processes: 2
machine_rank: 0
main_process_ip: 127.0.0.1
main_process_port: {port}
mixed_precision: 'no'
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
  fsdp_cpu_ram_efficient_loading: false
"""


def test_fsdp2_through_the_trainer_checkpoints_resumes_and_publishes(recipe, tmp_path):
    """The script asserts that weights are split and masks agree; here: a run in two parts ends in the same bits."""
    for name, mode in (("whole", "whole"), ("cut", "cut"), ("cut", "resume")):
        (tmp_path / "fsdp.yaml").write_text(FSDP2.format(port=free_ports().grpc))
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", tmp_path / "fsdp.yaml"]
        run(*launch, Path(__file__).with_name("fsdp_run.py"), recipe, tmp_path / name, mode)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    masks = [load_masks(tmp_path / name / "masks.safetensors") for name in ("whole", "cut")]
    assert len(masks[0]) == 14
    for name, mask in masks[0].items():
        assert (mask == masks[1][name]).all()
        assert not whole[f"{name}.weight"][~torch.from_numpy(mask)].any()
    assert LlamaForCausalLM.from_pretrained(tmp_path / "whole").config.architectures == ["LlamaForCausalLM"]
