"""marginkit benchmark: the scores of MT-Bench, AlpacaEval and Arena-Hard from what their judges wrote."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marginkit.cli.app import Json, app
from marginkit.cli.rendering import say, say_json, table
from marginkit.errors import BadInput

if TYPE_CHECKING:
    from marginkit.evaluation.alpaca_eval import AlpacaEval
    from marginkit.evaluation.mt_bench import MtBench, MtBenchPairs

benchmark = typer.Typer(
    help="Judge benchmarks (MT-Bench, AlpacaEval, Arena-Hard) and best-of-n: the files they read, and their scores.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(benchmark, name="benchmark")

Files = Annotated[list[str], typer.Argument(metavar="FILE...", help="What the judge wrote.")]
Judge = Annotated[str | None, typer.Option(help="Whose judgments to take, where the files hold several judges'.")]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap.")]


@benchmark.command("mt-bench", epilog="Example:  marginkit benchmark mt-bench gpt-4_single.jsonl")
def mt_bench(
    files: Files,
    judge: Judge = None,
    baseline: Annotated[str | None, typer.Option(help="Of pairs: count the games against this model alone.")] = None,
    repeats: Annotated[
        str, typer.Option(help="last | all: of rows judged twice the last alone, or all, as FastChat.")
    ] = "last",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Score MT-Bench judgments: single answers (*_single.jsonl) or pairs (*_pair.jsonl)."""
    from marginkit.evaluation.judgment_files import read_rows
    from marginkit.evaluation.mt_bench import score_mt_bench, score_mt_bench_pairs

    if "g1_winner" in read_rows(files)[0].value:
        pairs = score_mt_bench_pairs(files, baseline=baseline, judge=judge, repeats=repeats, seed=seed)
        say_json(pairs.to_json()) if as_json else _show_pairs(pairs)
        return
    if baseline is not None:
        raise BadInput("--baseline is of pairs; these files hold single answers")
    found = score_mt_bench(files, judge=judge, repeats=repeats, seed=seed)
    say_json(found.to_json()) if as_json else _show_single(found)


def _show_single(found: MtBench) -> None:
    rows = [
        (m.model, str(m.turn_1), str(m.turn_2), str(m.average), f"{m.questions} questions, {m.average.n} rows")
        for m in found.models
    ]
    table(f"MT-Bench, judged by {found.judge}", ("model", "turn 1 [95%]", "turn 2", "average", ""), rows)
    for m in found.models:
        if m.unread:
            say(f"{m.model}: {m.unread} judgments without a score are left out, as upstream")
        if m.repeated:
            took = "the last one of each counts" if found.repeats == "last" else "all of them count, as upstream"
            say(f"{m.model}: {m.repeated} rows repeat a question and turn (the judge ran twice): {took}")
        if m.off_scale:
            say(f"{m.model}: {m.off_scale} scores lie outside 1 to 10; they count, as upstream")


def _show_pairs(found: MtBenchPairs) -> None:
    rows = [
        (m.model, str(m.win_rate_adjusted), str(m.win_rate), str(m.loss_rate), f"{m.wins}, {m.losses}, {m.ties}")
        for m in found.models
    ]
    against = "" if found.baseline is None else f" against {found.baseline}"
    columns = ("model", "win rate, ties half [95%]", "win rate", "loss rate", "won, lost, tied")
    table(f"MT-Bench pairs{against}, judged by {found.judge}", columns, rows)
    say(f"the two orders disagree in {100 * found.swayed:.1f}% of games: those are ties")
    if found.errors:
        say(f"{found.errors} games without a verdict are left out, as upstream")
    if found.repeated:
        say(f"{found.repeated} rows repeat a game (the judge ran twice)")


