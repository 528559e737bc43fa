"""The benchmark of loading without the op library gives a row for each stack and layout."""

import json

import pytest

from hebbline.artifacts import InputError
from hebbline.benchmarks.portable import main, run_portable, stack_shapes


def test_a_row_for_each_stack_and_layout(capsys):
    layouts = ["bitmask", "csr-int8", "block-int4", "nm24-bfloat16"]
    assert main(["--stacks", "48x80,64x33", "--layouts", ",".join(layouts), "--rounds", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["stack"], row["layout"]) for row in rows] == [(s, x) for s in ("48x80", "64x33") for x in layouts]
    assert all(row["megabytes"] > 0 and row["seconds"] > 0 for row in rows)


def test_a_named_model_is_all_of_its_projections():
    shapes = stack_shapes("smollm2-135m")
    assert len(shapes) == 7 * 30
    assert shapes[:7] == [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]


@pytest.mark.parametrize(("stack", "layout", "field"), [("8x", "csr", "--stacks"), ("8x8", "coo", "--layouts")])
def test_what_is_not_known_is_named(stack, layout, field, capsys):
    with pytest.raises(InputError, match=field):
        list(run_portable([stack], [layout], 1))
    assert main(["--stacks", stack, "--layouts", layout]) == 2
    assert field in capsys.readouterr().err
