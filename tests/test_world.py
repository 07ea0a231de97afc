"""The built-in world: what is said to be known of it is true."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marginkit import kitchen
from marginkit import world as w
from marginkit.errors import BadInput
from marginkit.records import Group

PROMPT = "Cook a soup with garlic, lemon and rice, no cheese."


@pytest.mark.parametrize(
    ("text", "content", "utility"),
    [
        ("Sure! Fry garlic. Add lemon. Boil rice. Enjoy the soup!", {"opening": 1, "wanted": 3, "closing": 1}, 3.6),
        ("Fry garlic. Add garlic.", {"wanted": 1, "repeat": 1}, 0.5),
        ("Fry cheese. Add cheese.", {"unwanted": 2}, -3.6),
        ("Add tofu. Enjoy the pie!", {"other": 1, "wrong dish": 1}, -1.0),
        ("Fry garlic. Sure!", {"wanted": 1, "unreadable": 1}, -0.1),
        ("Enjoy the soup! Enjoy the soup!", {"closing": 1, "unreadable": 1}, -0.4),
        ("Cooking is fun. Why even ask. Cooking is fun.", {"chatter": 2, "rude": 1}, -1.6),
        ("Fry garlic. Fry lem", {"wanted": 1, "unreadable": 1}, -0.1),
        ("fry garlic", {"unreadable": 1}, kitchen.LOWEST),
        ("...", {"unreadable": 1}, kitchen.LOWEST),
        ("", {}, kitchen.LOWEST),
        ("Fry garlic. " + "Fry cheese. " * 20, {"wanted": 1, "unwanted": 20}, kitchen.LOWEST),
    ],
)
def test_the_utility_is_read_off_the_text(text: str, content: dict[str, int], utility: float) -> None:
    """Worked out by hand from `WORTH`; malformed text included."""
    assert kitchen.count_content(PROMPT, text) == content
    assert kitchen.true_utility(PROMPT, text) == pytest.approx(utility)


@given(st.text(max_size=80), st.integers(0, 2**32 - 1))
def test_every_text_has_a_utility_within_the_bounds(text: str, seed: int) -> None:
    """Any text at all, and any text with a valid sentence in front."""
    prompt = kitchen.write_prompt(np.random.default_rng(seed))
    for whole in (text, f"Sure! {text}"):
        assert kitchen.LOWEST <= kitchen.true_utility(prompt, whole) <= kitchen.HIGHEST + 1e-9


@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(kitchen.WRITERS)))
def test_what_is_written_is_read_back(seed: int, name: str) -> None:
    """Every sentence of a writer is readable, and the request comes back out of the prompt."""
    rng = np.random.default_rng(seed)
    prompt = kitchen.write_prompt(rng)
    request = kitchen.parse_prompt(prompt)
    assert len({*request.wanted, request.unwanted}) == 4
    text = kitchen.write_response(rng, prompt, kitchen.WRITERS[name])
    counts = kitchen.count_content(prompt, text)
    assert "unreadable" not in counts
    assert sum(counts.values()) == sum(text.count(mark) for mark in ".!")


def test_nothing_is_gained_by_length() -> None:
    """Repeating a good answer, or adding to it, never raises its utility above the best."""
    best = "Sure! Fry garlic. Add lemon. Boil rice. Enjoy the soup!"
    for more in (best, "Fry tofu.", "Good idea!", "Cooking is fun.", "Boil rice."):
        assert (
            kitchen.true_utility(PROMPT, f"{best} {more}")
            < kitchen.true_utility(PROMPT, best)
            == pytest.approx(kitchen.HIGHEST)
        )


def test_a_foreign_prompt_is_refused() -> None:
    """Utility is defined for any text, but only for this world's prompts."""
    with pytest.raises(BadInput, match="no prompt of the built-in world"):
        kitchen.true_utility("Write a poem.", "Sure!")


def test_raters_prefer_as_bradley_terry_says() -> None:
    """400,000 comparisons of fresh impressions agree with sigmoid(u_i - u_j) within binomial error."""
    rng, n = np.random.default_rng(1), 400_000
    for gap in (0.0, 0.5, 1.0, 2.5):
        wins = (w.impressions(rng, np.full(n, 1.2 + gap)) > w.impressions(rng, np.full(n, 1.2))).mean()
        known = float(w.preference_prob(1.2 + gap, 1.2))
        assert known == pytest.approx(1 / (1 + np.exp(-gap)))
        assert abs(wins - known) < 4 * np.sqrt(known * (1 - known) / n)


@pytest.mark.parametrize(("utility", "careless"), [(-2.0, 0.0), (1.3, 0.0), (3.6, 0.0), (1.3, 0.3)])
def test_ratings_have_the_stated_noise(utility: float, careless: float) -> None:
    """The frequencies of 1 to 5 among 200,000 ratings."""
    n = 200_000
    ratings = w.rate(np.random.default_rng(2), np.full(n, utility), careless)
    seen = np.array([(ratings == grade).mean() for grade in range(1, 6)])
    known = w.rating_distribution(utility, careless)
    assert known.sum() == pytest.approx(1.0)
    assert (np.abs(seen - known) < 4.5 * np.sqrt(known * (1 - known) / n) + 1e-6).all()


