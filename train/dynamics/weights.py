"""Where the weights of sparse layers are held: in whole matrices under masks, or as the links alone.

Legend: N out_features, K in_features.

Both ways train the same links, and the dynamics are written once, over what is here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from ...artifacts import InputError
from ..sparse_linear import SparseLinear
from .gradients import DenseGradients
from .places import find_places
from .sharding import gather_rows, is_distributed, local, local_rows, whole

Masks = dict[str, Tensor]
_holders = WeakTensorKeyDictionary()
"""Who keeps a weight 0 off its mask: a weak reference to `MaskedWeights`, by parameter."""


class Weights(ABC):
    """The weights of some layers of a model, zero off their masks."""

    def __init__(self) -> None:
        self._optimizers: list[Optimizer] = []

    @property
    @abstractmethod
    def masks(self) -> Masks:
        """bool [N, K] by layer, on its device; whole on every process."""

    @abstractmethod
    def attach(self, optimizer: Optimizer) -> None:
        """Keep this optimizer's parameters and moments zero off the masks, from now on."""

    @abstractmethod
    def parameter(self, name: str) -> nn.Parameter:
        """What an optimizer trains of a layer."""

    def is_attached(self, optimizer: Optimizer) -> bool:
        """Whether `attach` was called with this optimizer."""
        return any(attached is optimizer for attached in self._optimizers)

    def untrained(self) -> list[str]:
        """The layers whose parameter no attached optimizer holds."""
        held = _held(self._optimizers)
        return [name for name in self.masks if id(self.parameter(name)) not in held]

    def trained_by_others(self, kind: type[Optimizer]) -> list[str]:
        """The layers that an attached optimizer holds that is not of this class."""
        held = _held([optimizer for optimizer in self._optimizers if not isinstance(optimizer, kind)])
        return [name for name in self.masks if id(self.parameter(name)) in held]

    @abstractmethod
    def dense(self, name: str) -> Tensor:
        """The whole weight [N, K] of a layer. All processes must call it."""

    @abstractmethod
    def put(self, masks: Masks) -> None:
        """Set other masks; a link that was not there before has the weight that is there, or 0."""

    @abstractmethod
    def rewire(self, masks: Masks, kept: Masks) -> None:
        """Set other masks; links in `kept` keep weight and moments, and all others start at 0."""

    @abstractmethod
    def take_gradients(self, names: Sequence[str]) -> Masks:
        """The dense gradients [N, K] of the last step, absent links included, of those layers that had any."""

    @abstractmethod
    def densify(self) -> None:
        """Leave dense layers with explicit zeros in the model."""


class MaskedWeights(Weights):
    """Dense matrices that are kept 0 off the masks: after each optimizer step, and in every gradient.

    Where others held one of these weights before, they let go of all theirs: two masks would leave the links of both.
    """

    def __init__(self, model: nn.Module, masks: Masks, watched: Callable[[str], bool]) -> None:
        """`watched` says whether the gradient of a layer that is being formed is to be kept whole too."""
        super().__init__()
        self._masks = masks
        found = find_places(model)
        self._places = {name: found[name] for name in masks}
        self._parameters = {name: model.get_parameter(place.parameter) for name, place in self._places.items()}
        self._watched = watched
        self._gradients = DenseGradients()
        self._hooks: list[RemovableHandle] = []
        for name in masks:
            self._hold(name)
        self._apply()

    @property
    def masks(self) -> Masks:
        """See `Weights`."""
        return self._masks

    def attach(self, optimizer: Optimizer) -> None:
        """See `Weights`; what the optimizer has done before off the masks is undone."""
        self._optimizers.append(optimizer)
        self._hooks.append(optimizer.register_step_post_hook(lambda *_: self._apply()))
        for name, mask_NK in self.masks.items():
            self._reset_links(name, mask_NK)

    def dense(self, name: str) -> Tensor:
        """See `Weights`."""
        return self._places[name].matrix(whole(self.parameter(name).detach()))

    def put(self, masks: Masks) -> None:
        """See `Weights`."""
        self._masks = masks
        self._apply()

    def rewire(self, masks: Masks, kept: Masks) -> None:
        """See `Weights`."""
        self._masks = masks
        for name, survivors_NK in kept.items():
            self._reset_links(name, survivors_NK)

    def take_gradients(self, names: Sequence[str]) -> Masks:
        """See `Weights`."""
        found = self._gradients.take()
        return {name: gather_rows(found[name], self.parameter(name)) for name in names if name in found}

    def densify(self) -> None:
        """Nothing to do: they are."""

    def parameter(self, name: str) -> nn.Parameter:
        """See `Weights`."""
        return self._parameters[name]

    def release(self) -> None:
        """Keep nothing 0 any more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _hold(self, name: str) -> None:
        weight = self.parameter(name)
        earlier = _holders.get(weight)
        if earlier is not None and (holder := earlier()) is not None and holder is not self:
            holder.release()
        _holders[weight] = ref(self)
        self._hooks.append(weight.register_post_accumulate_grad_hook(partial(self._mask_gradient, name)))

    def _mask_gradient(self, name: str, weight: Tensor) -> None:
        """Runs as soon as a gradient is there, so that its norm is the one of the links."""
        if weight.grad is None:
            return
        mask_nK = local_rows(self.masks[name], weight)
        if self._watched(name):
            self._gradients.add(name, self._places[name].matrix(local(weight.grad)), mask_nK)
        self._zero_off(name, weight.grad, mask_nK)

    def _zero_off(self, name: str, value: Tensor, mask_nK: Tensor) -> None:
        """Set to 0 off the mask what is like a layer's parameter."""
        place = self._places[name]
        region = place.region(local(value))
        _zero_off(region, place.held(mask_nK, region))

    @torch.no_grad()
    def _apply(self) -> None:
        for name, mask_NK in self.masks.items():
            weight = self.parameter(name)
            self._zero_off(name, weight, local_rows(mask_NK, weight))

    @torch.no_grad()
    def _reset_links(self, name: str, survivors_NK: Tensor) -> None:
        """Zero the weight, gradient and optimizer moments of every link that did not live through an update."""
        weight = self.parameter(name)
        survivors_nK = local_rows(survivors_NK, weight)
        self._zero_off(name, weight, survivors_nK)
        if weight.grad is not None:
            self._zero_off(name, weight.grad, survivors_nK)
        for optimizer in self._optimizers:
            for value in optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    self._zero_off(name, value, survivors_nK)


