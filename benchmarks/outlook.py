"""What a measured layer is bound by on this machine, and what is predicted of machines with many cores.

On one core a sparse product is often bound by expansion, the work of bringing weights and X together; on many cores,
which share the memory, by the bytes of the weights. The two give different speed-ups, so both are stated.
"""

from dataclasses import dataclass

from ..kernels.cost import BASELINE, Work, predict, predicted_speedup

MANY_CORES = 16
SHARED_BANDWIDTH = 4.0
"""The memory of that machine delivers so many times what one core draws: a usual server, not one that was measured."""
MEMORY_SHARE = 0.7
"""From this share of the memory's bandwidth on, a call is said to be bound by memory."""


@dataclass(frozen=True)
class Outlook:
    """What stands beside a measured ratio.

    Attributes:
        packing: the family of packings that the kernels take for so many tokens.
        predicted_ratio: speed-up over dense on one core, by the cost model.
        bound: "memory" or "expansion": what this machine spends the measured time on.
        many_core_ratio: a prediction: the speed-up on `MANY_CORES` cores with `SHARED_BANDWIDTH` times one core's
            bandwidth.
    """

    packing: str
    predicted_ratio: float
    bound: str
    many_core_ratio: float


def outlook(work: Work, tokens: int, isa: str, us: float, dense_us: float, bandwidth: float) -> Outlook:
    """For a layer that takes `us` microseconds on one core that draws `bandwidth` bytes a second, and dense `dense_us`.

    Raises:
        InputError: as `kernels.cost.predict`.
    """
    packed = predict(work, tokens, isa)
    dense = predict(work, tokens, isa, BASELINE)
    reading = packed.packed_bytes / bandwidth * 1e6
    many = _many_cores(work, tokens, isa, us, bandwidth)
    dense_many = _many_cores(work, tokens, isa, dense_us, bandwidth, dense.family)
    return Outlook(
        packing=packed.family,
        predicted_ratio=predicted_speedup(work, tokens, isa),
        bound=bound_by(reading / us),
        many_core_ratio=dense_many / many,
    )


def bound_by(share: float, otherwise: str = "expansion") -> str:
    """What a call waits for that draws this share of the memory's bandwidth: "memory", or `otherwise`."""
    return "memory" if share >= MEMORY_SHARE else otherwise


def _many_cores(work: Work, tokens: int, isa: str, us: float, bandwidth: float, family: str | None = None) -> float:
    """Microseconds on many cores: as long as all of them compute, or as the weight comes from memory."""
    from_memory, cached = (predict(work, tokens, isa, family, cached=cached) for cached in (False, True))
    computing = us * min(1.0, cached.microseconds / from_memory.microseconds)
    reading = from_memory.packed_bytes / (SHARED_BANDWIDTH * bandwidth) * 1e6
    return max(computing / MANY_CORES, reading)
