"""What the cost model predicts of a whole export, and the words for it: also where sparse does not pay."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..kernels.cost import BASELINE, is_measured, predict
from .layouts import Choice
from .layouts.choose import LATENCY_TOKENS, THROUGHPUT_TOKENS, predictable_isa


@dataclass(frozen=True)
class Forecast:
    """Predicted speed-ups of all projections together, over dense float32 ONNX Runtime on one core.

    Attributes:
        isa: the instruction set that was predicted for.
        is_measured: whether the cost model was fitted to measurements on hardware that has it.
        one_token: with one token at a time, as in generating; weights come from memory.
        many_tokens: with 64, as in reading a prompt.
        layers: projections that were chosen for.
        dense_layers: those of them that are left dense.
    """

    isa: str
    is_measured: bool
    one_token: float
    many_tokens: float
    layers: int
    dense_layers: int

    @property
    def words(self) -> str:
        """The forecast as a sentence, which says where sparse does not pay."""
        known = "" if self.is_measured else " (a table of costs that was not measured on hardware)"
        if self.dense_layers == self.layers:
            return f"for {self.isa}{known}: sparse does not pay, and all {self.layers} projections are left dense"
        figures = (
            f"predicted for {self.isa}{known}, on one core: the projections run {self.one_token:.2f} times as fast as "
            f"dense float32 one token at a time, {self.many_tokens:.2f} times with {THROUGHPUT_TOKENS} tokens"
        )
        if self.dense_layers:
            figures += f"; {self.dense_layers} of {self.layers} are left dense, where sparse does not pay"
        slow = {
            "one token at a time": self.one_token,
            f"with {THROUGHPUT_TOKENS} tokens": self.many_tokens,
        }
        where = " and ".join(name for name, speedup in slow.items() if speedup < 1)
        return f"{figures}; {where} sparse does not pay there" if where else figures


def forecast(choices: Iterable[Choice], isa: str | None = None) -> Forecast | None:
    """Predict for the layers as they are stored; None where there is no op library to predict with, or no layer.

    Args:
        choices: of all projections; those that were not chosen by the cost model are left out.
        isa: the instruction set to predict for; None: this machine's.

    Raises:
        InputError: no such instruction set.
    """
    isa = isa or predictable_isa()
    chosen = [choice for choice in choices if choice.work is not None]
    if isa is None or not chosen:
        return None
    one_token, many_tokens = (_speedup(chosen, tokens, isa) for tokens in (LATENCY_TOKENS, THROUGHPUT_TOKENS))
    dense_layers = sum(choice.layout is None for choice in chosen)
    return Forecast(isa, is_measured(isa), one_token, many_tokens, len(chosen), dense_layers)


def _speedup(choices: Iterable[Choice], tokens: int, isa: str) -> float:
    dense = stored = 0.0
    for choice in choices:
        if choice.work is None:
            continue
        baseline = predict(choice.work, tokens, isa, BASELINE).microseconds
        dense += baseline
        stored += baseline if choice.layout is None else predict(choice.work, tokens, isa).microseconds
    return dense / stored if stored else 1.0
