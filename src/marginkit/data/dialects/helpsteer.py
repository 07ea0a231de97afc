"""HelpSteer 1, 2 and 3: five attributes of single responses, and signed strengths between two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marginkit.data.dialects.record import Dialect, Side, duel, held, listed, numeral
from marginkit.data.rows import Row, Rules
from marginkit.data.transcripts import marked

WEIGHTS: Mapping[str, float] = {
    "helpfulness": 0.65,
    "correctness": 0.8,
    "coherence": 0.45,
    "complexity": 0.55,
    "verbosity": -0.4,
}


def _prompt(row: Row) -> object:
    said = row.get("prompt")
    return marked(said) if isinstance(said, str) else said


def _attributes(row: Row, rules: Rules) -> Row:
    """One response; its grade is the weighted sum, where all five attributes are there."""
    aspects = {name: numeral(row.get(name), name) for name in WEIGHTS}
    known = {name: value for name, value in aspects.items() if value is not None}
    grade = sum(WEIGHTS[name] * value for name, value in known.items()) if len(known) == len(WEIGHTS) else None
    response = {"text": row.get("response"), "score": grade, "aspects": known}
    return {"prompt": _prompt(row), "responses": [response], "split": row.get("split")}


def _signed(prompt: object, texts: tuple[object, object], overall: float | None, single: list[Any]) -> dict[str, Any]:
    """A strength below 0 is for the first response; each annotator's strength is a rating, the other response at 0."""
    better = None if not overall else 0 if overall < 0 else 1
    toward = 1.0 if better == 1 else -1.0  # ratings are told of the better response, of the first in a tie
    values = [(at, numeral(value, "individual preference")) for at, value in enumerate(single, 1)]
    raters = [(f"annotator {at}", value) for at, value in values if value is not None]
    better_ratings = [{"rater": rater, "value": toward * value, "aspect": "preference"} for rater, value in raters]
    worse_ratings = [{"rater": rater, "value": 0.0, "aspect": "preference"} for rater, _ in raters]
    by_side = [worse_ratings, better_ratings] if better == 1 else [better_ratings, worse_ratings]
    sides = [Side(text, ratings=ratings) for text, ratings in zip(texts, by_side, strict=True)]
    return dict(duel(prompt, sides, better, margin=None if overall is None else abs(overall)))


def _preference(row: Row, rules: Rules) -> Row:
    single = [
        one.get("strength") if isinstance(one, Mapping) else None
        for one in listed(row.get("all_preferences_unprocessed") or [], "all_preferences_unprocessed")
    ]
    strength = numeral(row.get("preference_strength"), "preference_strength")
    made = _signed(_prompt(row), (row.get("response_1"), row.get("response_2")), strength, single)
    return made | {"split": row.get("split")}


def _third(row: Row, rules: Rules) -> Row:
    single = [
        one.get("score") if isinstance(one, Mapping) else None
        for one in listed(row.get("individual_preference") or [], "individual_preference")
    ]
    overall = numeral(row.get("overall_preference"), "overall_preference")
    made = _signed(row.get("context"), (row.get("response1"), row.get("response2")), overall, single)
    return made | {"subset": row.get("domain")}


_STRENGTH = (
    "strength = |preference|: below 0 response 1 is better, 0 is a tie; each annotator's strength is kept as a rating "
    "of the better response, with the other one at 0"
)

DIALECTS = (
    Dialect(
        "helpsteer",
        "multi-response",
        ("prompt", "response", *WEIGHTS),
        ("nvidia/HelpSteer", "nvidia/HelpSteer2"),
        ("split",),
        translate=_attributes,
        key=lambda row: held(row, "prompt"),
        notes=(
            "grade = "
            + " + ".join(f"{weight:g} {name}" for name, weight in WEIGHTS.items()).replace("+ -", "- ")
            + " (NVIDIA's weights for its 70B reward model); the five are kept as aspects",
        ),
    ),
    Dialect(
        "helpsteer2-preference",
        "pair",
        ("prompt", "response_1", "response_2", "preference_strength"),
        ("nvidia/HelpSteer2",),
        ("split", "all_preferences_unprocessed"),
        translate=_preference,
        notes=(_STRENGTH,),
    ),
    Dialect(
        "helpsteer3-preference",
        "pair",
        ("context", "response1", "response2", "overall_preference"),
        ("nvidia/HelpSteer3",),
        ("domain", "individual_preference"),
        translate=_third,
        notes=(_STRENGTH,),
    ),
)