class LinkWeights(Weights):
    """Layers that are replaced by `SparseLinear`, whose parameter holds the links alone; on one process.

    Raises:
        InputError: there are other processes, a layer is no Linear, or shares its weight with another module.
    """

    def __init__(self, model: nn.Module, masks: Masks, watched: Callable[[str], bool]) -> None:
        """`watched` says whether the gradient of a layer that is being formed is to be formed whole too."""
        super().__init__()
        if is_distributed():
            raise InputError("sparsity.compute 'links' trains on one process; give sparsity.compute 'masked'")
        self._model = model
        self._check_owners(masks)
        self._gradients = DenseGradients()
        self._replaced = WeakTensorKeyDictionary()
        self.layers = {name: self._replace(name, mask_NK) for name, mask_NK in masks.items()}
        for name, layer in self.layers.items():
            layer.wants_dense = partial(watched, name)
            layer.take_dense = partial(self._gradients.add, name)

    @property
    def masks(self) -> Masks:
        """See `Weights`."""
        return {name: layer.mask for name, layer in self.layers.items()}

    def attach(self, optimizer: Optimizer) -> None:
        """See `Weights`; weights of replaced layers that the optimizer was made with give place to their links."""
        for group in optimizer.param_groups:
            group["params"] = [self._take_place(optimizer, parameter) for parameter in group["params"]]
        self._optimizers.append(optimizer)

    def _take_place(self, optimizer: Optimizer, parameter: Tensor) -> Tensor:
        """What is trained in the place of a parameter, with the moments that it has had at the links."""
        layer = self._replaced.get(parameter)
        if layer is None:
            return parameter
        if state := optimizer.state.pop(parameter, None):
            optimizer.state[layer.values] = {
                key: value[layer.mask] if isinstance(value, Tensor) and value.shape == layer.mask.shape else value
                for key, value in state.items()
            }
        return layer.values

    def parameter(self, name: str) -> nn.Parameter:
        """See `Weights`."""
        return self.layers[name].values

    def dense(self, name: str) -> Tensor:
        """See `Weights`."""
        return self.layers[name].dense()

    def put(self, masks: Masks) -> None:
        """See `Weights`."""
        before = self.masks
        self.rewire(masks, {name: before[name] & mask_NK for name, mask_NK in masks.items()})

    def rewire(self, masks: Masks, kept: Masks) -> None:
        """See `Weights`."""
        for name, layer in self.layers.items():
            layer.rewire(masks[name], kept[name], self._optimizers)

    def take_gradients(self, names: Sequence[str]) -> Masks:
        """See `Weights`."""
        found = self._gradients.take()
        return {name: found[name] for name in names if name in found}

    def densify(self) -> None:
        """See `Weights`; optimizers still hold the links."""
        for name, layer in self.layers.items():
            self._set(name, layer.to_linear())

    def _check_owners(self, masks: Masks) -> None:
        linear = {name for name, module in self._model.named_modules() if isinstance(module, nn.Linear)}
        if others := [name for name in masks if name not in linear]:
            raise InputError(
                f"sparsity.compute 'links': layer '{others[0]}' is no Linear; exclude it, or give sparsity.compute "
                "'masked'"
            )
        owners: dict[int, list[str]] = {}
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
        for name in masks:
            if len(sharing := owners[id(self._model.get_parameter(f"{name}.weight"))]) > 1:
                raise InputError(
                    f"sparsity.compute 'links': layers {' and '.join(sharing)} share a weight; exclude them, or give "
                    "sparsity.compute 'masked'"
                )

    def _replace(self, name: str, mask_NK: Tensor) -> SparseLinear:
        linear = self._model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        layer = SparseLinear.from_linear(linear, mask_NK)
        self._replaced[linear.weight] = layer
        self._set(name, layer)
        return layer

    def _set(self, name: str, module: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self._model.get_submodule(parent), child, module)


def _held(optimizers: Sequence[Optimizer]) -> set[int]:
    """The identities of the parameters that optimizers train."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return {id(parameter) for group in groups for parameter in group["params"]}


def _zero_off(value_NK: Tensor, mask_NK: Tensor) -> None:
    """Set to 0 off the mask. A product with the mask would leave -0 for negative values, and NaN for infinite ones."""
    value_NK.masked_fill_(~mask_NK, 0)
