"""marginkit evaluate: tables of scores, or models on files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from marginkit.cli.app import Columns, Json, MappingFile, app
from marginkit.cli.judged_scores import judge_scores
from marginkit.cli.rendering import assignments, say, say_json, table
from marginkit.errors import BadInput
from marginkit.progress import is_first

if TYPE_CHECKING:
    from marginkit.benchmarking import Judged
    from marginkit.evaluation.compare import Comparison

_EPILOG = (
    "Examples:  marginkit evaluate runs/mmpo_rm-1 --against runs/bt-1\n\n"
    "marginkit evaluate --model runs/bt-1 --model runs/mmpo_rm-1 --data eval_hhh.jsonl eval_llmbar.jsonl\n\n"
    "marginkit evaluate --model runs/bt-1 --data reward-bench-2\n\n"
    "marginkit evaluate --model gpt2 --rule avg --data pairs.jsonl --out judged"
)


@app.command(epilog=_EPILOG)
def evaluate(
    scores: Annotated[
        list[str] | None,
        typer.Argument(help="A run directory, a folder of tables, or a pairs.parquet; after --data more files."),
    ] = None,
    against: Annotated[Path | None, typer.Option(help="Another one on the same pairs: paired differences.")] = None,
    calibrate_on: Annotated[
        Path | None,
        typer.Option(help="Another one, of other prompts: fit temperature, Platt and isotonic there, judge them here."),
    ] = None,
    slices: Annotated[
        bool, typer.Option("--slices", help="Also by source, subset, length and grade gap, and along the grade gap.")
    ] = False,
    model: Annotated[
        list[str] | None, typer.Option(help="A run or a saved model to judge on --data; repeatable.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="A file of pairs or grades, reward-bench, or reward-bench-2; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where results are kept; default: in the run, under benchmarks/.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="How to read a model that is not a run.")] = None,
    reference: Annotated[str | None, typer.Option(help="Reference of a policy that is not a run.")] = None,
    rule: Annotated[
        Literal["sum", "avg"] | None,
        typer.Option(help="Judge a policy without a reference, by its log-prob: summed, or a token's mean."),
    ] = None,
    on_overflow: Annotated[
        Literal["drop", "cut_prompt_left"] | None,
        typer.Option(help="Of texts that are too long for the model; default: as it was trained."),
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option(help="chatml, or a template file: for chats, where the model's tokenizer has none.")
    ] = None,
    official: Annotated[
        Path | None, typer.Option(help="RewardBench: write the leaderboard's own JSON files into this folder too.")
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="What the model is called in those files.")
    ] = None,
    column: Columns = None,
    mapping: MappingFile = None,
    bins: Annotated[int, typer.Option(help="Bins of the calibration errors.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    as_json: Json = False,
) -> None:
    """Judge scores, or models on files: accuracy, NLL, calibration with its noise floor, a length baseline.

    With --model and --data every model is scored on every file, one row each, and kept in RUN/benchmarks/; several
    models are compared on the same pairs. Several processes share the work: accelerate launch -m marginkit evaluate ...
    """
    given = scores or []
    if model is None and data is None:
        foreign = {"--out": out, "--recipe": recipe, "--reference": reference, "--rule": rule, "--official": official}
        foreign |= {"--on-overflow": on_overflow, "--chat-template": chat_template, "--model-name": model_name}
        foreign |= {"--column": column[0] if column else None, "--mapping": mapping}
        for name, value in foreign.items():
            if value is not None:
                raise BadInput(f"{name} {value}: belongs to --model and --data; scores are judged as they are")
        if len(given) != 1:
            raise BadInput("name one run or folder of tables to judge, or a model with --model and files with --data")
        judge_scores(
            Path(given[0]),
            against=against,
            calibrate_on=calibrate_on,
            slices=slices,
            bins=bins,
            seed=seed,
            as_json=as_json,
        )
        return
    if model is None or not data:
        lacking = "--model" if model is None else "--data"
        raise BadInput(f"{lacking} is missing: --model names what to judge, --data the files to judge it on")
    if against is not None:
        raise BadInput("--against: compares tables; to compare models on files give --model twice")
    if calibrate_on is not None or slices:
        name = "--slices" if slices else f"--calibrate-on {calibrate_on}"
        raise BadInput(f"{name}: is asked of tables; name the folder under benchmarks/ of the run that was judged")
    from marginkit.benchmarking import (
        checked_folder,
        difference,
        judge_benchmark,
        read_benchmarks,
        result_folder,
        write_leaderboard,
    )
    from marginkit.evaluation.rewardbench_files import org_and_name
    from marginkit.run_scores import open_scorer

    models, sources = list(dict.fromkeys(model)), [*data, *given]
    if official is not None and (model_name is None or len(models) > 1):
        raise BadInput(f"--official {official}: is for one --model, and needs its name there: --model-name ORG/NAME")
    if official is not None and model_name is not None:
        checked_folder(official, "--official")
        org_and_name(model_name)
    if model_name is not None and official is None:
        raise BadInput(
            f"--model-name {model_name}: is the name in the leaderboard's files; ask for them with --official"
        )
    read = read_benchmarks(sources, columns=assignments(column), mapping=mapping, suffix=f"-{rule}" if rule else "")
    if all((Path(one) / "config.yaml").is_file() for one in models):
        for name, value in (("--recipe", recipe), ("--reference", reference)):
            if value is not None:
                raise BadInput(f"{name} {value}: a run says itself how it is read; leave it out")
    how: dict[str, Any] = {"recipe": recipe, "reference": reference, "rule": rule}
    how |= {"on_overflow": on_overflow, "chat_template": chat_template}
    scorers = [open_scorer(one, **how) for one in models]
    if official is not None and (other := next((own for own in read if own.kind == "pairs"), None)):
        raise BadInput(f"--official {official}: is for RewardBench, and {other.file} is another file; leave one out")
    folders = {(one, own.name): result_folder(one, own.name, out) for one in models for own in read}
    judged: dict[str, list[Judged]] = {own.name: [] for own in read}
    for one, scorer in zip(models, scorers, strict=True):
        for own in read:
            judged[own.name].append(judge_benchmark(scorer, own, folders[one, own.name], bins=bins, seed=seed))
            if official is not None and model_name is not None and is_first():
                write_leaderboard(official, model_name, own, judged[own.name][-1], scorer)
        scorer.close()
    if not is_first():
        return
    differences = [
        (rows[0], other, difference(other, rows[0], seed=seed)) for rows in judged.values() for other in rows[1:]
    ]
    if as_json:
        say_json(
            {
                "results": [one.result | {"folder": str(one.folder)} for rows in judged.values() for one in rows],
                "differences": [
                    {"name": one.benchmark, "model": other.model, "baseline": one.model, **found.to_json()}
                    for one, other, found in differences
                ],
            }
        )
        return
    _show([one for rows in judged.values() for one in rows], differences, several=len(models) > 1)


def _show(rows: Sequence[Judged], differences: Sequence[tuple[Judged, Judged, Comparison]], *, several: bool) -> None:
    heads = ("file", *(("model",) if several else ()), "pairs", "left out", "accuracy [95%]", "longer is better")
    lines = []
    for one in rows:
        found, counts = one.evaluation, one.result["rows"]["left_out"]
        lines.append(
            (
                one.benchmark,
                *((one.model,) if several else ()),
                str(found.counts["pairs"]),
                str(sum(counts.values()) or "-"),
                str(found["accuracy"]),
                f"{found['length_baseline'].value:.3f}" if "length_baseline" in found else "-",
                str(found["nll"]),
                f"{found['ece'].value:.3f}" if "ece" in found else "-",
                f"{found['ece_floor'].high:.3f}" if "ece_floor" in found else "-",
            )
        )
    table("Judged on files", (*heads, "NLL [95%]", "ECE", "its floor"), lines)
    for one in rows:
        if one.sections:
            shown = [
                (name, str(value), str(one.lengths.get(name, "-")), f"n = {value.n}")
                for name, value in one.sections.items()
            ]
            title = f"{one.benchmark}: {one.model}"
            table(title, ("section", "score [95%]", "longer is better", ""), shown)
    for one in rows:
        for reason, count in one.result["rows"]["left_out"].items():
            say(f"{one.benchmark}, {one.model}: {count} left out ({reason})")
        if ties := one.evaluation.counts["ties_left_out"]:
            say(f"{one.benchmark}, {one.model}: {ties} ties are not in the accuracy")
        if one.result["trained_on"]:
            say(f"{one.benchmark}, {one.model}: was trained on this file")
    if differences:
        told = [
            (first.benchmark, f"{other.model} - {first.model}", str(found["accuracy"]), str(found["nll"]), _test(found))
            for first, other, found in differences
        ]
        heads = ("file", "difference", "accuracy [95%]", "NLL [95%]", "McNemar")
        table("Differences on the same pairs", heads, told)


def _test(found: Comparison) -> str:
    one = found.mcnemar
    if one is None:
        return "-"
    from marginkit.evaluation.compare import p_words

    said = p_words(one.mid_p)
    return f"{one.only_first} : {one.only_second}, p {'' if said.startswith('<') else '= '}{said}"
