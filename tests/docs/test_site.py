"""The documentation as a site: built strictly, so that a broken link or an unknown name fails."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hebbline
from hebbline.cli import COMMANDS

ROOT = Path(hebbline.__file__).parent


def build(directory):
    return subprocess.run(
        [Path(sys.executable).with_name("mkdocs"), "build", "--quiet", "--site-dir", directory],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    directory = tmp_path_factory.mktemp("site")
    built = build(directory)
    assert built.returncode == 0, built.stderr
    return directory


def text_of(page):
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_every_command_and_its_options_are_on_the_page(site):
    text = text_of(site / "reference/commands.html")
    assert all(f"usage: hebbline {name}" in text for name in COMMANDS)
    assert "--sparsity.density" in text and "--objective {latency,throughput,size}" in text


def test_every_public_name_is_described(site):
    page = (site / "reference/interface.html").read_text()
    assert all(f'id="{name}"' in page for name in hebbline.__all__)
    assert "Wait until the model is ready" in page


def test_nothing_is_fetched_when_a_page_is_read(site):
    fetched = re.compile(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']?https?://")
    assert not [page for page in site.rglob("*.html") if fetched.search(page.read_text())]


def test_every_page_of_the_sources_is_in_the_site(site):
    sources = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    pages = {page.relative_to(site).with_suffix("") for page in site.rglob("*.html")}
    assert {path.parent / "index" if path.name == "README" else path for path in sources} <= pages
