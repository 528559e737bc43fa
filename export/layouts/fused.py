"""Ops of several linear layers over the same X: what the op library computes in one go, and their portable functions.

Legend: N out_features, K in_features of a layer; F out_features of gate and up.

For each layout's op `<Layout>Linear<Values>` there are `<Layout>GatedLinear<Values>`, the first half of a gated MLP,

    Y = activation(X Wgate^T + gate_bias) * (X Wup^T + up_bias)    [..., F]

and `<Layout>QkvLinear<Values>`, the projections of attention side by side,

    Y = [X Wq^T + q_bias, X Wk^T + k_bias, X Wv^T + v_bias]  [..., Nq + Nk + Nv]

Inputs: X, the tensors of each layer in turn (see `Layout.tensor_names`), then their biases, which may be left out.
Attributes: in_features, K, and of the first `activation`: "silu" where it is left out, or "gelu", "gelu_tanh", "relu".
Their functions call the layout's own, so that a model contains those too. The body of a gated op's function has the one
activation that all such ops of the file have: a function cannot choose its nodes by an attribute.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import onnx
from onnx import helper

from .layout import DOMAIN, DOMAIN_VERSION, OPSET, Layout

if TYPE_CHECKING:  # it would import transformers
    from ...architectures import Activation

FusedKind = Literal["gated", "qkv"]


@dataclass(frozen=True)
class FusedOp:
    """A kind of fused op over layers of one layout; `activation` is that of a gated one."""

    kind: FusedKind
    layout: Layout
    activation: "Activation" = "silu"

    @property
    def parts(self) -> tuple[str, ...]:
        """What the layers are called, in the order of the op's inputs."""
        return ("gate", "up") if self.kind == "gated" else ("q", "k", "v")

    @property
    def op_type(self) -> str:
        """The op's name in the domain `ai.hebbline`."""
        return self.layout.op_type.replace("Linear", f"{self.kind.capitalize()}Linear")

    def function(self) -> onnx.FunctionProto:
        """The op as a model-local function: the layout's own op for each layer, then standard ONNX ops."""
        names = {part: [f"{part}_{name}" for name in self.layout.tensor_names] for part in self.parts}
        biases = [f"{part}_bias" for part in self.parts]
        inputs = ["X", *(name for part in self.parts for name in names[part]), *biases]
        layers = [self._layer(part, names[part]) for part in self.parts]
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
        return helper.make_function(
            DOMAIN, self.op_type, inputs, ["Y"], [*layers, *self._ending()], opsets, ["in_features", *self.attributes]
        )

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes of a node beside in_features. One of silu has none, so that earlier op libraries run it."""
        return {} if self.kind == "qkv" or self.activation == "silu" else {"activation": self.activation}

    def _layer(self, part: str, tensors: list[str]) -> onnx.NodeProto:
        node = helper.make_node(self.layout.op_type, ["X", *tensors, f"{part}_bias"], [part], domain=DOMAIN)
        node.attribute.append(
            onnx.AttributeProto(name="in_features", ref_attr_name="in_features", type=onnx.AttributeProto.INT)
        )
        return node

    def _ending(self) -> list[onnx.NodeProto]:
        if self.kind == "qkv":
            return [helper.make_node("Concat", list(self.parts), ["Y"], axis=-1)]
        return [*self._activated(), helper.make_node("Mul", ["gate_activated", "up"], ["Y"])]

    def _activated(self) -> list[onnx.NodeProto]:
        if self.activation == "silu":
            return [
                helper.make_node("Sigmoid", ["gate"], ["gate_sigmoid"]),
                helper.make_node("Mul", ["gate", "gate_sigmoid"], ["gate_activated"]),
            ]
        if self.activation == "relu":
            return [helper.make_node("Relu", ["gate"], ["gate_activated"])]
        return _GELU_TANH if self.activation == "gelu_tanh" else _GELU


def _constant(name: str, value: float) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value_float=value)


# In nodes that every runtime and ONNX's own evaluator have; some lack Gelu.
_HALVES = [_constant("half", 0.5), _constant("one", 1.0), helper.make_node("Mul", ["gate", "half"], ["gate_half"])]
_GELU = [
    *_HALVES,
    _constant("inverse_root", 0.5**0.5),
    helper.make_node("Mul", ["gate", "inverse_root"], ["gate_scaled"]),
    helper.make_node("Erf", ["gate_scaled"], ["gate_erf"]),
    helper.make_node("Add", ["gate_erf", "one"], ["gate_share"]),
    helper.make_node("Mul", ["gate_half", "gate_share"], ["gate_activated"]),
]
_GELU_TANH = [
    *_HALVES,
    _constant("cubic", 0.044715),
    _constant("root", (2 / math.pi) ** 0.5),
    helper.make_node("Mul", ["gate", "gate"], ["gate_squared"]),
    helper.make_node("Mul", ["gate_squared", "cubic"], ["gate_cubic"]),
    helper.make_node("Add", ["gate_cubic", "one"], ["gate_factor"]),
    helper.make_node("Mul", ["gate", "root"], ["gate_rooted"]),
    helper.make_node("Mul", ["gate_rooted", "gate_factor"], ["gate_inner"]),
    helper.make_node("Tanh", ["gate_inner"], ["gate_tanh"]),
    helper.make_node("Add", ["gate_tanh", "one"], ["gate_share"]),
    helper.make_node("Mul", ["gate_half", "gate_share"], ["gate_activated"]),
]
