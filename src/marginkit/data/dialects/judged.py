"""Judges that are models: AlpacaEval annotations, Prometheus, distilabel and what argilla made with it."""

from __future__ import annotations

from marginkit.data.checks import RowRefused, shown
from marginkit.data.dialects.record import Dialect, Side, coded, duel, listed, numeral
from marginkit.data.rows import Row, Rules


def _alpaca_eval(row: Row, rules: Rules) -> Row:
    """Preference = 1 + P(output_2 is better); the first annotator wrote 0 for a tie."""
    said = numeral(row.get("preference"), "preference")
    if said is None:
        raise RowRefused(
            "missing evidence", "preference is null: the judge's answer was not understood", "remove the row"
        )
    if said != 0 and not 1 <= said <= 2:
        rule = f"preference is {said:g}, outside [1, 2]"
        raise RowRefused("evidence out of range", rule, "it is 1 + P(output_2 is better), or 0 for a tie")
    second = 0.5 if said == 0 else said - 1
    better = None if second == 0.5 else int(second > 0.5)
    sides = [Side(row.get(f"output_{at}"), model=row.get(f"generator_{at}")) for at in (1, 2)]
    made = duel(row.get("instruction"), sides, better, p_chosen=max(second, 1 - second))
    return {**made, "subset": row.get("dataset")}


def _prometheus(row: Row, rules: Rules) -> Row:
    better = coded(row.get("orig_preference"), "orig_preference", {"A": 0, "B": 1, "TIE": None, "tie": None})
    names = [f"orig_score_{letter}" for letter in "AB"]
    scores = [numeral(row.get(name), name) for name in names]
    sides = [Side(row.get(f"orig_response_{letter}"), scores["AB".index(letter)]) for letter in "AB"]
    return duel(row.get("orig_instruction"), sides, better)


def _distilabel(row: Row, rules: Rules) -> Row:
    texts, ratings = (listed(row.get(name), name) for name in ("generations", "ratings"))
    if len(texts) != len(ratings):
        rule = f"{len(texts)} generations, but {len(ratings)} ratings"
        raise RowRefused("malformed row", rule, "give one rating a generation, or null")
    models = next((row[name] for name in ("generation_models", "model_names") if row.get(name) is not None), None)
    models = [None] * len(texts) if models is None else listed(models, "generation_models")
    if len(models) != len(texts):
        rule = f"{len(texts)} generations, but {len(models)} models"
        raise RowRefused("malformed row", rule, "give one model a generation")
    responses = [
        {"text": text, "score": numeral(rating, f"ratings[{at}]"), "model": models[at]}
        for at, (text, rating) in enumerate(zip(texts, ratings, strict=True))
    ]
    return {"prompt": row.get("instruction"), "responses": responses, "system": row.get("system_prompt")}


def _orca(row: Row, rules: Rules) -> Row:
    """rating[i] is of generations[i], whose place in the pair is order[i]."""
    ratings = listed(row.get("rating") or [], "rating")
    order = listed(row.get("order") or [], "order")
    if len(ratings) not in (0, 2) or (ratings and sorted(map(str, order)) != ["chosen", "rejected"]):
        rule = f"rating is {shown(ratings)}, order is {shown(order)}"
        raise RowRefused("malformed row", rule, "give two ratings, one of chosen and one of rejected")
    scores = {side: numeral(rating, "rating") for side, rating in zip(order, ratings, strict=False)}
    stored = numeral(row.get("chosen_score"), "chosen_score")
    if stored is not None and scores.get("chosen") not in (None, stored):
        rule = f"chosen_score is {stored:g}, but the rating of chosen is {scores['chosen']:g}"
        raise RowRefused("two grades of one response", rule, "correct the row")
    return {
        "system": row.get("system"),
        "prompt": row.get("input"),
        "chosen": row.get("chosen"),
        "rejected": row.get("rejected"),
        "score_chosen": scores.get("chosen", stored),
        "score_rejected": scores.get("rejected"),
    }


DIALECTS = (
    Dialect(
        "alpaca-eval",
        "pair",
        ("instruction", "output_1", "output_2", "generator_1", "generator_2", "preference"),
        ("tatsu-lab/alpaca_eval",),
        ("dataset",),
        translate=_alpaca_eval,
        notes=("P(output_2 is better) = preference - 1; 0 and 1.5 are ties; output_1 is the reference",),
    ),
    Dialect(
        "prometheus",
        "pair",
        ("orig_instruction", "orig_response_A", "orig_response_B", "orig_preference"),
        ("prometheus-eval/Preference-Collection",),
        ("orig_score_A", "orig_score_B"),
        translate=_prometheus,
        notes=("grade = orig_score_A and orig_score_B (1 to 5)",),
    ),
    Dialect(
        "distilabel",
        "multi-response",
        ("instruction", "generations", "ratings"),
        reads=("generation_models", "model_names", "system_prompt"),
        translate=_distilabel,
        notes=("grade = ratings",),
    ),
    Dialect(
        "orca-argilla",
        "pair",
        ("input", "chosen", "rejected", "generations", "order", "rating"),
        ("argilla/distilabel-intel-orca-dpo-pairs",),
        ("system", "chosen_score"),
        translate=_orca,
        notes=("grade = rating, placed by order",),
    ),
)
