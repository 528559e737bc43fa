"""`hebbline bench KIND`: the speed that a user gets on this machine, quality against it, and methods compared."""

from ..artifacts import InputError

_KINDS = ("linear", "model", "frontier", "serve", "results")


def main(arguments: list[str]) -> int:
    """Run one kind of benchmark."""
    kind, *rest = arguments or [""]
    if kind in ("-h", "--help"):
        print(f"usage: hebbline bench {'|'.join(_KINDS)} [options]\n\n`hebbline bench KIND --help` lists the options.")
        return 0
    if kind == "linear":
        from .bench_linear import main as linear

        return linear(rest)
    if kind == "model":
        from .bench_model import main as model

        return model(rest)
    if kind == "frontier":
        from .bench_frontier import main as frontier

        return frontier(rest)
    if kind == "serve":
        from .bench_serve import main as serve

        return serve(rest)
    if kind == "results":
        from .bench_results import main as results

        return results(rest)
    wrong = f"there is no benchmark '{kind}'" if kind else "name a benchmark"
    raise InputError(f"{wrong}; there are {', '.join(_KINDS)}")
