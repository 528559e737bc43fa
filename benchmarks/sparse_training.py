"""A training step of a sparse perceptron: layers that hold their links alone against masked dense layers, interleaved.

    python -m hebbline.benchmarks.sparse_training

The perceptron is that of arXiv 2501.19107, 784-1568-1568-1568-10 with a dense last layer. A step is forward, backward
and optimizer step; both sides train the same links from the same weights, and their gradients are compared first.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from ..artifacts import CheckError
from ..console import Parser, console, print_json
from ..train import Sparsifier, SparsityConfig
from ..train.sparse_linear import SparseLinear
from ..train.tasks.mlp import Mlp, MlpConfig
from .timing import interleaved

DENSITIES = (0.01, 0.02, 0.05)
BATCHES = (32, 128)
LARGEST_DIFFERENCE = 1e-5
_SIZES = (784, 1568, 1568, 1568)


@dataclass(frozen=True)
class StepRow:
    """Median milliseconds of a masked and of a link-only step, their ratio, and the largest difference of gradients.

    The difference is relative to a layer's largest gradient.
    """

    density: float
    batch: int
    masked_ms: float
    links_ms: float
    speedup: float
    max_difference: float


def main(arguments: list[str] | None = None) -> int:
    """Print the table, or JSON."""
    parser = Parser(prog="sparse_training", description="A training step over links alone against masked layers.")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    values = parser.parse_args(arguments)
    torch.set_num_threads(values.threads)
    rows = [run_case(density, batch) for density in DENSITIES for batch in BATCHES]
    if values.json:
        print_json([asdict(row) for row in rows])
        return 0
    console.print("density, batch: masked ms, links ms, speed-up, largest difference of gradients")
    for row in rows:
        print(
            f"{row.density:g}, {row.batch}: {row.masked_ms:.2f}, {row.links_ms:.2f}, {row.speedup:.1f}, "
            f"{row.max_difference:.1e}"
        )
    return 0


def run_case(density: float, batch: int) -> StepRow:
    """Time one step; raises CheckError where gradients differ by more than 1e-5."""
    torch.manual_seed(0)
    config = SparsityConfig(method="static", density=density, exclude=["head"])
    masked, linked = _perceptron(), _perceptron()
    linked.load_state_dict(masked.state_dict())
    masked_sparsifier = Sparsifier(masked, config)
    link_sparsifier = Sparsifier(linked, replace(config, compute="links"))
    x_TK, labels_T = torch.randn(batch, _SIZES[0]), torch.randint(0, 10, (batch,))
    steps = {
        "masked": _step(masked, masked_sparsifier, x_TK, labels_T),
        "links": _step(linked, link_sparsifier, x_TK, labels_T),
    }
    _backward(masked, x_TK, labels_T)
    _backward(linked, x_TK, labels_T)
    difference = max(
        _difference(masked.get_parameter(f"{name}.weight").grad, layer.values.grad, layer.mask)
        for name, layer in linked.named_modules()
        if isinstance(layer, SparseLinear)
    )
    if difference > LARGEST_DIFFERENCE:
        raise CheckError(f"at density {density} and batch {batch} gradients differ by {difference:.1e}")
    seconds = interleaved(steps)
    masked_ms, links_ms = seconds["masked"] * 1e3, seconds["links"] * 1e3
    return StepRow(density, batch, masked_ms, links_ms, masked_ms / links_ms, difference)


def _perceptron() -> Mlp:
    return Mlp(MlpConfig(_SIZES[0], _SIZES[1:], 10))


def _step(model: nn.Module, sparsifier: Sparsifier, x_TK: Tensor, labels_T: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True)
    sparsifier.attach(optimizer)

    def step() -> None:
        optimizer.zero_grad()
        _backward(model, x_TK, labels_T)
        optimizer.step()
        sparsifier.step()

    return step


def _backward(model: nn.Module, x_TK: Tensor, labels_T: Tensor) -> None:
    model(x_TK, labels_T).loss.backward()


def _difference(masked_NK: Tensor | None, links_Z: Tensor | None, mask_NK: Tensor) -> float:
    assert masked_NK is not None and links_Z is not None
    return float((masked_NK[mask_NK] - links_Z).abs().max() / masked_NK.abs().max())


if __name__ == "__main__":
    raise SystemExit(main())
