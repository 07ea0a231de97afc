"""What was read, in the words that the terminal and the page share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def kept_of(read: int, kept: int) -> str:
    """How many rows were kept.

    Example:
        >>> kept_of(3, 3), kept_of(1200, 1100)
        ('all 3 kept', '1,100 of 1,200 kept')
    """
    return f"{kept:,} of {read:,} kept" if kept < read else f"all {read:,} kept"


def sizes(facts: Mapping[str, Any]) -> list[str]:
    """Rows, prompts, responses and pairs with their ties.

    Args:
        facts: of a survey.

    Example:
        >>> sizes({"groups": 2, "prompts": 1, "responses": 4, "pairs": 2, "ties": 1})
        ['2 rows', '1 prompt', '4 responses', '2 pairs (1 tie)']
    """
    parts = [_count(facts[name], word) for name, word in (("groups", "row"), ("prompts", "prompt"))]
    pairs = _count(facts["pairs"], "pair") + (f" ({_count(facts['ties'], 'tie')})" if facts["ties"] else "")
    return [*parts, _count(facts["responses"], "response"), pairs]


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def named_counts(counts: Mapping[str, int], most: int) -> str:
    """Names with their counts; of many the first, and how many more there are.

    Example:
        >>> named_counts({"train": 1000, "test": 50, "dev": 9}, 2)
        'train 1,000, test 50, and 1 more'
    """
    named = [f"{name} {count:,}" for name, count in counts.items()]
    more = [f"and {len(named) - most:,} more"] if len(named) > most else []
    return ", ".join([*named[:most], *more])


def plain(value: Any) -> str:
    """A value of a survey in a table cell.

    Example:
        >>> plain({"low": 0.12345, "n": 3})
        'low 0.123, n 3'
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def figures_of(facts: Mapping[str, Any], without: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Every figure of a survey by name; one of several figures gives a row each."""
    left_out = set(without)
    for name, value in facts.items():
        if name in left_out or value is None:
            continue
        if isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()):
            for key, inner in value.items():
                yield f"{name}, {key}", plain(inner)
        else:
            yield name, plain(value)
