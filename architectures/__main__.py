"""Brings the documentation's table of families up to date: `python -m hebbline.architectures docs/architectures.md`."""

from pathlib import Path

from ..console import Parser
from .table import with_table


def main() -> None:
    """Rewrite the table in a page."""
    parser = Parser(prog="architectures", description="Bring the table of families in a page of Markdown up to date.")
    parser.add_argument("page", type=Path)
    page: Path = parser.parse_args().page
    page.write_text(with_table(page.read_text()))


if __name__ == "__main__":
    main()
