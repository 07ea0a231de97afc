"""Calibration errors against worked numbers, limiting cases, and models whose true error is known."""

import numpy as np
import pytest

from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import replicates
from marginkit.evaluation.calibration import (
    Binned,
    adaptive_calibration_error,
    confidence_form,
    ece_statistic,
    expected_calibration_error,
    maximum_calibration_error,
    reliability,
    sigmoid,
)
from marginkit.evaluation.calibrators import fit_temperature
from marginkit.evaluation.noise import debiased_ece, debiased_statistic, noise_floor

# Ten pairs worked out by hand; the label is on the first response of each.
PROB = np.array([0.97, 0.92, 0.85, 0.74, 0.66, 0.58, 0.52, 0.45, 0.35, 0.10])
ONES = np.ones(10)
GAP = np.log(PROB / (1 - PROB))


@pytest.mark.parametrize(("bins", "expected"), [(5, 0.104), (10, 0.178), (15, 0.218)])
def test_worked_ece(bins, expected):
    assert expected_calibration_error(PROB, ONES, bins) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("bins", "expected"), [(10, 0.178), (20, 0.290), (30, 0.318)])
def test_worked_ece_with_the_upper_half_split_in_bins(bins, expected):
    """5, 10 and 15 bins on [1/2, 1] are 10, 20, 30 on [0, 1]; edges are exact: .55 and .65 are in the bin below."""
    assert expected_calibration_error(PROB, ONES, bins) == pytest.approx(expected, abs=1e-12)


def test_worked_mce_and_bins():
    assert maximum_calibration_error(PROB, ONES, 10) == pytest.approx(0.375)
    rows = reliability(PROB, ONES, 10)
    assert [row.count for row in rows] == [3, 2, 1, 2, 2]
    assert sum(row.count * abs(row.outcome - row.confidence) for row in rows) / 10 == pytest.approx(0.178)
    confidence, outcome = confidence_form(PROB, ONES)
    assert (confidence.mean(), outcome.mean()) == pytest.approx((0.734, 0.7))


def test_worked_temperature():
    temperature, at_bound = fit_temperature(GAP, ONES)
    assert temperature == pytest.approx(1.735076, abs=1e-6)
    assert not at_bound
    assert np.logaddexp(0, -GAP).mean() == pytest.approx(0.634255, abs=1e-6)
    assert np.logaddexp(0, -GAP / temperature).mean() == pytest.approx(0.604489, abs=1e-6)


def test_always_sure_shows_one_minus_accuracy():
    label = np.array([1, 1, 1, 0, 1, 0, 1, 1])
    assert expected_calibration_error(np.ones(8), label) == pytest.approx(1 - label.mean())
    assert debiased_ece(np.ones(4), np.ones(4)) == 0


def test_right_as_often_as_confident_shows_nothing():
    prob = np.repeat([0.6, 0.8], [10, 20])
    label = np.concatenate([np.arange(10) < 6, np.arange(20) < 16])
    assert expected_calibration_error(prob, label) == pytest.approx(0)
    assert maximum_calibration_error(prob, label) == pytest.approx(0)


def test_soft_label_is_the_expected_hit():
    """A pair with a vote share counts as its hard votes do together."""
    soft = expected_calibration_error([0.8, 0.3, 0.9], [0.75, 0.5, 0.25])
    hard = expected_calibration_error(np.repeat([0.8, 0.3, 0.9], 4), [1, 1, 1, 0, 1, 1, 0, 0, 1, 0, 0, 0], bins=10)
    assert soft == pytest.approx(hard)
    assert expected_calibration_error([0.8, 0.3], [0.8, 0.3]) == pytest.approx(0)


def test_swapping_the_two_responses_changes_nothing():
    rng = np.random.default_rng(0)
    prob, label = rng.uniform(size=200), rng.uniform(size=200)
    swap = rng.uniform(size=200) < 0.5
    p, y = np.where(swap, 1 - prob, prob), np.where(swap, 1 - label, label)
    for measure in (expected_calibration_error, maximum_calibration_error, debiased_ece):
        assert measure(p, y) == pytest.approx(measure(prob, label))
    assert noise_floor(p).mean == pytest.approx(noise_floor(prob).mean)


