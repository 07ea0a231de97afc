"""marginkit score."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from marginkit.cli.app import Columns, Json, MappingFile, app
from marginkit.cli.rendering import assignments, say, say_json
from marginkit.errors import BadInput
from marginkit.progress import is_first


@app.command(epilog="Example:  marginkit score runs/mmpo_rm-1 new_answers.jsonl --out scores")
def score(
    run: Annotated[str, typer.Argument(help="A run directory, or a saved model (folder or hub name).")],
    files: Annotated[list[str], typer.Argument(help="Graded data to score.")],
    out: Annotated[Path, typer.Option(help="Folder for responses.parquet and pairs.parquet.")] = Path("scores"),
    split: Annotated[str | None, typer.Option(help="Score only this split.")] = None,
    recipe: Annotated[str | None, typer.Option(help="How to read a model that is not a run.")] = None,
    reference: Annotated[str | None, typer.Option(help="Reference of a policy that is not a run.")] = None,
    column: Columns = None,
    mapping: MappingFile = None,
    as_json: Json = False,
) -> None:
    """Score graded data with a trained model: one row a response, one row a pair.

    Several processes share the work: accelerate launch -m marginkit score ...
    """
    from marginkit.data.sources import read_groups
    from marginkit.data.splits import select_split

    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out}: is a file; name a folder")
    groups, _ = read_groups(files if len(files) > 1 else files[0], columns=assignments(column), mapping=mapping)
    if split is not None:
        groups = select_split(groups, split)
    from marginkit.run import score as run_score

    scores = run_score(run, groups, recipe=recipe, reference=reference)
    if not is_first():
        return
    if (out / "pairs.parquet").is_file():
        logging.getLogger("marginkit").info("%s: the tables that were there are replaced", out)
    folder = scores.save(out)
    result = {"out": str(folder), "responses": scores.responses.num_rows, "pairs": scores.pairs.num_rows}
    if as_json:
        say_json(result)
    else:
        say(f"{result['responses']} responses, {result['pairs']} pairs -> {folder}")
