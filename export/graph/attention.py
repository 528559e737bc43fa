"""The attention of an exported decoder in its two forms: stock ONNX Runtime, and the op of `ai.hebbline`.

Legend: B batch (slots), S tokens a slot in this step, C context (cache length), H query heads, G key/value heads, D
head size; D2 pairs of places that turn; T flattened tokens of a step, Q sequences in it, N slots of the cache.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from onnx import TensorProto

from ..layouts import DOMAIN
from .builder import MICROSOFT, GraphBuilder
from .source import SourceModel

FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


class AttentionForm(Protocol):
    """How a graph takes the tokens of a step and keeps keys and values.

    `flat` says whether activations are [T, ...]; otherwise they are [B, S, ...]. `portable`: whether any ONNX Runtime
    can run the graph.
    """

    flat: bool
    portable: bool

    def declare_inputs(self, builder: GraphBuilder) -> None:
        """Declare the inputs that say which tokens the step has, `input_ids` among them."""

    def attend(self, builder: GraphBuilder, source: SourceModel, layer: int, qkv: Sequence[str], output: str) -> str:
        """Rotary embedding, cache write and causal attention over the real length.

        `qkv` names queries, keys and values, or one value that has them side by side in its last dimension.
        Declares the layer's cache among the graph's inputs and outputs; the initializers `<table>.cos` and
        `<table>.sin` [C, D2] exist for the rotary table of the layer.
        """

    def takes_packed(self, source: SourceModel) -> bool:
        """Whether `attend` takes queries, keys and values of this model side by side."""

    def positions(self, builder: GraphBuilder, name: str) -> str:
        """The position of each token, int64, as the node `name`."""


class StockAttention:
    """ONNX Runtime's GroupQueryAttention, the only stock form whose cost follows the real length.

    Inputs: input_ids [B, S] int64; seqlens_k [B] int32, the number of valid cache entries after this step minus 1;
    total_sequence_length [] int32, the largest such number over the batch, without the minus 1;
    past_key_values.<layer>.key and .value [B, G, C, D] float32. Outputs: present.<layer>.key and .value, to be bound to
    the buffers of the past.

    B > 1 with S > 1 is allowed at an empty past only: prefill slot by slot, then decode slots together. C is a symbolic
    dimension: a runner may bind any cache up to the rotary table's length.
    """

    flat = False
    portable = True

    def declare_inputs(self, builder: GraphBuilder) -> None:
        """See `AttentionForm.declare_inputs`."""
        builder.input("input_ids", INT64, ["batch", "sequence"])
        builder.input("seqlens_k", INT32, ["batch"])
        builder.input("total_sequence_length", INT32, [])

    def attend(self, builder: GraphBuilder, source: SourceModel, layer: int, qkv: Sequence[str], output: str) -> str:
        """See `AttentionForm.attend`."""
        decoder, kind = source.decoder, source.decoder.layers[layer]
        shape: list[int | str] = ["batch", source.num_kv_heads, "context", source.head_dim]
        past = [builder.input(f"past_key_values.{layer}.{part}", FLOAT, shape) for part in ("key", "value")]
        present = [builder.output(f"present.{layer}.{part}", FLOAT, shape) for part in ("key", "value")]
        attributes: dict[str, Any] = {"scale": decoder.scale(layer)}
        if kind.window:
            attributes["local_window_size"] = kind.window
        if decoder.attention.softcap:
            attributes["softcap"] = decoder.attention.softcap
        tables = [f"{kind.rotary}.cos", f"{kind.rotary}.sin"] if kind.rotary else []
        if kind.rotary and not _turns_itself(source):
            qkv, tables = self._turned(builder, source, layer, qkv, tables), []
        return builder.node(
            "GroupQueryAttention",
            [*_three(qkv), *past, "seqlens_k", "total_sequence_length", *tables],
            [output, *present],
            MICROSOFT,
            num_heads=decoder.attention.heads,
            kv_num_heads=source.num_kv_heads,
            do_rotary=int(bool(tables)),
            **attributes,
        )

    def takes_packed(self, source: SourceModel) -> bool:
        """See `AttentionForm.takes_packed`."""
        return source.decoder.rotary is None or _turns_itself(source)

    def positions(self, builder: GraphBuilder, name: str) -> str:
        """See `AttentionForm.positions`: a slot's last token stands at its `seqlens_k`."""
        constants = {"place.0": np.array(0, np.int64), "place.1": np.array(1, np.int64), "axis.1": np.array([1])}
        zero, one, axis = (builder.initializer(key, value) for key, value in constants.items())
        extents = builder.node("Shape", ["input_ids"], f"{name}.shape")
        length = builder.node("Gather", [extents, one], f"{name}.length")
        steps = builder.node("Range", [zero, length, one], f"{name}.steps")
        last = builder.node("Cast", ["seqlens_k"], f"{name}.last", to=INT64)
        ends = builder.node("Unsqueeze", [builder.node("Add", [last, one], f"{name}.held"), axis], f"{name}.ends")
        return builder.node("Add", [builder.node("Sub", [ends, length], f"{name}.first"), steps], name)

    def _turned(
        self, builder: GraphBuilder, source: SourceModel, layer: int, qkv: Sequence[str], tables: Sequence[str]
    ) -> list[str]:
        """Queries and keys after a rotary embedding that GroupQueryAttention does not have."""
        attention, rotary = source.decoder.attention, source.decoder.rotary
        assert rotary is not None
        # In each layer anew: integers do not leave a piece of a graph that is run piecewise.
        positions = self.positions(builder, f"{source.decoder.layer(layer)}.positions")
        turned = [
            builder.node(
                "RotaryEmbedding",
                [x, *tables, positions],
                f"{x}.turned",
                num_heads=heads,
                rotary_embedding_dim=rotary.size,
            )
            for x, heads in zip(qkv, (attention.heads, attention.kv_heads), strict=False)
        ]
        return [*turned, qkv[2]]


