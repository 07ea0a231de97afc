"""Which of two models is better on the same pairs, and the rows of a result in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from marginkit.errors import BadInput
from marginkit.evaluation.metrics import MORE_BINS, Evaluation
from marginkit.evaluation.pair_columns import PairColumns, read_tables
from marginkit.evaluation.questions import Questions
from marginkit.records import Estimate
from marginkit.tables import Scores

_KEY = ["group", "chosen", "rejected"]
_WORDS = {"nll": "NLL", "brier": "Brier score", "accuracy": "accuracy", "prob_error": "distance from the target"}


@dataclass(frozen=True, slots=True)
class McNemar:
    """The pairs on which one model is right and the other wrong, and whether they favour one of the two.

    Args:
        only_first: pairs that only the first model has right.
        only_second: pairs that only the second has right.
        p: two-sided exact p-value.
        mid_p: the mid-p value: less cautious, and still rarely too small.
    """

    only_first: int
    only_second: int
    p: float
    mid_p: float


def p_words(p: float) -> str:
    """A p-value to be read; one that is smaller than three decimals show is not called 0.

    Example:
        >>> p_words(0.0274), p_words(0.00002)
        ('0.027', '< 0.001')
    """
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def mcnemar(only_first: int, only_second: int) -> McNemar:
    """McNemar's test: of n discordant pairs, is either model right on more than a fair coin would give?

    `p = 2 P(X <= min)`, at most 1, X ~ Binomial(n, 1/2); `mid_p = p - P(X = min)`, and `1 - P(X = min) / 2` where both
    counts are equal. Pairs count as independent: where prompts have several pairs the interval of the difference in
    accuracy, over clusters, is the one to believe.

    Args:
        only_first: pairs that only the first model has right.
        only_second: pairs that only the second has right.

    Returns:
        The counts and both p-values; 1 where no pair is discordant.

    Example:
        >>> found = mcnemar(1, 7)
        >>> round(found.p, 4), round(found.mid_p, 4)
        (0.0703, 0.0391)

    Source: McNemar 1947; mid-p as Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91 (2013).
    """
    from scipy.special import bdtr

    fewer, n = min(only_first, only_second), only_first + only_second
    if not n:
        return McNemar(only_first, only_second, 1.0, 1.0)
    upto = float(bdtr(fewer, n, 0.5))
    at = upto - (float(bdtr(fewer - 1, n, 0.5)) if fewer else 0.0)
    equal = only_first == only_second
    p = 1.0 if equal else min(1.0, 2 * upto)
    return McNemar(only_first, only_second, p, 1 - at / 2 if equal else p - at)


class Comparison(dict[str, Estimate]):
    """Paired differences by name, with McNemar's test of the accuracy.

    Args:
        differences: name -> difference.
        mcnemar: None where every pair is a tie.

    Example:
        >>> Comparison({}, mcnemar(3, 5)).mcnemar.only_second
        5
    """

    def __init__(self, differences: Mapping[str, Estimate], mcnemar: McNemar | None = None) -> None:
        super().__init__(differences)
        self.mcnemar = mcnemar

    def to_json(self) -> dict[str, Any]:
        """`{name: {"value", "low", "high", "n", "clusters"}, ..., "mcnemar": {...} or None}`; no NaN."""
        test = None if self.mcnemar is None else asdict(self.mcnemar)
        return {**{name: found.to_json() for name, found in self.items()}, "mcnemar": test}


def compare(
    a: Scores | pa.Table | str | Path,
    b: Scores | pa.Table | str | Path,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Paired differences between two models on the same pairs: `mean over pairs of a's value - b's value`.

    The headline is the difference in NLL (nats) and Brier score, proper scores that reward calibration and accuracy
    together; a ratio of two ECEs is not given, as both are biased by the sample's noise.

    Args:
        a: what `score` gave for one model, its pairs table, or where they were saved.
        b: the same for the other, on the same groups.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        `nll`, `brier`, `accuracy`, and `prob_error` where both were asked for the same target gaps (not with two
        gammas): each a - b with a 95% interval over clusters. Negative is better for a, except in accuracy. With
        McNemar's test on the discordant pairs.

    Raises:
        BadInput: the pairs (group, chosen, rejected) or their labels are not the same.

    Example:
        >>> def table(gap):
        ...     return pa.table({
        ...         "group": ["p", "q"], "cluster": ["p", "q"], "chosen": [0, 0], "rejected": [1, 1], "gap": gap,
        ...         "reward_chosen": gap, "reward_rejected": [0.0, 0.0], "tie": [False, False],
        ...         "label_prob": [1.0, 1.0], "target_gap": pa.array([None, None], pa.float64()),
        ...     })
        >>> compare(table([2.0, 1.0]), table([2.0, -1.0]))["accuracy"].value
        0.5

    Source: the paired bootstrap, Efron and Tibshirani 1993; as a test for language models Koehn, EMNLP 2004.
    """
    first, second = _sorted_pairs(a), _sorted_pairs(b)
    if not len(first) or not len(second):
        raise BadInput("there are no pairs to compare: score both models on groups that have pairs")
    if not all(first[name].equals(second[name]) for name in _KEY):
        keys, others = (set(zip(*(t[name].to_pylist() for name in _KEY), strict=True)) for t in (first, second))
        unshared = sorted(keys ^ others)
        where = "repeated pairs differ"
        if unshared:
            where = f"{len(unshared)} pairs are in one only, first one of group {unshared[0][0]}"
        raise BadInput(f"the two tables hold different pairs ({where}): score both models on the same groups")
    left, right = PairColumns.read(first), PairColumns.read(second)
    differ = (left.tie != right.tie) | ~np.isclose(left.label, right.label, rtol=0, atol=1e-9, equal_nan=True)
    if differ.any():
        group = first["group"][int(differ.argmax())].as_py()
        raise BadInput(f"group {group}: the labels differ in {int(differ.sum())} pairs: use the same feedback for both")
    ours, theirs = left.values(), right.values()
    asked = Questions(left.cluster, resamples=resamples, seed=seed)
    both = ~np.isnan(left.target_gap + right.target_gap)
    same_target = np.allclose(left.target_gap[both], right.target_gap[both], rtol=0, atol=1e-6)
    for name in _WORDS:
        if name == "prob_error" and not same_target:  # another gamma: another distance, not a better one
            continue
        difference = ours[name] - theirs[name]
        if not np.isnan(difference).all():
            asked.mean(name, difference)
    right_by = ours["accuracy"][~left.tie] - theirs["accuracy"][~left.tie]
    test = mcnemar(int((right_by > 0).sum()), int((right_by < 0).sum())) if len(right_by) else None
    return Comparison(asked.answers(), test)


