"""marginkit demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from marginkit.cli.app import Json, app
from marginkit.cli.rendering import say, say_json, table


@app.command(epilog="Example:  marginkit demo --quality low --seed 3")
def demo(
    quality: Annotated[str, typer.Option(help="Raters and answers: high | mixed | low.")] = "mixed",
    size: Annotated[str, typer.Option(help="Models: small | medium | large (all tiny).")] = "medium",
    seed: Annotated[int, typer.Option(help="Of the world, the raters and the models.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the runs; default a new one under runs/.")] = None,
    as_json: Json = False,
) -> None:
    """Train on a built-in world whose true utilities are known: SFT, DPO and MMPO; reward models with BT and MMPO."""
    from marginkit.demo import run_demo
    from marginkit.demo_result import DemoOptions

    result = run_demo(DemoOptions(quality=quality, size=size, seed=seed, out=out))
    if as_json:
        say_json(result.to_json())
        return
    columns, rows = result.table
    table(result.title, columns, rows)
    for sentence in result.sentences:
        say(sentence)
    say(f"page: {result.page}, and {result.page.with_suffix('.md').name} beside it")
    say("one seed, one kind of raters: --quality high | mixed | low and --seed ask again; docs/log.md has them all")
