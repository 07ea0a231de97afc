"""What a model's scores say of it: accuracy, likelihood and calibration of its pairs, each with an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import Array, Codes, Mask, estimate, estimate_mean, of_sums, slope_through_zero
from marginkit.evaluation.brier import BrierParts, brier_parts
from marginkit.evaluation.calibration import Form, ReliabilityBin, maximum_calibration_error, reliability, sigmoid
from marginkit.evaluation.calibrators import fit_temperature, temperature_statistic
from marginkit.evaluation.noise import noise_floor
from marginkit.evaluation.pair_columns import PairColumns, cluster_codes, numbers, read_tables
from marginkit.evaluation.questions import Questions
from marginkit.evaluation.ranks import area_under_curve, rank_correlation
from marginkit.records import Estimate
from marginkit.tables import Scores

FEW = 20
"""Labelled pairs below which nothing is said about calibration."""
MORE_BINS = 15
"""The second common choice of bins; every evaluation has the ECE at both."""


class Evaluation(dict[str, Estimate]):
    """Estimates by name, with what they rest on.

    Args:
        estimates: name -> `Estimate`.
        counts: pairs read and left out, by reason.
        reliability: the bins of the reliability diagram.
        verdict: what the calibration comes to, and how the numbers were made.
        brier_parts: what the Brier score is made of; None without labels.

    Example:
        >>> Evaluation({"accuracy": Estimate(0.75, 0.5, 1.0, 8, 0)})["accuracy"].value
        0.75
    """

    def __init__(
        self,
        estimates: Mapping[str, Estimate],
        counts: Mapping[str, int] | None = None,
        reliability: list[ReliabilityBin] | None = None,
        verdict: Mapping[str, Any] | None = None,
        brier_parts: BrierParts | None = None,
    ) -> None:
        super().__init__(estimates)
        self.counts = dict(counts or {})
        self.reliability = list(reliability or [])
        self.verdict = dict(verdict or {})
        self.brier_parts = brier_parts

    def to_json(self) -> dict[str, Any]:
        """`{name: {"value", "low", "high", "n", "clusters"}, ..., "counts", "reliability", "verdict", ...}`; no NaN."""
        return {
            **{name: found.to_json() for name, found in self.items()},
            "counts": self.counts,
            "reliability": [asdict(row) for row in self.reliability],
            "verdict": self.verdict,
            "brier_parts": None if self.brier_parts is None else asdict(self.brier_parts),
        }


def evaluate(
    scores: Scores | pa.Table | str | Path,
    *,
    bins: int = 10,
    form: Form = "confidence",
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Everything the tables say of a model, each number with a 95% interval over clusters.

    With `q = sigmoid(gap)` and `y` the label (observed probability, else 1): accuracy is the share of `gap > 0`, nll
    the mean of `-(y log q + (1 - y) log(1 - q))` in nats, brier the mean of `(y - q)^2`.

    Ties are left out of the accuracy and counted; equal rewards are wrong. A tie without an observed probability has no
    label and is left out of the rest too. The weight column is for training: here every pair counts the same.

    | name | what |
    |---|---|
    | `accuracy`, `nll`, `brier`, `ece` | as above; `ece` is the plug-in, with the interval of `ece_debiased` |
    | `ece_15`, `ece_adaptive` | the same with 15 bins on [0, 1]; over `bins` groups of equal count |
    | `ece_majority` | ECE against the majority label; labels of 1/2 are left out |
    | `ece_floor`, `ece_15_floor`, `ece_adaptive_floor` | what a calibrated model shows: mean, 5% and 95% quantile |
    | `ece_debiased` | `debiased_ece` |
    | `temperature`, `nll_at_temperature`, `ece_at_temperature` | fitted on these same pairs (in-sample) |
    | `length_baseline` | accuracy of "the longer one is better"; equal lengths count one half |
    | `grade_correlation` | Spearman's correlation of gap and grade gap |
    | `tie_auc` | chance that a pair that is no tie has the larger gap, of either sign, than one that is |
    | `gap_correlation`, `gap_slope` | Spearman's correlation of gap and target gap; least-squares slope through 0 |
    | `prob_error`, `prob_error_label` | mean distance of q from sigmoid(target gap), from the observed probability |
    | `reward_std` | standard deviation of the rewards of all responses, logits |
    | `nll_per_token`, `perplexity` | instead of all that where there are no pairs (SFT) |

    `verdict` adds `mce`, the largest gap of a bin, and `mce_floor`, up to which it is noise; `brier_parts` the
    decomposition. Calibrated on a split of its own: `calibrate`. By slice: `slice_table`; by size of the grade gap:
    `by_gap`.

    Args:
        scores: what `score` gave, its pairs table alone, or the folder or Parquet file they were saved to.
        bins: of the calibration errors, on [0, 1].
        form: of the calibration errors: `confidence`, or `symmetric`, where each pair counts from both sides.
        resamples: of the bootstrap.
        seed: of the bootstrap and the noise floor.

    Returns:
        The estimates that the tables allow, with counts, reliability bins and the calibration verdict.

    Raises:
        BadInput: no rows, a missing column, a reward that is not finite, a label outside [0, 1].

    Example:
        >>> table = pa.table({
        ...     "group": ["a", "b", "c"], "cluster": ["a", "b", "c"], "tie": [False, False, True],
        ...     "reward_chosen": [2.0, 0.0, 1.0], "reward_rejected": [0.0, 0.0, 0.0], "gap": [2.0, 0.0, 1.0],
        ...     "label_prob": pa.array([None, None, None], pa.float64()),
        ...     "target_gap": pa.array([None, None, None], pa.float64()),
        ... })
        >>> result = evaluate(table)
        >>> result["accuracy"].value, result.counts["ties_left_out"], result.counts["equal_rewards"]
        (0.5, 1, 1)

    Source: Guo et al. 2017 (temperature), Naeini et al. 2015 (ECE), Brier 1950.
    """
    responses, table = read_tables(scores)
    draw = {"resamples": resamples, "seed": seed}
    if not len(table):
        return _evaluate_responses(responses, draw)
    pairs = PairColumns.read(table)
    values = pairs.values()
    asked = Questions(pairs.cluster, resamples=resamples, seed=seed)
    for name in ("accuracy", "nll", "brier"):
        asked.mean(name, values[name])
    labelled = ~np.isnan(pairs.label)
    gap, label, cluster = pairs.gap[labelled], pairs.label[labelled], pairs.cluster[labelled]
    temperature, at_bound = fit_temperature(gap, label) if len(gap) else (math.nan, True)
    if len(gap):
        _ask_calibration(asked, pairs, labelled, temperature, bins, form)
    for name in ("length_baseline", "prob_error", "prob_error_label"):
        if not np.isnan(values[name]).all():
            asked.mean(name, values[name])
    _ask_gaps(asked, pairs)
    found = asked.answers()
    verdict: dict[str, Any] = {}
    diagram: list[ReliabilityBin] = []
    parts = None
    if len(gap):
        if at_bound:
            found["temperature"] = Estimate(temperature, math.nan, math.nan, len(gap), found["ece"].clusters)
        prob = sigmoid(gap)
        floors, verdict = _floors_and_verdict(found, prob, label, at_bound, bins, form, seed)
        found = _floors_beside(found, floors)
        diagram = reliability(prob, label, bins, cluster)
        parts = brier_parts(prob, label, bins, form=form)
    if responses is not None and len(responses):
        found |= _reward_std(responses, draw)
    counts = {
        "pairs": len(pairs.gap),
        "ties_left_out": int(pairs.tie.sum()),
        "equal_rewards": int((~pairs.tie & (pairs.gap == 0)).sum()),
        "no_probability": int((~labelled).sum()),
    }
    return Evaluation(found, counts, diagram, verdict | {"length_unit": pairs.length_unit or None}, parts)


