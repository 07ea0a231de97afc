"""Votes as log-odds: closed forms, limits, and the identities of the vote share."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marginkit.data.votes import effective_votes, vote_log_odds
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


def test_what_has_no_logarithm_is_refused():
    with pytest.raises(BadInput, match="two counts >= 0"):
        vote_log_odds(1, 1, prior=(-1, 1))
    with pytest.raises(BadInput, match="negative"):
        vote_log_odds([1, -1], 1)
