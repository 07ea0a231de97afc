"""The command line: parsing, progress and the rendering of results and errors; nothing is computed here.

Results go to stdout (a table, or one JSON object), progress and logs to stderr. Exit codes: 0 fine, 1 the run failed,
2 bad input. Heavy imports wait until a command runs, so `--help` and a misspelt key answer at once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from marginkit.errors import BadInput, MarginkitError

if TYPE_CHECKING:
    from marginkit.evaluation.metrics import Evaluation
    from marginkit.registry import Recipe

app = typer.Typer(
    name="marginkit",
    help="Train policies and reward models on graded feedback, and measure whether their confidence is right.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of tables.")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", "-c", metavar="NAME=MEANING", help="Rename a column, or say margin=logits; repeatable."),
]


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
            columns=_assignments(column),
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
        _print_json(found.to_json() | {"summary": summary})
        raise typer.Exit(2 if refused else 0)
    rows = [("read", str(found.read)), ("kept", str(found.kept))]
    rows += [(f"dropped: {reason}", str(count)) for reason, count in found.dropped.items()]
    rows += [(f"kept, but: {reason}", str(count)) for reason, count in found.warned.items()]
    _table(f"{found.file} - {found.dialect} rows", ("", "rows"), rows)
    _table("what is in it", ("", ""), [(name, _plain(value)) for name, value in summary.items() if value is not None])
    for note in found.notes:
        _print(f"note: {note}")
    for item in found.items[:10]:
        _print(str(item))
    if len(found.items) > 10:
        _print(f"... and {len(found.items) - 10} more; --json lists them")
    if refused:
        contradicts = "more than 5% of the rows contradict their label; see --contradiction, or correct the rows"
        why = contradicts if len(groups) else "no row is left; correct them"
        raise BadInput(f"{found.file}: training would refuse it: {why}")


@app.command(
    epilog="Example:  marginkit train mmpo model.path=Qwen/Qwen3-0.6B data.train=ratings.jsonl target.gamma=0.5 "
    "train.control=dpo"
)
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe (see `marginkit list`) or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell tokens, time and memory of the run; train and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a policy or a reward model and judge it on held-out data.

    Started again with the same `out=`, an interrupted run goes on where it was. For several processes:
    accelerate launch -m marginkit train ...
    """
    from marginkit.config import resolve

    config = resolve(recipe, overrides or [])
    if dry_run:
        from marginkit.dry_run import dry_run as forecast

        found = forecast(config)
        if as_json:
            _print_json(found.to_json())
        else:
            _table(f"{config.recipe}: what this run will be (nothing was trained)", ("", ""), found.in_words())
        return
    from marginkit.run import train as run_train  # imports torch and transformers: seconds

    try:
        run = run_train(config)
    except KeyboardInterrupt:
        where = config.out or f"the new folder runs/{config.recipe}-N"
        _fail(f"interrupted; the same command with out={where} goes on from the last checkpoint", 130)
    if int(os.environ.get("RANK", "0")) != 0:
        return
    if as_json:
        _print_json(run.to_json())
        return
    if run.metrics is not None:
        _evaluation(f"{config.recipe} on held-out data", run.metrics)
    if run.control is not None and run.control.metrics is not None:
        from marginkit.evaluation.compare import verdict

        _evaluation(f"control: {run.control.config.recipe}, same start, data and steps", run.control.metrics)
        _print(verdict(run.differences, names=(config.recipe, run.control.config.recipe)))
    _print(f"model: {run.checkpoint}   run: {run.path}   {run.seconds:.0f} s")


@app.command(epilog="Example:  marginkit score runs/mmpo_rm-1 new_answers.jsonl --out scores")
def score(
    run: Annotated[str, typer.Argument(help="A run directory, or a saved model (folder or hub name).")],
    files: Annotated[list[str], typer.Argument(help="Graded data to score.")],
    out: Annotated[Path, typer.Option(help="Folder for responses.parquet and pairs.parquet.")] = Path("scores"),
    split: Annotated[str | None, typer.Option(help="Score only this split.")] = None,
    recipe: Annotated[str | None, typer.Option(help="How to read a model that is not a run.")] = None,
    reference: Annotated[str | None, typer.Option(help="Reference of a policy that is not a run.")] = None,
    column: Columns = None,
    as_json: Json = False,
) -> None:
    """Score graded data with a trained model: one row a response, one row a pair."""
    from marginkit.data.sources import read_groups
    from marginkit.data.splits import select_split

    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out}: is a file; name a folder")
    groups, _ = read_groups(files if len(files) > 1 else files[0], columns=_assignments(column))
    if split is not None:
        groups = select_split(groups, split)
    from marginkit.run import score as run_score

    scores = run_score(run, groups, recipe=recipe, reference=reference)
    if (out / "pairs.parquet").is_file():
        logging.getLogger("marginkit").info("%s: the tables that were there are replaced", out)
    folder = scores.save(out)
    result = {"out": str(folder), "responses": scores.responses.num_rows, "pairs": scores.pairs.num_rows}
    if as_json:
        _print_json(result)
    else:
        _print(f"{result['responses']} responses, {result['pairs']} pairs -> {folder}")


