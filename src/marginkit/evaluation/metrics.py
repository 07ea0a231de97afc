"""What a model's scores say of it: accuracy, likelihood and calibration of its pairs, each with an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import (
    Array,
    Codes,
    Statistic,
    cluster_bootstrap,
    estimate,
    estimate_mean,
    rank_correlation,
    slope_through_zero,
)
from marginkit.evaluation.calibration import (
    TEMPERATURE_BOUNDS,
    ReliabilityBin,
    debiased_statistic,
    ece_statistic,
    fit_temperature,
    noise_floor,
    reliability,
    sigmoid,
)
from marginkit.records import Estimate
from marginkit.tables import Scores

Mask = npt.NDArray[np.bool_]


FEW = 20
"""Labelled pairs below which nothing is said about calibration."""


class Evaluation(dict[str, Estimate]):
    """Estimates by name, with what they rest on.

    Args:
        estimates: name -> `Estimate`.
        counts: pairs read and left out, by reason.
        reliability: the bins of the reliability diagram.
        verdict: what the calibration comes to, and how the numbers were made.

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
    ) -> None:
        super().__init__(estimates)
        self.counts = dict(counts or {})
        self.reliability = list(reliability or [])
        self.verdict = dict(verdict or {})

    def to_json(self) -> dict[str, Any]:
        """`{name: {"value", "low", "high", "n", "clusters"}, ..., "counts", "reliability", "verdict"}`; no NaN."""
        return {
            **{name: found.to_json() for name, found in self.items()},
            "counts": self.counts,
            "reliability": [asdict(row) for row in self.reliability],
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True)
class PairColumns:
    """The pairs table as arrays, checked; absent numbers are NaN.

    Args:
        gap: `[pair]`, logits.
        label: `[pair]`, P(chosen is better): as observed, else 1, and NaN for a tie without an observed probability.
        observed: `[pair]`, the observed probability alone.
        target_gap: `[pair]`, logits.
        tie: `[pair]`.
        longer: `[pair]`, 1 if chosen is longer, 1/2 if equal, 0 if shorter.
        length_unit: what `longer` compares: tokens, or chars where a token count is missing.
        cluster: `[pair]`, codes.
    """

    gap: Array
    label: Array
    observed: Array
    target_gap: Array
    tie: Mask
    longer: Array
    length_unit: str
    cluster: Codes

    @classmethod
    def read(cls, pairs: pa.Table) -> PairColumns:
        """Check a table in `PAIRS_SCHEMA` and take what evaluation needs.

        Raises:
            BadInput: a column is missing, a reward or gap is not finite, or a label is outside [0, 1].
        """
        needed = {"group", "cluster", "reward_chosen", "reward_rejected", "gap", "label_prob", "target_gap", "tie"}
        if missing := sorted(needed - set(pairs.column_names)):
            raise BadInput(f"the pairs table lacks {', '.join(missing)}: pass what `score` wrote")

        def refuse(bad: Mask, rule: str) -> None:
            if bad.any():
                group = pairs["group"][int(bad.argmax())].as_py()
                raise BadInput(f"group {group}: {rule} ({int(bad.sum())} of {len(bad)} pairs)")

        for name in ("reward_chosen", "reward_rejected", "gap"):
            refuse(~np.isfinite(_numbers(pairs, name)), f"{name} is not a finite number; score it again or drop it")
        observed, gap = _numbers(pairs, "label_prob"), _numbers(pairs, "gap")
        refuse((observed < 0) | (observed > 1), "label_prob is outside [0, 1]")
        target_gap = _numbers(pairs, "target_gap")
        tie = pc.fill_null(pairs["tie"], False).to_numpy().astype(bool)
        longer, unit = np.full(len(gap), np.nan), ""
        for name, column in (("tokens", "length"), ("chars", "chars")):
            if {f"{column}_chosen", f"{column}_rejected"} <= set(pairs.column_names) and not unit:
                difference = _numbers(pairs, f"{column}_chosen") - _numbers(pairs, f"{column}_rejected")
                if not np.isnan(difference).any():
                    longer, unit = 0.5 + 0.5 * np.sign(difference), name
        return cls(
            gap=gap,
            label=np.where(np.isnan(observed), np.where(tie, np.nan, 1.0), observed),
            observed=observed,
            target_gap=np.where(np.isfinite(target_gap), target_gap, np.nan),
            tie=tie,
            longer=longer,
            length_unit=unit,
            cluster=_clusters(pairs),
        )

    def values(self, temperature: float = 1.0) -> dict[str, Array]:
        """What each pair adds to every mean, `{name: [pair]}`; NaN where a pair has no part in it."""
        gap = self.gap / temperature
        prob = sigmoid(gap)
        return {
            "accuracy": np.where(self.tie, np.nan, self.gap > 0),
            "nll": self.label * np.logaddexp(0, -gap) + (1 - self.label) * np.logaddexp(0, gap),
            "brier": (self.label - prob) ** 2,
            "length_baseline": np.where(self.tie, np.nan, self.longer),
            "prob_error": np.abs(prob - sigmoid(self.target_gap)),
            "prob_error_label": np.abs(prob - self.observed),
        }


