"""The attention of an exported Llama in its two forms: stock ONNX Runtime, and the op of `ai.hebbline`.

Legend: B batch (slots), S tokens a slot in this step, C context (cache length), H query heads, G key/value heads, D
head size; T flattened tokens of a step, Q sequences in it, N slots of the cache.
"""

from collections.abc import Sequence
from typing import Protocol

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
        """Rotary embedding, cache write and causal attention over the real length, by one node.

        `qkv` names queries, keys and values, or one value that has them side by side in its last dimension.
        Declares the layer's cache among the graph's inputs and outputs; the initializers `rotary.cos` and `rotary.sin`
        [C, D / 2] exist.
        """


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
        shape: list[int | str] = ["batch", source.num_kv_heads, "context", source.head_dim]
        past = [builder.input(f"past_key_values.{layer}.{part}", FLOAT, shape) for part in ("key", "value")]
        present = [builder.output(f"present.{layer}.{part}", FLOAT, shape) for part in ("key", "value")]
        return builder.node(
            "GroupQueryAttention",
            [*_three(qkv), *past, "seqlens_k", "total_sequence_length", "rotary.cos", "rotary.sin"],
            [output, *present],
            MICROSOFT,
            num_heads=source.config.num_attention_heads,
            kv_num_heads=source.num_kv_heads,
            scale=source.head_dim**-0.5,
            do_rotary=1,
        )


class VarlenAttention:
    """The op `VarlenAttention` of `ai.hebbline`, which only the op library has: any sequences, any tokens of each.

    Inputs: input_ids [T] int64, the new tokens of all sequences one after the other; cu_seqlens [Q + 1] int32:
    sequence q has the tokens [cu_seqlens[q], cu_seqlens[q + 1]); slots [Q] int32, the slot of each, no slot twice; past
    [Q] int32, the tokens that the slot holds already; cache.<layer> uint8 [N, G, blocks, bytes]. Outputs:
    cache_out.<layer>, to be bound to the buffer of the cache.

    The cache is opaque bytes, so that one graph serves every format of keys and values: a block holds 16 tokens of one
    head, and its number of bytes says in which format. `serve.engine.varlen` sizes it, kernels/attention defines it.
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
        shape: list[int | str] = ["cache_slots", source.num_kv_heads, "blocks", "block_bytes"]
        cache = builder.input(f"cache.{layer}", TensorProto.UINT8, shape)
        return builder.node(
            "VarlenAttention",
            [*_three(qkv), "cu_seqlens", "slots", "past", "rotary.cos", "rotary.sin", cache],
            [output, builder.output(f"cache_out.{layer}", TensorProto.UINT8, shape)],
            DOMAIN,
            num_heads=source.config.num_attention_heads,
            kv_num_heads=source.num_kv_heads,
        )


def _three(qkv: Sequence[str]) -> list[str]:
    """Three inputs of a node: both ops take what lies side by side as the first, the others left out."""
    return [*qkv, "", ""][:3]
