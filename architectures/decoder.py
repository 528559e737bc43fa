"""What a family of decoder-only Transformers is, as data: everything that reads a model reads it through this.

Legend: N out_features, K in_features of a linear layer; D head size, F neurons of an MLP, C context length.

Modules are named as transformers names them: those of a layer by their path within it ("self_attn.q_proj"), the others
by their whole path. Whether a linear layer has a bias, and whether lm_head shares the embedding, the weights say.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..artifacts import InputError, UnsupportedModelError
from ..artifacts.checkpoints import PACK

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
"""Of an MLP: "gelu" is exact, "gelu_tanh" its approximation by tanh (arXiv 1606.08415)."""
HEAD_SIZE_STEP = 8
"""Head sizes are multiples of this."""
GRAPH_HEAD_STEP = 16
"""What kernels take: in a graph heads of other sizes have places without links up to the next multiple."""


@dataclass(frozen=True)
class Norm:
    """A norm of the whole hidden state.

    Args:
        kind: root mean square (arXiv 1910.07467) or layer norm (arXiv 1607.06450). epsilon: added to the mean square or
        variance. offset: added to the weight, as Gemma's 1 is. affine: it has a weight, and a bias where its module
        has one.
    """

    kind: Literal["rms", "layer"]
    epsilon: float
    offset: float = 0.0
    affine: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < math.inf:
            raise InputError(f"the epsilon of norms is {self.epsilon}; it must be at least 0, and finite")


@dataclass(frozen=True)
class Norms:
    """The norms about a block, each a path or "" for none.

    Args:
        before: of what the block reads. after: of what it adds. stream: of the residual stream once it was added.
    """

    before: str = ""
    after: str = ""
    stream: str = ""


@dataclass(frozen=True)
class QueryKeyNorm:
    """A norm of queries and keys before they are rotated.

    Args:
        queries, keys: paths. span: of each head alone, with one weight [D] for all or a module `norms.<head>` for each
        ("each"), or of all heads together. norm: its kind.
    """

    queries: str
    keys: str
    span: Literal["head", "each", "all"]
    norm: Norm


@dataclass(frozen=True)
class LayerKind:
    """What may differ from layer to layer.

    Args:
        window: the tokens that a token attends to, itself included; 0 for all. rotary: which rotary table turns queries
        and keys, "" for none. scale: of the scores; None is 1 / sqrt(head size).
    """

    window: int = 0
    rotary: str = "rotary"
    scale: float | None = None


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding (arXiv 2104.09864), whose pairs are (d, d + size / 2).

    Args:
        module: path of what computes cosines and sines. size: places of a head, from the first on, that turn.
        by_layer_type: the module takes a layer's type, and has a table for each. original_context: tokens of the
        context before the frequencies were scaled for a longer one; 0 where they were not.
    """

    module: str
    size: int
    by_layer_type: bool = False
    original_context: int = 0