def evaluate(
    scores: Scores | pa.Table | str | Path, *, bins: int = 10, resamples: int = 1000, seed: int = 0
) -> Evaluation:
    """Everything the tables say of a model, each number with a 95% interval over clusters.

    With `q = sigmoid(gap)` and `y` the label (observed probability, else 1): accuracy is the share of `gap > 0`, nll
    the mean of `-(y log q + (1 - y) log(1 - q))` in nats, brier the mean of `(y - q)^2`.

    Ties are left out of the accuracy and counted; equal rewards are wrong. A tie without an observed probability has no
    label and is left out of the rest too. The weight column is for training: here every pair counts the same.

    | name | what |
    |---|---|
    | `accuracy`, `nll`, `brier`, `ece` | as above; `ece` is the plug-in, with the interval of `ece_debiased` |
    | `ece_majority` | ECE against the majority label; labels of 1/2 are left out |
    | `ece_floor` | what a calibrated model would show: mean, with the 5% and 95% quantiles as its interval |
    | `ece_debiased` | `debiased_ece` |
    | `temperature`, `nll_at_temperature`, `ece_at_temperature` | fitted on these same pairs (in-sample) |
    | `length_baseline` | accuracy of "the longer one is better"; equal lengths count one half |
    | `gap_correlation`, `gap_slope` | Spearman's correlation of gap and target gap; least-squares slope through 0 |
    | `prob_error`, `prob_error_label` | mean distance of q from sigmoid(target gap), from the observed probability |
    | `reward_std` | standard deviation of the rewards of all responses, logits |
    | `nll_per_token`, `perplexity` | instead of all that where there are no pairs (SFT) |

    Args:
        scores: what `score` gave, its pairs table alone, or the folder or Parquet file they were saved to.
        bins: of the calibration errors, on [0, 1].
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
    found = {name: _mean(values[name], pairs.cluster, draw) for name in ("accuracy", "nll", "brier")}
    labelled = ~np.isnan(pairs.label)
    verdict: dict[str, Any] = {}
    diagram: list[ReliabilityBin] = []
    if labelled.any():
        gap, label, cluster = pairs.gap[labelled], pairs.label[labelled], pairs.cluster[labelled]
        calibration, verdict = _calibration(gap, label, cluster, bins, draw)
        found |= calibration
        cooled = pairs.values(found["temperature"].value)["nll"]
        found["nll_at_temperature"] = _mean(cooled, pairs.cluster, draw)
        diagram = reliability(sigmoid(gap), label, bins, cluster)
    for name in ("length_baseline", "prob_error", "prob_error_label"):
        if not np.isnan(values[name]).all():
            found[name] = _mean(values[name], pairs.cluster, draw)
    targeted = ~np.isnan(pairs.target_gap)
    if targeted.any():
        gap, target, cluster = pairs.gap[targeted], pairs.target_gap[targeted], pairs.cluster[targeted]
        found["gap_correlation"] = estimate(rank_correlation(gap, target), cluster, **draw)
        found["gap_slope"] = estimate(slope_through_zero(gap, target), cluster, **draw)
    if responses is not None and len(responses):
        found |= _reward_std(responses, draw)
    counts = {
        "pairs": len(pairs.gap),
        "ties_left_out": int(pairs.tie.sum()),
        "equal_rewards": int((~pairs.tie & (pairs.gap == 0)).sum()),
        "no_probability": int((~labelled).sum()),
    }
    return Evaluation(found, counts, diagram, verdict | {"length_unit": pairs.length_unit or None})


def read_tables(scores: Scores | pa.Table | str | Path) -> tuple[pa.Table | None, pa.Table]:
    """Responses and pairs of whatever was handed in."""
    if isinstance(scores, (str, Path)):
        path = Path(scores)
        if not (path if path.is_file() else path / "pairs.parquet").is_file():
            raise BadInput(f"{path}: neither a Parquet file nor a folder with pairs.parquet; pass what `score` wrote")
        try:
            scores = pq.read_table(path) if path.is_file() else Scores.load(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise BadInput(f"{path}: not readable as Parquet ({error})".splitlines()[0]) from error
    return (scores.responses, scores.pairs) if isinstance(scores, Scores) else (None, scores)


def _numbers(table: pa.Table, name: str) -> Array:
    """A column as floats, null as NaN."""
    return np.asarray(table[name].cast(pa.float64()).to_numpy(), dtype=np.float64)


def _clusters(table: pa.Table) -> Codes:
    """Clusters as codes; a row without one is its group's."""
    names = pc.coalesce(table["cluster"], table["group"]).to_numpy().astype(str)
    return np.unique(names, return_inverse=True)[1]


def _mean(values: Array, clusters: Codes, draw: Mapping[str, int]) -> Estimate:
    """Mean over the rows that have a value."""
    here = ~np.isnan(values)
    return estimate_mean(values[here], clusters[here], **draw)