def _sorted_pairs(scores: Scores | pa.Table | str | Path) -> pa.Table:
    """The pairs table, ordered by key; repeated pairs keep the order of their `pair` index."""
    table: pa.Table = read_tables(scores)[1]
    if missing := [name for name in _KEY if name not in table.column_names]:
        raise BadInput(f"the pairs table lacks {', '.join(missing)}: pass what `score` wrote")
    keys = [*_KEY, "pair"] if "pair" in table.column_names else _KEY
    return table.sort_by([(name, "ascending") for name in keys])


def verdict(differences: Mapping[str, Estimate], *, names: tuple[str, str] = ("The first model", "the second")) -> str:
    """What `compare` comes to, in one or two sentences.

    Args:
        differences: what `compare` returned.
        names: of the two models.

    Returns:
        Better or worse where the 95% interval leaves 0 out, "not distinguishable" where it does not; with numbers.

    Example:
        >>> nll, accuracy = Estimate(-0.05, -0.08, -0.02, 900, 300), Estimate(0.004, -0.01, 0.02, 900, 300)
        >>> print(verdict({"nll": nll}))
        The first model has better NLL (-0.0500 [-0.0800, -0.0200]) than the second on 900 pairs.
        >>> print(verdict({"accuracy": accuracy}, names=("mmpo", "dpo")))
        mmpo and dpo are not distinguishable on 900 pairs in accuracy (+0.0040 [-0.0100, +0.0200]).
    """
    groups: dict[str, list[str]] = {"better": [], "worse": [], "same": []}
    for name, found in differences.items():
        side = found if name == "accuracy" else Estimate(-found.value, -found.high, -found.low, found.n, found.clusters)
        kind = "better" if side.low > 0 else "worse" if side.high < 0 else "same"
        held = "no interval" if math.isnan(found.low) else f"[{found.low:+.4f}, {found.high:+.4f}]"
        groups[kind].append(f"{_WORDS[name]} ({found.value:+.4f} {held})")
    n = max((found.n for found in differences.values()), default=0)
    told = [f"{kind} {' and '.join(groups[kind])}" for kind in ("better", "worse") if groups[kind]]
    first, second = names
    sentences = [f"{first} has {', and '.join(told)} than {second} on {n} pairs."] if told else []
    if groups["same"]:
        who = "They" if told else f"{first} and {second}"
        where = "" if told else f" on {n} pairs"
        sentences.append(f"{who} are not distinguishable{where} in {', '.join(groups['same'])}.")
    return " ".join(sentences)


WORDS = {
    "accuracy": "accuracy",
    "length_baseline": "accuracy of the longer response",
    "nll": "NLL (nats a pair)",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
    "ece_floor": "ECE of a calibrated model (noise floor)",
    "ece_debiased": "ECE without the sample's noise",
    "ece_15": f"ECE with {MORE_BINS} bins",
    "ece_adaptive": "ECE over groups of equal count",
    "mce": "largest gap of a bin (MCE)",
    "ece_majority": "ECE against the majority label",
    "temperature": "best temperature",
    "nll_at_temperature": "NLL at that temperature",
    "ece_at_temperature": "ECE at that temperature",
    "grade_correlation": "rank correlation of gap and grade gap",
    "tie_auc": "ties have the smaller gaps",
    "gap_correlation": "rank correlation of gap and target gap",
    "gap_slope": "slope of gap on target gap",
    "prob_error": "distance from the target probability",
    "prob_error_label": "distance from the observed probability",
    "reward_std": "spread of rewards (logits)",
    "nll_per_token": "NLL (nats a token)",
    "perplexity": "perplexity",
}
"""What each number is called, in reading order."""


