"""The tables of the cost model, as the C++ that the library is built from."""

from datetime import date
from pathlib import Path

from ...kernels.cost import TERMS
from .fit import Coefficients, Fit

DIRECTORY = Path(__file__).resolve().parents[2] / "kernels" / "linear" / "cost_tables"


def write_table(fit: Fit, processor: str, directory: Path = DIRECTORY) -> Path:
    """Write a fitted table; `processor` is the one that it was fitted on."""
    path = directory / f"{fit.table}.inc"
    origin = (
        f"Fitted on {processor}, {date.today().isoformat()}, by\n"
        f"//   python -m hebbline.benchmarks.fit_cost --isa {fit.table} --write"
    )
    path.write_text(table_text(fit, origin, is_measured=True))
    return path


def table_text(fit: Fit, origin: str, *, is_measured: bool) -> str:
    """The C++ text of a table; `origin` says in its first line where the numbers come from."""
    rows = "\n".join(
        f"    {{Family::k{family.capitalize()}, ValueType::k{values.capitalize()}, {_numbers(numbers)}}},"
        for (family, values), numbers in fit.families.items()
    )
    name = "k" + "".join(part.capitalize() for part in fit.table.split("-"))
    return f"""// {origin}
// Nanoseconds of each term: {", ".join(TERMS[:7])},
// {", ".join(TERMS[7:])}.
// clang-format off
constexpr FamilyCost {name}Families[] = {{
{rows}
}};
constexpr CostTable {name}Costs{{
    {str(is_measured).lower()},
    {_numbers(fit.baseline)},
    {name}Families}};
// clang-format on
"""


def _numbers(values: Coefficients) -> str:
    return "{" + ", ".join(f"{value:g}" for value in values) + "}"
