"""A training step of layers that hold their links alone against masked dense layers, interleaved.

    python -m hebbline.benchmarks.sparse_training

Two kinds of networks: the perceptron of arXiv 2501.19107, 784-1568-1568-1568-10 with a dense last layer, by SGD; and
single layers of the shapes that a Llama of 60 million weights has, over 2,048 tokens, by AdamW. A step is forward,
backward, the gradient of the input too, and optimizer step; both sides train the same links from the same weights, and
their gradients are compared first.

Legend: T tokens or images, K features.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from ..artifacts import CheckError
from ..console import Parser, console, print_json
from ..kernels.isa import kernels_isa
from ..train import Sparsifier, SparsityConfig
from ..train.native.link_products import backward, forward
from ..train.sparse_linear import SparseLinear
from ..train.tasks.mlp import Mlp, MlpConfig
from .timing import interleaved

LARGEST_DIFFERENCE = 1e-5
_SIZES = (784, 1568, 1568, 1568)
_TOKENS = 2048


@dataclass(frozen=True)
class Case:
    """A network, its density, and the images or tokens of a step.

    `layer` is (in, out) of a single layer; None stands for the perceptron.
    """

    density: float
    batch: int
    layer: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """What the table says of the network."""
        return "perceptron" if self.layer is None else f"{self.layer[0]} to {self.layer[1]}"

    def network(self) -> nn.Module:
        """The network, with random weights."""
        if self.layer is None:
            return Mlp(MlpConfig(_SIZES[0], _SIZES[1:], 10))
        return nn.Sequential(nn.Linear(*self.layer))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """What trains it: torch's own, each in its fused form."""
        if self.layer is None:
            return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True)
        return torch.optim.AdamW(model.parameters(), fused=True)

    def backward(self, model: nn.Module) -> Callable[[], None]:
        """Forward and backward on random data."""
        torch.manual_seed(1)
        if self.layer is None:
            x_TK, labels_T = torch.randn(self.batch, _SIZES[0]), torch.randint(0, 10, (self.batch,))
            return lambda: model(x_TK, labels_T).loss.backward()
        x_TK = torch.randn(self.batch, self.layer[0])
        grad = torch.randn(self.batch, self.layer[1])
        return lambda: model(x_TK.detach().requires_grad_()).backward(grad)


CASES = [Case(density, batch) for density in (0.01, 0.02, 0.05) for batch in (32, 128)] + [
    Case(density, _TOKENS, layer) for layer in ((512, 512), (512, 1376), (1376, 512)) for density in (0.01, 0.05, 0.1)
]


@dataclass(frozen=True)
class StepRow:
    """Median milliseconds of a masked and of a link-only step, of the latter's products alone, and the ratio of steps.

    The largest difference of gradients is relative to a layer's largest gradient.
    """

    network: str
    density: float
    batch: int
    masked_ms: float
    links_ms: float
    products_ms: float
    speedup: float
    max_difference: float


def main(arguments: list[str] | None = None) -> int:
    """Print the table, or JSON."""
    parser = Parser(prog="sparse_training", description="A training step over links alone against masked layers.")
    parser.add_argument("--threads", type=int, default=2, help="of torch and of the native library")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    values = parser.parse_args(arguments)
    torch.set_num_threads(values.threads)
    rows = [run_case(case) for case in CASES]
    if values.json:
        print_json({"isa": kernels_isa(), "threads": values.threads, "rows": [asdict(row) for row in rows]})
        return 0
    console.print(f"instruction set {kernels_isa()}, threads {values.threads}")
    console.print("network, density, batch: masked ms, links ms (products alone), speed-up, difference of gradients")
    for row in rows:
        print(
            f"{row.network}, {row.density:g}, {row.batch}: {row.masked_ms:.2f}, {row.links_ms:.2f} "
            f"({row.products_ms:.2f}), {row.speedup:.1f}, {row.max_difference:.1e}",
            flush=True,
        )
    return 0


def run_case(case: Case) -> StepRow:
    """Time one step; raises CheckError where gradients differ by more than 1e-5."""
    torch.manual_seed(0)
    config = SparsityConfig(method="static", density=case.density, exclude=["head"])
    masked, linked = case.network(), case.network()
    linked.load_state_dict(masked.state_dict())
    steps = {
        "masked": _step(case, masked, Sparsifier(masked, config)),
        "links": _step(case, linked, Sparsifier(linked, replace(config, compute="links"))),
    }
    layers = {name: layer for name, layer in linked.named_modules() if isinstance(layer, SparseLinear)}
    case.backward(masked)()
    case.backward(linked)()
    difference = max(
        _difference(masked.get_parameter(f"{name}.weight").grad, layer.values.grad, layer.mask)
        for name, layer in layers.items()
    )
    if difference > LARGEST_DIFFERENCE:
        raise CheckError(
            f"{case.name}, density {case.density}, batch {case.batch}: gradients differ by {difference:.1e}"
        )
    products = [
        _products(layer, case.batch, first=case.layer is None and not at) for at, layer in enumerate(layers.values())
    ]
    seconds = interleaved(steps | {"products": lambda: [product() for product in products]})
    masked_ms, links_ms, products_ms = (seconds[name] * 1e3 for name in ("masked", "links", "products"))
    return StepRow(
        case.name, case.density, case.batch, masked_ms, links_ms, products_ms, masked_ms / links_ms, difference
    )


def _products(layer: SparseLinear, batch: int, *, first: bool) -> Callable[[], object]:
    """The native products of a layer, forward and backward; the first layer's input has no gradient."""
    x_TK, index, values_Z, bias_N = torch.randn(batch, layer.in_features), layer.index, layer.values.data, layer.bias
    grad_TN = torch.randn_like(forward(index, values_Z, bias_N, x_TK))

    def product() -> None:
        forward(index, values_Z, bias_N, x_TK)
        backward(index, values_Z, x_TK, grad_TN, wants=(not first, True, True))

    return product


def _step(case: Case, model: nn.Module, sparsifier: Sparsifier) -> Callable[[], None]:
    optimizer, run_backward = case.optimizer(model), case.backward(model)
    sparsifier.attach(optimizer)

    def step() -> None:
        optimizer.zero_grad()
        run_backward()
        optimizer.step()
        sparsifier.step()

    return step


def _difference(masked_NK: Tensor | None, links_Z: Tensor | None, mask_NK: Tensor) -> float:
    assert masked_NK is not None and links_Z is not None
    return float((masked_NK[mask_NK] - links_Z).abs().max() / masked_NK.abs().max())


if __name__ == "__main__":
    raise SystemExit(main())
