"""`evaluate` on tables whose numbers are known."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from marginkit.errors import BadInput
from marginkit.evaluation.calibration import expected_calibration_error, sigmoid
from marginkit.evaluation.calibrators import fit_temperature
from marginkit.evaluation.compare import rows
from marginkit.evaluation.metrics import evaluate
from marginkit.tables import PAIRS_SCHEMA, Scores
from pair_tables import pairs, responses

PROB = np.array([0.97, 0.92, 0.85, 0.74, 0.66, 0.58, 0.52, 0.45, 0.35, 0.10])
GAP = np.log(PROB / (1 - PROB))


def values(result):
    return {name: found.value for name, found in result.items()}


def test_worked_numbers():
    result = evaluate(pairs(GAP))
    assert values(result) == pytest.approx(
        values(result)
        | {
            "accuracy": 0.7,
            "nll": 0.634255,
            "brier": 0.215480,
            "ece": 0.178,
            "ece_majority": 0.178,
            "ece_15": 0.218,
            "temperature": 1.735076,
            "nll_at_temperature": 0.604489,
            "length_baseline": 0.5,
        },
        abs=1e-6,
    )
    assert result.counts == {"pairs": 10, "ties_left_out": 0, "equal_rewards": 0, "no_probability": 0}
    assert result.verdict["mce"] == pytest.approx(0.375)
    assert (result.verdict["bins"], result.verdict["form"]) == (10, "confidence")
    assert result.brier_parts.brier == pytest.approx(0.215480)
    assert evaluate(pairs(GAP), bins=5)["ece"].value == pytest.approx(0.104)
    assert evaluate(pairs(GAP), bins=5)["ece_adaptive"].value == pytest.approx(0.176)
    both_sides = evaluate(pairs(GAP[:9]), form="symmetric")  # the tenth pair lies on an edge, up to rounding
    assert both_sides["ece"].value == pytest.approx(expected_calibration_error(PROB[:9], np.ones(9), form="symmetric"))
    assert both_sides.verdict["form"] == "symmetric"
    for found in result.values():
        assert found.low <= found.value <= found.high
        assert (found.n, found.clusters) == (10, 0)


def test_equal_rewards_are_wrong_and_counted():
    result = evaluate(pairs([1.0, 0.0, 0.0, -1.0]))
    assert result["accuracy"].value == 0.25
    assert result.counts["equal_rewards"] == 2


def test_ties_are_left_out_of_accuracy_and_counted():
    table = pairs([1.0, 2.0, -1.0, 3.0], tie=[False, True, True, False], label_prob=[None, 0.5, None, None])
    result = evaluate(table)
    assert (result["accuracy"].value, result["accuracy"].n) == (1.0, 2)
    assert result["nll"].n == result["brier"].n == result["ece"].n == 3  # the tie with a probability has a label
    assert result["ece_majority"].n == 2  # a label of one half has no majority
    assert result["length_baseline"].n == 2
    assert result.counts == {"pairs": 4, "ties_left_out": 2, "equal_rewards": 0, "no_probability": 1}


def test_only_ties():
    result = evaluate(pairs([1.0, 2.0], tie=[True, True]))
    assert np.isnan(result["accuracy"].value)
    assert result["accuracy"].n == 0
    assert np.isnan(result["nll"].value)
    assert result.to_json()["accuracy"]["value"] is None


def test_soft_labels():
    gap, label = np.array([1.0, -0.5, 2.0]), np.array([0.8, 0.4, 0.6])
    q = sigmoid(gap)
    result = evaluate(pairs(gap, label_prob=label))
    assert result["nll"].value == pytest.approx(-(label * np.log(q) + (1 - label) * np.log(1 - q)).mean())
    assert result["brier"].value == pytest.approx(((label - q) ** 2).mean())
    assert result["prob_error_label"].value == pytest.approx(np.abs(label - q).mean())
    assert result["ece"].value == pytest.approx(np.abs(np.maximum(q, 1 - q) - [0.8, 0.6, 0.6]).sum() / 3)
    assert result["ece_majority"].value == pytest.approx(np.abs(np.maximum(q, 1 - q) - 1).sum() / 3)
    assert result.verdict["labels"] == "soft"


def test_swapping_pairs_leaves_likelihood_and_calibration():
    rng = np.random.default_rng(0)
    gap, label, target = rng.normal(size=40), rng.uniform(size=40), rng.normal(size=40)
    swap = rng.uniform(size=40) < 0.5
    a = evaluate(pairs(gap, label_prob=label, target_gap=target), resamples=20)
    b = evaluate(
        pairs(
            np.where(swap, -gap, gap),
            label_prob=np.where(swap, 1 - label, label),
            target_gap=np.where(swap, -target, target),
        ),
        resamples=20,
    )
    same = set(a) - {"accuracy", "length_baseline", "gap_correlation"}
    assert {n: a[n].value for n in same} == pytest.approx({n: b[n].value for n in same}, abs=1e-9)


def test_huge_gaps_stay_finite():
    result = evaluate(pairs([2000.0, -2000.0, 40.0]))
    assert result["nll"].value == pytest.approx((2000 + np.exp(-40)) / 3)
    assert evaluate(pairs([40.0, 40.0]))["nll"].value == pytest.approx(np.exp(-40))


def test_length_baseline_counts_equal_lengths_half_and_falls_back_to_chars():
    tokens = {"length_chosen": [5, 3, 4, 9], "length_rejected": [4, 4, 4, 1]}
    chars = {"chars_chosen": [1, 1, 1, 1], "chars_rejected": [2, 2, 2, 2]}
    result = evaluate(pairs(np.ones(4), **tokens, **chars))
    assert result["length_baseline"].value == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert result.verdict["length_unit"] == "tokens"
    result = evaluate(pairs(np.ones(4), **(tokens | {"length_chosen": [5, 3, None, 9]}), **chars))
    assert result["length_baseline"].value == 0
    assert result.verdict["length_unit"] == "chars"
    assert "length_baseline" not in evaluate(pairs(np.ones(4), length_chosen=[None] * 4))


def test_gap_against_target():
    rng = np.random.default_rng(1)
    target = rng.normal(size=30)
    result = evaluate(pairs(0.5 * target, target_gap=target))
    assert result["gap_slope"].value == pytest.approx(0.5)
    assert result["gap_correlation"].value == pytest.approx(1)
    assert result["prob_error"].value == pytest.approx(np.abs(sigmoid(target) - sigmoid(0.5 * target)).mean())
    some = evaluate(pairs(0.5 * target, target_gap=[np.inf, None, *target[2:]]))
    assert some["gap_slope"].n == some["prob_error"].n == 28
    assert "gap_slope" not in evaluate(pairs(target))
    votes = evaluate(pairs(target, target_gap=[0.0] * 4 + [np.inf] * 26))  # only ties have a finite one
    assert not {"gap_slope", "gap_correlation"} & set(votes)
    assert (votes["prob_error"].n, votes["nll"].n) == (4, 30)
    [told] = (remark for name, _, remark in rows(votes) if name == "distance from the target probability")
    assert told == "4 pairs: the target gap of the others is not finite, or not known"


def test_weights_are_for_training_only():
    assert evaluate(pairs(GAP, weight=np.arange(10))) == evaluate(pairs(GAP))


def test_intervals_are_over_clusters():
    rng = np.random.default_rng(2)
    gap = np.repeat(rng.normal(1, 1, 30), 5)
    alone = evaluate(pairs(gap))["nll"]
    shared = evaluate(pairs(gap, cluster=[f"c{i // 5}" for i in range(150)]))["nll"]
    assert shared.value == pytest.approx(alone.value, rel=1e-12)
    assert (shared.clusters, alone.clusters) == (30, 150)
    assert shared.high - shared.low > 1.7 * (alone.high - alone.low)
    by_group = evaluate(pairs(gap, cluster=[None] * 150, group=[f"c{i // 5}" for i in range(150)]))["nll"]
    assert by_group == shared


def _graded(n, scale, seed, votes=None):
    rng = np.random.default_rng(seed)
    gap = rng.normal(0, 1.5, n)
    truth = sigmoid(scale * gap)
    if votes:
        return pairs(gap, label_prob=truth if votes == "known" else rng.binomial(votes, truth) / votes)
    flip = rng.uniform(size=n) > truth
    return pairs(np.where(flip, -gap, gap))


def test_verdict_on_models_whose_calibration_is_known():
    calibrated, over = evaluate(_graded(1500, 1.0, 0)), evaluate(_graded(1500, 0.5, 0))
    for name in ("ece", "ece_15", "ece_adaptive"):
        assert calibrated[name].value <= calibrated[f"{name}_floor"].high
        assert over[name].value > over[f"{name}_floor"].high
    assert calibrated.verdict["mce"] < calibrated.verdict["mce_floor"]
    assert over.verdict["mce"] > over.verdict["mce_floor"]
    assert calibrated.verdict["calibrated"] is True
    assert over.verdict["calibrated"] is False
    assert over["temperature"].low <= 2 <= over["temperature"].high
    assert over["temperature"].low > 1.5
    assert over["ece_at_temperature"].value < 0.5 * over["ece"].value
    assert over["ece_debiased"].low <= 0.096 <= over["ece_debiased"].high
    assert calibrated["ece_debiased"].low == calibrated["ece"].low == 0  # the plug-in's own percentiles never hold 0
    assert over["ece"].high == max(over["ece"].value, over["ece_debiased"].high)
    assert calibrated["ece_floor"].value == pytest.approx(0.019, abs=0.004)


def test_verdict_with_shares_does_not_hide_behind_the_floor_of_single_votes():
    """Off by .033 with labels free of noise: inside the floor of single outcomes, and not calibrated."""
    off = evaluate(_graded(500, 0.8, 1, votes="known"))
    assert off.verdict["inside_floor"]
    assert not off.verdict["calibrated"]
    fine = evaluate(_graded(500, 1.0, 1, votes=5))
    assert fine.verdict["calibrated"]


def test_interval_of_the_temperature_is_that_of_refitting():
    table = _graded(600, 0.7, 3)
    gap = table["gap"].to_numpy()
    found = evaluate(table)["temperature"]
    label = np.ones(600)

    drawn = np.random.default_rng(0).integers(600, size=(200, 600))
    refitted = [fit_temperature(gap[rows], label)[0] for rows in drawn]
    low, high = np.quantile(refitted, [0.025, 0.975])
    assert found.value == pytest.approx(fit_temperature(gap, label)[0], rel=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.08)


def test_temperature_at_a_bound_has_no_interval():
    result = evaluate(pairs([1.0, 2.0, 3.0]))
    assert result["temperature"].value == 0.05
    assert np.isnan(result["temperature"].low)
    assert result.verdict["temperature_at_bound"]


def test_reward_std_and_scores():
    rewards = np.array([1.0, 2.0, 3.0, 6.0])
    scores = Scores(responses(reward=rewards), pairs([1.0, 3.0]))
    assert evaluate(scores)["reward_std"].value == pytest.approx(rewards.std())
    assert "reward_std" not in evaluate(Scores(responses(logp=rewards), pairs([1.0, 3.0])))


def test_sft_scores_have_no_pairs():
    logp, length = np.array([-10.0, -40.0, -6.0]), np.array([10, 20, 3])
    result = evaluate(Scores(responses(logp=logp, length=length), PAIRS_SCHEMA.empty_table()))
    assert result["nll_per_token"].value == pytest.approx(56 / 33)
    assert result["perplexity"].value == pytest.approx(np.exp(56 / 33))
    assert result["perplexity"].low == pytest.approx(np.exp(result["nll_per_token"].low))
    assert set(result) == {"nll_per_token", "perplexity"}


def test_json_is_strict_and_complete():
    table = pairs(GAP, label_prob=[0.5] * 10, tie=[True] * 10)
    found = json.loads(json.dumps(evaluate(table).to_json(), allow_nan=False))
    assert found["accuracy"] == {"value": None, "low": None, "high": None, "n": 0, "clusters": 0}
    found = json.loads(json.dumps(evaluate(pairs(GAP)).to_json(), allow_nan=False))
    assert set(found["accuracy"]) == {"value", "low", "high", "n", "clusters"}
    assert {"counts", "reliability", "verdict"} < set(found)
    assert sum(row["count"] for row in found["reliability"]) == 10


def test_files_and_folders(tmp_path):
    scores = Scores(responses(reward=[1.0, 2.0]), pairs(GAP))
    scores.save(tmp_path / "scores")
    pq.write_table(scores.pairs, tmp_path / "only.parquet")
    assert evaluate(tmp_path / "scores") == evaluate(scores)
    assert evaluate(str(tmp_path / "only.parquet")) == evaluate(scores.pairs)


@pytest.mark.parametrize("bad", [np.nan, np.inf, None])
@pytest.mark.parametrize("column", ["reward_chosen", "gap"])
def test_reward_that_is_not_a_number_is_refused_by_group(bad, column):
    table = pairs([1.0, 2.0, 3.0])
    table = table.set_column(table.column_names.index(column), column, pa.array([1.0, bad, 3.0], pa.float64()))
    with pytest.raises(BadInput, match=f"group g1: {column} is not a finite number"):
        evaluate(table)


def test_other_bad_tables_are_refused(tmp_path):
    with pytest.raises(BadInput, match="no rows"):
        evaluate(PAIRS_SCHEMA.empty_table())
    with pytest.raises(BadInput, match="group g0: label_prob is outside"):
        evaluate(pairs([1.0], label_prob=[1.2]))
    with pytest.raises(BadInput, match="lacks gap"):
        evaluate(pairs([1.0]).drop_columns("gap"))
    with pytest.raises(BadInput, match="logp and length"):
        evaluate(Scores(responses(reward=[1.0]), PAIRS_SCHEMA.empty_table()))
    with pytest.raises(BadInput, match="neither a Parquet file nor a folder"):
        evaluate(tmp_path / "nowhere")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(BadInput, match="not readable"):
        evaluate(tmp_path / "text.parquet")


def test_evaluation_needs_no_torch():
    code = (
        "import sys, marginkit.evaluation.metrics, marginkit.evaluation.compare;"
        "found = {'torch', 'pandas', 'scipy', 'transformers'} & set(sys.modules); assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_few_pairs_get_no_calibration_verdict():
    """Below twenty labelled pairs nothing is said; from twenty on something is."""
    few, enough = evaluate(_graded(19, 1.0, 0)), evaluate(_graded(20, 1.0, 0))
    assert few.verdict["calibrated"] is None
    assert enough.verdict["calibrated"] is not None
    assert dict((name, told) for name, _, told in rows(few))["calibration error (ECE)"] == (
        "19 pairs are too few to say whether it is calibrated"
    )


@pytest.mark.parametrize("form", ["confidence", "symmetric"])
def test_a_hundred_thousand_pairs_are_judged_as_a_thousand_are(form):
    """More clusters than are drawn singly: intervals a tenth as wide, and everything else the same."""
    small, large = (evaluate(_graded(n, 0.7, 4), form=form, resamples=200) for n in (1000, 100_000))
    assert list(small) == list(large)
    assert large["nll"].clusters == 100_000
    for name in ("accuracy", "nll", "brier", "ece_debiased", "temperature"):
        narrower = (small[name].high - small[name].low) / (large[name].high - large[name].low)
        assert narrower == pytest.approx(10, rel=0.35), name
        assert small[name].low <= large[name].value <= small[name].high, name
