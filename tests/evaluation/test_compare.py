"""Two models on the same pairs, and results in words."""

import json

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binomtest

from marginkit.errors import BadInput
from marginkit.evaluation.calibration import sigmoid
from marginkit.evaluation.compare import compare, mcnemar, rows, verdict
from marginkit.evaluation.metrics import evaluate
from marginkit.records import Estimate
from pair_tables import pairs


def test_differences_are_those_of_the_means():
    rng = np.random.default_rng(0)
    target, label = rng.normal(size=50), rng.uniform(size=50)
    a = pairs(rng.normal(size=50), target_gap=target, label_prob=label)
    b = pairs(rng.normal(size=50), target_gap=target, label_prob=label)
    found, ours, theirs = compare(a, b), evaluate(a), evaluate(b)
    assert set(found) == {"nll", "brier", "accuracy", "prob_error"}
    for name, difference in found.items():
        assert difference.value == pytest.approx(ours[name].value - theirs[name].value)
        assert difference.low <= difference.value <= difference.high
        assert (difference.n, difference.clusters) == (50, 50)
        opposite = compare(b, a)[name]
        assert (opposite.value, opposite.low, opposite.high) == pytest.approx(
            (-difference.value, -difference.high, -difference.low), abs=1e-12
        )


def test_pairing_is_by_key_not_by_row():
    rng = np.random.default_rng(1)
    a, b = pairs(rng.normal(size=40)), pairs(rng.normal(size=40))
    shuffled = b.take(pa.array(rng.permutation(40)))
    assert compare(a, shuffled) == compare(a, b)
    assert compare(a, a.take(pa.array(rng.permutation(40))))["nll"] == Estimate(0.0, 0.0, 0.0, 40, 40)


def test_pairing_makes_small_differences_visible():
    """A tenth of a logit on hard and easy pairs alike: far inside either interval, clear in the paired one."""
    gap = np.random.default_rng(2).normal(0, 3, 300)
    a, b = pairs(gap + 0.1), pairs(gap)
    found, alone = compare(a, b)["nll"], evaluate(a)["nll"]
    assert found.high < 0
    assert found.high - found.low < 0.2 * (alone.high - alone.low)


def test_distances_from_different_targets_are_not_compared():
    gap = np.random.default_rng(3).normal(size=30)
    a, b = pairs(gap, target_gap=gap), pairs(gap + 1, target_gap=2 * gap)
    assert set(compare(a, b)) == {"nll", "brier", "accuracy"}
    assert "prob_error" in compare(a, pairs(gap + 1, target_gap=gap))


def test_repeated_pairs_keep_their_index():
    again = {"group": ["g", "g", "h"], "pair": [0, 1, 0], "label_prob": [1.0, 0.0, 1.0]}
    a, b = pairs([1.0, -1.0, 2.0], **again), pairs([0.5, 0.5, 0.5], **again)
    assert compare(a, b.take(pa.array([1, 2, 0]))) == compare(a, b)


def test_other_pairs_or_labels_are_refused():
    a = pairs([1.0, 2.0])
    with pytest.raises(BadInput, match=r"1 pairs are in one only, first one of group g1\)"):
        compare(a, pairs([1.0]))
    with pytest.raises(BadInput, match="different pairs"):
        compare(a, pairs([1.0, 2.0], chosen=[0, 1], rejected=[1, 0]))
    with pytest.raises(BadInput, match="group g1: the labels differ in 1 pairs"):
        compare(a, pairs([1.0, 2.0], label_prob=pa.array([None, 0.7], pa.float64())))
    with pytest.raises(BadInput, match="labels differ"):
        compare(a, pairs([1.0, 2.0], tie=[True, False]))
    with pytest.raises(BadInput, match="no pairs to compare"):
        compare(a.slice(0, 0), a)
    with pytest.raises(BadInput, match="lacks rejected"):
        compare(a.drop_columns("rejected"), a)


def test_verdict_says_better_worse_or_neither():
    def difference(low, high):
        return Estimate((low + high) / 2, low, high, 100, 50)

    text = verdict(
        {"nll": difference(-0.2, -0.1), "brier": difference(0.01, 0.02), "accuracy": difference(-0.01, 0.03)}
    )
    assert text == (
        "The first model has better NLL (-0.1500 [-0.2000, -0.1000]), and worse Brier score "
        "(+0.0150 [+0.0100, +0.0200]) than the second on 100 pairs. "
        "They are not distinguishable in accuracy (+0.0100 [-0.0100, +0.0300])."
    )
    assert "better accuracy" in verdict({"accuracy": difference(0.01, 0.02)})
    assert "worse accuracy" in verdict({"accuracy": difference(-0.02, -0.01)})
    assert verdict({"nll": difference(-0.1, 0.1)}, names=("a", "b")).startswith(
        "a and b are not distinguishable on 100 pairs in NLL"
    )
    unknown = Estimate(-1.0, float("nan"), float("nan"), 1, 0)
    assert verdict({"nll": unknown}).startswith("The first model and the second are not distinguishable")