def _ask_calibration(
    asked: Questions, pairs: PairColumns, here: Mask, temperature: float, bins: int, form: Form
) -> None:
    """The calibration errors and temperature of labelled pairs."""
    gap, label = pairs.gap[here], pairs.label[here]
    prob = sigmoid(gap)
    decided = label != 0.5
    asked.ece("ece", prob, label, here, bins=bins, form=form, debiased="ece_debiased")
    asked.ece("ece_15", prob, label, here, bins=MORE_BINS, form=form)
    asked.ece("ece_adaptive", prob, label, here, bins=bins, form=form, adaptive=True)
    majority = here.copy()
    majority[here] = decided
    asked.ece("ece_majority", prob[decided], (label > 0.5)[decided].astype(float), majority, bins=bins, form=form)
    asked.ask("temperature", temperature_statistic(gap, label, temperature), here)
    asked.mean("nll_at_temperature", pairs.values(temperature)["nll"])
    asked.ece("ece_at_temperature", sigmoid(gap / temperature), label, here, bins=bins, form=form)


def _ask_gaps(asked: Questions, pairs: PairColumns) -> None:
    """How gaps follow what was said of how far apart the two are."""
    graded, targeted = ~np.isnan(pairs.grade_gap), ~np.isnan(pairs.target_gap)
    if graded.any() and np.ptp(pairs.grade_gap[graded]) > 0:
        asked.ask("grade_correlation", rank_correlation(pairs.gap[graded], pairs.grade_gap[graded]), graded)
    if pairs.tie.any() and not pairs.tie.all():
        asked.ask("tie_auc", area_under_curve(np.abs(pairs.gap), ~pairs.tie), np.ones_like(pairs.tie))
    if targeted.any() and np.ptp(pairs.target_gap[targeted]) > 0:  # of one-sided votes only ties have a finite one
        gap, target = pairs.gap[targeted], pairs.target_gap[targeted]
        asked.ask("gap_correlation", rank_correlation(gap, target), targeted)
        asked.ask("gap_slope", slope_through_zero(gap, target), targeted)


