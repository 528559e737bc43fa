"""What the site has beyond the files in docs/: pages that are made from the code, and CONTRIBUTING.md.

MkDocs calls these functions; see `hooks` in mkdocs.yml.
"""

import contextlib
import importlib
import io
import os
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ("linear", "model", "serve", "results")
COMMANDS_INTRODUCTION = """# Commands

This page is what each command prints with `--help`. A command exits with 0 when it is done, 1 when a check failed, 2
when what it was given is wrong, 130 when it was interrupted; an error is one line on stderr. What a command is asked
for (`--json`) goes to stdout, everything else to stderr.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    pages = {
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text().replace("](docs/", "]("),
        "reference/commands.md": commands_page(),
        "reference/interface.md": interface_page(),
    }
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Links to CONTRIBUTING.md, which lies outside docs/, go to its page."""
    return markdown.replace("](../CONTRIBUTING.md", "](contributing.md")


def commands_page() -> str:
    """What each command says of itself with --help."""
    commands = importlib.import_module("hebbline.cli").COMMANDS
    parts = [COMMANDS_INTRODUCTION]
    for name, (_, about) in commands.items():
        parts.append(f"## hebbline {name}\n\n{about[0].upper()}{about[1:]}.\n\n```text\n{help_of([name])}\n```\n")
        if name == "bench":
            parts += [f"### hebbline bench {kind}\n\n```text\n{help_of([name, kind])}\n```\n" for kind in BENCHMARKS]
    return "\n".join(parts)


def help_of(command: list[str]) -> str:
    """The text of `hebbline COMMAND --help`, 100 columns wide."""
    main = importlib.import_module("hebbline.cli").main
    text = io.StringIO()
    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "100"
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text), contextlib.suppress(SystemExit):
            main([*command, "--help"])
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return text.getvalue().strip()


def interface_page() -> str:
    """A section for each name that `hebbline` offers."""
    package = importlib.import_module("hebbline")
    parts = [
        "# Python interface\n\nThese names are what `import hebbline` offers; other modules may change without notice. "
        "Each name loads only the packages that it needs: a client needs neither torch nor transformers.\n"
    ]
    for name in package.__all__:
        value = getattr(package, name)
        parts.append(f"## hebbline.{name} {{ #{name} }}\n\n::: {value.__module__}.{value.__name__}\n")
    return "\n".join(parts)


def _show_sources() -> None:
    """The sources as the package `hebbline`, for mkdocstrings, without the folders that are no part of it.

    mkdocstrings looks for the folder when it is set up, which is before MkDocs calls any hook.
    """
    package = ROOT / ".build/site-sources/hebbline"
    package.mkdir(parents=True, exist_ok=True)
    for source in [*ROOT.glob("*.py"), *(path.parent for path in ROOT.glob("*/__init__.py"))]:
        link = package / source.name
        if not link.is_symlink():
            link.symlink_to(source)
    if str(package.parent) not in sys.path:
        sys.path.append(str(package.parent))


_show_sources()
