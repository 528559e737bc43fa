"""The walk over a `Decoder` that writes a graph, one node after the other; two emitters say what each step becomes.

Legend: E hidden size, H heads, D head size, V vocabulary.

The residual stream is kept as the sum so far and what is still to be added to it, as a runtime may have one operator
for that sum and the norm that follows it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...architectures import Norm, Norms, Part, QueryKeyNorm
from ..progress import each
from .source import SourceModel


@dataclass(frozen=True)
class Stream:
    """The residual stream: the sum so far, and what is to be added to it."""

    hidden: str
    update: str | None = None


class DecoderEmitter(ABC):
    """Writes the graph of a decoder.

    Args:
        source: the model. leading: the dimensions of activations before the last: 1 where tokens are flattened, else 2.
        progress: told how many layers are written.
    """

    def __init__(self, source: SourceModel, leading: int, progress: Callable[[str], None] = lambda stage: None) -> None:
        self._progress = progress
        self.source = source
        self.decoder = source.decoder
        self._leading = leading

    # What an emitter decides.

    @abstractmethod
    def node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a standard node with one output, and return that."""

    @abstractmethod
    def number(self, name: str, value: NDArray | Callable[[], NDArray]) -> str:
        """Add a constant in the type of activations, or what makes it, once, and return its name."""

    @abstractmethod
    def constant(self, name: str, value: NDArray) -> str:
        """Add a constant as it is, once, and return its name."""

    @abstractmethod
    def projection(self, name: str, x: str) -> str:
        """A projection of the model, with its bias."""

    @abstractmethod
    def attend(self, layer: int, x: str) -> str:
        """Attention of a layer over what its block reads, before the output projection."""

    @abstractmethod
    def gated(self, parts: Sequence[Part], x: str, output: str) -> str:
        """activation(gate) * up."""

    @abstractmethod
    def mixture(self, path: str, x: str) -> str:
        """The experts of a layer, each of whose MLPs `mlp_block` writes."""

    @abstractmethod
    def positions(self) -> str:
        """The position of each token, int64."""

    @abstractmethod
    def finish(self, stream: Stream) -> None:
        """From the stream after the last layer to the logits."""

    def normed_sum(self, stream: Stream, name: str) -> tuple[Stream, str]:
        """The stream with its update added, and the norm of that."""
        total = self.total(stream, f"{name}.sum")
        return total, self.norm(total.hidden, name, self.decoder.norm, self.decoder.hidden_size, name)

    def activated(self, x: str, output: str) -> str:
        """The activation of the MLPs."""
        activation = self.decoder.mlp.activation
        if activation == "relu":
            return self.node("Relu", [x], output)
        if activation == "silu":
            # ONNX Runtime fuses Sigmoid and Mul into one SiLU.
            return self.node("Mul", [x, self.node("Sigmoid", [x], f"{output}.sigmoid")], output)
        return self.node("Gelu", [x], output, approximate="tanh" if activation == "gelu_tanh" else "none")

    # The walk.

    def walk(self) -> None:
        """Write all nodes, from the embedding to the logits."""
        stream = Stream(self._embedded())
        for layer in each(range(len(self.decoder.layers)), "packing the layers", self._progress):
            stream = self._parallel(layer, stream) if self.decoder.parallel else self._sequential(layer, stream)
        self.finish(stream)

    def _embedded(self) -> str:
        decoder = self.decoder
        embedding = self.number(f"{decoder.embedding}.weight", lambda: self.source.weight(decoder.embedding))
        hidden = self.node("Gather", [embedding, "input_ids"], "embedded")
        hidden = self._scaled(hidden, decoder.embedding_scale, "embedding_scale")
        if decoder.positions is None:
            return hidden
        table_CE = self.source.weight(decoder.positions.module)[decoder.positions.offset :]
        table = self.number(f"{decoder.positions.module}.weight", table_CE)
        return self.node("Add", [hidden, self.node("Gather", [table, self.positions()], "positioned")], "placed")

    def _sequential(self, layer: int, stream: Stream) -> Stream:
        path = self.decoder.layer(layer)
        stream = self._block(
            path, stream, self.decoder.attention_norms, "attention", lambda x: self._attention(layer, x)
        )
        return self._block(path, stream, self.decoder.mlp_norms, "mlp", lambda x: self._mlp(layer, x))

    def _block(self, path: str, stream: Stream, norms: Norms, name: str, block: Callable[[str], str]) -> Stream:
        stream, read = self._read(stream, path, norms.before, name)
        update = block(read)
        if norms.after:
            after = f"{path}.{norms.after}"
            update = self.norm(update, after, self.decoder.norm, self.decoder.hidden_size, after)
        stream = Stream(stream.hidden, self._scaled(update, self.decoder.residual_scale, "residual_scale"))
        if not norms.stream:
            return stream
        return Stream(self.normed_sum(stream, f"{path}.{norms.stream}")[1])

    def _parallel(self, layer: int, stream: Stream) -> Stream:
        path, decoder = self.decoder.layer(layer), self.decoder
        stream, read = self._read(stream, path, decoder.attention_norms.before, "attention")
        attended = self._attention(layer, read)
        if not decoder.shared_norm:
            stream, read = self._read(stream, path, decoder.mlp_norms.before, "mlp")
        update = self.node("Add", [attended, self._mlp(layer, read)], f"{path}.update")
        return Stream(stream.hidden, self._scaled(update, decoder.residual_scale, "residual_scale"))

    def _read(self, stream: Stream, path: str, norm: str, name: str) -> tuple[Stream, str]:
        """The stream with its update added, and what a block reads of it."""
        if norm:
            return self.normed_sum(stream, f"{path}.{norm}")
        total = self.total(stream, f"{path}.{name}.sum")
        return total, total.hidden

    def _attention(self, layer: int, x: str) -> str:
        return self.projection(f"{self.decoder.layer(layer)}.{self.decoder.attention.output}", self.attend(layer, x))

    def _mlp(self, layer: int, x: str) -> str:
        path = self.decoder.layer(layer)
        return self.mlp_block(path, x) if self.decoder.mlp.experts is None else self.mixture(path, x)

    def mlp_block(self, block: str, x: str) -> str:
        """An MLP (see `Mlp.blocks`)."""
        mlp, parts = self.decoder.mlp, self.source.mlp_parts(block)
        if mlp.gated:
            product = self.gated(parts, x, f"{block}.product")
        else:
            product = self.activated(self.projection(parts[0].name, x), f"{block}.activated")
        return self.projection(f"{block}.{mlp.output}", product)

    # Pieces that emitters share.

    def total(self, stream: Stream, name: str) -> Stream:
        """The stream with its update added."""
        if stream.update is None:
            return stream
        return Stream(self.node("Add", [stream.hidden, stream.update], name))

    def norm(self, x: str, name: str, norm: Norm, size: int, output: str) -> str:
        """The norm of the last dimension, with the weights of the module `name`."""
        scale, bias = self.norm_weights(name, norm, size)
        operator = "RMSNormalization" if norm.kind == "rms" else "LayerNormalization"
        inputs = [x, scale] if bias is None else [x, scale, bias]
        return self.node(operator, inputs, output, axis=-1, epsilon=norm.epsilon)

    def norm_weights(self, name: str, norm: Norm, size: int) -> tuple[str, str | None]:
        """The scale, and the bias where there is one."""
        if not norm.affine:
            return self.number(f"ones.{size}", np.ones(size, np.float32)), None
        scale = self.source.weight(name) + np.float32(norm.offset) if norm.offset else self.source.weight(name)
        named = self.number(f"{name}.weight", scale)
        if getattr(self.source.model.get_submodule(name), "bias", None) is None:
            return named, None
        return named, self.number(f"{name}.bias", self.source.parameter(f"{name}.bias"))

    def separate_heads(self, layer: int, x: str) -> list[str]:
        """Queries, keys and values, each from its own projection, clipped and normed where the decoder says so."""
        attention, path = self.decoder.attention, self.decoder.layer(layer)
        made = [self._clipped(self.projection(part.name, x)) for part in self.source.attention_parts(layer)]
        if (norm := attention.norm) is not None:
            made[0] = self._normed_heads(made[0], f"{path}.{norm.queries}", attention.heads, norm)
            made[1] = self._normed_heads(made[1], f"{path}.{norm.keys}", attention.kv_heads, norm)
        return made

    def finish_logits(self, make: Callable[[str], object], bias: bool) -> None:
        """Write the node `logits`, float32: `make` writes the product with lm_head under a name that it is given."""
        steps: list[tuple[str, str | None]] = []
        if bias:
            name = f"{self.decoder.head}.bias"
            steps.append(("Add", self.constant(name, self.source.parameter(name))))
        if self.decoder.logit_divisor != 1:
            steps.append(("Div", self.scalar("logit_divisor", self.decoder.logit_divisor)))
        if self.decoder.logit_softcap:
            cap = self.scalar("logit_softcap", self.decoder.logit_softcap)
            steps += [("Div", cap), ("Tanh", None), ("Mul", cap)]
        values = [*(f"logits.{place}" for place in range(len(steps))), "logits"]
        make(values[0])
        for (operator, operand), x, output in zip(steps, values, values[1:], strict=False):
            self.node(operator, [x] if operand is None else [x, operand], output)

    def integers(self, name: str, *values: int) -> str:
        """A constant vector of int64."""
        return self.constant(name, np.array(values, np.int64))

    def split_heads(self, x: str, heads: int, size: int) -> str:
        """[..., heads * size] as [..., heads, size]."""
        shape = self._shape(f"split_in_{heads}_of_{size}", heads, size)
        return self.node("Reshape", [x, shape], f"{x}.split")

    def _shape(self, name: str, *last: int) -> str:
        """A shape that keeps the leading dimensions. Graphs over one weight file differ in these, and in the name."""
        return self.integers(f"{name}_{self._leading}", *([0] * self._leading), *last)

    def _clipped(self, x: str) -> str:
        if not (most := self.decoder.attention.clip):
            return x
        bounds = [self._typed_scalar("clip.least", -most), self._typed_scalar("clip.most", most)]
        return self.node("Clip", [x, *bounds], f"{x}.clipped")

    def _normed_heads(self, x: str, name: str, heads: int, norm: QueryKeyNorm) -> str:
        """Queries or keys [..., H * D] normed, with heads of the graph's size."""
        size, whole = self.decoder.attention.head_size, self.decoder.graph_head_size
        if norm.span == "all":
            x = self.norm(x, name, norm.norm, heads * size, f"{name}.output")
            if size == whole:
                return x
        split = self.split_heads(x, heads, size)
        if norm.span == "head":
            split = self.norm(split, name, norm.norm, size, f"{name}.output")
        elif norm.span == "each":
            split = self._each_normed(split, name, heads, norm.norm)
        if size != whole:
            padding = self.integers(f"pad_heads_{self._leading}", *([0] * (2 * self._leading + 3)), whole - size)
            split = self.node("Pad", [split, padding], f"{name}.padded")
        return self.node("Reshape", [split, self._shape("merge_heads", -1)], f"{name}.heads")

    def _each_normed(self, split: str, name: str, heads: int, norm: Norm) -> str:
        """Each head [..., H, D] by a norm of its own, all of them without bias."""
        size = self.decoder.attention.head_size
        plain = self.norm(split, name, Norm(norm.kind, norm.epsilon, affine=False), size, f"{name}.plain")
        weights_HD = np.stack([self.source.weight(f"{name}.norms.{head}") for head in range(heads)])
        return self.node("Mul", [plain, self.number(f"{name}.weight", weights_HD)], f"{name}.output")

    def _scaled(self, x: str, scale: float, name: str) -> str:
        return x if scale == 1 else self.node("Mul", [x, self._typed_scalar(name, scale)], f"{x}.scaled")

    def scalar(self, name: str, value: float) -> str:
        """A constant float32 number."""
        return self.constant(name, np.array(value, np.float32))

    def _typed_scalar(self, name: str, value: float) -> str:
        return self.number(name, np.array(value, np.float32))
