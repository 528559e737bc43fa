"""Ops of several linear layers over the same X: what the op library computes in one go, and their portable functions.

Legend: N out_features, K in_features of a layer; F out_features of gate and up.

For each layout's op `<Layout>Linear<Values>` there are `<Layout>GatedLinear<Values>`, the first half of a Llama's MLP,

    Y = silu(X Wgate^T + gate_bias) * (X Wup^T + up_bias)    [..., F]

and `<Layout>QkvLinear<Values>`, the projections of attention side by side,

    Y = [X Wq^T + q_bias, X Wk^T + k_bias, X Wv^T + v_bias]  [..., Nq + Nk + Nv]

Inputs: X, the tensors of each layer in turn (see `Layout.tensor_names`), then their biases, which may be left out.
Attribute: in_features, K. Their functions call the layout's own, so that a model carries those too.
"""

from dataclasses import dataclass
from typing import Literal

import onnx
from onnx import helper

from .layout import DOMAIN, DOMAIN_VERSION, OPSET, Layout

FusedKind = Literal["gated", "qkv"]


@dataclass(frozen=True)
class FusedOp:
    """A kind of fused op over layers of one layout."""

    kind: FusedKind
    layout: Layout

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
            DOMAIN, self.op_type, inputs, ["Y"], [*layers, *self._ending()], opsets, ["in_features"]
        )

    def _layer(self, part: str, tensors: list[str]) -> onnx.NodeProto:
        node = helper.make_node(self.layout.op_type, ["X", *tensors, f"{part}_bias"], [part], domain=DOMAIN)
        node.attribute.append(
            onnx.AttributeProto(name="in_features", ref_attr_name="in_features", type=onnx.AttributeProto.INT)
        )
        return node

    def _ending(self) -> list[onnx.NodeProto]:
        if self.kind == "qkv":
            return [helper.make_node("Concat", list(self.parts), ["Y"], axis=-1)]
        return [
            helper.make_node("Sigmoid", ["gate"], ["gate_sigmoid"]),
            helper.make_node("Mul", ["gate", "gate_sigmoid"], ["gate_activated"]),
            helper.make_node("Mul", ["gate_activated", "up"], ["Y"]),
        ]