def test_one_half_counts_as_a_miss_of_the_label():
    confidence, outcome = confidence_form([0.5, 0.5, 0.5], [1, 0.5, 0])
    assert confidence.tolist() == [0.5, 0.5, 0.5]
    assert outcome.tolist() == [0.0, 0.5, 1.0]
    assert expected_calibration_error([0.5], [1]) == 0.5


def test_bins_are_open_below_and_closed_above():
    """Every tenth is the upper edge of its own bin, in floating point too."""
    for tenth in (6, 7, 8, 9, 10):
        [row] = reliability([tenth / 10], [1], 10)
        assert (row.low, row.high) == ((tenth - 1) / 10, tenth / 10)
    [row] = reliability([1 - 0.3], [1], 10)
    assert row.high == 0.7


def test_weights_repeat_pairs():
    counts = np.arange(1, 11)
    repeated = expected_calibration_error(np.repeat(PROB, counts), np.ones(counts.sum()))
    assert expected_calibration_error(PROB, ONES, weights=counts) == pytest.approx(repeated)


def test_wilson_intervals_and_clusters():
    [row] = reliability(np.full(10, 0.75), np.arange(10) < 7)
    assert (row.outcome_low, row.outcome_high) == pytest.approx((0.39677, 0.89221), abs=1e-4)
    [wide] = reliability(np.full(10, 0.75), np.arange(10) < 7, clusters=np.arange(10) // 2)
    assert wide.outcome_low < row.outcome_low < row.outcome_high < wide.outcome_high


def _model(rng, n, scale):
    """A model's probabilities and hard labels; the truth is `sigmoid(scale * gap)`, so scale 1 is calibrated."""
    gap = rng.normal(0, 1.5, n)
    truth = sigmoid(scale * gap)
    return sigmoid(gap), (rng.uniform(size=n) < truth).astype(float), truth


@pytest.mark.parametrize(("n", "plug_in"), [(200, 0.05), (500, 0.03), (1000, 0.02)])
def test_calibrated_model_shows_noise_that_the_floor_foretells_and_debiasing_removes(n, plug_in):
    rng = np.random.default_rng(n)
    found = []
    for seed in range(150):
        prob, label, _ = _model(rng, n, 1.0)
        floor = noise_floor(prob, draws=40, seed=seed)
        shown = expected_calibration_error(prob, label)
        found.append((shown, floor.mean, debiased_ece(prob, label), shown <= floor.high))
    shown, floor_mean, debiased, inside = np.mean(found, axis=0)
    assert shown == pytest.approx(plug_in, abs=0.005)
    assert floor_mean == pytest.approx(shown, rel=0.07)
    assert debiased < 0.3 * shown
    assert 0.88 <= inside <= 0.99


@pytest.mark.parametrize(("n", "within"), [(500, 0.018), (2000, 0.004)])
def test_overconfident_model_shows_its_true_error(n, within):
    rng = np.random.default_rng(n)
    prob, _, truth = _model(rng, 200_000, 0.5)
    true_error = expected_calibration_error(prob, truth)
    assert true_error == pytest.approx(0.096, abs=0.001)
    found = []
    for seed in range(100):
        prob, label, _ = _model(rng, n, 0.5)
        inside = expected_calibration_error(prob, label) <= noise_floor(prob, draws=40, seed=seed).high
        found.append((debiased_ece(prob, label), inside))
    debiased, inside = np.mean(found, axis=0)
    assert debiased == pytest.approx(true_error, abs=within)
    assert inside == 0


@pytest.mark.parametrize("scale", [1.0, 0.8, 0.5])
def test_interval_of_the_debiased_error_covers_the_truth(scale):
    rng = np.random.default_rng(4)
    prob, _, truth = _model(rng, 200_000, scale)
    true_error = expected_calibration_error(prob, truth)
    covered = []
    for _ in range(60):
        prob, label, _ = _model(rng, 400, scale)
        drawn = replicates(debiased_statistic(prob, label), np.arange(400), resamples=200)
        low, high = np.quantile(drawn, [0.025, 0.975])
        covered.append(low <= true_error <= high)
    assert np.mean(covered) >= 0.88


def test_debiasing_leaves_labels_without_noise_alone():
    """Known probabilities have no noise to take out."""
    prob, _, truth = _model(np.random.default_rng(5), 2000, 0.8)
    assert debiased_ece(prob, truth) == pytest.approx(expected_calibration_error(prob, truth), rel=0.02)


def test_debiasing_over_clusters_sees_that_copies_are_no_evidence():
    rng = np.random.default_rng(6)
    by_pair, by_cluster = [], []
    for _ in range(30):
        prob, label, _ = _model(rng, 200, 1.0)
        prob, label, clusters = np.repeat(prob, 5), np.repeat(label, 5), np.repeat(np.arange(200), 5)
        by_pair.append(debiased_ece(prob, label))
        by_cluster.append(debiased_ece(prob, label, clusters=clusters))
    assert np.mean(by_cluster) < 0.5 * np.mean(by_pair)


def test_a_bin_with_one_pair_tells_nothing():
    assert debiased_ece([0.95, 0.65], [0, 1]) == 0


def test_more_votes_lower_the_floor():
    prob = np.random.default_rng(7).uniform(size=500)
    one, five = noise_floor(prob), noise_floor(prob, votes=np.full(500, 5))
    assert five.mean == pytest.approx(one.mean / np.sqrt(5), rel=0.15)
    assert one.low < one.mean < one.high


def test_resampled_ece_is_the_ece_of_the_resample():
    rng = np.random.default_rng(8)
    prob, label, _ = _model(rng, 60, 1.0)
    counts = rng.multinomial(60, np.full(60, 1 / 60), size=3)
    expected = [expected_calibration_error(np.repeat(prob, c), np.repeat(label, c)) for c in counts]
    assert ece_statistic(prob, label)(counts.astype(float)) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [0.2, 0.7, 1.0, 3.0])
