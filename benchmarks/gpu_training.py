"""A training step on a GPU, dense, masked and 2:4, and a topology update, in bfloat16.

    python -m hebbline.benchmarks.gpu_training
    python from_source.py benchmarks.gpu_training        from a source tree, with torch and NumPy alone

A step is forward, backward and AdamW's step on random tokens; what is timed takes turns, after two steps that warm up.
`masked` holds 30% of the links of every projection by CHTs' `Sparsifier`, whose updates are timed apart, as are the
link scores in them, which need no C++ library (the draws of an update do: without it that row says so); `2:4` holds
half of them, repacks them for the tensor cores' 2:4 mode by torch's semi-structured tensors in each step, and
multiplies so in the forward pass alone: torch's product takes one weight in one direction. Projections whose sizes
torch's tensors do not take stay dense and are counted. Nothing of this was run on a GPU where it was written.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..artifacts.errors import InputError
from ..kernels.gpu.check.cases import first_line
from ..kernels.gpu.check.run import write_page
from ..kernels.gpu.check.tables import page_name
from ..train.dynamics import Sparsifier, SparsityConfig, UpdateConfig
from ..train.topology import link_scores
from .gpu_llama import PROJECTIONS, SHAPES, Llama, LlamaShape

BATCH, TOKENS = 16, 256
ROUNDS = 7
DENSITY = 0.3
Pack = Callable[[Tensor], Any]


@dataclass(frozen=True)
class TrainingRow:
    """Median seconds of one step, or one update of all layers, and of the dense step in turns with it; or why not."""

    model: str
    what: str
    seconds: float
    dense_seconds: float
    remark: str = ""


def main(arguments: list[str] | None = None) -> int:
    """Print each row when it is measured and write a page; exit code 2 where torch sees no GPU."""
    parser = argparse.ArgumentParser(prog="gpu_training", description=main.__doc__)
    parser.add_argument("--docs", type=Path, default=Path("docs/gpu"), help="where the page is written")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no NVIDIA GPU: install a build with CUDA", file=sys.stderr)
        return 2
    rows = []
    for shape in SHAPES:
        for row in time_model(shape, "cuda"):
            print(describe(row), flush=True)
            rows.append(row)
    gpu = torch.cuda.get_device_name(0)
    page = options.docs / f"{Path(page_name(gpu)).stem}-training.md"
    write_page(page, render(gpu, rows))
    print(f"see {page}")
    return 0


def time_model(
    shape: LlamaShape,
    device: str,
    *,
    batch: int = BATCH,
    tokens: int = TOKENS,
    rounds: int = ROUNDS,
    pack: Pack = torch.sparse.to_sparse_semi_structured,
) -> list[TrainingRow]:
    """All rows of one model. What fails, for want of memory or of an operator, is a row with the reason.

    Args:
        shape: of the model. device: where. batch, tokens: of a step. rounds: turns. pack: a 2:4 weight as torch
        multiplies it.
    """
    ids_BS = torch.randint(0, shape.vocabulary, (batch, tokens), device=device)
    rows = []
    makers = {"masked, 30%": _masked_step, "2:4": lambda model, ids: _two_four_step(model, ids, pack)}
    for what, maker in makers.items():
        try:
            dense = _plain_step(_model(shape, device, tokens), ids_BS)
            other, remark = maker(_model(shape, device, tokens), ids_BS)
            dense_seconds, seconds = _in_turns([dense, other], rounds, device)
            rows.append(TrainingRow(shape.name, what, seconds, dense_seconds, remark))
        except RuntimeError as error:  # of torch: out of memory, or an operator that this GPU has not
            rows.append(TrainingRow(shape.name, what, float("nan"), float("nan"), first_line(error)))
    baseline = rows[0].dense_seconds
    for what, timed in (("link scores, all layers", _time_scores), ("topology update, all layers", _time_update)):
        try:
            seconds = timed(shape, ids_BS, rounds, device)
            rows.append(TrainingRow(shape.name, what, seconds, baseline))
        except (RuntimeError, InputError) as error:  # the latter where the library is missing
            rows.append(TrainingRow(shape.name, what, float("nan"), float("nan"), first_line(error)))
    return rows


def _model(shape: LlamaShape, device: str, tokens: int) -> Llama:
    torch.manual_seed(0)
    return Llama(shape, tokens).to(device, torch.bfloat16)


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def _plain_step(model: Llama, ids_BS: Tensor, after: Callable[[], object] = lambda: None) -> Callable[[], None]:
    """A step of a model, and what comes after it."""
    return _step(model, _optimizer(model), ids_BS, after)


def _step(
    model: Llama, optimizer: torch.optim.Optimizer, ids_BS: Tensor, after: Callable[[], object]
) -> Callable[[], None]:
    def step() -> None:
        model(ids_BS).backward()
        optimizer.step()
        optimizer.zero_grad()
        after()

    return step


def _masked_step(model: Llama, ids_BS: Tensor) -> tuple[Callable[[], None], str]:
    return _sparse_step(model, ids_BS, every=1 << 30)[0], ""


def _sparse_step(model: Llama, ids_BS: Tensor, every: int) -> tuple[Callable[[], None], Sparsifier]:
    """A step of a model that is kept sparse, with an update every so many steps."""
    update = UpdateConfig(every=every, stop=max(1000, every))
    config = SparsityConfig(method="chts", density=DENSITY, include=[PROJECTIONS], update=update)
    sparsifier = Sparsifier(model, config, {"steps": 0, "masks": random_masks(model)})
    optimizer = _optimizer(model)
    sparsifier.attach(optimizer)
    return _step(model, optimizer, ids_BS, sparsifier.step), sparsifier


def random_masks(model: Llama) -> dict[str, Tensor]:
    """30% of the links of every projection, bool [N, K] by layer."""
    masks = {}
    for name, module in model.layers.named_modules(prefix="layers"):
        if isinstance(module, nn.Linear):
            keys = torch.rand(module.weight.shape, device=module.weight.device)
            masks[name] = keys <= keys.flatten().kthvalue(round(DENSITY * keys.numel())).values
    return masks


class TwoFourProduct(torch.autograd.Function):
    """Y = X W^T by a packed 2:4 weight; gradients of X and W by dense products."""

    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, weight_NK: Tensor, pack: Pack) -> Tensor:
        """Packs the weight as it is in this step."""
        ctx.save_for_backward(x_TK, weight_NK)
        return functional.linear(x_TK, pack(weight_NK.detach()))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Of X and W."""
        x_TK, weight_NK = ctx.saved_tensors
        gradient_TN = gradients[0]
        return gradient_TN @ weight_NK, gradient_TN.flatten(0, -2).T @ x_TK.flatten(0, -2), None


