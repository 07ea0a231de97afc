"""Near-duplicates: overlap as defined, nothing found that is not near, hardly anything near that is missed."""

import itertools
import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marginkit.data.survey.nearness import (
    NearIndex,
    bands,
    connected,
    digest64,
    normalised,
    overlap,
    windows,
)
from marginkit.data.survey.prompts import NEAR_PROMPTS, Prompts
from marginkit.groups import Groups
from marginkit.records import Group, Response

WORDS = ["".join(random.Random(n).choices("abcdefghijklmnop", k=2 + n % 7)) for n in range(400)]


def slow_windows(text: str) -> set[bytes]:
    """The definition, without numpy."""
    raw = text.encode()
    return {raw[at : at + 8] for at in range(max(1, len(raw) - 7))}


def slow_overlap(left: str, right: str) -> float:
    a, b = slow_windows(left), slow_windows(right)
    return len(a & b) / len(a | b)


def changed(draw: random.Random, words: list[str], changes: int) -> str:
    words = list(words)
    for at in draw.sample(range(len(words)), changes):
        words[at] = draw.choice(WORDS)
    return " ".join(words)


@given(st.text(max_size=40), st.text(max_size=40))
def test_overlap_is_the_share_of_common_windows(left: str, right: str) -> None:
    """Jaccard's index of the sets of 8-byte windows, whatever the alphabet."""
    left, right = left.encode(errors="ignore").decode(), right.encode(errors="ignore").decode()
    assert len(windows(left)) == len(slow_windows(left))
    assert overlap(left, right) == pytest.approx(slow_overlap(left, right))


@given(st.text(max_size=60))
def test_normalising_twice_changes_nothing_and_hides_case_and_punctuation(text: str) -> None:
    """Equal texts but for case, punctuation and white space get one hash; ASCII has no rules of its own."""
    once = normalised(text)
    assert normalised(f"{text} ä").removesuffix("ä").strip() == (once if re.search(r"[^\W_]", text) else "")
    if re.search(r"[^\W_]", text):
        assert normalised(f" {text}\n ...") == once
    assert digest64(once) == digest64(normalised(text))


def test_the_hash_is_the_same_on_every_machine() -> None:
    """Known prompts are looked up by it: blake2b of 8 bytes, big-endian, worked out with hashlib's command line."""
    import hashlib

    assert digest64("name a fruit") == int(hashlib.blake2b(b"name a fruit", digest_size=8).hexdigest(), 16)


@pytest.mark.parametrize("length", [12, 40, 150])
def test_near_texts_share_a_band_as_often_as_theory_says(length: int) -> None:
    """At an overlap of .8 and more, under 2% are missed; what has nothing in common never meets."""
    draw = random.Random(length)
    met, far = [], 0
    for _ in range(600):
        words = draw.choices(WORDS, k=length)
        left, right = " ".join(words), changed(draw, words, draw.randint(0, max(1, length // 12)))
        if overlap(left, right) >= 0.8:
            met.append(bool((bands(left) == bands(right)).any()))
        far += bool((bands(left) == bands(" ".join(draw.choices(WORDS, k=length)))).any())
    assert len(met) > 100
    assert np.mean(met) > 0.98
    assert far == 0


def test_near_prompts_are_those_of_all_comparisons() -> None:
    """The clusters found are those that comparing all with all gives; every pair reported is near."""
    draw = random.Random(3)
    texts = []
    for _ in range(40):
        words = draw.choices(WORDS, k=draw.randint(8, 60))
        texts += [" ".join(words), *(changed(draw, words, 1) for _ in range(draw.randint(0, 3)))]
    draw.shuffle(texts)
    groups = Groups.from_iterable(Group(str(n), text, (Response("x"),)) for n, text in enumerate(texts))
    near = [
        (i, j) for (i, a), (j, b) in itertools.combinations(enumerate(texts), 2) if slow_overlap(a, b) >= NEAR_PROMPTS
    ]
    found, looked_at = Prompts.of(groups).near_pairs()
    assert looked_at == 1
    assert len(near) > 20
    assert {tuple(pair) for pair in found.tolist()} <= set(near)
    slow = connected(len(texts), np.array(near))
    assert (connected(len(texts), found) == slow).mean() > 0.97


def test_near_prompts_of_another_file() -> None:
    """Equal and nearly equal prompts are found, others are not."""
    draw = random.Random(5)
    words = [draw.choices(WORDS, k=30) for _ in range(20)]
    here = Groups.from_iterable(Group(str(n), " ".join(own), (Response("x"),)) for n, own in enumerate(words))
    there = Groups.from_iterable(
        Group(str(n), changed(draw, words[n], n % 2), (Response("x"),)) for n in (3, 8, 12, 15)
    )
    found, _ = Prompts.of(here).near_in(Prompts.of(there))
    assert found.tolist() == [[3, 0], [8, 1], [12, 2], [15, 3]]


def test_many_equal_prompts_cost_one_comparison_each() -> None:
    """A template that all rows share does not compare all with all."""
    index = NearIndex()
    for _ in range(500):
        index.add("the same words for every row of this file")
    assert len(index.candidates()) < 1000


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_connected_is_reachability(links: list[tuple[int, int]]) -> None:
    """Against a slow closure."""
    reach = np.eye(10, dtype=bool)
    for left, right in links:
        reach[left, right] = reach[right, left] = True
    for _ in range(10):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    expected = [int(np.flatnonzero(row)[0]) for row in reach]
    assert connected(10, np.array(links, np.int64).reshape(-1, 2)).tolist() == expected
