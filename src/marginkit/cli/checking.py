"""marginkit check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marginkit.cli.app import Columns, Json, MappingFile, app
from marginkit.cli.rendering import assignments, command_line, say, say_json
from marginkit.errors import BadInput

if TYPE_CHECKING:
    from marginkit.data.checks import Findings
    from marginkit.data.summary import Survey
    from marginkit.groups import Groups

_EPILOG = (
    "Examples:  marginkit check ratings.jsonl\n\n"
    "marginkit check ratings.jsonl --tokenizer Qwen/Qwen3-0.6B --max-length 2048 --against benchmark.jsonl\n\n"
    "marginkit check ratings.jsonl --html ratings.html\n\n"
    "marginkit check ratings.jsonl --clean clean.jsonl --drop leaks,near_responses"
)


@app.command(epilog=_EPILOG)
def check(
    context: typer.Context,
    files: Annotated[list[str], typer.Argument(help="Files, saved datasets folders or hub names.")],
    column: Columns = None,
    mapping: MappingFile = None,
    ties: Annotated[str, typer.Option(help="half | label | drop")] = "half",
    contradiction: Annotated[str, typer.Option(help="drop | keep | trust_label | trust_grade")] = "drop",
    split: Annotated[str | None, typer.Option(help="Read only this split.")] = None,
    config_name: Annotated[str | None, typer.Option("--name", help="Configuration of a hub dataset.")] = None,
    limit: Annotated[int | None, typer.Option(help="Read at most so many rows.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Name, folder or tokenizer.json.")] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Prompt + response tokens; else the tokenizer's limit.")
    ] = None,
    chat_template: Annotated[str | None, typer.Option(help="chatml, or a template file.")] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="A file whose prompts should not be here; repeatable.")
    ] = None,
    clean: Annotated[
        Path | None, typer.Option(metavar="OUT.jsonl", help="Write a cleaned copy and its manifest.")
    ] = None,
    drop: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Beside duplicates: near_responses, near_prompts, leaks, known, against, outliers.",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="OUT.html", help="Write a page of it, and its Markdown beside it.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Any refused row, warning or problem is an error.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every remark, figure and row.")] = False,
    as_json: Json = False,
) -> None:
    """Read graded data and say what is in it and what is wrong with it, before a GPU is spent on it.

    Rows refused and why, grades and ties, agreement of raters, length bias, duplicates, leaks into other splits and
    known benchmarks, and with --tokenizer what a limit and a chat template do to it.
    """
    from marginkit.data.manifests import check_target
    from marginkit.data.sources import read_groups
    from marginkit.data.summary import summarise
    from marginkit.data.survey.cleaning import check_removals
    from marginkit.data.survey.tokens import ENCODED
    from marginkit.progress import progress
    from marginkit.reporting.writing import check_page_path

    removals = check_removals([name for name in (drop or "").split(",") if name])
    if drop is not None and clean is None:
        raise BadInput("--drop: says what --clean leaves out; add --clean OUT.jsonl")
    if clean is not None:
        check_target(clean, files)
    if html is not None:
        check_page_path(html)
    reading: dict[str, Any] = {"columns": assignments(column), "mapping": mapping, "ties": ties, "split": split}
    reading |= {"contradiction": contradiction, "config_name": config_name, "limit": limit}
    with progress(None, "read rows") as bar:
        groups, found = read_groups(
            files if len(files) > 1 else files[0],
            contradiction_limit=1.0,  # all of them are shown; training stops above 5%
            progress=bar.to,
            **reading,
        )
    others = {}
    for name in against or []:
        with progress(None, f"read {Path(name).name}") as bar:
            others[name], _ = read_groups(name, contradiction="keep", progress=bar.to)
    encoded = 0 if tokenizer is None else min(len(groups), ENCODED)
    with progress(len(groups) + encoded, "survey") as bar:
        survey = summarise(
            groups,
            findings=found,
            against=others,
            tokenizer=_tokenizer(tokenizer, max_length, chat_template),
            max_length=max_length,
            chat_template=chat_template,
            progress=bar,
        )
    manifest = None if clean is None else _cleaned(groups, found, survey, clean, files, {"drop": removals, **reading})
    if html is not None:
        _write_page(found, survey, html, command_line(context))
    if as_json:
        say_json(found.to_json() | survey.to_json() | ({} if manifest is None else {"clean": manifest}))
    else:
        from marginkit.cli.survey_screen import show_survey

        show_survey(found, survey, everything=everything)
        if manifest is not None:
            say(_about_clean(manifest, len(groups), clean))
        if html is not None:
            say(f"page: {html}, and {html.with_suffix('.md').name} beside it")
    _refuse(found, survey, strict=strict)


def _tokenizer(name: str | None, max_length: int | None, chat_template: str | None) -> Any:
    if name is None:
        if max_length is not None or chat_template is not None:
            raise BadInput("--max-length and --chat-template: name a --tokenizer too")
        return None
    from marginkit.models.loading import load_tokenizer

    return load_tokenizer(name)


def _write_page(found: Findings, survey: Survey, out: Path, command: str) -> None:
    from marginkit.reporting.survey_page import survey_page
    from marginkit.reporting.writing import write_page

    write_page(survey_page(found.to_json() | survey.to_json(), command), out)


def _cleaned(
    groups: Groups, found: Findings, survey: Survey, out: Path, files: list[str], settings: dict[str, Any]
) -> dict[str, Any]:
    from marginkit.data.manifests import write_dataset
    from marginkit.data.survey.cleaning import clean

    kept = clean(groups, survey.marks, survey.facts.get("outliers"), settings["drop"])
    facts = {"read": found.read, "kept": found.kept, "verdict": survey.verdict()}
    facts["summary"] = survey.to_json()["summary"]
    return write_dataset(kept, out, verb="check", settings=settings, sources=files, facts=facts)


def _about_clean(manifest: dict[str, Any], surveyed: int, out: Path | None) -> str:
    removed = ", ".join(f"{count:,} {reason.split(' (')[0]}" for reason, count in manifest["dropped"].items())
    return f"{out}: {manifest['groups']:,} of {surveyed:,} groups{f'; left out: {removed}' if removed else ''}"


def _refuse(found: Findings, survey: Survey, *, strict: bool) -> None:
    """Leave with exit code 2 where training would refuse the file, or where `--strict` allows nothing."""
    from marginkit.data.survey.reading import TOO_MANY

    if not found.kept:
        raise BadInput(f"{found.file}: training would refuse it: no row is left; correct them")
    if found.dropped.get("contradiction", 0) > TOO_MANY * found.read:
        why = "more than 5% of the rows contradict their label; see --contradiction, or correct the rows"
        raise BadInput(f"{found.file}: training would refuse it: {why}")
    if not strict:
        return
    refused = next((item for item in found.items if item.severity == "drop" and item.reason in found.broken), None)
    if refused is not None:
        raise BadInput(f"strict: {refused}")
    worst = next((remark for remark in survey.remarks if remark.level in ("problem", "warning")), None)
    if worst is not None:
        raise BadInput(f"{found.file}: strict: {worst.topic}: {worst.says}{f'; {worst.fix}' if worst.fix else ''}")