def _turns_itself(source: SourceModel) -> bool:
    """Whether GroupQueryAttention has the model's rotary embedding: it takes pairs by the eight."""
    rotary = source.decoder.rotary
    return rotary is not None and rotary.size % 16 == 0


class VarlenAttention:
    """The op `VarlenAttention` of `ai.hebbline`, which only the op library has: any sequences, any tokens of each.

    Inputs: input_ids [T] int64, the new tokens of all sequences one after the other; cu_seqlens [Q + 1] int32:
    sequence q has the tokens [cu_seqlens[q], cu_seqlens[q + 1]); slots [Q] int32, the slot of each, no slot twice; past
    [Q] int32, the tokens that the slot holds already; cache.<layer> uint8 [N, G, blocks, bytes]. Outputs:
    cache_out.<layer>, to be bound to the buffer of the cache.

    The cache is opaque bytes, so that one graph serves every format of keys and values: a block holds 16 tokens of one
    head, and its number of bytes says in which format. `runtime.varlen` sizes it, kernels/attention defines it.
    """

    flat = True
    portable = False

    def declare_inputs(self, builder: GraphBuilder) -> None:
        """See `AttentionForm.declare_inputs`."""
        builder.input("input_ids", INT64, ["tokens"])
        builder.input("cu_seqlens", INT32, ["bounds"])
        builder.input("slots", INT32, ["sequences"])
        builder.input("past", INT32, ["sequences"])

    def attend(self, builder: GraphBuilder, source: SourceModel, layer: int, qkv: Sequence[str], output: str) -> str:
        """See `AttentionForm.attend`."""
        decoder, kind = source.decoder, source.decoder.layers[layer]
        shape: list[int | str] = ["cache_slots", source.num_kv_heads, "blocks", "block_bytes"]
        cache = builder.input(f"cache.{layer}", TensorProto.UINT8, shape)
        tables = [f"{kind.rotary}.cos", f"{kind.rotary}.sin"] if kind.rotary else ["", ""]
        attributes: dict[str, Any] = {}
        if decoder.scale(layer) != source.head_dim**-0.5:
            attributes["scale"] = decoder.scale(layer)
        if kind.window:
            attributes["window"] = kind.window
        if decoder.attention.softcap:
            attributes["softcap"] = decoder.attention.softcap
        return builder.node(
            "VarlenAttention",
            [*_three(qkv), "cu_seqlens", "slots", "past", *tables, cache],
            [output, builder.output(f"cache_out.{layer}", TensorProto.UINT8, shape)],
            DOMAIN,
            num_heads=decoder.attention.heads,
            kv_num_heads=source.num_kv_heads,
            **attributes,
        )

    def takes_packed(self, source: SourceModel) -> bool:
        """See `AttentionForm.takes_packed`."""
        return True

    def positions(self, builder: GraphBuilder, name: str) -> str:
        """See `AttentionForm.positions`: a token's place in its sequence, after what the slot holds."""
        constants = {"place.0": np.array(0, np.int64), "place.1": np.array(1, np.int64), "axis.1": np.array([1])}
        zero, one, axis = (builder.initializer(key, value) for key, value in constants.items())
        tokens = builder.node("Size", ["input_ids"], f"{name}.tokens")
        places = builder.node("Range", [zero, tokens, one], f"{name}.places")
        starts = builder.node("Cast", ["cu_seqlens"], f"{name}.starts", to=INT64)
        begun = builder.node(
            "GreaterOrEqual", [builder.node("Unsqueeze", [places, axis], f"{name}.column"), starts], f"{name}.begun"
        )
        counted = builder.node("Cast", [begun], f"{name}.counted", to=INT64)
        count = builder.node("ReduceSum", [counted, axis], f"{name}.count", keepdims=0)
        # The sequence of a token is the last that has begun. One without tokens begins with the one after it.
        sequence = builder.node("Sub", [count, one], f"{name}.sequence")
        start = builder.node("Gather", [starts, sequence], f"{name}.start")
        held = builder.node(
            "Cast", [builder.node("Gather", ["past", sequence], f"{name}.held")], f"{name}.wide", to=INT64
        )
        return builder.node("Add", [builder.node("Sub", [places, start], f"{name}.step"), held], name)


def _three(qkv: Sequence[str]) -> list[str]:
    """Three inputs of a node: both ops take what lies side by side as the first, the others left out."""
    return [*qkv, "", ""][:3]