def rows(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """An evaluation as the rows of a table: name, value with interval, remark.

    Floors of further errors are told in their remarks; what would only repeat another row is left out (the ECE against
    the majority label of hard labels, say). `Evaluation.to_json` has everything.

    Args:
        evaluation: what `evaluate` returned.

    Returns:
        Rows in reading order; remarks are empty where there is nothing to say.

    Example:
        >>> rows(Evaluation({"accuracy": Estimate(0.75, 0.5, 1.0, 8, 0)}, {"ties_left_out": 2, "equal_rewards": 0}))
        [('accuracy', '0.750 [0.500, 1.000]', '8 pairs, interval over pairs (too few clusters); 2 ties left out')]
    """
    told = evaluation.verdict
    values = {name: str(found) for name, found in evaluation.items() if _tells(name, evaluation)}
    if "mce" in told:
        values["mce"] = f"{told['mce']:.3f}"
    return [(WORDS[name], values[name], _remark(name, evaluation)) for name in WORDS if name in values]


def _tells(name: str, evaluation: Evaluation) -> bool:
    """Whether a row says more than the ones beside it."""
    if name == "ece_majority":
        return evaluation.verdict.get("labels") != "hard"
    if name == f"ece_{MORE_BINS}":
        return evaluation.verdict.get("bins") != MORE_BINS
    if name == "gap_correlation":  # a target that is a multiple of the grade gap has its order
        other = evaluation.get("grade_correlation")
        return other is None or not math.isclose(evaluation[name].value, other.value, rel_tol=1e-9)
    return name in WORDS


def _remark(name: str, evaluation: Evaluation) -> str:
    """What a reader should know beside the number."""
    counts, told = evaluation.counts, evaluation.verdict
    if name == "mce":
        return f"up to {told['mce_floor']:.3f} a calibrated model shows it too"
    found = evaluation[name]
    if name == "accuracy":
        over = f"{found.clusters} clusters" if found.clusters else "interval over pairs (too few clusters)"
        remarks = [f"{found.n} pairs, {over}" if found.n else "every pair is a tie"]
        if counts.get("ties_left_out"):
            remarks.append(f"{counts['ties_left_out']} ties left out")
        if counts.get("equal_rewards"):
            remarks.append(f"{counts['equal_rewards']} equal rewards count as wrong")
        return "; ".join(remarks)
    if name == "nll" and counts.get("no_probability"):
        return f"{counts['no_probability']} ties without an observed probability left out"
    if name == "brier" and evaluation.brier_parts is not None:
        parts = evaluation.brier_parts
        plain = "a coin" if told.get("form") == "symmetric" else "one confidence for all pairs"
        return f"{parts.reliability:.3f} of it miscalibration; {plain} would score {parts.uncertainty:.3f}"
    if name == "ece" and "calibrated" in told:
        if told["calibrated"] is None:
            return f"{found.n} pairs are too few to say whether it is calibrated"
        side = "inside" if told["inside_floor"] else "above"
        judged = "calibrated" if told["calibrated"] else "not calibrated"
        still = ", but its interval leaves out 0" if told["inside_floor"] and not told["calibrated"] else ""
        return f"{_bins(told)}{side} the noise floor {told['floor']:.3f}{still}: {judged}"
    if name in ("ece_15", "ece_adaptive") and f"{name}_floor" in evaluation:
        floor = evaluation[f"{name}_floor"].high
        return f"{'inside' if found.value <= floor else 'above'} its noise floor {floor:.3f}"
    if name == "ece_floor":
        soft = "; an upper bound: labels are shares, the floor is drawn with single votes"
        return f"mean [5% and 95% quantile]{soft if told.get('labels') == 'soft' else ''}"
    if name == "temperature" and told.get("temperature"):
        bound = ", at the end of its range" if told["temperature_at_bound"] else ""
        if bound:  # no interval, so nothing is claimed: a handful of pairs that are all right end here too
            return f"{told['temperature']}{bound}; no interval"
        sense = "overconfident" if found.low > 1 else "underconfident" if found.high < 1 else ""
        return f"{told['temperature']}; {sense or 'no sign of over- or underconfidence'}"
    if name == "length_baseline" and told.get("length_unit"):
        return f"length in {told['length_unit']}"
    if name == "prob_error" and found.n < evaluation["nll"].n:
        return f"{found.n} pairs: the target gap of the others is not finite, or not known"
    if name == "tie_auc":
        return f"0.5 tells nothing, 1 tells all; {counts.get('ties_left_out', 0)} ties"
    return ""


def _bins(told: Mapping[str, Any]) -> str:
    """How the calibration error was cut."""
    symmetric = ", from both sides" if told.get("form") == "symmetric" else ""
    return f"{told['bins']} bins{symmetric}; " if "bins" in told else ""
