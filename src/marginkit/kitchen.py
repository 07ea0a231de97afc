"""The texts of the built-in world: what is asked, what is written, and what it is worth. Pure numpy, no torch.

A prompt asks for a dish with three ingredients and without a fourth; a response is a few short sentences. What a
response is worth is read off its text by `true_utility`, for any text: the writers' and a trained policy's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from marginkit.errors import BadInput

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