@benchmark.command(
    "alpaca-eval", epilog="Example:  marginkit benchmark alpaca-eval annotations.json --gamed df_gamed.csv"
)
def alpaca_eval(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="annotations.json, one a model.")],
    gamed: Annotated[
        str | None, typer.Option(help="AlpacaEval's df_gamed.csv: the exact length-controlled win rate.")
    ] = None,
    difficulty: Annotated[
        str | None, typer.Option(help="AlpacaEval's instruction_difficulty.csv: an approximation without the former.")
    ] = None,
    instructions: Annotated[
        str | None, typer.Option(help="All instructions in order (any file of outputs): join difficulties on the text.")
    ] = None,
    unofficial: Annotated[
        bool, typer.Option("--unofficial", help="Take other files than the published ones; labelled LC-approx.")
    ] = False,
    refits: Annotated[int, typer.Option(help="Draws for the length-controlled rate's interval; 200 are enough.")] = 0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Score AlpacaEval annotations: win rate, discrete and length-controlled win rate."""
    from marginkit.evaluation.alpaca_eval import score_alpaca_eval

    if refits < 0:
        raise BadInput(f"--refits {refits}: is at least 0")
    found = [
        score_alpaca_eval(
            path,
            gamed=gamed,
            difficulty=difficulty,
            instructions=instructions,
            unofficial=unofficial,
            refits=refits,
            seed=seed,
        )
        for path in files
    ]
    if as_json:
        say_json({"models": [one.to_json() for one in found]})
        return
    rows = [
        (
            one.model,
            _percent(one.win_rate),
            f"{one.standard_error:.2f}",
            f"{one.discrete_win_rate.value:.2f}",
            _controlled(one),
            f"{one.n_wins}, {one.n_wins_base}, {one.n_draws}",
            str(one.avg_length),
        )
        for one in found
    ]
    columns = ("model", "win rate [95%]", "SE", "discrete", "length-controlled", "won, lost, drawn", "characters")
    table(f"AlpacaEval against {', '.join(sorted({one.baseline for one in found}))}, in percent", columns, rows)
    for words in _notes(found, joined=instructions is not None):
        say(words)


def _controlled(one: AlpacaEval) -> str:
    controlled = one.length_controlled
    if controlled is None:
        return "lengths do not differ"
    interval = "" if controlled.low is None else f" [{controlled.low:.2f}, {controlled.high:.2f}]"
    return f"{controlled.value:.2f}{interval} {controlled.label}"


def _notes(found: list[AlpacaEval], *, joined: bool) -> list[str]:
    said: dict[str, None] = {}
    for one in found:
        controlled = one.length_controlled
        if controlled is not None and controlled.label != "LC":
            said[controlled.says] = None
        if one.nulls:
            said[f"{one.model}: {one.nulls} rows without a preference are left out, as upstream"] = None
        if one.missing:
            placed = controlled is not None and "difficulty" in controlled.weights and not joined
            shifted = ": their difficulties are looked up by place, as upstream; see --instructions" if placed else ""
            said[f"{one.model}: {one.missing} of the 805 instructions are missing{shifted}"] = None
    return list(said)


@benchmark.command("arena-hard", epilog="Example:  marginkit benchmark arena-hard model_judgment/gpt-4.1/*.jsonl")
def arena_hard(
    files: Files,
    answers: Annotated[
        list[str] | None,
        typer.Option(
            "--answers", help="Answer files with metadata, of models and baseline: style control; repeatable."
        ),
    ] = None,
    feature: Annotated[
        list[str] | None, typer.Option("--feature", help="length | headers | lists | bold: control these alone.")
    ] = None,
    rule: Annotated[str | None, typer.Option(help="v2 | v0.1: which games count; by the files, if left out.")] = None,
    judge: Judge = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Score Arena-Hard judgments, with --answers also under style control."""
    from marginkit.evaluation.arena_hard import read_battles, score_arena_hard
    from marginkit.evaluation.style_control import FEATURES, control_style, read_styles

    if feature and not answers:
        raise BadInput("--feature is of style control; give the answer files with --answers")
    battles = read_battles(files, rule=rule, judge=judge)
    styles = read_styles(answers) if answers else None
    models = score_arena_hard(battles, seed=seed)
    controlled = [] if styles is None else control_style(battles, styles, features=feature or FEATURES, seed=seed)
    if as_json:
        result: dict[str, Any] = {"models": [one.to_json() for one in models]}
        say_json(result | {"style_control": [one.to_json() for one in controlled]})
        return
    for category in dict.fromkeys(one.category for one in models):
        own = [one for one in models if one.category == category]
        rows = [
            (m.model, _percent(m.score), str(m.upstream), f"{m.questions} questions, {m.verdicts} verdicts")
            for m in own
        ]
        level = f"as Arena-Hard prints it [{100 * own[0].upstream.level:.0f}%]"
        table(
            f"Arena-Hard {category} against {own[0].baseline}, judged by {own[0].judge}, in percent",
            ("model", "win rate [95%]", level, ""),
            rows,
        )
        for m in own:
            if m.missing:
                say(f"{m.model}: {m.missing} questions (v0.1: games) without a verdict are left out, as upstream")
    for one in controlled:
        rows = [(m.model, _percent(m.score), str(m.upstream), "") for m in one.models]
        columns = ("model", "win rate [95%]", "as Arena-Hard prints it [90%]", "")
        table(f"Arena-Hard {one.category}, style controlled", columns, rows)
        likes = ", ".join(f"{name} {value:+.2f}" for name, value in one.coefficients.items())
        say(f"what the judge likes, logits a standard deviation: {likes}")


def _percent(one: Any) -> str:
    return f"{one.value:.2f}" if math.isnan(one.low) else f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]"


def existing(path: str, name: str) -> Path:
    """A path that must be there.

    Raises:
        BadInput: it is not.
    """
    found = Path(path)
    if not found.exists():
        raise BadInput(f"{name} {path}: no such file or folder")
    return found
