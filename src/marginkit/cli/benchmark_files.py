"""marginkit benchmark prompts and answers: what is asked, and the file that the judge reads."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from marginkit.cli.app import Json
from marginkit.cli.benchmarks import benchmark
from marginkit.cli.rendering import say, say_json
from marginkit.errors import BadInput

Name = Annotated[str, typer.Argument(metavar="BENCHMARK", help="mt-bench | alpaca-eval | arena-hard")]
Questions = Annotated[str, typer.Argument(metavar="QUESTIONS", help="The file of questions that its authors publish.")]


@benchmark.command("prompts", epilog="Example:  marginkit benchmark prompts mt-bench question.jsonl --out turn1.jsonl")
def prompts(
    name: Name,
    questions: Questions,
    out: Annotated[Path, typer.Option(help="The .jsonl file to make, for marginkit sample.")] = Path("prompts.jsonl"),
    answers: Annotated[
        list[str] | None,
        typer.Option("--answers", help="First answers, as sampled: write the second turn's prompts."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Plain text instead of chat turns, for a model without a chat template.")
    ] = False,
    missing: Annotated[
        str, typer.Option(help="error | empty: with --answers, of questions without one; empty asks no second turn.")
    ] = "error",
    as_json: Json = False,
) -> None:
    """Write the questions of a benchmark as prompts for marginkit sample.

    MT-Bench takes two passes: draw the first turns, then write the prompts of the second with --answers. Its rows carry
    the temperature to draw at as their split: sample --split t0.7 --temperature 0.7.
    """
    from marginkit.evaluation.answer_files import prompt_rows
    from marginkit.evaluation.benchmark_questions import read_questions

    found = read_questions(name, questions)
    rows = prompt_rows(name, found, None if answers is None else _groups(answers), plain=plain, missing=missing)
    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    splits = dict(Counter(row["split"] for row in rows if "split" in row))
    if as_json:
        say_json({"out": str(out), "prompts": len(rows), "splits": splits})
        return
    say(f"{out}: {len(rows)} prompts")
    for split, count in splits.items():
        say(f"{count}: marginkit sample POLICY {out} --split {split} --temperature {split[1:]} -n 1 --out ...")


@benchmark.command(
    "answers",
    epilog="Example:  marginkit benchmark answers alpaca-eval questions.json drawn.jsonl --model me --out me.json",
)
def answers(
    name: Name,
    questions: Questions,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="What marginkit sample wrote.")],
    model: Annotated[str, typer.Option(help="The model's name in the file.")],
    out: Annotated[Path, typer.Option(help="The file to make, as the benchmark's judge reads it.")],
    choose: Annotated[
        str, typer.Option(help="only | first | best: of several responses refuse, the first, or the highest grade.")
    ] = "only",
    missing: Annotated[str, typer.Option(help="error | empty: what becomes of questions without an answer.")] = "error",
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Counts Arena-Hard's token_len: tiktoken:gpt-4o (as upstream), or a tokenizer's folder."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model's answers in the form that a benchmark's judge reads.

    Of MT-Bench give what was drawn for the second turn: the first answers stand in its prompts. With --missing empty
    give what was drawn for the first turn too.
    """
    from marginkit.evaluation.answer_files import Answers, answer_rows
    from marginkit.evaluation.benchmark_questions import read_questions

    if tokenizer is not None and name != "arena-hard":
        raise BadInput("--tokenizer counts Arena-Hard's token_len; leave it out")
    found = read_questions(name, questions)
    drawn = Answers(_groups(files), choose)
    count = None if tokenizer is None else _token_counter(tokenizer)
    rows = answer_rows(name, found, drawn, model, now=time.time(), missing=missing, count_tokens=count)
    write_text(out, written(name, rows))
    result: dict[str, Any] = {"out": str(out), "answers": len(rows), "empty": drawn.lacking(found)}
    if name == "arena-hard":
        result["tokens_counted_by"] = tokenizer
    if as_json:
        say_json(result)
        return
    say(f"{out}: {len(rows)} answers of {model}" + (f", {result['empty']} of them empty" if result["empty"] else ""))
    if name == "arena-hard" and tokenizer is None:
        say("without metadata: style control needs it; count tokens with --tokenizer")
    elif tokenizer is not None and tokenizer != "tiktoken:gpt-4o":
        say(f"token_len is counted by {tokenizer}; upstream counts gpt-4o's, so count models and baseline alike")


def written(name: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as a benchmark's file holds them: one JSON list for AlpacaEval, else JSON lines."""
    if name == "alpaca-eval":
        return json.dumps(list(rows), ensure_ascii=False, indent=2) + "\n"
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _groups(files: list[str]) -> Any:
    from marginkit.data.sources import read_groups

    groups, _ = read_groups(files if len(files) > 1 else files[0])
    if groups.dropped:
        why = ", ".join(f"{reason}: {count}" for reason, count in groups.dropped.items())
        raise BadInput(f"{', '.join(files)}: not every row can be read ({why}); give what marginkit sample wrote")
    return groups


def write_text(out: Path, content: str, option: str = "--out") -> None:
    """Write a file that an option named, and its folder: whole, or what was there stays.

    Raises:
        BadInput: it cannot be written.
    """
    partial = out.with_name(out.name + ".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(content, encoding="utf-8", newline="\n")
        partial.replace(out)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise BadInput(f"{option} {out}: {error.strerror}; name another file") from None


def _token_counter(name: str) -> Callable[[str], int]:
    if name.startswith("tiktoken:"):
        try:
            import tiktoken
        except ImportError:
            raise BadInput(f"--tokenizer {name}: pip install tiktoken, or name a tokenizer's folder") from None
        try:
            encoder = tiktoken.encoding_for_model(name.removeprefix("tiktoken:"))
        except KeyError:
            raise BadInput(
                f"--tokenizer {name}: tiktoken knows no such model; upstream takes tiktoken:gpt-4o"
            ) from None
        return lambda text: len(encoder.encode(text, disallowed_special=()))
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0].removesuffix(" one of: ")
        raise BadInput(f"--tokenizer {name}: holds no tokenizer ({why}); name a folder or a hub name") from None
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
