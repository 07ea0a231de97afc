"""The built-in world: prompts, responses and raters of which everything is known. Pure numpy, no torch.

A prompt asks for a dish with three ingredients and without a fourth; a response is a few short sentences. What a
response is worth is read off its text by `true_utility`, for any text: the writers' and a trained policy's own.

Three things are known, each in one place:

- u, the utility of a response in logits: `true_utility(prompt, text)`;
- P(i is better than j) = sigmoid(u_i - u_j): a fresh rater's impression of a response is u + g, g ~ Gumbel(0, 1), and
  the rater prefers the response with the higher impression, which is Bradley-Terry exactly: `preference_prob`;
- the noise of a rating: the impression falls between fixed cuts, or the rater was careless: `rating_distribution`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group, Pair, Rating, Response

Array = npt.NDArray[np.float64]

DISHES = ("soup", "salad", "stew", "curry", "pie", "bowl")
ITEMS: tuple[str, ...] = (
    *("garlic", "lemon", "rice", "beans", "onion", "ginger", "spinach", "tofu"),
    *("potato", "carrot", "pepper", "mushroom", "tomato", "coconut", "cheese", "walnut"),
)
_ASKS = ("Cook a {}.", "Any {}?", "One {}!")
_VERBS = ("Chop", "Fry", "Boil", "Add", "Roast", "Stir")
_OPENINGS = ("Sure!", "With pleasure!", "Good idea!")
_CHATTER = ("Cooking is fun.", "My cat is asleep.", "It may rain today.", "I know many songs.")
_RUDE = ("Why even ask.", "Do it yourself.")

_PROMPT = re.compile(r"(\w+) with (\w+), (\w+) and (\w+), no (\w+)[.?!]")
_STEP = re.compile(rf"(?:{'|'.join(_VERBS)}) ({'|'.join(ITEMS)})\.")
_CLOSING = re.compile(rf"Enjoy the ({'|'.join(DISHES)})!")

WORTH: Mapping[str, float] = MappingProxyType(
    {
        "wanted": 0.9,  # an ingredient that was asked for, the first time
        "other": -0.4,  # one that nobody mentioned
        "unwanted": -1.8,  # the one that was ruled out
        "repeat": -0.4,  # any ingredient once more
        "opening": 0.3,  # a polite word, first of all and once
        "closing": 0.6,  # the right dish named in the end, once
        "wrong dish": -0.6,
        "chatter": -0.3,
        "rude": -1.0,
        "unreadable": -1.0,  # whatever is none of these, and an opening or closing in the wrong place
    }
)
"""Logits that each sentence adds to the utility of a response."""
LOWEST, HIGHEST = -5.0, 3 * WORTH["wanted"] + WORTH["opening"] + WORTH["closing"]
"""Utilities lie between these; a text without one readable sentence has the lowest."""

CUTS: tuple[float, ...] = (0.2, 1.4, 2.6, 3.8)
"""Impressions between which the grades 1 to 5 lie: grade = 1 + how many cuts the impression exceeds."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a prompt asks for."""

    dish: str
    wanted: tuple[str, ...]
    unwanted: str


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes a response: how likely each kind of sentence is."""

    wanted: float
    other: float
    unwanted: float
    opening: float
    closing: float
    chatter: float
    rude: float


WRITERS: Mapping[str, Writer] = MappingProxyType(
    {
        "careful": Writer(wanted=0.95, other=0.10, unwanted=0.02, opening=0.8, closing=0.9, chatter=0.05, rude=0.0),
        "plain": Writer(wanted=0.80, other=0.25, unwanted=0.08, opening=0.5, closing=0.7, chatter=0.20, rude=0.02),
        "hasty": Writer(wanted=0.60, other=0.40, unwanted=0.20, opening=0.3, closing=0.5, chatter=0.30, rude=0.06),
        "poor": Writer(wanted=0.40, other=0.55, unwanted=0.30, opening=0.2, closing=0.3, chatter=0.45, rude=0.15),
    }
)


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


def parse_prompt(prompt: str) -> Request:
    """What a prompt of this world asks for.

    Raises:
        BadInput: it is not one.

    Example:
        >>> parse_prompt("Cook a soup with garlic, lemon and rice, no cheese.")
        Request(dish='soup', wanted=('garlic', 'lemon', 'rice'), unwanted='cheese')
    """
    found = _PROMPT.search(prompt)
    if found is None:
        raise BadInput(f"{prompt!r} is no prompt of the built-in world: it names no dish, wanted and unwanted items")
    dish, *wanted, unwanted = found.groups()
    return Request(dish, tuple(wanted), unwanted)


def count_content(prompt: str, text: str) -> dict[str, int]:
    """How often each kind of sentence of `WORTH` is in a response.

    Example:
        >>> count_content("Any pie with tofu, rice and beans, no onion?", "Fry tofu. Add tofu.")
        {'wanted': 1, 'repeat': 1}
    """
    request = parse_prompt(prompt)
    counts: dict[str, int] = {}
    seen: set[str] = set()
    closed = False
    for position, sentence in enumerate(part.strip() for part in re.findall(r"[^.!?]+[.!?]*|[.!?]+", text.strip())):
        kind = "unreadable"
        if step := _STEP.fullmatch(sentence):
            item = step[1]
            fresh = "wanted" if item in request.wanted else "other"
            kind = "unwanted" if item == request.unwanted else "repeat" if item in seen else fresh
            seen.add(item)
        elif sentence in _OPENINGS and position == 0:
            kind = "opening"
        elif (closing := _CLOSING.fullmatch(sentence)) and not closed:
            kind = "closing" if closing[1] == request.dish else "wrong dish"
            closed = True
        elif sentence in _CHATTER:
            kind = "chatter"
        elif sentence in _RUDE:
            kind = "rude"
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def true_utility(prompt: str, text: str) -> float:
    """What a response is worth, in logits: `u = max(LOWEST, sum of WORTH over its sentences)`.

    Defined for every text. A sentence that is not of this world counts as unreadable, a repeated one as a repeat, so
    nothing is gained by length; a text with no readable sentence (the empty one too) has the lowest utility.

    Args:
        prompt: a prompt of this world.
        text: any text.

    Returns:
        Logits in [LOWEST, HIGHEST].

    Raises:
        BadInput: the prompt is not of this world.

    Example:
        >>> prompt = "Cook a soup with garlic, lemon and rice, no cheese."
        >>> round(true_utility(prompt, "Sure! Fry garlic. Add lemon. Boil rice. Enjoy the soup!"), 2)
        3.6
        >>> round(true_utility(prompt, "Fry cheese. Fry zzz"), 2), true_utility(prompt, "")
        (-2.8, -5.0)
    """
    counts = count_content(prompt, text)
    if not set(counts) - {"unreadable"}:
        return LOWEST
    return max(LOWEST, sum(WORTH[kind] * count for kind, count in counts.items()))


def write_prompt(rng: np.random.Generator) -> str:
    """A prompt drawn at random."""
    a, b, c, no = (ITEMS[at] for at in rng.permutation(len(ITEMS))[:4])
    dish = DISHES[rng.integers(len(DISHES))]
    return _ASKS[rng.integers(len(_ASKS))].format(f"{dish} with {a}, {b} and {c}, no {no}")


def write_response(rng: np.random.Generator, prompt: str, writer: Writer) -> str:
    """A response of a writer: steps in a random order of verbs, slips and chatter in between."""
    request = parse_prompt(prompt)
    rest = [item for item in ITEMS if item not in request.wanted and item != request.unwanted]
    used = [item for item in request.wanted if rng.random() < writer.wanted]
    used += [rest[rng.integers(len(rest))]] if rng.random() < writer.other else []
    used += [request.unwanted] if rng.random() < writer.unwanted else []
    used += [used[rng.integers(len(used))]] if used and rng.random() < writer.other / 2 else []
    body = [f"{_VERBS[rng.integers(len(_VERBS))]} {item}." for item in used]
    for chance, said in ((writer.chatter, _CHATTER), (writer.rude, _RUDE)):
        if rng.random() < chance:
            body.insert(int(rng.integers(len(body) + 1)), said[rng.integers(len(said))])
    if rng.random() < writer.opening:
        body.insert(0, _OPENINGS[rng.integers(len(_OPENINGS))])
    if not body or rng.random() < writer.closing:
        right = rng.random() < writer.wanted
        body.append(f"Enjoy the {request.dish if right else DISHES[rng.integers(len(DISHES))]}!")
    return " ".join(body)


# -- Raters


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
