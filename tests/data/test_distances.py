"""Edit distances on one code point a token: exact, a metric, and the same by every way in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marginkit.data.distances import as_text, edit_distance, edit_distances, ids_as_text, words_as_text
from marginkit.errors import BadInput

TOKENS = st.lists(st.sampled_from([0, 1, 2, 5, 300, 0xD800, 0xDFFF, 70_000, 0x10FFFF]), max_size=12)


def slow(left, right):
    """The textbook table."""
    table = [[i + j if i * j == 0 else 0 for j in range(len(right) + 1)] for i in range(len(left) + 1)]
    for i in range(1, len(left) + 1):
        for j in range(1, len(right) + 1):
            swap = table[i - 1][j - 1] + (left[i - 1] != right[j - 1])
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, swap)
    return table[-1][-1]


@given(TOKENS, TOKENS)
def test_the_distance_is_that_of_the_slow_table(left, right):
    assert edit_distance(ids_as_text(left), ids_as_text(right)) == slow(left, right)
    assert edit_distances([ids_as_text(left)], [ids_as_text(right)], workers=1).tolist() == [slow(left, right)]
    words = words_as_text([" ".join(map(str, left)), " ".join(map(str, right))])
    assert edit_distance(*words) == slow(left, right)


@given(TOKENS, TOKENS, st.integers(0, 15))
def test_a_cutoff_tells_the_distance_or_that_it_is_above(left, right, cutoff):
    found, true = edit_distance(ids_as_text(left), ids_as_text(right), cutoff), slow(left, right)
    assert found == true if true <= cutoff else found > cutoff


@given(TOKENS, TOKENS, TOKENS)
def test_it_is_a_metric(a, b, c):
    x, y, z = map(ids_as_text, (a, b, c))
    assert edit_distance(x, x) == 0
    assert edit_distance(x, y) == edit_distance(y, x)
    assert edit_distance(x, z) <= edit_distance(x, y) + edit_distance(y, z)
    assert edit_distance("", x) == len(a)
    assert abs(len(a) - len(b)) <= edit_distance(x, y) <= max(len(a), len(b))


def test_words_share_code_points_within_a_call_and_white_space_does_not_count():
    assert words_as_text(["one  two\n", "two one"]) == ["\0\1", "\1\0"]
    assert words_as_text(["", "  "]) == ["", ""]


def test_many_pairs_on_all_cores_are_those_one_by_one():
    rng = np.random.default_rng(0)
    texts = [ids_as_text(rng.integers(0, 50, size=rng.integers(1, 80))) for _ in range(400)]
    left, right = texts[:200], texts[200:]
    counted = []
    found = edit_distances(left, right, progress=counted.append)
    assert found.tolist() == [edit_distance(a, b) for a, b in zip(left, right, strict=True)]
    assert sum(counted) == 200
    assert edit_distances([], []).tolist() == []


@pytest.mark.parametrize("ids", [[-1], [0x110000]])
def test_ids_that_are_no_code_points_are_refused(ids):
    with pytest.raises(BadInput, match=r"^token ids from"):
        ids_as_text(ids)


def test_a_tokenizer_is_asked_once_for_all_responses():
    asked = []

    def tokenize(texts):
        asked.append(texts)
        return [[ord(letter) for letter in text] for text in texts]

    assert as_text(["ab", "c"], tokenize) == ["ab", "c"]
    assert asked == [["ab", "c"]]
    assert as_text(["ab cd"], None) == ["\0\1"]