class TwoFourLinear(nn.Module):
    """A linear layer whose weight is 2:4 along its inputs, and stays so: the others are set to 0 after each step."""

    mask_NK: Tensor

    def __init__(self, linear: nn.Linear, pack: Pack) -> None:
        super().__init__()
        self.weight, self._pack = linear.weight, pack
        groups = linear.weight.detach().abs().unflatten(1, (-1, 4))
        kept = torch.zeros_like(groups).scatter_(2, groups.topk(2, dim=2).indices, 1)
        self.register_buffer("mask_NK", kept.flatten(1).to(linear.weight.dtype), persistent=False)
        self.keep()

    def forward(self, x: Tensor) -> Tensor:
        """Y = X W^T."""
        return TwoFourProduct.apply(x, self.weight, self._pack)

    @torch.no_grad()
    def keep(self) -> None:
        """Weights off the mask back to 0."""
        self.weight.mul_(self.mask_NK)


def _two_four_step(model: Llama, ids_BS: Tensor, pack: Pack) -> tuple[Callable[[], None], str]:
    layers, dense = [], 0
    for module in list(model.layers.modules()):
        for name, child in list(module.named_children()):
            if not isinstance(child, nn.Linear):
                continue
            if any(size % 64 for size in child.weight.shape):
                dense += 1
                continue
            layers.append(TwoFourLinear(child, pack))
            setattr(module, name, layers[-1])
    step = _plain_step(model, ids_BS, lambda: [layer.keep() for layer in layers])
    return step, f"{len(layers)} projections 2:4" + (f", {dense} dense: sizes are no multiple of 64" if dense else "")


def _time_scores(shape: LlamaShape, ids_BS: Tensor, rounds: int, device: str) -> float:
    """Seconds of the scores of all possible links of all layers, once."""
    masks = random_masks(_model(shape, device, ids_BS.shape[1]))

    def scores() -> None:
        for mask_NK in masks.values():
            link_scores(mask_NK, "CH2_L3n")

    return _in_turns([scores], rounds, device)[0]


def _time_update(shape: LlamaShape, ids_BS: Tensor, rounds: int, device: str) -> float:
    """Seconds of one update: removal, scores, draws of links, and what the model takes over."""
    step, sparsifier = _sparse_step(_model(shape, device, ids_BS.shape[1]), ids_BS, every=1)
    step()

    def update() -> None:
        assert sparsifier.step() is not None

    return _in_turns([update], rounds, device)[0]


def _in_turns(steps: Sequence[Callable[[], None]], rounds: int, device: str) -> list[float]:
    """Median seconds of each, the first two rounds left out."""
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(2 + rounds):
        for place, step in enumerate(steps):
            _wait(device)
            started = time.perf_counter()
            step()
            _wait(device)
            seconds[place].append(time.perf_counter() - started)
    return [median(times[2:]) for times in seconds]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def describe(row: TrainingRow) -> str:
    """One line."""
    if row.seconds != row.seconds:  # NaN
        return f"{row.model}, {row.what}: not timed: {row.remark}"
    share = row.seconds / row.dense_seconds
    remark = f" ({row.remark})" if row.remark else ""
    return f"{row.model}, {row.what}: {row.seconds * 1e3:.1f} ms, {share:.2f} of a dense step{remark}"


def render(gpu: str, rows: Sequence[TrainingRow]) -> str:
    """The page in Markdown."""
    lines = [f"- {describe(row)}" for row in rows]
    title = f"# Training on {gpu}"
    how = (
        f"Run by `python -m hebbline.benchmarks.gpu_training`, torch {torch.__version__}: steps of {BATCH} by {TOKENS} "
    )
    return "\n".join(
        [title, "", how + "tokens in bfloat16 with AdamW, in turns with dense ones; medians.", "", *lines, ""]
    )


if __name__ == "__main__":
    raise SystemExit(main())
