"""When each form wins on a GPU: a prediction from bytes, products and instructions. Nothing here was measured on a GPU.

Legend: T tokens, N out_features, K in_features, Z links, S slots of gap-coded rows.

The time of a layer is at least the largest of three: bytes that must cross from memory over the bandwidth, products on
tensor cores over their peak, and instructions over the rate at which the multiprocessors issue them (one a clock for
each of the 32 lanes of four schedulers). The third decides for forms that rebuild columns from bits. Instructions for
an element come from the inner loops of the kernels compiled for sm_80 and K a multiple of 16 (`cuobjdump
--dump-sass`); what is left out is latency, caches that miss, the lines of the first cache that a gather from X touches,
launches (a few microseconds each, dense or not), and the last wave of programs, so times are lower bounds and their
ratios are what to look at. Dense is held to the same bound.

Bandwidth, clocks and peaks (dense, float16 with float32 sums) are from NVIDIA's data sheets.
"""

from dataclasses import dataclass

from .launch import phase_of
from .packing import GAP_TILE, GROUP, LONGEST_STEP, SLOTS, TILE, WORD_SLOTS

VALUE_BYTES = 2
_LANES_PER_CLOCK = 128
"""Instructions, counted for each lane, that a multiprocessor issues in a clock."""
SPARSE_FORMS = ("gap", "bitmask", "csr", "block", "nm24")
"""Forms with a prediction: those that hold a weight exactly."""
_PREFILL_TOKENS = 32
_PREFILL_TOKENS_128 = 128
"""Tokens among which a prefill program shares the work of rebuilding a tile, and those of the larger one."""


@dataclass(frozen=True)
class GpuModel:
    """Bytes a second from memory, products a second on tensor cores, multiprocessors, and their clock in Hz."""

    name: str
    bandwidth: float
    tensor_flops: float
    multiprocessors: int
    clock: float

    @property
    def instructions(self) -> float:
        """Instructions a second, counted for each lane."""
        return self.multiprocessors * self.clock * _LANES_PER_CLOCK


GPUS = {
    gpu.name: gpu
    for gpu in (
        GpuModel("A100", 2.039e12, 312e12, 108, 1.41e9),  # SXM, 80 GB
        GpuModel("H100", 3.35e12, 989e12, 132, 1.83e9),  # SXM
        GpuModel("H200", 4.8e12, 989e12, 132, 1.83e9),
        GpuModel("L4", 0.30e12, 121e12, 58, 2.04e9),
    )
}

_INSTRUCTIONS = {
    # A column, a link, a value of a block, a slot of a group; a slot of a gap-coded row for all tokens of its kernel.
    ("bitmask", "decode"): 34.4,
    ("bitmask", "prefill"): 28.0,
    ("csr", "decode"): 62.0,
    ("csr", "prefill"): 18.8,
    ("block", "decode"): 6.0,
    ("block", "prefill"): 6.4,
    ("nm24", "decode"): 26.3,
    ("nm24", "prefill"): 38.4,
    ("gap", "decode"): 15.3,
    ("gap", "decode2"): 18.5,
    ("gap", "decode4"): 26.7,
    ("gap", "decode8"): 43.4,
    ("gap", "prefill"): 28.4,
    ("gap", "prefill128"): 35.6,
}
_GATHER_LINK = 12.8
"""Instructions for a link of the 2:4 residual and a token, in prefill."""


@dataclass(frozen=True)
class Layer:
    """A linear layer: its shape, its links over possible links, the share of blocks that hold a link (of blocks that
    training filled whole: the density), the share of links that are a third or fourth of their group of four, and slots
    of gap-coded rows that hold no link, over those that do."""

    out_features: int
    in_features: int
    density: float
    block_density: float
    residual_share: float
    gap_padding: float

    @property
    def size(self) -> int:
        """Possible links."""
        return self.out_features * self.in_features


@dataclass(frozen=True)
class Prediction:
    """A predicted time: seconds, and each of its three bounds."""

    seconds: float
    memory_seconds: float
    tensor_seconds: float
    issue_seconds: float

    @property
    def bound(self) -> str:
        """Which of the three it is."""
        bounds = {"memory": self.memory_seconds, "tensor": self.tensor_seconds, "issue": self.issue_seconds}
        return max(bounds, key=lambda name: bounds[name])


def random_residual_share(density: float) -> float:
    """The share of links beyond two in their group, where every link is there with this probability."""
    p, q = density, 1 - density
    beyond = 4 * p**3 * q + 2 * p**4
    return beyond / (GROUP * p) if p else 0.0


def random_layer(out_features: int, in_features: int, density: float) -> Layer:
    """A layer where every link is there with this probability, but in blocks that training filled whole."""
    residual, padding = random_residual_share(density), random_gap_padding(density, in_features)
    return Layer(out_features, in_features, density, density, residual, padding)


