"""The numerical gate before a build: NVIDIA's builder runs without a GPU, its engines do not; the graph runs anywhere.

Legend: S tokens of a sequence, R rows of logits, V vocabulary, B slots in a step, G key/value heads, C cache length, D
head size.

Two checks stand for the engine. The graph in float32 goes through the parity gate of the ONNX export: prompts whole and
in pieces, slots together and alone, greedy tokens. Then the very file that is built, in its own precision, computes a
sequence, and may differ from torch in float32 by a few times what torch itself differs in that precision. "Torch" is
the model as it was given, before any pass has changed it.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from transformers import PreTrainedModel

from ...artifacts import CheckError, LanguageModelFacts
from ...runtime.runner import Runner
from ...runtime.static_cache import StaticCacheRunner, Step, StepLimits, cache_names, past_name, present_name
from ..graph.source import SourceModel
from ..verify import ParityFigures, check_parity, torch_greedy
from .decoder import NO_FORMS, NO_ORDERS, build_static_decoder
from .ordering import Orders
from .typed_graph import PRECISIONS, Precision, save_typed_model

PRECISION_FACTOR = 4.0
"""The graph may be this many times as far from float32 as torch is in the same precision: both are roundings."""
_SLOTS = 3
_SEQUENCE = 48


@dataclass(frozen=True)
class EngineParity:
    """What the gate measured: the float32 graph against torch; the graph in its own precision against torch in float32,
    and torch in that precision against itself in float32 (largest logit differences)."""

    float32: ParityFigures
    in_precision: float
    torch_in_precision: float

    def to_json(self) -> dict[str, object]:
        """The figures by name."""
        return asdict(self)


class OnnxStepExecutor:
    """Executes steps of a static-cache graph in ONNX Runtime on the CPU, where the graph is to be checked.

    Args:
        model: an ONNX file. facts: sizes. slots: sequences held. threads: of ONNX Runtime; None: one a physical core.
    """

    def __init__(self, model: Path, facts: LanguageModelFacts, slots: int, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        kinds = {node.name: node.type for node in self._session.get_inputs()}
        shape_BGCD = (slots, facts.num_kv_heads, facts.context_length, facts.head_dim)
        self._caches = {
            name: np.zeros(shape_BGCD, np.float16 if kinds[past_name(name)] == "tensor(float16)" else np.float32)
            for name in cache_names(facts)
        }

    def run(self, step: Step) -> NDArray[np.float32]:
        """See `StepExecutor.run`."""
        slots = slice(step.first_slot, step.first_slot + len(step.input_ids_BS))
        pasts = {past_name(name): cache[slots] for name, cache in self._caches.items()}
        outputs = ["logits", *(present_name(name) for name in self._caches)]
        logits_RV, *presents = self._session.run(outputs, step.feeds() | pasts)
        for cache, present in zip(self._caches.values(), presents, strict=True):
            cache[slots] = present
        return logits_RV


def check_graph(
    original: PreTrainedModel,
    source: SourceModel,
    graph: Path,
    precision: Precision,
    progress: Callable[[str], None],
    *,
    forms: Mapping[str, str] = NO_FORMS,
    orders: Orders = NO_ORDERS,
) -> EngineParity:
    """Compare the graph of a model, and the file that is to be built, to torch.

    Args:
        original: the model before any pass, which everything is held against. source: the model that the graph is of.
        graph: the file, in `precision`. progress: told each check. forms, orders: of the graph, as
        `build_static_decoder` takes them.

    Raises:
        CheckError: logits differ by more than the tolerance, or a greedy token differs.
    """
    single = graph.parent / "float32.onnx"
    save_typed_model(build_static_decoder(source, PRECISIONS["float32"], forms, orders), single)
    figures = check_parity(original, _runner(single, source), progress, source.decoder.reach)
    progress(f"the graph in {precision.name}")
    runner = open_graph(source, graph, precision)
    return EngineParity(figures, *check_precision(original, runner, precision, "the graph"))


def open_graph(source: SourceModel, graph: Path, precision: Precision) -> StaticCacheRunner:
    """A runner of the very file that is to be built, in ONNX Runtime on the CPU."""
    if precision.name != "bfloat16":
        return _runner(graph, source)
    # ONNX Runtime multiplies no bfloat16 on a CPU: the file's own nodes and rounded weights run in float32.
    runnable = graph.with_name("widened.onnx")
    save_typed_model(widened(onnx.load(graph)), runnable)
    return _runner(runnable, source)


def check_precision(original: PreTrainedModel, runner: Runner, precision: Precision, what: str) -> tuple[float, float]:
    """Compare a runner in `precision` to torch in float32. `what` is for the message.

    Returns:
        Largest logit differences from it: of the runner, and of torch in `precision`.

    Raises:
        CheckError: the runner is more than `PRECISION_FACTOR` times as far from it as torch is in that precision.
    """
    in_precision, torch_in_precision = _precision_differences(original, runner, precision)
    if not in_precision <= PRECISION_FACTOR * torch_in_precision:
        raise CheckError(
            f"parity: {what} in {precision.name} is {in_precision:.2e} from torch in float32, torch in "
            f"{precision.name} {torch_in_precision:.2e}: more than {PRECISION_FACTOR:g} times as much"
        )
    return in_precision, torch_in_precision


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with every bfloat16 initializer, input and output as float32; values are kept exactly."""
    wide = copy.deepcopy(model)
    for tensor in wide.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            values = numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in (*wide.graph.input, *wide.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return wide


def _runner(model: Path, source: SourceModel) -> StaticCacheRunner:
    facts = source.facts()
    limits = StepLimits(batch=_SLOTS, tokens=facts.context_length)
    return StaticCacheRunner(facts, _SLOTS, limits, OnnxStepExecutor(model, facts, _SLOTS))


def _precision_differences(original: PreTrainedModel, runner: Runner, precision: Precision) -> tuple[float, float]:
    """How far the runner, and torch in the precision, are from torch in float32, on a sequence that torch goes on."""
    prompt = np.random.default_rng(1).integers(0, runner.vocab_size, 8).tolist()
    length = min(_SEQUENCE, runner.context_length) - len(prompt)
    ids_S = [*prompt, *torch_greedy(original, prompt, length)[0]] if length > 0 else prompt
    expected_SV = _torch_logits(original, ids_S)
    actual_SV = runner.prefill(0, ids_S, 0, range(len(ids_S)))
    kind = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[precision.name]
    rounded: Any = copy.deepcopy(original)
    rounded.to(kind)
    with torch.inference_mode():
        rounded_SV = rounded(torch.tensor([ids_S])).logits[0].float().numpy()
    return float(np.abs(actual_SV - expected_SV).max()), float(np.abs(rounded_SV - expected_SV).max())


def _torch_logits(model: PreTrainedModel, ids_S: list[int]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return model(torch.tensor([ids_S])).logits[0].numpy()