def _floors_and_verdict(
    found: Mapping[str, Estimate], prob: Array, label: Array, at_bound: bool, bins: int, form: Form, seed: int
) -> tuple[dict[str, Estimate], dict[str, Any]]:
    """What a calibrated model would show, and what the calibration comes to."""
    floor = noise_floor(prob, bins, form=form, seed=seed)
    others = {
        "ece_15_floor": noise_floor(prob, MORE_BINS, form=form, seed=seed),
        "ece_adaptive_floor": noise_floor(prob, bins, form=form, adaptive=True, seed=seed),
    }
    floors = {
        name: Estimate(one.mean, one.low, one.high, len(prob), 0)
        for name, one in {"ece_floor": floor, **others}.items()
    }
    soft = bool(((label > 0) & (label < 1)).any())
    inside = found["ece"].value <= floor.high
    # The floor of single outcomes is too high for vote shares: there the debiased value must reach 0 as well.
    calibrated = None if len(prob) < FEW else inside and not (soft and found["ece_debiased"].low > 0)
    return floors, {
        "calibrated": calibrated,
        "inside_floor": inside,
        "floor": floor.high,
        "bins": bins,
        "form": form,
        "mce": maximum_calibration_error(prob, label, bins, form=form),
        "mce_floor": floor.largest,
        "labels": "soft" if soft else "hard",
        "temperature": "in-sample",
        "temperature_at_bound": at_bound,
    }


def _floors_beside(found: Mapping[str, Estimate], floors: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Each floor right after the error it belongs to."""
    ordered: dict[str, Estimate] = {}
    for name, value in found.items():
        ordered[name] = value
        if f"{name}_floor" in floors:
            ordered[f"{name}_floor"] = floors[f"{name}_floor"]
    return ordered


def _reward_std(responses: pa.Table, draw: Mapping[str, int]) -> dict[str, Estimate]:
    """Standard deviation of the rewards of all responses."""
    reward, cluster = numbers(responses, "reward"), cluster_codes(responses)
    here = np.isfinite(reward)
    if not here.any():
        return {}
    x = reward[here] - reward[here].mean()

    def value(total: Array) -> Array:
        mean, square = total[..., 0] / total[..., 2], total[..., 1] / total[..., 2]
        return np.asarray(np.sqrt(np.maximum(square - mean * mean, 0)))

    return {"reward_std": estimate(of_sums(value, x, x * x, np.ones_like(x)), cluster[here], **draw)}


def _evaluate_responses(responses: pa.Table | None, draw: Mapping[str, int]) -> Evaluation:
    """Nats per token and perplexity, for scores without pairs."""
    if responses is None or not len(responses):
        raise BadInput("there is nothing to evaluate: the tables have no rows")
    logp, length = numbers(responses, "logp"), numbers(responses, "length")
    here = ~np.isnan(logp) & (length > 0)
    if not here.any():
        raise BadInput("there are no pairs, and no response has both logp and length: score pairs or a policy")
    bad = here & ~np.isfinite(logp)
    if bad.any():
        raise BadInput(f"group {responses['group'][int(bad.argmax())].as_py()}: logp is not a finite number")
    cluster: Codes = cluster_codes(responses)[here]
    nll = estimate_mean(-logp[here] / length[here], cluster, length[here], **draw)
    perplexity = Estimate(math.exp(nll.value), math.exp(nll.low), math.exp(nll.high), nll.n, nll.clusters)
    counts = {"responses": len(responses), "without_logp": int((~here).sum())}
    return Evaluation({"nll_per_token": nll, "perplexity": perplexity} | _reward_std(responses, draw), counts)
