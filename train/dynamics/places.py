"""Where the weight matrices of a model are, whatever class of layer holds them.

Legend: N out_features, K in_features; n rows on this process.

| layer | its matrices [N, K] | their names |
|---|---|---|
| Linear | the weight | the layer's |
| Conv1D of GPT-2 | the weight, which is held as [K, N] | the layer's |
| Conv1d, Conv2d, Conv3d | the weight, [out, in / groups x kernel] | the layer's |
| MultiheadAttention | query, key and value projections, fused or not | .q_proj, .k_proj, .v_proj |
| RNN, LSTM, GRU | each weight, with its gates as rows | .weight_ih_l0 and the like |
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...artifacts import InputError
from ..sparse_linear import SparseLinear

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_MATRIX = 2
_SHOWN = 6
"""Names of dense weights in a line of text."""


@dataclass(frozen=True)
class Place:
    """A matrix [N, K] in a model: a parameter, or some of its first dimension.

    Args:
        name: of the layer, which its mask goes by.
        parameter: the parameter's name in the model.
        shape: (N, K).
        transposed: whether the parameter holds [K, N].
        first: where its rows begin in the parameter; None where they are all of it.
    """

    name: str
    parameter: str
    shape: tuple[int, int]
    transposed: bool = False
    first: int | None = None

    @property
    def plain(self) -> bool:
        """Whether the parameter is the matrix, as of a Linear."""
        return not self.transposed and self.first is None

    def region(self, value: Tensor) -> Tensor:
        """The part of a tensor like the parameter that is the matrix's, in the form in which it is held: a view."""
        return value if self.first is None else value[self.first : self.first + self.shape[0]]

    def matrix(self, value: Tensor) -> Tensor:
        """The matrix [N, K] in a tensor like the parameter, to be read."""
        region = self.region(value)
        return region.T if self.transposed else region.reshape(len(region), -1)

    def held(self, mask_nK: Tensor, region: Tensor) -> Tensor:
        """A mask of the matrix in the form of `region`."""
        return (mask_nK.T if self.transposed else mask_nK).reshape(region.shape)


def find_places(model: nn.Module) -> dict[str, Place]:
    """The matrices of a model that can be sparse, by layer name, in the model's order.

    Convolutions whose channels do not mix (depthwise) have too few weights a channel, and are left out.
    """
    return {place.name: place for name, module in model.named_modules() for place in _places_of(name, module)}


def dense_weights(model: nn.Module, sparse: dict[str, Place]) -> dict[str, int]:
    """The weights with at least two dimensions that no sparse layer holds, by parameter, and how many there are."""
    taken = {id(parameter_of(model, place)) for place in sparse.values()}
    return {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim >= _MATRIX and id(parameter) not in taken
    }


def density_line(masks: Mapping[str, Tensor], dense: Mapping[str, int]) -> str:
    """What a density is of, in a line: bool masks [N, K] by layer, and numbers of weights that stay dense by name."""
    possible = sum(mask_NK.numel() for mask_NK in masks.values())
    links = sum(int(mask_NK.sum()) for mask_NK in masks.values())
    line = f"{links / max(1, possible):.2%} of the {possible:,} possible links of {len(masks)} layers"
    if not dense:
        return line
    names = sorted(dense, key=lambda name: -dense[name])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{line}; {sum(dense.values()):,} weights stay dense: {', '.join(names[:_SHOWN])}{more}"


def check_experts(model: nn.Module, places: dict[str, Place], is_excluded: Callable[[str], bool]) -> None:
    """Refuse matrices of experts that are held in one tensor, unless they are excluded.

    Args:
        model: the model.
        places: its matrices.
        is_excluded: from a parameter's name to whether the configuration leaves it dense.

    Raises:
        InputError: there is one; it is named.
    """
    known = {id(parameter_of(model, place)) for place in places.values()}
    known |= {id(module.weight) for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd)}
    for name, parameter in model.named_parameters():
        if parameter.ndim > _MATRIX and id(parameter) not in known and not is_excluded(name):
            raise InputError(
                f"layer '{name}' holds several matrices in one tensor, as experts of a mixture are held, and would "
                "stay dense: name it in sparsity.exclude to leave it so; the density is then that of the other layers"
            )


def tied_layers(model: nn.Module) -> set[str]:
    """The linear layers that share their weight with an embedding."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module._parameters.get("weight")) in embeddings
    }


def output_layers(model: nn.Module) -> set[str]:
    """The linear layers that a transformers model names as those of its outputs."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is head}


def _places_of(name: str, module: nn.Module) -> Iterator[Place]:
    weight = f"{name}.weight"
    if isinstance(module, SparseLinear):
        return
    if isinstance(module, nn.Linear):
        yield Place(name, weight, (module.out_features, module.in_features))
    elif isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
        yield Place(name, weight, (outputs, inputs), transposed=True)
    elif isinstance(module, _CONVOLUTIONS) and module.groups < max(2, module.in_channels):
        inputs = module.in_channels // module.groups * _size(module.kernel_size)
        yield Place(name, weight, (module.out_channels, inputs))
    elif isinstance(module, nn.MultiheadAttention):
        yield from _projections(name, module)
    elif isinstance(module, nn.RNNBase):
        for local, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == _MATRIX:
                rows, columns = parameter.shape
                yield Place(f"{name}.{local}", f"{name}.{local}", (rows, columns))


def _projections(name: str, module: nn.MultiheadAttention) -> Iterator[Place]:
    """Query, key and value projections: rows of one parameter, or a parameter each where their widths differ."""
    width = module.embed_dim
    if module.in_proj_weight is not None:
        for index, part in enumerate(_PROJECTIONS):
            yield Place(f"{name}.{part}", f"{name}.in_proj_weight", (width, width), first=index * width)
        return
    for part, inputs in zip(_PROJECTIONS, (width, module.kdim, module.vdim), strict=True):
        yield Place(f"{name}.{part}", f"{name}.{part}_weight", (width, inputs))


def _size(kernel: tuple[int, ...]) -> int:
    size = 1
    for extent in kernel:
        size *= extent
    return size


def parameter_of(model: nn.Module, place: Place) -> nn.Parameter | None:
    """The place's parameter; None where a parametrization computes it."""
    owner, _, local = place.parameter.rpartition(".")
    return dict(model.get_submodule(owner).named_parameters(recurse=False)).get(local)
