"""A judge's probabilities: AlpacaEval's scale, clipping, and a place bias that cancels exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marginkit.data.judged import cancel_position, clipped_logit, preference_prob
from marginkit.errors import BadInput


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x)))


@given(st.floats(-6, 6), st.floats(-4, 4))
def test_a_constant_bias_cancels_exactly(m, b):
    p_ab, p_ba = sigmoid(m + b), sigmoid(-m + b)
    gap, bias = cancel_position(clipped_logit(p_ab, clip=1e-9), clipped_logit(p_ba, clip=1e-9))
    assert gap == pytest.approx(m, abs=1e-8)
    assert bias == pytest.approx(b, abs=1e-8)


def test_the_mean_of_probabilities_would_keep_a_part_of_the_bias():
    """Why logits: the other rule of the sheet, p = (p_AB + 1 - p_BA) / 2."""
    m, b = 1.0, 2.0
    mean = (sigmoid(m + b) + 1 - sigmoid(-m + b)) / 2
    assert np.log(mean / (1 - mean)) < 0.6 < m


def test_preferences_have_a_scale_with_a_code_for_ties():
    assert preference_prob([1.0, 1.5, 2.0, 0.0]).tolist() == [0.0, 0.5, 1.0, 0.5]
    assert np.isnan(preference_prob(np.nan))
    for wrong in (0.5, 3.0, -1.0):
        with pytest.raises(BadInput, match="not on AlpacaEval's scale"):
            preference_prob([1.2, wrong])


def test_logits_are_clipped_and_what_is_no_probability_refused():
    assert clipped_logit([0.0, 0.5, 1.0]).round(2).tolist() == [-11.51, 0.0, 11.51]
    assert clipped_logit(0.8) == pytest.approx(np.log(4))
    assert np.isnan(clipped_logit(np.nan))
    with pytest.raises(BadInput, match=r"is 1.3, outside \[0, 1\]; is it a preference"):
        clipped_logit([0.2, 1.3])
    with pytest.raises(BadInput, match="clip=0"):
        clipped_logit(0.5, clip=0)
