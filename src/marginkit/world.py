"""The built-in world: raters of whom everything is known, and the graded groups they make. Pure numpy, no torch.

Three things are known, each in one place:

- u, the utility of a response in logits: `true_utility(prompt, text)`;
- P(i is better than j) = sigmoid(u_i - u_j): a fresh rater's impression of a response is u + g, g ~ Gumbel(0, 1), and
  the rater prefers the response with the higher impression, which is Bradley-Terry exactly: `preference_prob`;
- the noise of a rating: the impression falls between fixed cuts, or the rater was careless: `rating_distribution`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.kitchen import WRITERS, parse_prompt, true_utility, write_prompt, write_response
from marginkit.records import Group, Pair, Rating, Response

Array = npt.NDArray[np.float64]

CUTS: tuple[float, ...] = (0.2, 1.4, 2.6, 3.8)
"""Impressions between which the grades 1 to 5 lie: grade = 1 + how many cuts the impression exceeds."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How good the feedback is.

    Args:
        writers: share of the responses by writer.
        raters: ratings behind a grade, which is their mean.
        careless: share of the ratings that are drawn from 1 to 5 with no look at the response.
    """

    writers: Mapping[str, float]
    raters: int
    careless: float


QUALITIES: Mapping[str, Quality] = MappingProxyType(
    {
        "high": Quality({"careful": 0.4, "plain": 0.4, "hasty": 0.2, "poor": 0.0}, raters=4, careless=0.0),
        "mixed": Quality({"careful": 0.25, "plain": 0.25, "hasty": 0.25, "poor": 0.25}, raters=1, careless=0.0),
        "low": Quality({"careful": 0.0, "plain": 0.2, "hasty": 0.4, "poor": 0.4}, raters=1, careless=0.3),
    }
)


def quality_of(name: str) -> Quality:
    """The quality of that name.

    Raises:
        BadInput: there is none.
    """
    if name not in QUALITIES:
        raise BadInput(f"quality {name!r}: must be one of {', '.join(QUALITIES)}")
    return QUALITIES[name]


# -- Text


def preference_prob(better: npt.ArrayLike, worse: npt.ArrayLike) -> Array:
    """P(a fresh, attentive rater prefers the first) = sigmoid(u_first - u_second).

    The difference of two independent Gumbel(0, 1) impressions is logistic, so this is exact.

    Example:
        >>> preference_prob([1.0], [1.0]).tolist()
        [0.5]
    """
    gap = np.asarray(better, dtype=np.float64) - np.asarray(worse, dtype=np.float64)
    return np.asarray(0.5 * (1 + np.tanh(0.5 * gap)))


def impressions(rng: np.random.Generator, utility: npt.ArrayLike) -> Array:
    """What attentive raters feel of responses: u + g, g ~ Gumbel(0, 1), one draw an entry."""
    u = np.asarray(utility, dtype=np.float64)
    return np.asarray(u + rng.gumbel(size=u.shape))


def rate(rng: np.random.Generator, utility: npt.ArrayLike, careless: float = 0.0) -> Array:
    """One rating (1 to 5) of each response: where the impression lies among `CUTS`, or anything if careless."""
    u = np.asarray(utility, dtype=np.float64)
    looked = 1.0 + np.searchsorted(np.array(CUTS), impressions(rng, u), side="left")
    return np.where(rng.random(u.shape) < careless, rng.integers(1, 6, u.shape), looked)


def rating_distribution(utility: float, careless: float = 0.0) -> Array:
    """P(rating = 1 ... 5) for a response: `P(rating <= k) = exp(-exp(u - cut_k))`, mixed with 1/5 where careless.

    Example:
        >>> rating_distribution(2.0).round(3).tolist()
        [0.002, 0.159, 0.416, 0.27, 0.152]
    """
    below = np.exp(-np.exp(utility - np.array(CUTS)))
    looked = np.diff(np.concatenate([[0.0], below, [1.0]]))
    return np.asarray((1 - careless) * looked + careless / 5)


def grade_gap_distribution(first: float, second: float, quality: Quality) -> tuple[Array, Array]:
    """The possible gaps grade(first) - grade(second), and the chance of each, for two utilities.

    Example:
        >>> gaps, chance = grade_gap_distribution(2.0, 2.0, QUALITIES["mixed"])
        >>> gaps.tolist(), round(float(chance @ gaps), 6)
        ([-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0], 0.0)
    """
    sums = [np.ones(1), np.ones(1)]
    for _ in range(quality.raters):
        sums = [
            np.convolve(found, rating_distribution(utility, quality.careless))
            for found, utility in zip(sums, (first, second), strict=True)
        ]
    furthest = len(sums[0]) - 1
    return np.arange(-furthest, furthest + 1) / quality.raters, np.convolve(sums[0], sums[1][::-1])


# -- Graded data


@dataclass(frozen=True, slots=True)
class World:
    """The data of one world.

    Args:
        demonstrations: one response a prompt, no grades: what SFT learns from.
        graded: K graded responses a prompt in the splits train, dev and test; the test pairs carry the known
            probability, and its responses their utility.
        gamma: logits that one grade is worth in this world; see `true_gamma`.
    """

    demonstrations: Groups
    graded: Groups
    gamma: float


def make_world(
    quality: str = "mixed",
    *,
    prompts: int = 600,
    demonstrations: int = 2400,
    dev: int = 100,
    test: int = 300,
    responses: int = 4,
    seed: int = 0,
) -> World:
    """Draw a world; no prompt occurs twice.

    Args:
        quality: high, mixed or low.
        prompts: graded prompts to train on.
        demonstrations: prompts with one ungraded response.
        dev: graded prompts held out as a user would have them: grades, nothing more.
        test: graded prompts held out with what only this world knows.
        responses: K of every graded prompt.
        seed: of everything.

    Raises:
        BadInput: no such quality.

    Example:
        >>> world = make_world("high", prompts=3, demonstrations=2, dev=1, test=2)
        >>> world.graded.column("split")
        ['train', 'train', 'train', 'dev', 'test', 'test']
    """
    kind = quality_of(quality)
    rng = np.random.default_rng([seed, 1])
    fresh = _distinct_prompts(rng)

    def graded() -> Iterator[Group]:
        for split, count in (("train", prompts), ("dev", dev), ("test", test)):
            for number in range(count):
                yield graded_group(rng, next(fresh), kind, responses, name=f"{split}-{number}", split=split)

    def shown() -> Iterator[Group]:
        for number in range(demonstrations):
            prompt = next(fresh)
            name = _draw_writer(rng, kind)
            text = write_response(rng, prompt, WRITERS[name])
            yield Group(f"demo-{number}", prompt, (Response(text, model=name),), split="train")

    return World(Groups.from_iterable(shown()), Groups.from_iterable(graded()), true_gamma(quality))


def graded_group(
    rng: np.random.Generator, prompt: str, quality: Quality, count: int, *, name: str, split: str
) -> Group:
    """A prompt with `count` different responses and their grades; in the test split with what is known."""
    texts: dict[str, str] = {}
    while len(texts) < count:
        writer = _draw_writer(rng, quality)
        texts.setdefault(write_response(rng, prompt, WRITERS[writer]), writer)
    utility = np.array([true_utility(prompt, text) for text in texts])
    ratings = [rate(rng, utility, quality.careless) for _ in range(quality.raters)]
    known = split == "test"
    return Group(
        id=name,
        prompt=prompt,
        responses=tuple(
            Response(
                text,
                grade=float(np.mean([given[at] for given in ratings])),
                ratings=tuple(Rating(f"rater-{r}", float(given[at])) for r, given in enumerate(ratings)),
                utility=float(utility[at]) if known else None,
                model=writer,
            )
            for at, (text, writer) in enumerate(texts.items())
        ),
        pairs=known_pairs(utility) if known else (),
        split=split,
        cluster=name,
    )


def known_pairs(utility: Sequence[float] | Array) -> tuple[Pair, ...]:
    """All pairs, the one of higher utility first, with the known probability; equal utilities are a tie.

    Example:
        >>> known_pairs([0.0, 1.0])
        (Pair(chosen=1, rejected=0, strength=None, votes=None, prob=0.7310585786300049, ...tie=False),)
    """
    found = []
    for i, j in combinations(range(len(utility)), 2):
        high, low = (i, j) if utility[i] >= utility[j] else (j, i)
        tie = math.isclose(utility[high], utility[low], abs_tol=1e-9)
        prob = 0.5 if tie else float(preference_prob(utility[high], utility[low]))
        found.append(Pair(high, low, prob=prob, tie=tie))
    return tuple(found)


@cache
def true_gamma(quality: str, groups: int = 4000) -> float:
    """Logits that one grade is worth: the slope that turns this world's grade gaps best into its true preferences.

    `argmin_gamma E[-p log sigmoid(gamma d) - (1 - p) log sigmoid(-gamma d)]`, p the known probability of a pair and d
    its grade gap, over pairs drawn from the world itself: a property of the world, of no model and no result.

    Args:
        quality: high, mixed or low.
        groups: prompts drawn, always the same ones.
    """
    kind = quality_of(quality)
    rng = np.random.default_rng([20_001, groups])
    gaps, probs = [], []
    for number in range(groups):
        group = graded_group(rng, write_prompt(rng), kind, 4, name=str(number), split="test")
        for pair in group.pairs:
            chosen, rejected = group.responses[pair.chosen].grade, group.responses[pair.rejected].grade
            assert chosen is not None
            assert rejected is not None
            assert pair.prob is not None
            gaps.append(chosen - rejected)
            probs.append(pair.prob)
    d, p = np.array(gaps), np.array(probs)
    gamma = 0.0
    for _ in range(50):  # Newton on a convex function of one variable
        q = preference_prob(gamma * d, 0.0)
        gamma += float((d * (p - q)).sum() / (d * d * q * (1 - q)).sum())
    return gamma


def _draw_writer(rng: np.random.Generator, quality: Quality) -> str:
    names = list(quality.writers)
    return names[rng.choice(len(names), p=[quality.writers[name] for name in names])]


def _distinct_prompts(rng: np.random.Generator) -> Iterator[str]:
    seen: set[str] = set()
    while True:
        prompt = write_prompt(rng)
        key = repr(parse_prompt(prompt))
        if key not in seen:
            seen.add(key)
            yield prompt