@app.command(epilog="Example:  marginkit evaluate runs/mmpo_rm-1 --against runs/bt-1")
def evaluate(
    scores: Annotated[Path, typer.Argument(help="A run directory, a folder of tables, or a pairs.parquet.")],
    against: Annotated[Path | None, typer.Option(help="Another one on the same pairs: paired differences.")] = None,
    bins: Annotated[int, typer.Option(help="Bins of the calibration errors.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    as_json: Json = False,
) -> None:
    """Judge scores: accuracy, NLL, Brier, calibration with its noise floor, a length baseline, with intervals."""
    from marginkit.evaluation.compare import compare, verdict
    from marginkit.evaluation.metrics import evaluate as judge

    evaluation = judge(_tables(scores), bins=bins, seed=seed)
    result: dict[str, Any] = evaluation.to_json()
    differences = None
    if against is not None:
        differences = compare(_tables(scores), _tables(against), seed=seed)
        result["differences"] = {name: value.to_json() for name, value in differences.items()}
        result["sentence"] = verdict(differences, names=(str(scores), str(against)))
    if as_json:
        _print_json(result)
        return
    _evaluation(str(scores), evaluation)
    if differences is not None:
        rows = [(name, str(value), f"n = {value.n}") for name, value in differences.items()]
        _table(f"{scores} - {against}, on the same pairs", ("difference", "value [95%]", ""), rows)
        _print(result["sentence"])


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
        _print_json(result.to_json())
        return
    columns, rows = result.table
    _table(result.title, columns, rows)
    for sentence in result.sentences:
        _print(sentence)
    _print("one seed, one kind of raters: --quality high | mixed | low and --seed ask again; docs/log.md has them all")


@app.command("list", epilog="Example:  marginkit list mmpo --yaml > mmpo.yaml")
def list_recipes(
    recipe: Annotated[str | None, typer.Argument(help="One recipe in full.")] = None,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="A YAML file to start from.")] = False,
    as_json: Json = False,
) -> None:
    """The catalogue: every recipe, its options, what it needs, its paper, and where it deviates."""
    from marginkit.listing import kind_of, needs_of, needs_short, parts_short, starter
    from marginkit.registry import load_recipe, recipe_names

    specs = [load_recipe(name) for name in ([recipe] if recipe is not None else recipe_names())]
    if as_yaml:
        if recipe is None:
            raise BadInput("--yaml: name the recipe, e.g. marginkit list mmpo --yaml")
        _print(starter(specs[0]))
    elif as_json:
        _print_json({s.name: s.model_dump(mode="json") | {"needs": sorted(needs_of(s))} for s in specs})
    elif recipe is None:
        rests = {True: "reconstructed", False: ""}
        rows = [(s.name, kind_of(s), parts_short(s), needs_short(s), rests[bool(s.reconstructed)]) for s in specs]
        _table("recipes", ("name", "trains", "reward x target x objective", "needs, beside pairs", "rests on"), rows)
        _print("marginkit list NAME: what it is, its options, what is reconstructed; with --yaml a file to start from")
    else:
        _one_recipe(specs[0])


# -- rendering


def _one_recipe(spec: Recipe) -> None:
    from marginkit.listing import command, facts, first_command, in_python, kind_of, option_rows, parts_line

    _print(f"{spec.name} ({kind_of(spec)}, version {spec.version}): {spec.summary}")
    lines = [("loss", spec.formula), ("parts", parts_line(spec)), *facts(spec)]
    commands = [words for words in (first_command(spec), command(spec)) if words is not None]
    lines += [*(("train", words) for words in commands), ("python", in_python(spec))]
    for topic, sentence in lines:
        _print(f"{topic:<14} {sentence}")
    rows = list(option_rows(spec))
    if rows:
        _print("")
        _table("options", ("key", "default", "range", "unit", "meaning", "source"), rows)


def _evaluation(title: str, evaluation: Evaluation) -> None:
    from marginkit.evaluation.compare import rows

    _table(title, ("", "value [95%]", ""), rows(evaluation))


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_header=any(columns), show_edge=False, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    console.print(Text(title, style="bold"))
    console.print(table)
    console.print()


def _print(words: str) -> None:
    sys.stdout.write(words + "\n")


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _assignments(items: Sequence[str] | None) -> dict[str, str]:
    made: dict[str, str] = {}
    for item in items or []:
        name, sign, meaning = item.partition("=")
        if not sign or not name or not meaning:
            raise BadInput(f"--column {item}: write NAME=MEANING, e.g. --column my_score=score_chosen")
        made[name] = meaning
    return made


def _tables(path: Path) -> Path:
    if (path / "tables").is_dir():
        return path / "tables"
    if not path.exists():
        raise BadInput(f"{path}: no such run, folder of tables or Parquet file")
    if path.is_dir() and not (path / "pairs.parquet").is_file():
        raise BadInput(f"{path}: holds no pairs.parquet; score it first with marginkit score")
    return path


# -- the process


def _quiet_libraries() -> None:
    """Our own lines to stderr; no bars, banners or deprecation notes of libraries between them."""
    import warnings

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("marginkit")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if int(os.environ.get("RANK", "0")) == 0 else logging.ERROR)
    logger.propagate = False
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def main() -> None:
    """Run the command line; errors are one line on stderr."""
    _quiet_libraries()
    try:
        app(standalone_mode=True)
    except BadInput as error:
        _fail(error, 2)
    except MarginkitError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        _fail("interrupted; the same command with the same out= goes on where it was", 130)
    except OSError as error:
        _fail(error, 1)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        _fail(
            "out of memory; lower train.tokens_per_micro_batch, or add train.gradient_checkpointing=true or model.lora",
            1,
        )


def _fail(error: object, code: int) -> NoReturn:
    sys.stderr.write(f"marginkit: {error}\n")
    raise SystemExit(code)
