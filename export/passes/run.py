"""The passes that an export was asked for, in their order: compact, then permute."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..graph.source import SourceModel
from .compaction import compact
from .permutation import Structure, permute
from .report import Passed, PassReport


@dataclass(frozen=True)
class PassOptions:
    """Which passes to run.

    `compact` removes neurons without effect; `permute` orders dimensions for a structure, None for none. `seed` is
    that of the search for orders.
    """

    compact: bool = False
    permute: Structure | None = None
    seed: int = 0


def run_passes(
    source: SourceModel, options: PassOptions, progress: Callable[[str], None] = lambda stage: None
) -> tuple[SourceModel, tuple[PassReport, ...]]:
    """The model as a graph should have it, and what each pass did.

    The result computes what `source` does, so that what is exported from it can be checked against `source.model`. It
    is for graphs, not to be saved: its layers may have sizes that `config.json` cannot name. A pass has all weights in
    memory; without one, they stay where they are.

    Raises:
        InputError: see `compact` and `permute`.
    """
    reports: list[PassReport] = []
    if options.compact or options.permute is not None:
        source = source.loaded()

    def take(passed: Passed) -> SourceModel:
        reports.append(passed.report)
        return replace(source, model=passed.model, decoder=passed.decoder, masks=passed.masks)

    if options.compact:
        progress("compacting")
        source = take(compact(source.model, source.masks, for_graph=True, decoder=source.decoder))
    if options.permute is not None:
        ordering = options.permute
        source = take(
            permute(
                source.model,
                source.masks,
                ordering,
                seed=options.seed,
                decoder=source.decoder,
                progress=lambda dimension: progress(f"ordering for {ordering}: {dimension}"),
            )
        )
    return source, tuple(reports)
