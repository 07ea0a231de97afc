"""marginkit grade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from marginkit.cli.app import Columns, Json, MappingFile, app
from marginkit.cli.rendering import assignments, say, say_json, table
from marginkit.errors import BadInput
from marginkit.reporting.survey_words import plain

_EPILOG = (
    "Examples:  marginkit grade ratings.jsonl --how ratings --gamma 0.5 --debias length --out graded.jsonl\n\n"
    "marginkit grade helpsteer.jsonl --how ratings --option weights=helpsteer2_70b --gamma 1 --out graded.jsonl\n\n"
    "marginkit grade arena.jsonl --how ranks --option over=model --option bootstrap=100 --out graded.jsonl\n\n"
    "marginkit grade answers.jsonl --how reward --option reward=runs/bt-1 --out graded.jsonl\n\n"
    "marginkit grade answers.jsonl --how judge --endpoint http://localhost:8000/v1 --model Qwen/Qwen3-32B "
    "--option ask=verdict --budget 2Mtokens --out judged.jsonl"
)
_LABELS = {
    "groups": "prompts",
    "responses": "responses",
    "with a utility": "responses with a utility",
    "pairs": "pairs",
    "with a target": "pairs whose target needs no gamma",
    "gap": "gap, 5% 50% 95% of pairs (logits)",
    "saturated": "beyond 99%",
    "ties": "ties",
    "agrees with the label": "agrees with the label",
}


@app.command(epilog=_EPILOG)
def grade(
    files: Annotated[list[str], typer.Argument(help="Files, saved datasets folders or hub names.")],
    how: Annotated[
        str,
        typer.Option(
            help="votes | ratings | raters | ranks | pairwise | judge_probs | similarity | reward | crossfit | given | "
            "judge"
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The .jsonl file to write; OUT.manifest.json beside it.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-o", metavar="KEY=VALUE", help="Of the way to grade; repeatable. See docs/grades.md."
        ),
    ] = None,
    gamma: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Logits per grade, or auto: what the evidence speaks for.")
    ] = None,
    debias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BIAS",
            help="length | length_lowess | length_tanh | position | verbosity | source; repeatable, in order. Options "
            "behind a colon: length_lowess:fraction=0.3",
        ),
    ] = None,
    disagreement: Annotated[
        str, typer.Option(help="A grade against the label: keep | drop | trust_label | trust_grade")
    ] = "keep",
    ungraded: Annotated[str, typer.Option(help="What could not be graded: keep | drop")] = "keep",
    endpoint: Annotated[str | None, typer.Option(help="Judge: base URL of an OpenAI-compatible server.")] = None,
    model: Annotated[str | None, typer.Option(help="Judge: its name there.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Judge: stop before 500requests, 2Mtokens, or so much money.")
    ] = None,
    price_in: Annotated[float | None, typer.Option(help="Judge: money per million tokens sent.")] = None,
    price_out: Annotated[float | None, typer.Option(help="Judge: money per million tokens received.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge: what it would take; nothing is asked.")] = False,
    column: Columns = None,
    mapping: MappingFile = None,
    ties: Annotated[str, typer.Option(help="half | label | drop")] = "half",
    contradiction: Annotated[str, typer.Option(help="drop | keep | trust_label | trust_grade")] = "drop",
    split: Annotated[str | None, typer.Option(help="Read only this split.")] = None,
    limit: Annotated[int | None, typer.Option(help="Read at most so many rows.")] = None,
    as_json: Json = False,
) -> None:
    """Turn votes, ratings, rankings or rewards into targets in logits that train without a gamma."""
    from marginkit.data.manifests import check_target, write_dataset
    from marginkit.data.sources import read_groups
    from marginkit.grading import grade_and_report
    from marginkit.progress import progress

    given = {"endpoint": endpoint, "model": model, "budget": budget, "price_in": price_in, "price_out": price_out}
    options = read_options(option, gamma) | {name: value for name, value in given.items() if value is not None}
    options |= {"dry_run": True} if dry_run else {}
    if out is None and not dry_run:
        raise BadInput("--out: name the .jsonl file to write")
    if out is not None:
        check_target(out, files)
    reading: dict[str, Any] = {"columns": assignments(column), "ties": ties, "contradiction": contradiction}
    reading |= {"split": split, "limit": limit} | ({} if mapping is None else {"mapping": mapping})
    with progress(None, "read rows") as bar:
        groups, found = read_groups(files if len(files) > 1 else files[0], progress=bar.to, **reading)
    if not len(groups):
        raise BadInput(f"{found.file}: no row is left to grade; marginkit check says why")
    grading = grade_and_report(
        groups,
        how,
        debias=debias or (),
        disagreement=disagreement,  # type: ignore[arg-type] # checked there, with a message
        ungraded=ungraded,  # type: ignore[arg-type]
        options=options,
    )
    report = dict(grading.report)
    if out is None or dry_run:
        _show_plan(report["fitted"], as_json)
        return
    settings = {name: report.pop(name) for name in ("how", "options", "disagreement", "ungraded")}
    settings |= {"debias": list(debias or ()), **reading, **({} if mapping is None else {"mapping": mapping})}
    report["read"] = {"rows": found.read, "kept": found.kept}
    manifest = write_dataset(grading.groups, out, verb="grade", settings=settings, sources=files, facts=report)
    if as_json:
        say_json({"out": str(out), **manifest})
        return
    _show(how, report)
    left_out = {reason: count for reason, count in manifest["dropped"].items() if count}
    if left_out:
        table("left out", ("reason", ""), [(reason, str(count)) for reason, count in left_out.items()])
    say(f"{manifest['groups']} prompts, {manifest['pairs']} pairs -> {out}")


def read_options(items: Sequence[str] | None, gamma: str | None) -> dict[str, Any]:
    """The options of a way to grade, from KEY=VALUE; a value is JSON where it is some.

    Raises:
        BadInput: an item has no `=`, or gamma is given twice.
    """
    from marginkit.grading import read_option

    made: dict[str, Any] = {}
    for item in items or ():
        key, sign, value = item.partition("=")
        if not sign or not key:
            raise BadInput(f"--option {item}: write KEY=VALUE, e.g. --option l2=0.1")
        made[key] = read_option(value)
    if gamma is not None:
        if "gamma" in made:
            raise BadInput("--gamma and --option gamma: give one of the two")
        made["gamma"] = read_option(gamma)
    return made


def _show_plan(plan: Mapping[str, Any], as_json: bool) -> None:
    """What a judge would be asked."""
    if as_json:
        say_json(plan)
        return
    table("a dry run: nothing was asked", ("", ""), [(name, _cell(value)) for name, value in plan.items()])


def _show(how: str, report: Mapping[str, Any]) -> None:
    """Before and after, what was fitted, what could not be graded."""
    rows = [(words, _cell(report["before"][key]), _cell(report["after"][key])) for key, words in _LABELS.items()]
    table(f"graded by {how}", ("", "before", "after"), rows)
    fitted = [(name, _cell(value)) for name, value in report["fitted"].items()]
    if fitted:
        table("fitted", ("", ""), fitted)
    for taken in report["debias"]:
        shown = [
            (name, _cell(value["before"]), _cell(value["after"]))
            if isinstance(value, dict) and set(value) == {"before", "after"}
            else (name, "", _cell(value))
            for name, value in taken.items()
            if name != "bias"
        ]
        table(f"taken off: {taken['bias']}", ("", "before", "after"), shown)
    if report["not graded"]:
        table("not graded", ("reason", ""), [(reason, str(n)) for reason, n in report["not graded"].items()])
    if report["superseded"]:
        said = ", ".join(f"{count} {name}" for name, count in report["superseded"].items())
        say(f"superseded, so that training uses the grades: {said}; the source file still has them")
    if (step := report["fitted"].get("just noticeable difference")) is not None:
        unit = report["fitted"]["unit"]
        say(f"a gap of {step:.3g} {unit} means that the better answer is picked three times in four")


def _cell(value: Any) -> str:
    """A value in a cell; of a long mapping the first entries."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return " ".join(map(_cell, value))
    if isinstance(value, dict) and len(value) > 8:
        few = {name: value[name] for name in list(value)[:8]}
        return f"{plain(few)} ... {len(value) - 8} more in the manifest"
    return plain(value)
