"""Votes as log-odds: closed forms, limits, and the identities of the vote share."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marginkit.data.votes import effective_votes, score_log_ratio, vote_log_odds
from marginkit.errors import BadInput

COUNTS = st.integers(0, 50)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x)))


@given(COUNTS, COUNTS, COUNTS, st.floats(0.1, 5), st.floats(0.1, 5))
def test_log_odds_are_those_of_the_beta_posterior_mean(wins, losses, ties, a, b):
    p = (wins + ties / 2 + a) / (wins + losses + ties + a + b)
    assert sigmoid(vote_log_odds(wins, losses, ties, prior=(a, b))) == pytest.approx(p, abs=1e-12)


@given(COUNTS, COUNTS, COUNTS)
def test_the_other_side_sees_the_opposite(wins, losses, ties):
    assert vote_log_odds(wins, losses, ties) == pytest.approx(-vote_log_odds(losses, wins, ties), abs=1e-12)


def test_limits_of_votes():
    assert vote_log_odds(0, 0) == 0
    assert vote_log_odds(7, 7, 3) == 0
    assert vote_log_odds(3, 1, prior=(0, 0)) == pytest.approx(np.log(3))
    assert np.isinf(vote_log_odds(5, 0, prior=(0, 0)))
    assert vote_log_odds(5, 0) == pytest.approx(np.log(11))
    many = vote_log_odds(3_000_000, 1_000_000)
    assert many == pytest.approx(np.log(3), abs=1e-5)


def test_the_same_ratio_of_more_votes_is_known_better():
    few, many = effective_votes([4, 400], [2, 200], prior=(0, 0))
    assert many == pytest.approx(100 * few)
    assert few == pytest.approx(4 / (1 / 4 + 1 / 2))
    assert effective_votes(10, 10, prior=(0, 0)) == pytest.approx(20)
    assert effective_votes(0, 0, prior=(0, 0)) == 0


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(2, 50))
def test_score_ratio_is_the_vote_share_and_free_of_scale(better, worse, times):
    """The sheet's identity: with gamma = 1 and a = 0, sigmoid(m) = s_w / (s_w + s_l)."""
    m = score_log_ratio(better, worse, prior=0.0)
    assert sigmoid(m) == pytest.approx(better / (better + worse))
    assert score_log_ratio(times * better, times * worse, prior=0.0) == pytest.approx(m)


def test_score_ratio_of_two_is_two_thirds_and_scores_below_one_count_as_one():
    assert sigmoid(score_log_ratio(340, 170, prior=0.0)) == pytest.approx(2 / 3)
    assert score_log_ratio(-5, 0) == 0
    assert score_log_ratio(3, -5) == pytest.approx(np.log(4 / 2))


def test_what_has_no_logarithm_is_refused():
    with pytest.raises(BadInput, match="keep the floor"):
        score_log_ratio(3, -5, floor=None)
    with pytest.raises(BadInput, match="prior"):
        score_log_ratio(3, 1, prior=-1)
    with pytest.raises(BadInput, match="two counts >= 0"):
        vote_log_odds(1, 1, prior=(-1, 1))
    with pytest.raises(BadInput, match="negative"):
        vote_log_odds([1, -1], 1)