@pytest.mark.parametrize("name", sorted(w.QUALITIES))
def test_grade_gaps_have_the_stated_distribution(name: str) -> None:
    """P(grade order) of two responses, mean of all raters, simulated against worked out."""
    quality, rng, n = w.QUALITIES[name], np.random.default_rng(3), 100_000
    first, second = (
        np.mean([w.rate(rng, np.full(n, u), quality.careless) for _ in range(quality.raters)], axis=0)
        for u in (2.4, 1.1)
    )
    gaps, chance = w.grade_gap_distribution(2.4, 1.1, quality)
    assert chance.sum() == pytest.approx(1.0)
    for where in (gaps > 0, gaps == 0, gaps < 0):
        known = chance[where].sum()
        seen = np.isin(np.round(first - second, 6), np.round(gaps[where], 6)).mean()
        assert abs(seen - known) < 4.5 * np.sqrt(known * (1 - known) / n)


def test_a_world_is_a_function_of_its_seed() -> None:
    """Equal seeds, equal worlds; other seeds, other worlds; no prompt twice."""

    def made(seed: int) -> tuple[str, str]:
        world = w.make_world("low", prompts=5, demonstrations=5, dev=2, test=3, seed=seed)
        return world.graded.fingerprint(), world.demonstrations.fingerprint()

    assert made(4) == made(4)
    assert made(4) != made(5)
    world = w.make_world(prompts=300, demonstrations=300, dev=20, test=50)
    requests = [
        kitchen.parse_prompt(str(group.prompt)) for part in (world.graded, world.demonstrations) for group in part
    ]
    assert len(set(requests)) == len(requests) == 670


def test_only_the_test_split_tells_the_truth() -> None:
    """Train and dev carry grades; test carries the known probability, the better response first, and utilities."""
    world = w.make_world("mixed", prompts=20, demonstrations=1, dev=5, test=20, seed=3)
    for group in world.graded:
        assert len({response.text for response in group.responses}) == 4
        assert all(response.grade is not None for response in group.responses)
        if group.split != "test":
            assert not group.pairs
            assert all(response.utility is None for response in group.responses)
            continue
        utility = [kitchen.true_utility(str(group.prompt), response.text) for response in group.responses]
        assert [response.utility for response in group.responses] == pytest.approx(utility)
        assert len(group.pairs) == 6
        for pair in group.pairs:
            assert pair.prob == pytest.approx(float(w.preference_prob(utility[pair.chosen], utility[pair.rejected])))
            assert pair.tie == (abs(utility[pair.chosen] - utility[pair.rejected]) < 1e-9)
            assert pair.prob is not None
            assert pair.prob >= 0.5


def _right(groups: list[Group]) -> float:
    """How often the order of the grades is the order of the utilities."""
    right = []
    for group in groups:
        for a, b in itertools.combinations(group.responses, 2):
            assert None not in (a.grade, b.grade, a.utility, b.utility)
            if a.grade != b.grade and a.utility != b.utility:
                right.append((a.grade > b.grade) == (a.utility > b.utility))  # type: ignore[operator]
    return float(np.mean(right))


def test_the_qualities_differ() -> None:
    """Better feedback: better responses, labels right more often, and a grade worth more."""
    groups = {
        name: [g for g in w.make_world(name, prompts=1, demonstrations=1, dev=1, test=400).graded if g.split == "test"]
        for name in w.QUALITIES
    }
    utility = {name: np.mean([r.utility or 0.0 for g in held for r in g.responses]) for name, held in groups.items()}
    assert utility["high"] > utility["mixed"] + 0.4 > utility["low"] + 0.8
    assert _right(groups["high"]) > _right(groups["low"]) + 0.1
    assert _right(groups["mixed"]) > _right(groups["low"]) + 0.1
    assert w.true_gamma("high") > w.true_gamma("mixed") > w.true_gamma("low") > 0
    assert {len(g.responses[0].ratings) for g in groups["high"]} == {4}


@pytest.mark.parametrize("name", sorted(w.QUALITIES))
def test_gamma_is_the_best_slope(name: str) -> None:
    """On fresh pairs, the known preferences are predicted less well by 0.7 or 1.4 times gamma."""
    rng, quality = np.random.default_rng(9), w.QUALITIES[name]
    groups = [
        w.graded_group(rng, kitchen.write_prompt(rng), quality, 4, name=str(number), split="test")
        for number in range(1500)
    ]
    gaps, known = np.array(
        [
            ((g.responses[p.chosen].grade or 0.0) - (g.responses[p.rejected].grade or 0.0), p.prob or 0.0)
            for g in groups
            for p in g.pairs
        ]
    ).T

    def nll(gamma: float) -> float:
        return float((known * np.logaddexp(0, -gamma * gaps) + (1 - known) * np.logaddexp(0, gamma * gaps)).mean())

    best = w.true_gamma(name)
    assert nll(best) < min(nll(0.7 * best), nll(1.4 * best))


def test_an_unknown_quality_is_refused() -> None:
    """In one line that names what there is."""
    with pytest.raises(BadInput, match="high, mixed, low"):
        w.make_world("perfect")
