"""A decoder as one ONNX graph for prefill and decode, with a KV cache that is updated in place.

Legend: R rows of the flattened tokens of a step whose logits are wanted, E hidden size, V vocabulary; see `attention`
for the rest.

Inputs are those of the attention's form (see `attention`) and logit_rows [R] int64, indices into the flattened tokens.
Outputs are logits [R, V] float32, and the caches. The wanted rows are gathered before the final norm and lm_head.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from ...architectures import Part
from ..layouts import DOMAIN
from .attention import AttentionForm
from .builder import MICROSOFT, GraphBuilder, LinearLayer
from .emitter import DecoderEmitter, Stream
from .head import HeadForm, add_head, has_bias
from .mixture import add_mixture
from .source import SourceModel
from .weights import WeightFile


def build_decoder(
    source: SourceModel,
    weights: WeightFile,
    attention: AttentionForm,
    lm_head: HeadForm = "packed",
    progress: Callable[[str], None] = lambda stage: None,
) -> onnx.ModelProto:
    """The ONNX model, with its initializers in `weights`, whose `choices` say which layout each projection got.

    Args:
        source: the model.
        weights: may hold the tensors of other graphs of this model; see `add_head` on their forms of lm_head.
        attention: the form of attention, and with it of the inputs.
        lm_head: the form of lm_head.
        progress: told how many layers are packed.
    """
    builder = GraphBuilder(weights)
    attention.declare_inputs(builder)
    builder.input("logit_rows", TensorProto.INT64, ["rows"])
    for name, tables in source.rotary_tables().items():
        for part, table in zip(("cos", "sin"), tables, strict=True):
            builder.initializer(f"{name}.{part}", table)
    _CpuEmitter(source, builder, attention, lm_head, progress).walk()
    return builder.model(source.model.config.model_type, portable=attention.portable)


class _CpuEmitter(DecoderEmitter):
    """Writes to a `GraphBuilder`, for stock ONNX Runtime or for the op library."""

    def __init__(
        self,
        source: SourceModel,
        builder: GraphBuilder,
        attention: AttentionForm,
        lm_head: HeadForm,
        progress: Callable[[str], None],
    ) -> None:
        super().__init__(source, 1 if attention.flat else 2, progress)
        self._builder = builder
        self._form = attention
        self._lm_head: HeadForm = lm_head

    def node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """See `DecoderEmitter.node`."""
        return self._builder.node(op_type, inputs, output, **attributes)

    def number(self, name: str, value: NDArray | Callable[[], NDArray]) -> str:
        """See `DecoderEmitter.number`."""
        return self._builder.initializer(name, value)

    def constant(self, name: str, value: NDArray) -> str:
        """See `DecoderEmitter.constant`."""
        return self._builder.initializer(name, value)

    def projection(self, name: str, x: str) -> str:
        """See `DecoderEmitter.projection`."""
        return self._builder.linear(x, self._layer(name), f"{name}.output")

    def positions(self) -> str:
        """See `DecoderEmitter.positions`."""
        return self._form.positions(self._builder, "positions")

    def attend(self, layer: int, x: str) -> str:
        """See `DecoderEmitter.attend`."""
        output = f"{self.decoder.layer(layer)}.attended"
        return self._form.attend(self._builder, self.source, layer, self._heads(layer, x), output)

    def gated(self, parts: Sequence[Part], x: str, output: str) -> str:
        """See `DecoderEmitter.gated`."""
        layers = [self._layer(part.name) for part in parts]
        product = self._builder.fused("gated", x, layers, output, self.decoder.mlp.activation)
        if product is not None:
            return product
        gate, up = (self._builder.linear(x, layer, f"{layer.name}.output") for layer in layers)
        return self.node("Mul", [self.activated(gate, f"{output}.gate"), up], output)

    def mixture(self, path: str, x: str) -> str:
        """See `DecoderEmitter.mixture`: over flattened tokens."""
        experts = self.decoder.mlp.experts
        assert experts is not None
        blocks = {block: partial(self.mlp_block, block) for block in self.decoder.mlp.blocks(path)}
        router = self.number(
            f"{path}.{experts.router}.weight", self.source.parameter(f"{path}.{experts.router}.weight")
        )
        if self._form.flat:
            return add_mixture(self._builder, path, experts, router, x, blocks)
        flat = self.node(
            "Reshape", [x, self.integers("flat_shape", -1, self.decoder.hidden_size)], f"{path}.experts.flat"
        )
        made = add_mixture(self._builder, path, experts, router, flat, blocks)
        shape = self.node("Shape", [x], f"{path}.experts.extents")
        return self.node("Reshape", [made, shape], f"{path}.experts.output")

    def normed_sum(self, stream: Stream, name: str) -> tuple[Stream, str]:
        """See `DecoderEmitter.normed_sum`: one operator where there is a sum."""
        norm, size = self.decoder.norm, self.decoder.hidden_size
        if stream.update is None:
            return super().normed_sum(stream, name)
        scale, bias = self.norm_weights(name, norm, size)
        inputs, total = [stream.hidden, stream.update, scale], f"{name}.sum"
        if norm.kind == "rms" and not self._form.portable:
            self._builder.node("ResidualNorm", inputs, [name, total], DOMAIN, epsilon=norm.epsilon)
            return Stream(total), name
        operator = "SkipSimplifiedLayerNormalization" if norm.kind == "rms" else "SkipLayerNormalization"
        inputs += [] if bias is None else [bias]
        self._builder.node(operator, inputs, [name, "", "", total], MICROSOFT, epsilon=norm.epsilon)
        return Stream(total), name

    def finish(self, stream: Stream) -> None:
        """Gather the wanted rows of the stream, then the final norm and lm_head."""
        hidden = self._rows("hidden", stream.hidden)
        rows = Stream(hidden, None if stream.update is None else self._rows("update", stream.update))
        if self.decoder.final_norm:
            normed = self.normed_sum(rows, self.decoder.final_norm)[1]
        else:
            normed = self.total(rows, "head.sum").hidden
        self._builder.output("logits", TensorProto.FLOAT, ["rows", self.decoder.vocab_size])
        make = partial(add_head, self._builder, self.source, self._lm_head, self._form.portable, normed)
        self.finish_logits(make, bias=has_bias(self.source))

    def _rows(self, part: str, name: str) -> str:
        """The wanted rows of a value."""
        if not self._form.flat:
            shape = self.integers("flat_shape", -1, self.decoder.hidden_size)
            name = self.node("Reshape", [name, shape], f"head.{part}.flat")
        return self.node("Gather", [name, "logit_rows"], f"head.{part}.rows", axis=0)

    def _heads(self, layer: int, x: str) -> Sequence[str]:
        """Queries, keys and values: side by side from one op, or each from its own."""
        attention = self.decoder.attention
        if attention.norm is None and not attention.clip and self._form.takes_packed(self.source):
            layers = [self._layer(part.name) for part in self.source.attention_parts(layer)]
            packed = self._builder.fused("qkv", x, layers, f"{self.decoder.layer(layer)}.qkv")
            if packed is not None:
                return [packed]
        return self.separate_heads(layer, x)

    def _layer(self, name: str) -> LinearLayer:
        return LinearLayer.of(self.source, name)
