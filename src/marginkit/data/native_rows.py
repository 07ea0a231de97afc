"""Rows of the native form, read back as they were written; hand-made ones are held to the same types and ranges."""

from __future__ import annotations

from collections.abc import Iterator

from marginkit.data import checks
from marginkit.data.checks import RowRefused, shown
from marginkit.data.multi_rows import comparison
from marginkit.data.rows import Origin, Row, Rules
from marginkit.records import NATIVE_FORMAT, Comparison, Group, Pair, Turn, group_from_json

_LARGEST = 2**53


def native_row(row: Row, origin: Origin, rules: Rules) -> Group:
    """Read what `write_groups` wrote, as it is; a hand-made row is held to the same types and ranges."""
    if row.get("format") != NATIVE_FORMAT:
        rule = f"format is {shown(row.get('format'))}, not {shown(NATIVE_FORMAT)}"
        raise RowRefused("not the native form", rule, "write it with write_groups")
    try:
        group = group_from_json(row)
        _check_native(group)
        if any(isinstance(value, int) and abs(value) > _LARGEST for value in _numbers(group)):
            raise TypeError("a number is an integer beyond 2^53, which no float can hold exactly")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise RowRefused("not the native form", f"malformed: {what}", "write it with write_groups") from None
    return group


def _check_native(group: Group) -> None:
    if group.id is None or not _names(group.id, group.source, group.subset, group.split, group.cluster):
        raise TypeError("id, source, subset, split and cluster are strings")
    contents = {"prompt": group.prompt} | {f"responses[{i}]": r.turns for i, r in enumerate(group.responses)}
    for key, said in contents.items():
        if isinstance(said, str):
            checks.text(said, key)
        else:
            checks.turns([{name: getattr(turn, name) for name in Turn.__slots__} for turn in said], key)
            if not all(isinstance(turn.content, str) for turn in said):
                raise TypeError(f"a turn of {key} is not text")
    if not group.responses:
        raise RowRefused("missing text", "responses is empty", "give at least one response")
    for at, response in enumerate(group.responses):
        key = f"responses[{at}]"
        checks.answer(response.turns, key)
        if not _names(response.model, *(name for r in response.ratings for name in (r.rater, r.aspect))):
            raise TypeError(f"model, rater and aspect of {key} are strings")
        checks.number(response.grade, f"{key}.grade")
        checks.number(response.utility, f"{key}.utility")
        if not _names(*response.aspects):
            raise TypeError(f"aspects of {key} are named by strings")
        for name, value in response.aspects.items():
            _present(checks.number(value, f"{key}.aspects.{name}"), f"{key}.aspects.{name}")
        for rating in response.ratings:
            _present(checks.number(rating.value, f"{key}.ratings.value"), f"{key}.ratings.value")
    for at, c in enumerate(group.comparisons):
        read = comparison(
            {name: getattr(c, name) for name in Comparison.__slots__}, f"comparisons[{at}]", len(contents) - 1
        )
        if read != c:
            raise TypeError(f"comparisons[{at}] holds values of the wrong type")
    for at, pair in enumerate(group.pairs):
        _check_pair(pair, f"pairs[{at}]", len(group.responses))


def _check_pair(pair: Pair, key: str, count: int) -> None:
    for name in ("chosen", "rejected"):
        checks.index(getattr(pair, name), f"{key}.{name}", count)
    if pair.chosen == pair.rejected:
        raise RowRefused("identical responses", f"{key} pairs response {pair.chosen} with itself", "remove it")
    for name in ("strength", "target_gap"):
        checks.number(getattr(pair, name), f"{key}.{name}")
    if pair.votes is not None and len(pair.votes) != 3:
        raise TypeError(f"{key}.votes are three counts: for, against, ties")
    checks.votes(pair.votes, f"{key}.votes")
    checks.probability(pair.prob, f"{key}.prob")
    checks.weight(_present(pair.weight, f"{key}.weight"), f"{key}.weight")
    if not isinstance(pair.tie, bool):
        raise TypeError(f"{key}.tie is true or false")


def _numbers(group: Group) -> Iterator[object]:
    for response in group.responses:
        yield response.grade
        yield response.utility
        yield from response.aspects.values()
        yield from (rating.value for rating in response.ratings)
    for compared in group.comparisons:
        yield from (compared.wins_i, compared.wins_j, compared.ties)
    for pair in group.pairs:
        yield from (pair.strength, pair.target_gap, pair.prob, pair.weight, *(pair.votes or ()))


def _names(*names: object) -> bool:
    return all(name is None or isinstance(name, str) for name in names)


def _present(value: object, key: str) -> object:
    if value is None:
        raise TypeError(f"{key} is null")
    return value
