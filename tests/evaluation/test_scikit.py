"""What `evaluate` says beside what scikit-learn says, on random data."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, roc_auc_score

from marginkit.evaluation.calibration import sigmoid
from marginkit.evaluation.metrics import evaluate
from pair_tables import pairs


@pytest.mark.parametrize("seed", range(4))
def test_numbers_are_those_of_scikit_learn(seed):
    """Labels of either side: scikit-learn reads P(first), the table the pair turned so that its label is 1."""
    rng = np.random.default_rng(seed)
    gap = rng.normal(0, 2, 300)
    label = (rng.uniform(size=300) < sigmoid(0.6 * gap)).astype(int)
    prob = sigmoid(gap)
    chosen_first = np.where(label == 1, gap, -gap)
    found = evaluate(pairs(chosen_first), resamples=10)
    assert found["nll"].value == pytest.approx(log_loss(label, prob))
    assert found["brier"].value == pytest.approx(brier_score_loss(label, prob))
    assert found["accuracy"].value == pytest.approx(accuracy_score(label, prob > 0.5))


@pytest.mark.parametrize("seed", range(4))
def test_reliability_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    gap = rng.normal(0, 2, 300)
    prob, right = sigmoid(np.abs(gap)), gap > 0
    found = evaluate(pairs(gap), resamples=10)
    outcome, confidence = calibration_curve(right, prob, n_bins=10)
    assert [row.outcome for row in found.reliability] == pytest.approx(outcome)
    assert [row.confidence for row in found.reliability] == pytest.approx(confidence)
    share = np.array([row.count for row in found.reliability]) / 300
    assert found["ece"].value == pytest.approx(share @ np.abs(outcome - confidence))
    assert found.verdict["mce"] == pytest.approx(np.abs(outcome - confidence).max())


def test_ties_told_apart_are_the_area_of_scikit_learn():
    rng = np.random.default_rng(9)
    tie = rng.uniform(size=200) < 0.3
    gap = rng.normal(0, np.where(tie, 0.5, 2.0))
    assert evaluate(pairs(gap, tie=tie), resamples=10)["tie_auc"].value == pytest.approx(
        roc_auc_score(~tie, np.abs(gap))
    )