def test_temperature_recovers_the_scale(scale):
    gap = np.random.default_rng(9).normal(0, 2, 1000)
    temperature, at_bound = fit_temperature(gap, sigmoid(scale * gap))
    assert temperature == pytest.approx(1 / scale, rel=1e-6)
    assert not at_bound


def test_temperature_says_when_it_is_at_a_bound():
    assert fit_temperature([1.0, 2.0], [1, 1]) == (0.05, True)
    assert fit_temperature([1.0, -1.0], [0, 1]) == (50.0, True)
    assert fit_temperature([1.0, -1.0], [0.5, 0.5]) == (50.0, True)
    assert fit_temperature([0.0, 0.0], [1, 1]) == (1.0, False)  # nothing to fit


def test_temperature_ignores_which_response_comes_first():
    flip = np.array([1, -1] * 5)
    assert fit_temperature(flip * GAP, np.where(flip > 0, 1, 0))[0] == pytest.approx(fit_temperature(GAP, ONES)[0])


@pytest.mark.parametrize(
    ("prob", "label"), [([], []), ([0.5], [1, 0]), ([1.5], [1]), ([0.5], [2]), ([np.nan], [1]), ([0.5], [np.nan])]
)
def test_what_is_not_a_probability_is_refused(prob, label):
    with pytest.raises(BadInput):
        expected_calibration_error(prob, label)


def test_other_bad_input_is_refused():
    with pytest.raises(BadInput, match="bins"):
        expected_calibration_error([0.5], [1], bins=0)
    with pytest.raises(BadInput, match="votes"):
        noise_floor([0.5], votes=[0])
    with pytest.raises(BadInput, match="finite"):
        fit_temperature([np.inf], [1])


def test_the_reconstructed_ece_of_mmpo_is_ours() -> None:
    """Confidence of the predicted side, ten bins, written out by hand: six chosen-first pairs, two of them wrong."""
    logits = np.array([2.0, 1.0, -0.5, 0.2, 3.0, -1.0])
    prob = 1.0 / (1.0 + np.exp(-logits))
    sigmoid = dict(zip(logits.tolist(), prob.tolist(), strict=True))
    right, wrong = 1.0 - sigmoid[1.0], 1.0 - sigmoid[-1.0]  # the two that share a bin
    apart = [1.0 - sigmoid[2.0], 1.0 - sigmoid[-0.5], 1.0 - sigmoid[0.2], 1.0 - sigmoid[3.0], abs(right - wrong)]
    assert expected_calibration_error(prob, np.ones(6)) == pytest.approx(sum(apart) / 6, abs=1e-12)
    assert sum(apart) / 6 == pytest.approx(0.2835618811, abs=5e-11)