@dataclass(frozen=True)
class Part:
    """A linear layer of the model, or the rows of one that holds several.

    `name` is its own, `module` the whole path of the layer; `rows` are its rows there, None for all.
    """

    name: str
    module: str
    rows: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention.

    Args:
        heads, kv_heads, head_size: of the model. inputs: the paths of queries, keys and values, or the one of all
        three. output: the path of the projection after. fused: how one layer holds the three: all queries, all keys,
        all values ("parts"), or for each key/value head the queries that read it, its keys, its values ("groups").
        softcap: scores become softcap * tanh(score / softcap); 0 for none. clip: queries, keys and values are cut to
        [-clip, clip]; 0 for none. norm: of queries and keys.
    """

    heads: int
    kv_heads: int
    head_size: int
    inputs: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    output: str = "self_attn.o_proj"
    fused: Literal["parts", "groups"] = "parts"
    softcap: float = 0.0
    clip: float = 0.0
    norm: QueryKeyNorm | None = None

    def __post_init__(self) -> None:
        if self.heads < 1 or self.kv_heads < 1 or self.heads % self.kv_heads:
            raise InputError(f"{self.heads} query heads are no multiple of {self.kv_heads} key/value heads")
        if self.head_size < 1 or self.head_size % HEAD_SIZE_STEP:
            raise UnsupportedModelError(
                f"attention heads of size {self.head_size} are not supported; export takes multiples of "
                f"{HEAD_SIZE_STEP}. {PACK}"
            )
        if len(self.inputs) not in (1, 3):
            raise ValueError(f"attention has one input projection or three, not {len(self.inputs)}")

    @property
    def readers(self) -> int:
        """Query heads that read one key/value head."""
        return self.heads // self.kv_heads

    def rows(self, part: Literal["q", "k", "v"]) -> NDArray[np.int64]:
        """The rows of queries, keys or values, head after head, in the layer that holds all three."""
        size, readers, groups = self.head_size, self.readers, self.kv_heads
        if self.fused == "parts":
            counts = {"q": self.heads * size, "k": groups * size, "v": groups * size}
            first = {"q": 0, "k": counts["q"], "v": counts["q"] + counts["k"]}[part]
            return np.arange(first, first + counts[part])
        first, heads = {"q": (0, readers), "k": (readers, 1), "v": (readers + 1, 1)}[part]
        starts_G = np.arange(groups) * (readers + 2) * size + first * size
        return (starts_G[:, None] + np.arange(heads * size)).reshape(-1)

    def parts(self, layer: str) -> tuple[Part, Part, Part]:
        """Queries, keys and values of a layer."""
        if len(self.inputs) == 1:
            module = f"{layer}.{self.inputs[0]}"
            q, k, v = (Part(f"{module}.{part}", module, self.rows(part)) for part in ("q", "k", "v"))
        else:
            q, k, v = (Part(f"{layer}.{path}", f"{layer}.{path}") for path in self.inputs)
        return q, k, v


@dataclass(frozen=True)
class Experts:
    """Several MLPs in the place of one, of which a router chooses some for each token (arXiv 2101.03961, 2401.04088).

    Args:
        count: of them. chosen: by a token: those of the highest probabilities. normed: the probabilities of the chosen
        are divided by their sum. path: of their list within a layer. router: path of what has the weight that scores
        them.
    """

    count: int
    chosen: int
    normed: bool = True
    path: str = "mlp.experts"
    router: str = "mlp.gate"

    def __post_init__(self) -> None:
        if not 1 <= self.chosen <= self.count:
            raise InputError(f"a token cannot choose {self.chosen} of {self.count} experts")


@dataclass(frozen=True)
class Mlp:
    """The block between two attentions.

    Args:
        width: neurons F. activation: of the gate, or of the one input. inputs: the paths of gate and up, or of the one
        layer that has both or, where the block is not gated, the only one. output: the path of the layer after.
        gated: activation(gate) * up, and not activation(input). experts: there are several such blocks in a layer, and
        paths are within each; None: there is one, and they are within the layer.
    """

    width: int
    activation: Activation = "silu"
    inputs: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    output: str = "mlp.down_proj"
    gated: bool = True
    experts: Experts | None = None

    def __post_init__(self) -> None:
        if self.width < 1:
            raise InputError(f"an MLP has at least one neuron, not {self.width}")
        if len(self.inputs) not in ((1, 2) if self.gated else (1,)):
            raise ValueError(f"a {'gated' if self.gated else 'plain'} MLP does not have {len(self.inputs)} inputs")

    def blocks(self, layer: str) -> tuple[str, ...]:
        """The path of each block of a layer, within which its linear layers have their paths."""
        if self.experts is None:
            return (layer,)
        return tuple(f"{layer}.{self.experts.path}.{index}" for index in range(self.experts.count))

    def parts(self, block: str, width: int) -> tuple[Part, ...]:
        """Gate and up, or the one input, of a block of `width` neurons."""
        modules = [f"{block}.{path}" for path in self.inputs]
        if len(modules) == 2 or not self.gated:
            return tuple(Part(module, module) for module in modules)
        rows = np.arange(2 * width).reshape(2, width)
        return tuple(Part(f"{modules[0]}.{name}", modules[0], rows[i]) for i, name in enumerate(("gate", "up")))


@dataclass(frozen=True)
class LearnedPositions:
    """An embedding of positions that is added to that of tokens: position p is row p + `offset` of the module."""

    module: str
    offset: int = 0


@dataclass(frozen=True)
class ConfigNames:
    """The fields of a family's configuration that give the sizes which `compact` may change; "" where there is none."""

    width: str = "intermediate_size"
    heads: str = "num_attention_heads"
    kv_heads: str = "num_key_value_heads"
    head_size: str = "head_dim"


