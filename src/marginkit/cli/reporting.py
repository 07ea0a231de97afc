"""marginkit report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from marginkit.cli.app import Json, app
from marginkit.cli.rendering import say, say_json

_EPILOG = (
    "Examples:  marginkit report runs/mmpo_rm-1\n\n"
    "marginkit report runs/dpo-1 runs/mmpo-1 runs/bpo-1 --out comparison.html"
)


@app.command(epilog=_EPILOG)
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run directories, or folders of tables; the first is the baseline.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Default: report.html in the run; here, for several runs."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one page about a run, or about several compared: one HTML file that needs no network, and its Markdown.

    The verdict comes first, then data, curves, calibration, slices, the pairs it is most wrong about, cost, and how to
    repeat it. The page holds texts of the held-out data: think before you share it.
    """
    from marginkit.reporting.reports import default_page, page_of
    from marginkit.reporting.writing import check_page_path, write_page

    target = check_page_path(out or default_page(runs))
    page = page_of(runs)
    write_page(page, target)
    beside = target.with_suffix(".md")
    verdicts = [{"level": one.level, "says": one.says, "advice": one.advice} for one in page.verdicts]
    if as_json:
        say_json({"page": str(target), "markdown": str(beside), "title": page.title, "verdicts": verdicts})
        return
    say(page.title)
    for one in page.verdicts:
        say(f"- {one.says}{f' Try: {one.advice}' if one.advice else ''}")
    say(f"{target}   ({beside.name} beside it)")