def test_worked_adaptive_error():
    """Five groups of two by confidence: (.52, .55), (.58, .65), (.66, .74), (.85, .90), (.92, .97)."""
    assert adaptive_calibration_error(PROB, ONES, 5) == pytest.approx(0.176, abs=1e-12)
    sizes = np.bincount(Binned.of(PROB[:8], ONES[:8], 3, adaptive=True).code)
    assert sizes.tolist() == [3, 3, 2]  # as numpy.array_split cuts


def test_worked_symmetric_error():
    """Half-open bins are not symmetric, so seen from both sides the error is another one."""
    assert expected_calibration_error(PROB, ONES, 10, form="symmetric") == pytest.approx(0.182, abs=1e-12)
    swapped = expected_calibration_error(1 - PROB, 1 - ONES, 10, form="symmetric")
    assert swapped == pytest.approx(0.182, abs=1e-12)


def test_pairs_as_they_stand_are_never_binned():
    """Binned by p with the label 1 throughout, every bin is right: the naive error is 1 - mean p."""
    assert 1 - PROB.mean() == pytest.approx(0.386)
    for form in ("confidence", "symmetric"):
        assert expected_calibration_error(PROB, ONES, 10, form=form) < 0.2
    with pytest.raises(BadInput, match="form 'naive'"):
        expected_calibration_error(PROB, ONES, form="naive")


# torchmetrics 1.9.0, binary_calibration_error(n_bins=M, norm="l1" | "max") in float64 on confidences and hits, and on
# both sides of every pair; its bins are closed below, and no forecast here lies on an edge.
TORCHMETRICS = [
    (10, "confidence", 0.2640522875816993, 0.586898395721925),
    (10, "symmetric", 0.26405228758169935, 0.5868983957219251),
    (15, "confidence", 0.2797385620915033, 0.7132352941176472),
    (15, "symmetric", 0.26209150326797387, 0.7132352941176472),
]


@pytest.mark.parametrize(("bins", "form", "ece", "mce"), TORCHMETRICS)
def test_errors_are_those_of_torchmetrics(bins, form, ece, mce):
    prob = np.array([((k * 37) % 101 + 0.5) / 102 for k in range(60)])
    label = np.array([(k * k * 7) % 13 < 8 for k in range(60)], float)
    assert expected_calibration_error(prob, label, bins, form=form) == pytest.approx(ece, rel=1e-12)
    assert maximum_calibration_error(prob, label, bins, form=form) == pytest.approx(mce, rel=1e-12)


@pytest.mark.parametrize("form", ["confidence", "symmetric"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_resampled_errors_are_those_of_the_resample_in_the_bins_of_the_sample(form, adaptive):
    rng = np.random.default_rng(10)
    prob, label, _ = _model(rng, 40, 1.0)
    statistic = ece_statistic(prob, label, 5, form=form, adaptive=adaptive)
    counts = rng.multinomial(40, np.full(40, 1 / 40), size=3)
    binned = Binned.of(prob, label, 5, form=form, adaptive=adaptive)
    for row, found in zip(counts, statistic(counts.astype(float)), strict=True):
        weight = np.tile(row, binned.copies)
        gaps = [
            weight[binned.code == code] @ (binned.outcome - binned.forecast)[binned.code == code] for code in range(5)
        ]
        assert found == pytest.approx(np.abs(gaps).sum() / weight.sum())


@pytest.mark.parametrize("form", ["confidence", "symmetric"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_normal_sums_give_the_floor_of_single_draws(monkeypatch, form, adaptive):
    prob = np.random.default_rng(11).beta(2, 2, 8000)
    options = {"form": form, "adaptive": adaptive, "draws": 400}
    normal = noise_floor(prob, **options)
    monkeypatch.setattr("marginkit.evaluation.noise.NORMAL_FROM", np.inf)
    single = noise_floor(prob, **options)
    for name in ("mean", "low", "high", "largest"):
        assert getattr(normal, name) == pytest.approx(getattr(single, name), rel=0.1), name
    assert normal != single


def test_floor_of_the_largest_gap_is_that_of_drawn_outcomes():
    rng = np.random.default_rng(12)
    prob = rng.uniform(size=300)
    drawn = [maximum_calibration_error(prob, (rng.uniform(size=300) < prob).astype(float)) for _ in range(400)]
    assert noise_floor(prob, draws=400).largest == pytest.approx(np.quantile(drawn, 0.95), rel=0.12)
