"""How a pretrained model is pruned."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from ...artifacts import InputError
from ..topology.structure import Structure, StructureKind

Method = Literal["alps", "sparsegpt", "wanda", "magnitude"]
Allocation = Literal["uniform", "outliers", "loss"]
Values = Literal["float32", "int8", "int4"]


@dataclass(frozen=True)
class PruneConfig:
    """Everything about a pruning.

    Args:
        density: share of links in the pruned layers together, in (0, 1].
        method: which links stay, and what their weights become: "alps", "sparsegpt", "wanda" or "magnitude"; the last
            two leave weights as they are.
        structure: "unstructured"; "2:4", at most 2 links in each aligned group of 4 inputs; or "block", whole blocks.
        block_size: side of the blocks of structure "block".
        allocation: densities of layers: "uniform"; "outliers", more where a decoder block has more outliers; "loss",
            more where pruning costs more of the model's loss. The total is the same.
        spread: the most that an allocated density lies from `density`.
        values: "int8" and "int4" round weights to what `export --values` of that name stores, and so prune for it.
        passes: of reconstruction over the calibration text, for attention and MLP each; 0 for none.
        learning_rate: of reconstruction, falling to 0 along a cosine.
        damping: share of the mean diagonal that is added to that of a Gram matrix.
        include: globs of the names of layers to prune, among the linear layers of the decoder blocks.
        exclude: globs of names to leave dense.
        seed: of the order of reconstruction's batches.
    """

    density: float = 0.5
    method: Method = "alps"
    structure: StructureKind = "unstructured"
    block_size: int = 16
    allocation: Allocation = "uniform"
    spread: float = 0.08
    values: Values = "float32"
    passes: int = 2
    learning_rate: float = 2e-4
    damping: float = 0.01
    include: list[str] = field(default_factory=lambda: ["*"])
    exclude: list[str] = field(default_factory=list)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("method", Method), ("structure", StructureKind), ("allocation", Allocation)):
            _check_choice(name, getattr(self, name), choices)
        _check_choice("values", self.values, Values)
        if not 0 < self.density <= 1:
            raise InputError(f"prune: density {self.density} is outside (0, 1]")
        if not 0 <= self.spread < 1:
            raise InputError(f"prune: spread {self.spread} is outside [0, 1)")
        for name in ("damping", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"prune: {name} must be above 0, not {getattr(self, name)}")
        if self.passes < 0:
            raise InputError(f"prune: passes must be at least 0, not {self.passes}")
        self.mask_structure  # noqa: B018, checks the block size

    @property
    def mask_structure(self) -> Structure:
        """What masks must obey."""
        return Structure(self.structure, self.block_size)

    def selects(self, layer: str) -> bool:
        """Whether the layer of this name is pruned."""
        return _matches(layer, self.include) and not _matches(layer, self.exclude)


def _check_choice(name: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        raise InputError(f"prune: {name} '{value}' is none of {', '.join(get_args(choices))}")


def _matches(name: str, globs: list[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
