"""Rows of several graded responses to one prompt, with or without votes between them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from marginkit.data import checks
from marginkit.data.checks import RowRefused, shown
from marginkit.data.rows import Origin, Row, Rules, finish, label, same
from marginkit.records import Comparison, Group, Rating, Response


def _rating(value: object, key: str) -> Rating:
    rater, aspect = None, None
    if isinstance(value, Mapping):
        rater, aspect, value = label(value.get("rater")), label(value.get("aspect")), value.get("value")
    plain = checks.number(value, key)
    if plain is None:
        raise RowRefused("wrongly typed evidence", f"{key} is null", "leave out ratings that were not given")
    return Rating(rater, plain, aspect)


def ratings_of(value: object, key: str) -> tuple[Rating, ...]:
    """A list of ratings: plain numbers, or {rater, value, aspect}."""
    if value is None:
        return ()
    listed = value or ()
    if not isinstance(listed, list | tuple):
        raise RowRefused("wrongly typed evidence", f"{key} is {shown(listed)}, not a list", "give a list of numbers")
    return tuple(_rating(rating, f"{key}[{at}]") for at, rating in enumerate(listed))


def aspects_of(value: object, key: str) -> dict[str, float]:
    """Grades by aspect; those that are null are absent."""
    if value is None:
        return {}
    listed = value or {}
    if not isinstance(listed, Mapping):
        raise RowRefused("wrongly typed evidence", f"{key} is {shown(listed)}", "give {aspect: number}")
    if not all(isinstance(name, str) for name in listed):
        raise RowRefused("wrongly typed evidence", f"{key} is {shown(listed)}", "name aspects by strings")
    read = {name: checks.number(grade, f"{key}.{name}") for name, grade in listed.items()}
    return {name: grade for name, grade in read.items() if grade is not None}


def _response(value: object, key: str, rules: Rules) -> Response:
    if not isinstance(value, Mapping):
        raise RowRefused("malformed response", f"{key} is {shown(value)}", "a response is {text, score, ...}")
    row = rules.rename_response(value)
    name = next((name for name in ("text", "content", "turns") if row.get(name) is not None), "text")
    said = checks.answer(checks.content(row.get(name), f"{key}.{name}"), key)
    ratings = ratings_of(row.get("ratings"), f"{key}.ratings")
    field = "grade" if row.get("grade") is not None else "score"
    grade = checks.number(row.get(field), f"{key}.{field}")
    if grade is None and ratings:
        grade = statistics.fmean(rating.value for rating in ratings)
    return Response(
        turns=said,
        grade=grade,
        ratings=ratings,
        aspects=aspects_of(row.get("aspects"), f"{key}.aspects"),
        utility=checks.number(row.get("utility"), f"{key}.utility"),
        model=label(row.get("model")),
    )


def comparison(value: object, key: str, count: int) -> Comparison:
    """Votes between two of `count` responses, as [i, j, wins_i, wins_j, ties] or by name."""
    if isinstance(value, list | tuple) and len(value) in (4, 5):
        value = dict(zip(("i", "j", "wins_i", "wins_j", "ties"), value, strict=False))
    if not isinstance(value, Mapping):
        raise RowRefused("malformed comparison", f"{key} is {shown(value)}", "give [i, j, wins_i, wins_j, ties]")
    i, j = (checks.index(value.get(name), f"{key}.{name}", count) for name in ("i", "j"))
    if i == j:
        raise RowRefused("malformed comparison", f"{key} compares response {i} with itself", "remove it")
    counts = checks.votes([value.get("wins_i"), value.get("wins_j"), value.get("ties") or 0], key)
    assert counts is not None
    return Comparison(i, j, *counts, rater=label(value.get("rater")), order=label(value.get("order")))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _joined(twins: list[Response]) -> Response:
    """One response of several that say the same: the mean of their grades, all their ratings."""
    first = twins[0]
    if len(twins) == 1:
        return first
    aspects = {name: _mean(twin.aspects.get(name) for twin in twins) for twin in twins for name in twin.aspects}
    return replace(
        first,
        grade=_mean(twin.grade for twin in twins),
        ratings=tuple(rating for twin in twins for rating in twin.ratings),
        aspects={name: value for name, value in aspects.items() if value is not None},
        utility=_mean(twin.utility for twin in twins),
    )


def merge(responses: Iterable[Response], rules: Rules | None) -> tuple[list[Response], list[int]]:
    """Merge responses that say the same, to the mean of their grades, and remark on each.

    Args:
        responses: of one prompt.
        rules: where remarks go; None where equal texts are expected, as when each rating is a row.

    Returns:
        What is left, and where each response went.
    """
    kept: list[list[Response]] = []
    places: list[int] = []
    by_words: dict[str, list[int]] = {}
    for at, response in enumerate(responses):
        alike = by_words.setdefault(response.text.strip(), [])
        place = next((place for place in alike if same(kept[place][0], response)), len(kept))
        if place == len(kept):
            kept.append([response])
            alike.append(place)
        else:
            if rules is not None:
                graded = (kept[place][0].grade, kept[place][0].utility) == (response.grade, response.utility)
                which = "identical responses" if graded else "identical responses with different grades"
                rule = f"responses[{at}] says the same as responses[{places.index(place)}]"
                rules.warn(which, rule, "merged into one" if graded else "merged into one of their mean grade")
            kept[place].append(response)
        places.append(place)
    return [_joined(twins) for twins in kept], places


def moved(comparisons: Iterable[Comparison], places: Sequence[int]) -> tuple[Comparison, ...]:
    """Comparisons between where their responses went; those of equal responses are left out."""
    return tuple(
        replace(c, i=places[c.i], j=places[c.j], order=_moved_order(c, places))
        for c in comparisons
        if places[c.i] != places[c.j]
    )


def _moved_order(comparison: Comparison, places: Sequence[int]) -> str | None:
    """The order shown ("1,0": response 1 first) under the responses' new numbers; other words stay."""
    i, j, said = comparison.i, comparison.j, comparison.order
    orders = {f"{first},{second}": f"{places[first]},{places[second]}" for first, second in ((i, j), (j, i))}
    return None if said is None else orders.get(said.replace(" ", ""), said)


def multi_row(row: Row, origin: Origin, rules: Rules) -> Group:
    """One group of K responses; those that say the same are merged, to the mean of their grades."""
    prompt = checks.prompt(row.get("prompt"))
    listed, compared = row.get("responses"), row.get("comparisons") or ()
    if not isinstance(listed, list | tuple) or not listed:
        raise RowRefused("missing text", f"responses is {shown(listed)}", "give a list of at least one response")
    if not isinstance(compared, list | tuple):
        raise RowRefused("malformed comparison", f"comparisons is {shown(compared)}", "give a list")
    given = [_response(response, f"responses[{at}]", rules) for at, response in enumerate(listed)]
    votes = [comparison(value, f"comparisons[{at}]", len(given)) for at, value in enumerate(compared)]
    responses, places = merge(given, rules)
    compared = moved(votes, places)
    if len(compared) < len(votes):
        rule = f"{len(votes) - len(compared)} comparisons are between equal responses"
        rules.warn("comparison of equal responses", rule, "left out")
    return finish(row, origin, prompt, tuple(responses), comparisons=compared)
