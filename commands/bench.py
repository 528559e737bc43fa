"""`hebbline bench linear|model|results`: the speed that a user gets on this machine, and methods compared."""

from ..artifacts import InputError

_KINDS = ("linear", "model", "results")


def main(arguments: list[str]) -> int:
    """Run one kind of benchmark."""
    kind, *rest = arguments or [""]
    if kind in ("-h", "--help"):
        print("usage: hebbline bench linear|model|results [options]\n\n`hebbline bench KIND --help` lists the options.")
        return 0
    if kind == "linear":
        from .bench_linear import main as linear

        return linear(rest)
    if kind == "model":
        from .bench_model import main as model

        return model(rest)
    if kind == "results":
        from .bench_results import main as results

        return results(rest)
    raise InputError(f"there is no benchmark '{kind}'; there are {', '.join(_KINDS)}")
