"""The parts that HTML reports are made of."""

import json

import numpy as np

from hebbline.artifacts.page import (
    Html,
    LayerTable,
    Verdict,
    document,
    facts,
    gallery,
    layers_by_kind,
    section,
    section_of,
    time_bars,
    write_report,
)


def test_what_is_known_comes_first_and_what_is_empty_is_left_out():
    page = document("A <model>", Verdict("it is small", fast="`make` it"), section("Nothing", Html("")), facts({}))
    assert "<h1>A &lt;model&gt;</h1>" in page and page.count("<dt>") == 2
    assert "<dd>It is small.</dd>" in page and "<code>make</code> it." in page and "Nothing" not in page
    assert facts({"known": 3, "unknown": None, "empty": ""}).count("<tr>") == 1


def test_a_text_about_nothing_is_left_out():
    assert section_of(Html(""), "Title", "about it") == ""
    assert section_of(Html("<b>x</b>"), "Title", "about it").index("about it") < 100


def test_layers_that_differ_in_numbers_share_a_fold_a_picture_and_a_reason():
    shown = LayerTable[int](["size"], lambda size: [size], lambda sizes: f"{sum(sizes)} in all", lambda size: "as told")
    folds = layers_by_kind([1, 2, 3], lambda size: f"block.{size}.<up>", shown)
    assert folds.count("<details") == 1 and folds.count("as told") == 1 and "3 layers, 6 in all" in folds
    assert "<up>" not in folds and folds.count("block.*.&lt;up&gt;") == 1
    pictures = gallery({f"block.{index}.up": np.full((4, 4), index / 4) for index in range(3)} | {"head": np.eye(4)})
    assert pictures.count("<img") == 2 and "Where the links are" in pictures and gallery({}) == ""


def test_the_longest_bar_leaves_room_for_its_figure():
    bars = time_bars([("a", 8.0, 4.0), ("<b>", 2.0, 1.0)], "ms")
    assert 'class="dense" style="width:70.0%"></i>8.0 ms' in bars and 'style="width:35.0%"></i>4.0 ms' in bars
    assert "&lt;b&gt;" in bars


def test_a_report_is_figures_and_a_page(tmp_path):
    write_report(tmp_path, {"layers": 3}, "<p>three</p>")
    assert json.loads((tmp_path / "report.json").read_text()) == {"layers": 3}
    assert (tmp_path / "report.html").read_text() == "<p>three</p>"
