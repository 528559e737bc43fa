"""What the caller of `pack` may ask for."""

from dataclasses import dataclass

from ...artifacts import InputError
from ...kernels.cost import check_isa
from ..layouts import Objective

VALUES = ("float32", "bfloat16", "int8", "int4")
OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput", "size")


@dataclass(frozen=True)
class PackOptions:
    """Options of `pack`.

    Args:
        values: how weights are stored; float32 keeps every bit, the others are asked for by name.
        min_speedup: layers whose speed-up over dense is below this are left as they are. Layers that would be no
        faster at all are left anyway, unless the objective is size.
        autotune: time the candidates on this machine instead of asking the cost model.
        objective: what a layout is chosen for: few tokens at a time, many, or the fewest bytes.
        calibration: an .npz file of the model's inputs, for values that round activations too: they are then rounded by
            one scale a layer, for the largest magnitude on these inputs, and not each token by its own.
        for_isa: the instruction set that times are predicted for ("scalar", "avx2", "avx2-vnni", "avx512", "amx");
            None: this machine's.
        measure: time the whole model before and after.

    Raises:
        InputError: a value outside its choices.
    """

    values: str = "float32"
    min_speedup: float = 0.0
    autotune: bool = False
    objective: Objective = "latency"
    calibration: str | None = None
    for_isa: str | None = None
    measure: bool = True

    def __post_init__(self) -> None:
        for name, choices in (("values", VALUES), ("objective", OBJECTIVES)):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is '{getattr(self, name)}'; it must be one of {', '.join(choices)}")
        if self.calibration is not None and self.values not in ("int8", "int4"):
            raise InputError(f"calibration is for values int8 and int4: {self.values} does not round activations")
        if self.for_isa is not None and self.autotune:
            raise InputError(f"for_isa is {self.for_isa}, but autotune measures this machine: leave out one of them")
        if self.for_isa is not None:
            check_isa(self.for_isa)
        if not 0 <= self.min_speedup < float("inf"):
            raise InputError(f"min_speedup is {self.min_speedup}; it must be a number from 0 up")