def test_rows_read_in_order_and_carry_the_verdict():
    rng = np.random.default_rng(3)
    gap = rng.normal(0, 1.5, 600)
    signed = np.where(rng.uniform(size=600) < sigmoid(0.5 * gap), gap, -gap)
    result = evaluate(pairs([*signed, 0.0], tie=[True, *[False] * 600]))
    told = {name: (value, remark) for name, value, remark in rows(result)}
    assert list(told) == [
        "accuracy",
        "accuracy of the longer response",
        "NLL (nats a pair)",
        "Brier score",
        "calibration error (ECE)",
        "ECE of a calibrated model (noise floor)",
        "ECE without the sample's noise",
        "ECE with 15 bins",
        "ECE over groups of equal count",
        "largest gap of a bin (MCE)",
        "best temperature",
        "NLL at that temperature",
        "ECE at that temperature",
        "ties have the smaller gaps",
    ]
    assert told["ECE with 15 bins"][1].startswith("above its noise floor 0.0")
    assert told["largest gap of a bin (MCE)"][0] == f"{result.verdict['mce']:.3f}"
    assert told["Brier score"][1] == (
        f"{result.brier_parts.reliability:.3f} of it miscalibration; "
        f"one confidence for all pairs would score {result.brier_parts.uncertainty:.3f}"
    )
    assert "600 clusters" in told["accuracy"][1]
    assert "1 ties left out" in told["accuracy"][1]
    assert "1 equal rewards count as wrong" in told["accuracy"][1]
    assert "above the noise floor" in told["calibration error (ECE)"][1]
    assert told["calibration error (ECE)"][1].endswith("not calibrated")
    assert told["best temperature"][1] == "in-sample; overconfident"
    assert told["accuracy of the longer response"] == ("0.500 [0.500, 0.500]", "length in tokens")


@pytest.mark.parametrize("counts", [(1, 7), (7, 1), (0, 5), (40, 60), (3, 4), (500, 400)])
def test_mcnemar_is_a_fair_coin_on_the_discordant_pairs(counts):
    found, exact = mcnemar(*counts), binomtest(counts[0], sum(counts)).pvalue
    assert found.p == pytest.approx(exact)
    at = binomtest(min(counts), sum(counts), alternative="less").pvalue
    at -= binomtest(min(counts) - 1, sum(counts), alternative="less").pvalue if min(counts) else 0.0
    assert found.mid_p == pytest.approx(exact - at)
    assert mcnemar(*counts[::-1]).p == found.p


def test_worked_mcnemar():
    """Fagerland, Lydersen and Laake 2013, table 1: 1 and 7 discordant pairs."""
    assert (mcnemar(1, 7).p, mcnemar(1, 7).mid_p) == pytest.approx((18 / 256, 10 / 256))
    assert (mcnemar(0, 0).p, mcnemar(0, 0).mid_p) == (1, 1)
    assert (mcnemar(2, 2).p, mcnemar(2, 2).mid_p) == pytest.approx((1, 1 - 6 / 32))


def test_discordant_pairs_are_counted_without_ties():
    a = pairs([1.0, 1.0, -1.0, 0.0, 5.0], tie=[False, False, False, False, True])
    b = pairs([-1.0, 0.0, 2.0, 3.0, -5.0], tie=[False, False, False, False, True])
    found = compare(a, b)
    assert (found.mcnemar.only_first, found.mcnemar.only_second) == (2, 2)  # equal rewards are wrong
    assert found["accuracy"].value == 0
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["mcnemar"] == {"only_first": 2, "only_second": 2, "p": 1.0, "mid_p": 1 - 6 / 32}
    assert compare(pairs([1.0], tie=[True]), pairs([1.0], tie=[True])).mcnemar is None


@pytest.mark.parametrize(
    ("gap", "remark"),
    [
        ([1.0, 2.0, 3.0], "in-sample, at the end of its range; no interval"),
        ([0.0] * 40, "in-sample; no sign of over- or underconfidence"),
    ],
)
def test_nothing_is_said_of_a_temperature_without_an_interval(gap, remark):
    told = {name: said for name, _, said in rows(evaluate(pairs(gap)))}
    assert told["best temperature"] == remark
    assert told["ECE of a calibrated model (noise floor)"] == "mean [5% and 95% quantile]"


def test_rows_do_not_repeat_one_another():
    rng = np.random.default_rng(5)
    grade, gap = rng.integers(1, 4, 60).astype(float), rng.normal(1, 1, 60)
    names = [name for name, _, _ in rows(evaluate(pairs(gap, grade_gap=grade, target_gap=0.5 * grade)))]
    assert "rank correlation of gap and grade gap" in names
    assert "rank correlation of gap and target gap" not in names
    names = [
        name for name, _, _ in rows(evaluate(pairs(gap, grade_gap=grade, target_gap=rng.normal(size=60)), bins=15))
    ]
    assert "rank correlation of gap and target gap" in names
    assert "ECE with 15 bins" not in names
    assert "ECE against the majority label" not in names
    names = [name for name, _, _ in rows(evaluate(pairs(gap, label_prob=rng.uniform(size=60))))]
    assert "ECE against the majority label" in names
