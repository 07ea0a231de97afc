"""marginkit check."""

from __future__ import annotations

from typing import Annotated

import typer

from marginkit.cli.app import Columns, Json, app
from marginkit.cli.rendering import assignments, plain, say, say_json, table
from marginkit.errors import BadInput


@app.command(epilog="Example:  marginkit check ratings.jsonl --strict")
def check(
    files: Annotated[list[str], typer.Argument(help="Files, saved datasets folders or hub names.")],
    column: Columns = None,
    ties: Annotated[str, typer.Option(help="half | label | drop")] = "half",
    contradiction: Annotated[str, typer.Option(help="drop | keep | trust_label | trust_grade")] = "drop",
    strict: Annotated[bool, typer.Option("--strict", help="Any bad row is an error.")] = False,
    limit: Annotated[int | None, typer.Option(help="Read at most so many rows.")] = None,
    as_json: Json = False,
) -> None:
    """Read graded data and say what is in it: rows kept and dropped by reason, evidence, splits, a length baseline."""
    from marginkit.data.sources import read_groups
    from marginkit.data.summary import summarise
    from marginkit.progress import progress

    with progress(None, "read rows") as bar:
        groups, found = read_groups(
            files if len(files) > 1 else files[0],
            columns=assignments(column),
            ties=ties,  # type: ignore[arg-type] # checked there, with a message
            contradiction=contradiction,  # type: ignore[arg-type]
            contradiction_limit=1.0,  # all of them are shown; training stops above 5%
            strict=strict,
            limit=limit,
            progress=bar.to,
        )
    summary = summarise(groups)
    refused = not len(groups) or found.dropped.get("contradiction", 0) > 0.05 * found.read
    if as_json:
        say_json(found.to_json() | {"summary": summary})
        raise typer.Exit(2 if refused else 0)
    rows = [("read", str(found.read)), ("kept", str(found.kept))]
    rows += [(f"dropped: {reason}", str(count)) for reason, count in found.dropped.items()]
    rows += [(f"kept, but: {reason}", str(count)) for reason, count in found.warned.items()]
    table(f"{found.file} - {found.dialect} rows", ("", "rows"), rows)
    table("what is in it", ("", ""), [(name, plain(value)) for name, value in summary.items() if value is not None])
    for note in found.notes:
        say(f"note: {note}")
    for item in found.items[:10]:
        say(str(item))
    if len(found.items) > 10:
        say(f"... and {len(found.items) - 10} more; --json lists them")
    if refused:
        contradicts = "more than 5% of the rows contradict their label; see --contradiction, or correct the rows"
        why = contradicts if len(groups) else "no row is left; correct them"
        raise BadInput(f"{found.file}: training would refuse it: {why}")
