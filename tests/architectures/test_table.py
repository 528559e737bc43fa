from pathlib import Path

import pytest

from hebbline.architectures import FAMILIES
from hebbline.architectures.table import with_table
from hebbline.artifacts import InputError


def test_the_documentation_has_the_table_that_the_command_writes():
    """`python -m hebbline.architectures docs/architectures.md` brings it up to date."""
    written = (Path(__file__).parents[2] / "docs/architectures.md").read_text()
    assert written == with_table(written)
    assert all(f"`{family.architecture}`" in written for family in FAMILIES.values())


def test_a_page_without_a_place_for_it_is_refused():
    with pytest.raises(InputError, match="the page has no lines '<!-- families -->'"):
        with_table("# A page")
