"""Fixed scales of activations: how large the inputs of layers become on inputs that are like those to come.

A packed layer with int8 or 4-bit values rounds its input too, each token by its own largest magnitude. With calibration
it rounds all tokens by one scale, and cuts off what is larger.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto, helper

from ...artifacts import InputError
from ..layouts.values import INT8_LARGEST
from .comparison import arrays_of, run_models
from .document import Document
from .files import quoted
from .inputs import graph_inputs
from .linears import Linear
from .writing import ModelWriter


def load_feeds(path: Path, model: ModelProto) -> dict[str, NDArray]:
    """The inputs of a model from an .npz file, in the model's order.

    Raises:
        InputError: no such archive, or its names are not those of the model's inputs.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
    except (OSError, ValueError, BadZipFile, TypeError) as error:
        raise InputError(f"calibration {path} is no .npz archive of plain arrays: {error}") from error
    wanted = [value.name for value in graph_inputs(model)]
    if set(arrays) != set(wanted):
        held = ", ".join(map(quoted, arrays)) or "nothing"
        raise InputError(f"calibration {path} holds {held}; the model's inputs are {', '.join(map(quoted, wanted))}")
    return {name: arrays[name] for name in wanted}


def activation_scales(
    document: Document, layers: Sequence[Linear], feeds: dict[str, NDArray], scratch: Path
) -> dict[str, float]:
    """The scale of each value of the main graph that layers multiply: its largest magnitude / 127.

    Args:
        document: the model, which is run in a process of its own.
        layers: whose inputs are looked at; those in subgraphs and functions are left out.
        feeds: inputs of the model, by name.
        scratch: a directory for a copy of the model, and for inputs and outputs.

    Raises:
        InputError: the model does not run on the inputs, or a layer's input is not finite.
    """
    names = list(dict.fromkeys(layer.x for layer in layers if in_main_graph(layer)))
    if not names:
        return {}
    path = scratch / "calibration.onnx"
    with ModelWriter(path, document.files) as writer:
        writer.save(_with_largest(document.proto, names))
    answer = run_models(document.path, [(path, False, None)], [[feeds]], scratch)
    result = answer["models"][0]
    if result["error"] is not None:
        raise InputError(f"{document.path} does not run on the calibration inputs: {' '.join(result['error'].split())}")
    largest = [float(array) for array in arrays_of(result)[-len(names) :]]
    for name, value in zip(names, largest, strict=True):
        if not np.isfinite(value):
            raise InputError(f"{document.path}: {quoted(name)} is not finite on the calibration inputs")
    return {name: value / INT8_LARGEST for name, value in zip(names, largest, strict=True)}


def in_main_graph(layer: Linear) -> bool:
    """Whether its input can be looked at; values of subgraphs and functions have names of their own."""
    return layer.body.parent is None and not layer.body.is_function


def _with_largest(proto: ModelProto, names: Sequence[str]) -> ModelProto:
    """The model with the largest magnitude of each value as one more output, in this order."""
    model = copy.deepcopy(proto)
    for place, name in enumerate(names):
        magnitude, largest = (f"hebbline.calibration.{what}.{place}" for what in ("magnitude", "largest"))
        model.graph.node.append(helper.make_node("Abs", [name], [magnitude]))
        model.graph.node.append(helper.make_node("ReduceMax", [magnitude], [largest], keepdims=0))
        model.graph.output.append(ValueInfoProto(name=largest))
    return model