def _calibration(
    gap: Array, label: Array, cluster: Codes, bins: int, draw: Mapping[str, int]
) -> tuple[dict[str, Estimate], dict[str, Any]]:
    """The calibration errors and temperature of labelled pairs, and what they come to."""
    prob = sigmoid(gap)
    decided = label != 0.5
    temperature, at_bound = fit_temperature(gap, label)
    found = {
        "ece": _ece(prob, label, cluster, bins, draw),
        "ece_majority": _ece(prob[decided], (label > 0.5)[decided], cluster[decided], bins, draw),
        "ece_debiased": estimate(debiased_statistic(prob, label, bins, cluster), cluster, **draw),
        "ece_at_temperature": _ece(sigmoid(gap / temperature), label, cluster, bins, draw),
    }
    floor = noise_floor(prob, bins, seed=draw["seed"])
    found["ece_floor"] = Estimate(floor.mean, floor.low, floor.high, len(gap), 0)
    low, high = math.nan, math.nan
    if not at_bound and len(gap) > 1:
        low, high = cluster_bootstrap(_one_step_temperature(gap, label, temperature), cluster, **draw)
    found["temperature"] = Estimate(temperature, low, high, len(gap), found["ece"].clusters)
    soft = bool(((label > 0) & (label < 1)).any())
    inside = found["ece"].value <= floor.high
    # The floor of single outcomes is too high for vote shares: there the debiased value must reach 0 as well.
    calibrated = None if len(gap) < FEW else inside and not (soft and found["ece_debiased"].low > 0)
    return found, {
        "calibrated": calibrated,
        "inside_floor": inside,
        "floor": floor.high,
        "labels": "soft" if soft else "hard",
        "temperature": "in-sample",
        "temperature_at_bound": at_bound,
    }


def _ece(prob: Array, label: npt.ArrayLike, cluster: Codes, bins: int, draw: Mapping[str, int]) -> Estimate:
    """Plug-in ECE with the debiased one's interval, widened to hold the value.

    The plug-in's own percentiles miss a true ECE of 0 every time: each resample adds noise to the sample's.
    """
    if not len(prob):
        return Estimate(math.nan, math.nan, math.nan, 0, 0)
    value = float(ece_statistic(prob, label, bins)(np.ones((1, len(prob))))[0])
    around = estimate(debiased_statistic(prob, label, bins, cluster), cluster, **draw)
    return Estimate(value, min(around.low, value), max(around.high, value), len(prob), around.clusters)


def _one_step_temperature(gap: Array, label: Array, temperature: float) -> Statistic:
    """T on resamples, by one Newton step in 1 / T from the full sample's."""
    prob = sigmoid(gap / temperature)
    sums = np.stack([gap * (label - prob), gap * gap * prob * (1 - prob)], axis=1)

    def statistic(weights: Array) -> Array:
        score, curvature = (weights @ sums).T
        inverse = 1 / temperature + score / curvature
        return np.asarray(1 / np.clip(inverse, 1 / TEMPERATURE_BOUNDS[1], 1 / TEMPERATURE_BOUNDS[0]))

    return statistic


def _reward_std(responses: pa.Table, draw: Mapping[str, int]) -> dict[str, Estimate]:
    """Standard deviation of the rewards of all responses."""
    reward, cluster = _numbers(responses, "reward"), _clusters(responses)
    here = np.isfinite(reward)
    if not here.any():
        return {}
    x = reward[here] - reward[here].mean()
    moments = np.stack([x, x * x], axis=1)

    def statistic(weights: Array) -> Array:
        mean, square = (weights @ moments / weights.sum(1, keepdims=True)).T
        return np.asarray(np.sqrt(np.maximum(square - mean * mean, 0)))

    return {"reward_std": estimate(statistic, cluster[here], **draw)}


def _evaluate_responses(responses: pa.Table | None, draw: Mapping[str, int]) -> Evaluation:
    """Nats per token and perplexity, for scores without pairs."""
    if responses is None or not len(responses):
        raise BadInput("there is nothing to evaluate: the tables have no rows")
    logp, length = _numbers(responses, "logp"), _numbers(responses, "length")
    here = ~np.isnan(logp) & (length > 0)
    if not here.any():
        raise BadInput("there are no pairs, and no response has both logp and length: score pairs or a policy")
    bad = here & ~np.isfinite(logp)
    if bad.any():
        raise BadInput(f"group {responses['group'][int(bad.argmax())].as_py()}: logp is not a finite number")
    nll = estimate_mean(-logp[here] / length[here], _clusters(responses)[here], length[here], **draw)
    perplexity = Estimate(math.exp(nll.value), math.exp(nll.low), math.exp(nll.high), nll.n, nll.clusters)
    counts = {"responses": len(responses), "without_logp": int((~here).sum())}
    return Evaluation({"nll_per_token": nll, "perplexity": perplexity} | _reward_std(responses, draw), counts)
