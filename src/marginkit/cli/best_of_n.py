"""marginkit benchmark best-of-n."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marginkit.cli.app import Json
from marginkit.cli.benchmark_files import write_text, written
from marginkit.cli.benchmarks import Seed, benchmark, existing
from marginkit.cli.rendering import say, say_json, table
from marginkit.errors import BadInput

if TYPE_CHECKING:
    from marginkit.evaluation.best_of_n import BestOfN

BAR = 24


@benchmark.command("best-of-n", epilog="Example:  marginkit benchmark best-of-n scores --gold gold_scores --samples 16")
def best_of_n(
    scores: Annotated[
        str, typer.Argument(help="The proxy: what marginkit score wrote, a run, or a responses.parquet.")
    ],
    gold: Annotated[
        str, typer.Option(help="grade | utility of the same table, or what marginkit score wrote with another model.")
    ] = "grade",
    samples: Annotated[
        int | None, typer.Option(help="N; prompts with fewer responses are left out. Default: as many as all have.")
    ] = None,
    seed: Seed = 0,
    export: Annotated[Path | None, typer.Option(help="Write the responses kept, in AlpacaEval's form.")] = None,
    data: Annotated[str | None, typer.Option(help="The scored file, for the texts of --export.")] = None,
    generator: Annotated[str | None, typer.Option(help="The name in --export; default best-of-N.")] = None,
    as_json: Json = False,
) -> None:
    """Judge best-of-n: what keeping the best of n by one model is worth to another, for every n up to N."""
    from marginkit.evaluation.best_of_n import GOLDS, judge_best_of_n

    if (export is None) != (data is None):
        raise BadInput("--export and --data go together: the tables hold no texts")
    table_of = _responses(scores, "SCORES")
    judged = table_of if gold in GOLDS else _responses(gold, "--gold")
    if judged is not table_of and judged.equals(table_of):
        raise BadInput(f"--gold {gold}: is the proxy itself; name a scoring by another model, or grade")
    found = judge_best_of_n(table_of, gold if gold in GOLDS else judged, samples=samples, seed=seed)
    result: dict[str, Any] = found.to_json() | {"gold_is": gold}
    if export is not None and data is not None:
        result["export"] = _export(export, data, table_of, samples, generator or f"best-of-{samples or 'all'}")
    if as_json:
        say_json(result)
        return
    _show(found, gold)
    if export is not None:
        say(f"{export}: {result['export']} responses, the best of {samples or 'all'} by the proxy")
    merged = 0 if data is None else _merged(Path(data))
    if merged:
        say(f"{merged} draws said what another had said and count once: this is best-of-n of different responses")


def _show(found: BestOfN, gold: str) -> None:
    shown = sorted({1, found.samples, *(2**k for k in range(12) if 2**k <= found.samples)})
    values = [found.gold[n - 1].value for n in found.n]
    low, high = min(values), max(values)
    rows = [
        (
            str(n),
            f"{found.kl[n - 1]:.3f}",
            str(found.proxy[n - 1]),
            str(found.gold[n - 1]),
            str(found.gain[n - 1]) if n > 1 else "",
            str(found.ceiling[n - 1]),
            _bar(found.gold[n - 1].value, low, high),
        )
        for n in shown
    ]
    columns = (
        "n",
        "KL (nats)",
        "proxy [95%]",
        "gold",
        "gold(n) - gold(1)",
        "gold if it chose",
        "gold, lowest to highest",
    )
    table(f"Best of n on {found.prompts} prompts, gold = {gold}", columns, rows)
    for reason, count in found.left_out.items():
        say(f"{count} prompts are left out: {reason}")
    if found.largest > found.samples:
        say(f"some prompts have up to {found.largest} responses: --samples goes further, without those that have fewer")
    if found.tied:
        say(f"{100 * found.tied:.1f}% of responses share their reward with another: KL is an upper bound there")
    if found.over_optimisation is not None:
        fit = found.over_optimisation
        say(f"gain = d (a - b d), d = sqrt(KL): a = {fit.a}, b = {fit.b}; {fit.says}")


def _bar(value: float, low: float, high: float) -> str:
    share = (value - low) / (high - low) if high > low else 0.0
    return "#" * (1 + round(share * (BAR - 1)))


def _export(out: Path, data: str, responses: Any, samples: int | None, generator: str) -> int:
    from marginkit.data.sources import read_groups
    from marginkit.evaluation.answer_files import best_of_n_rows

    groups, _ = read_groups(str(existing(data, "--data")))
    keys = zip(responses["group"].to_pylist(), responses["response"].to_pylist(), strict=True)
    rewards = dict(zip(keys, responses["reward"].to_pylist(), strict=True))
    rows = list(best_of_n_rows(groups, rewards, samples, generator))
    write_text(out, written("alpaca-eval", rows), "--export")
    return len(rows)


def _merged(data: Path) -> int:
    """How many equal draws `marginkit sample` merged, if it says so."""
    from marginkit.data.manifests import manifest_path

    try:
        manifest = json.loads(manifest_path(data).read_text(encoding="utf-8"))
        return int(manifest["facts"]["merged"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _responses(path: str, name: str) -> Any:
    """The responses table at a run, a folder or a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = existing(path, name)
    if found.is_dir():
        held = [folder for folder in (found / "tables", found) if (folder / "responses.parquet").is_file()]
        if not held:
            raise BadInput(f"{name} {path}: holds no responses.parquet; score it first with marginkit score")
        found = held[0] / "responses.parquet"
    try:
        return pq.read_table(found)
    except pa.ArrowInvalid:
        raise BadInput(f"{name} {found}: is no Parquet table; give what marginkit score wrote") from None