def random_gap_padding(density: float, in_features: int) -> float:
    """Slots without a link over links: a step is too long for 4 bits again and again, and rows end within a word."""
    if not density:
        return 0.0
    far = (1 - density) ** LONGEST_STEP
    return far / (1 - far) + (WORD_SLOTS - 1) / 2 / (density * in_features)


def weight_bytes(form: str, layer: Layer) -> float:
    """Bytes of a packed weight, "dense" included; of gap-coded rows all, of which a kernel reads a part."""
    links = layer.density * layer.size
    if form == "dense":
        return VALUE_BYTES * layer.size
    if form == "bitmask":
        return VALUE_BYTES * links + _tile_bytes(layer, TILE)
    if form == "csr":
        return (VALUE_BYTES + _column_bytes(layer)) * links + 4 * (layer.out_features + 1)
    if form == "block":
        return VALUE_BYTES * layer.block_density * layer.size
    if form == "gap":
        return _gap_bytes(layer, "decode") + _tile_bytes(layer, GAP_TILE)
    residual = layer.residual_share * links
    half = layer.size * SLOTS / GROUP
    return VALUE_BYTES * half + layer.size / 8 + (VALUE_BYTES + _column_bytes(layer)) * residual


def predict(form: str, layer: Layer, tokens: int, gpu: GpuModel) -> Prediction:
    """The predicted time of one layer on `tokens` tokens; `form` is one of `packing`, or "dense"."""
    phase = "dense" if form == "dense" else phase_of(form, tokens)
    activations = VALUE_BYTES * tokens * (layer.in_features + layer.out_features)
    weight = _gap_bytes(layer, phase) if form == "gap" else weight_bytes(form, layer)
    memory = (weight + activations) / gpu.bandwidth
    tensor = _tensor_products(form, layer, tokens, phase) / gpu.tensor_flops
    issue = _instructions(form, layer, tokens, phase) / gpu.instructions
    return Prediction(max(memory, tensor, issue), memory, tensor, issue)


def _gap_slots(layer: Layer) -> float:
    return layer.density * layer.size * (1 + layer.gap_padding)


def _gap_bytes(layer: Layer, phase: str) -> float:
    """What a kernel reads of gap-coded rows: values, and the steps, or mask and places of tiles."""
    values = VALUE_BYTES * _gap_slots(layer)
    if phase.startswith("prefill"):
        return values + _tile_bytes(layer, GAP_TILE)
    return values + _gap_slots(layer) / 2 + 4 * (layer.out_features + 1)


def _tile_bytes(layer: Layer, tile: int) -> float:
    """A bit for each possible link, and the place of each tile's first one."""
    return layer.size / 8 + 4 * layer.out_features * -(-layer.in_features // tile)


def _tensor_products(form: str, layer: Layer, tokens: int, phase: str) -> float:
    """Multiplications and additions on tensor cores: all of a rebuilt tile's, absent links included."""
    if form == "csr" or phase.startswith("decode"):
        return 0.0
    share = layer.block_density if form == "block" else 1.0
    return 2.0 * tokens * layer.size * share


def _instructions(form: str, layer: Layer, tokens: int, phase: str) -> float:
    """Instructions of all lanes. Dense libraries hide theirs behind the other two bounds."""
    if form == "dense":
        return 0.0
    shared = _PREFILL_TOKENS_128 if phase == "prefill128" else _PREFILL_TOKENS
    passes = tokens if phase == "decode" else -(-tokens // shared)
    each = _INSTRUCTIONS[form, phase]
    links = layer.density * layer.size
    if form == "gap" and phase.startswith("decode"):
        return each * _gap_slots(layer)
    if form in ("bitmask", "gap"):
        return passes * each * layer.size
    # A prefill program takes all its tokens, be they there or not.
    taken = tokens if phase == "decode" else passes * _PREFILL_TOKENS
    if form == "csr":
        return taken * each * links
    if form == "block":
        return passes * each * layer.block_density * layer.size
    residual = layer.residual_share * links
    if phase == "decode":
        return tokens * (each * layer.size * SLOTS / GROUP + _INSTRUCTIONS["csr", "decode"] * residual)
    return passes * each * layer.size + taken * _GATHER_LINK * residual


def _column_bytes(layer: Layer) -> int:
    return 2 if layer.in_features <= 1 << 16 else 4


def prediction_table(gpu: GpuModel, out_features: int = 4096, in_features: int = 4096) -> str:
    """A Markdown table: how many times as fast as dense each form is predicted to be."""
    lines = [
        "| density | tokens | dense, µs | gap | bitmask | csr | block (whole blocks) | nm24 + residual |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for density in (0.05, 0.1, 0.3, 0.5):
        layer = random_layer(out_features, in_features, density)
        for tokens in (1, 4, 8, 64, 512):
            dense = predict("dense", layer, tokens, gpu).seconds
            ratios = [dense / predict(form, layer, tokens, gpu).seconds for form in SPARSE_FORMS]
            cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            lines.append(f"| {density:g} | {tokens} | {dense * 1e6:.1f} | {cells} |")
    return "\n".join(lines)
