"""A page on disk: one HTML file, and its Markdown beside it."""

from __future__ import annotations

from pathlib import Path

from marginkit.errors import BadInput
from marginkit.reporting.blocks import Page
from marginkit.reporting.html import render_html
from marginkit.reporting.markdown import render_markdown

_OURS = '<meta name="generator" content="marginkit">'
_OURS_BELOW = "<!-- a page of marginkit -->"
_ENDS = 4096


def write_page(page: Page, path: str | Path) -> Path:
    """Write a page as `NAME.html` and `NAME.md`, each whole or not at all.

    Args:
        page: what is in it.
        path: of the HTML file.

    Returns:
        The path of the HTML file.

    Raises:
        BadInput: the path does not end in .html, its folder is missing, or a file that is no page of ours lies there or
            beside it.
    """
    target = check_page_path(path)
    beside = target.with_suffix(".md")
    for file, text in ((target, render_html(page)), (beside, f"{render_markdown(page)}\n{_OURS_BELOW}\n")):
        partial = file.with_name(file.name + ".partial")
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(file)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise BadInput(f"{file}: cannot be written ({error.strerror}); name another file") from None
    return target


def check_page_path(path: str | Path) -> Path:
    """Where a page may be written: before the work begins, so that none is lost.

    Raises:
        BadInput: as `write_page`.
    """
    target = Path(path)
    if target.suffix != ".html":
        raise BadInput(f"{target}: a page is an .html file; its Markdown goes beside it")
    if not target.parent.is_dir():
        raise BadInput(f"{target}: there is no folder {target.parent}; make it, or name another file")
    for file, mark in ((target, _OURS), (target.with_suffix(".md"), _OURS_BELOW)):
        if file.exists() and not _is_ours(file, mark):
            raise BadInput(f"{file}: is there, and is no page of marginkit; name another file")
    return target


def _is_ours(path: Path, mark: str) -> bool:
    """Whether the mark stands at the beginning or the end of a file."""
    if not path.is_file():
        return False
    with path.open("rb") as source:
        begins = source.read(_ENDS)
        source.seek(max(0, path.stat().st_size - _ENDS))
        return mark.encode() in begins or mark.encode() in source.read()
