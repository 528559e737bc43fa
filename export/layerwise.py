"""A model of transformers run a layer at a time: each is read, takes its part of all texts, and is let go.

Legend: S tokens, V vocabulary, E hidden size.

Everything that a decoder layer is given beside the hidden states, such as masks and rotary tables, depends on the
tokens alone. So a first pass through the model, whose layers hand on what they are given, takes that down; then the
layers run one after the other; and a last pass, in which the layers hand on the final hidden states, makes the logits.
All arithmetic is transformers' own, and each operation is the one that the whole model would have done.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .graph.source import SourceModel
from .progress import each

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """Tokens, and after how many of the last of them logits are wanted; 0 for all."""

    ids_S: tuple[int, ...]
    last: int = 0


@dataclass
class _Text:
    """The tokens of a text as it goes through the layers, and what each layer is given beside its hidden states."""

    wanted: Wanted
    hidden_1SE: Tensor | None = None
    in_tuple: bool = False
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    @property
    def ids_1S(self) -> Tensor:
        return torch.tensor([list(self.wanted.ids_S)])

    def returned(self, hidden: Tensor | None) -> Any:
        """Hidden states as the layers of this family return them."""
        return (hidden,) if self.in_tuple else hidden

    def take(self, output: Any) -> None:
        """Keep the hidden states that a layer has returned, alone or as the first of several values."""
        self.in_tuple = isinstance(output, tuple)
        self.hidden_1SE = output[0] if self.in_tuple else output


class LayerwiseModel:
    """Runs a model whose parameters are read from its checkpoint (see `SourceModel.stored`).

    Args:
        source: the model.
        progress: told how many layers have run.
    """

    def __init__(self, source: SourceModel, progress: Callable[[str], None] = lambda stage: None) -> None:
        decoder = source.decoder
        self._source = source
        self._model: Any = source.model
        self._paths = list(decoder.layer_paths())
        self._layers: list[Any] = [source.model.get_submodule(path) for path in self._paths]
        self._ends = [f"{decoder.embedding}.weight", f"{decoder.head}.weight", f"{decoder.head}.bias"]
        self._progress = progress

    def run(self, texts: Sequence[Wanted], keep: Callable[[int, Tensor], T], words: str) -> list[T]:
        """What `keep` makes of each text's logits [S, V], which it is given with the text's place.

        Args:
            texts: all are computed in one pass over the layers. keep: called in order, under `torch.inference_mode`.
            words: what the pass is for.
        """
        with torch.inference_mode():
            taken = self._begin(texts)
            for index in each(range(1, len(self._layers)), words, self._progress):
                with self._in_memory(self._names(f"{self._paths[index]}.")):
                    for text in taken:
                        args, kwargs = text.given[index]
                        text.take(self._layers[index](text.hidden_1SE, *args, **kwargs))
            return self._finish(taken, keep)

    def _begin(self, texts: Sequence[Wanted]) -> list[_Text]:
        """Each text after the first layer, with what all layers are given."""
        taken = [_Text(wanted) for wanted in texts]
        embedding, first = self._ends[0], self._names(f"{self._paths[0]}.")
        with self._in_memory([embedding, *self._outside(), *first]):
            for text in taken:
                with ExitStack() as stack:
                    stack.enter_context(_replaced(self._layers[0], _recorded_first(text, self._layers[0].forward)))
                    for layer in self._layers[1:]:
                        stack.enter_context(_replaced(layer, _recorded(text)))
                    # Of the logits, which are made of nothing here, one row.
                    stack.enter_context(_replaced(self._head(), _passed_on))
                    self._model(text.ids_1S, use_cache=False, logits_to_keep=1)
        return taken

    def _finish(self, taken: Sequence[_Text], keep: Callable[[int, Tensor], T]) -> list[T]:
        """The final norm, lm_head, and what a family does to logits."""
        kept = []
        with self._in_memory([*self._outside(), *self._ends[1:]]):
            for place, text in enumerate(taken):
                with ExitStack() as stack:
                    embedding = self._model.get_submodule(self._source.decoder.embedding)
                    stack.enter_context(_replaced(embedding, lambda *_, text=text: text.hidden_1SE))
                    for layer in self._layers:
                        stack.enter_context(_replaced(layer, _final(text)))
                    output = self._model(text.ids_1S, use_cache=False, logits_to_keep=text.wanted.last)
                kept.append(keep(place, output.logits[0]))
        return kept

    def _head(self) -> Any:
        return self._model.get_submodule(self._source.decoder.head)

    def _names(self, prefix: str) -> list[str]:
        return [name for name, _ in self._model.named_parameters() if name.startswith(prefix)]

    def _outside(self) -> list[str]:
        """The parameters outside layers, but for those of the embedding and lm_head: norms, and learned positions."""
        layers = f"{self._source.decoder.path}."
        names = (name for name, _ in self._model.named_parameters())
        return [name for name in names if not name.startswith(layers) and name not in self._ends]

    @contextmanager
    def _in_memory(self, names: Iterable[str]) -> Iterator[None]:
        """Inside, the model has the values of these parameters, where there are such parameters."""
        held: list[tuple[nn.Module, str, nn.Parameter]] = []
        for name in names:
            path, _, key = name.rpartition(".")
            module = self._model.get_submodule(path)
            parameter = module._parameters.get(key)
            if parameter is not None and parameter.is_meta:
                held.append((module, key, parameter))
                module._parameters[key] = nn.Parameter(self._source.tensor(name), requires_grad=False)
        try:
            yield
        finally:
            for module, key, parameter in held:
                module._parameters[key] = parameter


def _recorded_first(text: _Text, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A layer that runs, and takes down what it is given."""

    def run(*args: Any, **kwargs: Any) -> Any:
        hidden, args, kwargs = _split(args, kwargs)
        text.given.append((args, kwargs))
        text.take(forward(hidden, *args, **kwargs))
        return text.returned(text.hidden_1SE)

    return run


def _recorded(text: _Text) -> Callable[..., Any]:
    """A layer that takes down what it is given, and hands on the hidden states."""

    def run(*args: Any, **kwargs: Any) -> Any:
        hidden, args, kwargs = _split(args, kwargs)
        text.given.append((args, kwargs))
        return text.returned(hidden)

    return run


def _final(text: _Text) -> Callable[..., Any]:
    """A layer that returns the final hidden states."""
    return lambda *args, **kwargs: text.returned(text.hidden_1SE)


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The hidden states, and the other arguments of a layer."""
    if args:
        return args[0], args[1:], kwargs
    rest = dict(kwargs)
    return rest.pop("hidden_states"), args, rest


def _passed_on(x: Tensor) -> Tensor:
    return x


@contextmanager
def _replaced(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, `forward` stands for that of a module."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