@dataclass(frozen=True)
class Decoder:
    """A decoder-only Transformer.

    Args:
        family: in words. hidden_size, vocab_size, context_length: sizes. layers: the kind of each. attention, mlp: its
        blocks. norm: the kind of all norms but those of queries and keys. attention_norms, mlp_norms: where they are.
        parallel: attention and MLP read the same stream, and both are added to it. rotary: None: no layer has any.
        positions: learned ones. embedding_scale: times the embeddings. residual_scale: times what a block adds.
        logit_divisor: under the logits. logit_softcap: logits become softcap * tanh(logit / softcap); 0 for none.
        path: of the list of layers. embedding, final_norm ("" for none), head: paths. names: of the configuration.
    """

    family: str
    hidden_size: int
    vocab_size: int
    context_length: int
    layers: tuple[LayerKind, ...]
    attention: Attention
    mlp: Mlp
    norm: Norm
    attention_norms: Norms = Norms(before="input_layernorm")
    mlp_norms: Norms = Norms(before="post_attention_layernorm")
    parallel: bool = False
    rotary: Rotary | None = None
    positions: LearnedPositions | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_divisor: float = 1.0
    logit_softcap: float = 0.0
    path: str = "model.layers"
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    names: ConfigNames = ConfigNames()

    def __post_init__(self) -> None:
        for name in ("hidden_size", "vocab_size", "context_length"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} of a {self.family} is not positive")
        if not self.layers:
            raise InputError(f"a {self.family} without layers")
        turned = [kind for kind in self.layers if kind.rotary]
        if turned and self.rotary is None:
            raise ValueError("layers name a rotary table, and there is no rotary embedding")
        if self.rotary is not None:
            size = self.rotary.size
            if size < 2 or size % 2 or size > self.attention.head_size:
                raise InputError(
                    f"rotary embedding of {size} places does not fit heads of size {self.attention.head_size}"
                )
        if self.parallel and (self.attention_norms.after or self.mlp_norms.after or self.attention_norms.stream):
            raise ValueError("parallel blocks are normed before only")

    @property
    def rotary_tables(self) -> tuple[str, ...]:
        """The names of the rotary tables that layers use."""
        return tuple(dict.fromkeys(kind.rotary for kind in self.layers if kind.rotary))

    @property
    def reach(self) -> int:
        """Tokens behind which something changes: a sliding window is full, or the original context ends; 0 for none."""
        original = self.rotary.original_context if self.rotary is not None else 0
        return max(original, *(kind.window for kind in self.layers))

    @property
    def graph_head_size(self) -> int:
        """The size of heads in a graph and in its caches; see `GRAPH_HEAD_STEP`."""
        return -(-self.attention.head_size // GRAPH_HEAD_STEP) * GRAPH_HEAD_STEP

    @property
    def shared_norm(self) -> bool:
        """Whether parallel blocks read what one norm gives."""
        return self.parallel and self.attention_norms.before == self.mlp_norms.before

    def layer(self, index: int) -> str:
        """The whole path of a layer."""
        return f"{self.path}.{index}"

    def layer_paths(self) -> Iterator[str]:
        """The whole paths of all layers."""
        return (self.layer(index) for index in range(len(self.layers)))

    def scale(self, index: int) -> float:
        """What the scores of a layer are multiplied by."""
        scale = self.layers[index].scale
        return self.attention.head_size**-0.5 if scale is None else scale

    def projections(self) -> list[str]:
        """The whole paths of the linear layers of all layers, in order."""
        found: list[str] = []
        for layer in self.layer_paths():
            found += [f"{layer}.{path}" for path in (*self.attention.inputs, self.attention.output)]
            blocks = self.mlp.blocks(layer)
            found += [f"{block}.{path}" for block in blocks for path in (*self.mlp.inputs, self.mlp.output)]
        return found
