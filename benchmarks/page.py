"""Pages of results: each section is written by the command that stands in it, and the others stay."""

from pathlib import Path


def write_section(page: Path, title: str, name: str, markdown: str) -> Path:
    """Put a section into a page, in place of its earlier version; the others stay, and so does what is between them.

    Args:
        page: the file; where there is none, it is begun with `title`.
        title: Markdown of the page's head.
        name: of the section, in a comment that marks where it begins and ends.
        markdown: its text.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = page.read_text() if page.is_file() else title
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{before.rstrip()}\n\n{begin}\n{markdown.strip()}\n{end}\n\n{after.lstrip()}".rstrip() + "\n")
    return page
