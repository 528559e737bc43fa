"""Cost of topology updates against the four dense products that the scores are defined by, in one interleaved run.

    python -m hebbline.benchmarks.topology_update

Legend: N out_features, K in_features.

`reference` is the definition written down: S(A) A + (S(A^T) A^T)^T with every product dense in float32. `scores` is
`link_scores`; `update` is a whole CHTs update of one layer, removal, scores and sampling of links together, against the
same reference. Every row also compares the scores at absent links. `--share` trains a Llama of 60 million parameters
for some steps, and says what share of the time its updates would take at an interval of 100 steps.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..artifacts import CheckError
from ..console import Parser, console, print_json
from ..train.dynamics import Sparsifier, SparsityConfig, UpdateConfig
from ..train.dynamics.plan import plan_layers
from ..train.dynamics.update import Moment, regrow, remove
from ..train.tasks.language_model import build_model
from ..train.tasks.recipe import ModelConfig
from ..train.topology import initial_mask, link_scores
from .timing import interleaved

CASES = ((512, 1376, 0.3, "brf"), (512, 1376, 0.3, "er"), (512, 1376, 0.05, "brf"), (1568, 1568, 0.01, "brf"))
LARGE_CASES = ((2048, 5461, 0.3, "brf"),)
LARGEST_DIFFERENCE = 1e-5
SHARE_INTERVAL = 100
_SHARE_STEPS = 3
_SHARE_BATCH = (4, 256)
_PARAMETERS: dict[str, dict[str, Any]] = {"brf": {"r": 0.25}, "er": {}}


@dataclass(frozen=True)
class UpdateRow:
    """Median seconds of the reference, of the scores and of a whole update; their ratios to the reference."""

    out_features: int
    in_features: int
    density: float
    graph: str
    reference_seconds: float
    scores_seconds: float
    update_seconds: float
    scores_ratio: float
    update_ratio: float
    max_difference: float


@dataclass(frozen=True)
class UpdateShare:
    """Median seconds of a training step of some tokens and of an update of all layers, and the share of updates."""

    tokens: int
    step_seconds: float
    update_seconds: float
    share: float


def main(arguments: list[str] | None = None) -> int:
    """Print the table as it comes, and JSON at the end where asked for."""
    parser = Parser(prog="topology_update", description="Topology updates against their definition in dense products.")
    parser.add_argument("--large", action="store_true", help="also 2048 x 5461, which takes a minute")
    parser.add_argument("--share", action="store_true", help="also the share of training time, which takes minutes")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    values = parser.parse_args(arguments)
    torch.set_num_threads(values.threads)
    console.print("shape, density, graph: reference ms, scores ms (ratio), update ms (ratio), largest difference")
    rows = []
    for case in (*CASES, *(LARGE_CASES if values.large else ())):
        rows.append(row := run_case(*case))
        console.print(
            f"{row.out_features}x{row.in_features} {row.density:g} {row.graph}: {row.reference_seconds * 1e3:.1f}, "
            f"{row.scores_seconds * 1e3:.1f} ({row.scores_ratio:.2f}), {row.update_seconds * 1e3:.1f} "
            f"({row.update_ratio:.2f}), {row.max_difference:.1e}"
        )
    share = run_share() if values.share else None
    if share is not None:
        console.print(
            f"Llama of 60M: a step of {share.tokens} tokens {share.step_seconds:.2f} s, an update of all layers "
            f"{share.update_seconds:.2f} s: {share.share:.2%} of training at an interval of {SHARE_INTERVAL}"
        )
    if values.json:
        print_json({"updates": [asdict(row) for row in rows], "share": None if share is None else asdict(share)})
    return 0


def run_case(out_features: int, in_features: int, density: float, graph: str) -> UpdateRow:
    """Time one layer; raises CheckError where the scores differ by more than 1e-5 of themselves."""
    mask_NK = initial_mask(graph, out_features, in_features, density, seed=0, **_PARAMETERS[graph])
    difference = _difference(mask_NK)
    if difference > LARGEST_DIFFERENCE:
        raise CheckError(f"{out_features}x{in_features} at {density}: scores differ by {difference:.1e}")
    seconds = interleaved(
        {
            "reference": lambda: reference_scores(mask_NK),
            "scores": lambda: link_scores(mask_NK, "CH2_L3n"),
            "update": _update_of(mask_NK, density),
        },
        threads=torch.get_num_threads(),
    )
    reference = seconds["reference"]
    ratios = (seconds["scores"] / reference, seconds["update"] / reference)
    timings = (reference, seconds["scores"], seconds["update"])
    return UpdateRow(out_features, in_features, density, graph, *timings, *ratios, difference)


def run_share() -> UpdateShare:
    """The setting of LLaMA-60M in arXiv 2501.19107, in which a step has 128 times as many tokens."""
    shape = ModelConfig(512, 1376, layers=8, heads=8, kv_heads=8, context_length=256, vocab_size=32000)
    torch.manual_seed(0)
    model = build_model(shape, shape.vocab_size, None)
    sparsifier = Sparsifier(model, SparsityConfig(method="chtss", update=UpdateConfig(every=1, stop=100)))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    sparsifier.attach(optimizer)
    ids_BS = torch.randint(0, shape.vocab_size, _SHARE_BATCH)
    steps, updates = [], []
    for _ in range(_SHARE_STEPS):
        started = time.perf_counter()
        model(input_ids=ids_BS, labels=ids_BS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.append(time.perf_counter() - started)
        report = sparsifier.step()
        assert report is not None
        updates.append(report.seconds)
    step, update = median(steps), median(updates)
    return UpdateShare(ids_BS.numel(), step, update, update / (SHARE_INTERVAL * step + update))


def reference_scores(mask_NK: Tensor) -> Tensor:
    """CH2-L3n by its definition: float32 [N, K]."""
    a_NK = mask_NK.float()
    a_KN = a_NK.T.contiguous()
    return _similarity(a_NK) @ a_NK + (_similarity(a_KN) @ a_KN).T


def _similarity(a: Tensor) -> Tensor:
    common = a @ a.T
    linked = common != 0
    external = torch.clamp((a.sum(dim=1)[None, :] - common) * linked, min=1) - 1
    return (common + linked) / (external + 1)


def _difference(mask_NK: Tensor) -> float:
    """The largest difference at absent links, relative to the definition in float64."""
    a_NK = mask_NK.double()
    a_KN = a_NK.T.contiguous()
    exact = (_similarity(a_NK) @ a_NK + (_similarity(a_KN) @ a_KN).T)[~mask_NK]
    found = link_scores(mask_NK, "CH2_L3n")[~mask_NK].double()
    return float(((found - exact).abs() / exact.clamp(min=1e-6)).max())


def _update_of(mask_NK: Tensor, density: float) -> Callable[[], Tensor]:
    """A call that removes 10% of the links by sampled magnitude and regrows as many by sampled scores."""
    layer = nn.Sequential(nn.Linear(mask_NK.shape[1], mask_NK.shape[0]))
    config = SparsityConfig(method="chts", density=density, update=UpdateConfig(every=1, stop=100))
    (plan,) = plan_layers(layer, config).values()
    weight_NK = layer.get_parameter("0.weight").detach() * mask_NK
    when = Moment(update=1, progress=0.01)

    def call() -> Tensor:
        kept_NK = remove(plan, mask_NK, weight_NK, None, when, 0, stopped=False)
        return regrow(plan, kept_NK, None, when, 0)

    return call


if __name__ == "__main__":
    raise SystemExit(main())
