"""Rows of the native form, read back as they were written; hand-made ones are held to the same types and ranges."""

from __future__ import annotations

from marginkit.data import checks
from marginkit.data.checks import RowRefused, shown
from marginkit.data.multi_rows import comparison
from marginkit.data.rows import Origin, Row, Rules
from marginkit.records import NATIVE_FORMAT, Comparison, Group, group_from_json


def native_row(row: Row, origin: Origin, rules: Rules) -> Group:
    """Read what `write_groups` wrote, as it is; a hand-made row is held to the same types and ranges."""
    if row.get("format") != NATIVE_FORMAT:
        rule = f"format is {shown(row.get('format'))}, not {shown(NATIVE_FORMAT)}"
        raise RowRefused("not the native form", rule, "write it with write_groups")
    try:
        group = group_from_json(row)
        _check_native(group)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise RowRefused(
            "not the native form", f"a field is missing or malformed ({what})", "write it with write_groups"
        ) from None
    return group


def _check_native(group: Group) -> None:
    names = (group.id, group.source, group.subset, group.split, group.cluster)
    if not isinstance(group.id, str) or not all(name is None or isinstance(name, str) for name in names):
        raise TypeError("id, source, subset, split and cluster are strings")
    contents = {"prompt": group.prompt} | {f"responses[{i}]": r.turns for i, r in enumerate(group.responses)}
    for key, said in contents.items():
        turns = (said,) if isinstance(said, str) else tuple(turn.content for turn in said)
        if not all(isinstance(words, str) for words in turns):
            raise TypeError(f"{key} is not text")
        if not isinstance(said, str):
            checks.turns([_turn_to_json(turn) for turn in said], key)
    if not group.responses:
        raise RowRefused("missing text", "responses is empty", "give at least one response")
    for at, response in enumerate(group.responses):
        checks.answer(response.turns, f"responses[{at}]")
        graded = {"grade": response.grade, "utility": response.utility} | dict(response.aspects)
        graded |= {f"ratings[{i}]": rating.value for i, rating in enumerate(response.ratings)}
        for name, value in graded.items():
            checks.number(value, f"responses[{at}].{name}")
    for at, c in enumerate(group.comparisons):
        comparison(
            {name: getattr(c, name) for name in Comparison.__slots__}, f"comparisons[{at}]", len(group.responses)
        )
    for at, pair in enumerate(group.pairs):
        key = f"pairs[{at}]"
        for name in ("chosen", "rejected"):
            checks.index(getattr(pair, name), f"{key}.{name}", len(group.responses))
        if pair.chosen == pair.rejected:
            raise RowRefused("identical responses", f"{key} pairs response {pair.chosen} with itself", "remove it")
        for name in ("strength", "target_gap"):
            checks.number(getattr(pair, name), f"{key}.{name}")
        checks.votes(pair.votes, f"{key}.votes")
        checks.probability(pair.prob, f"{key}.prob")
        checks.weight(pair.weight, f"{key}.weight")
        checks.flag(pair.tie, f"{key}.tie")
