"""marginkit evaluate SCORES: what score tables say, and what is asked of them beside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marginkit.cli.rendering import say, say_json, show_evaluation, table
from marginkit.errors import BadInput
from marginkit.records import Estimate

if TYPE_CHECKING:
    from marginkit.evaluation.calibrators import Calibrated


def judge_scores(
    scores: Path,
    *,
    against: Path | None = None,
    calibrate_on: Path | None = None,
    slices: bool = False,
    bins: int = 10,
    seed: int = 0,
    as_json: bool = False,
) -> None:
    """Judge a run's tables, print what is found.

    Args:
        scores: a run directory, a folder of tables, or a pairs.parquet.
        against: another one on the same pairs.
        calibrate_on: another one, of other prompts, that calibrators are fitted on.
        slices: also by source, subset, length and grade gap.
        bins: of the calibration errors.
        seed: of the bootstrap.
        as_json: one JSON object.
    """
    from marginkit.evaluation.compare import compare, p_words, verdict
    from marginkit.evaluation.metrics import evaluate

    tables = _tables_at(scores)
    evaluation = evaluate(tables, bins=bins, seed=seed)
    result: dict[str, Any] = evaluation.to_json()
    differences = None if against is None else compare(tables, _tables_at(against), seed=seed)
    calibrated = None if calibrate_on is None else _calibrated(_tables_at(calibrate_on), tables, bins, seed)
    if not as_json:
        show_evaluation(str(scores), evaluation)
    if slices:
        result |= _slices(tables, bins, seed, show=not as_json)
    if calibrated is not None:
        result["calibrated"] = {how: one.to_json() for how, one in calibrated.items()}
        if not as_json:
            _show_calibrated(calibrated, str(calibrate_on))
    if differences is not None:
        result["differences"] = differences.to_json()
        result["mcnemar"] = result["differences"].pop("mcnemar")
        result["sentence"] = verdict(differences, names=(str(scores), str(against)))
        if not as_json:
            rows = [(name, str(value), f"n = {value.n}") for name, value in differences.items()]
            table(f"{scores} - {against}, on the same pairs", ("difference", "value [95%]", ""), rows)
            say(result["sentence"])
            if differences.mcnemar is not None:
                test = differences.mcnemar
                only = f"only the first right: {test.only_first:,}, only the second: {test.only_second:,}"
                say(f"{only} (McNemar, mid-p {p_words(test.mid_p)})")
    if as_json:
        say_json(result)


def _slices(tables: Path, bins: int, seed: int, *, show: bool) -> dict[str, Any]:
    from marginkit.evaluation.gaps import by_gap
    from marginkit.evaluation.slices import slice_table

    found = slice_table(tables, bins=bins, seed=seed)
    try:
        study = by_gap(tables, seed=seed)
    except BadInput:  # neither grades nor targets: there is nothing to follow
        study = None
    if show:
        for kind in dict.fromkeys(one.by for one in found):
            own = [one for one in found if one.by == kind]
            rows = [
                (
                    f"{one.name}{' *' if one.small else ''}",
                    f"{one.n:,}",
                    *map(_words, (one.accuracy, one.length_baseline, one.nll, one.ece)),
                    f"{one.ece_floor.high:.3f}",
                )
                for one in own
            ]
            name = kind.replace("_", " ")
            heads = (name, "pairs", "accuracy", "longer is better", "NLL", "ECE", "its floor")
            table(f"by {name}{' (*: few pairs)' if any(one.small for one in own) else ''}", heads, rows)
        if study is not None:
            name = study.measure.replace("_", " ")
            rows_ = [
                (one.name, f"{one.n:,}", *map(_words, (one.agreement, one.gap, one.prob))) for one in study.buckets
            ]
            heads_ = (name, "pairs", "agreement", "mean gap (logits)", "mean probability")
            rises = f"the mean gap rises in {study.rises} of {study.steps} steps"
            table(f"along the {name} ({study.unit}); {rises}", heads_, rows_)
    return {"slices": [one.to_json() for one in found], "gaps": None if study is None else study.to_json()}


def _words(found: Estimate) -> str:
    return "-" if math.isnan(found.value) else str(found)


def _calibrated(fit_on: Path, judge_on: Path, bins: int, seed: int) -> Mapping[str, Calibrated]:
    from marginkit.evaluation.calibrators import HOW, calibrate

    return {how: calibrate(fit_on, judge_on, how, bins=bins, seed=seed) for how in HOW}


def _show_calibrated(found: Mapping[str, Calibrated], fit_on: str) -> None:
    some = next(iter(found.values()))
    names = ("nll", "brier", "ece")
    before = (str(some.before[name]) for name in names)
    rows = [("as the model says", *before, f"{some.before['ece_floor'].high:.3f}", "")]
    for how, one in found.items():
        slope = one.calibrator.slope
        fitted = f"{how} (rewards / {1 / slope:.3f})" if how == "temperature" and slope else how
        at_bound = "at its bound" if one.calibrator.at_bound else ""
        values = (str(one.after[name]) for name in names)
        rows.append((fitted, *values, f"{one.after['ece_floor'].high:.3f}", at_bound))
    title = f"calibrated on {some.calibrator.fitted_on:,} pairs of {fit_on}"
    table(title, ("", "NLL", "Brier score", "ECE", "its floor", ""), rows)


def _tables_at(path: Path) -> Path:
    if (path / "tables").is_dir():
        return path / "tables"
    if not path.exists():
        raise BadInput(f"{path}: no such run, folder of tables or Parquet file")
    if path.is_dir() and not (path / "pairs.parquet").is_file():
        raise BadInput(f"{path}: holds no pairs.parquet; score it first with marginkit score")
    return path
