"""UltraFeedback and its relatives: four models a prompt, aspects as strings, and the sets made from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from marginkit.data.checks import RowRefused, shown
from marginkit.data.dialects.record import Dialect, entries_hold, listed, numeral
from marginkit.data.rows import Row, Rules, same
from marginkit.data.transcripts import asked
from marginkit.records import Response

DEFECT = "overall_score 10 for 1"
DOUBT = "doubtful overall_score 10"


def _aspects(completion: Row, key: str) -> dict[str, float]:
    """The ratings by aspect; "N/A" is absent."""
    found: dict[str, float] = {}
    annotations = completion.get("annotations") or {}
    if not isinstance(annotations, Mapping):
        raise RowRefused("malformed row", f"{key}.annotations is {shown(annotations)}", "give {aspect: {Rating}}")
    for name, said in annotations.items():
        value = said.get("Rating") if isinstance(said, Mapping) else None
        if value is None or (isinstance(value, str) and value.strip().upper() in ("N/A", "NA", "NONE", "")):
            continue
        rating = numeral(value, f"{key}.annotations.{name}.Rating")
        assert rating is not None
        found[str(name)] = rating
    return found


def _overall(completion: Row, aspects: Mapping[str, float], key: str, rules: Rules) -> float | None:
    """The overall score, with the released defect undone: 2,628 completions carry a 10 where a 1 was meant."""
    overall = numeral(completion.get("overall_score"), f"{key}.overall_score")
    if overall != 10:
        return overall
    fine = numeral(completion.get("fine-grained_score"), f"{key}.fine-grained_score")
    if fine is None:
        fine = statistics.fmean(aspects.values()) if aspects else math.nan
    if fine > 4:
        return overall
    if fine <= 2:
        rules.warn(DEFECT, f"{key} has overall_score 10, but its aspects average {fine:g} of 5", "read as 1")
        return 1.0
    said = "no aspect is rated" if math.isnan(fine) else f"its aspects average {fine:g} of 5"
    rules.warn(DOUBT, f"{key} has overall_score 10, but {said}", "left without a grade")
    return None


def _completion(value: object, key: str, rules: Rules) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise RowRefused("malformed response", f"{key} is {shown(value)}", "a completion is {response, ...}")
    aspects = _aspects(value, key)
    fine = numeral(value.get("fine-grained_score"), f"{key}.fine-grained_score")
    return {
        "text": value.get("response"),
        "score": _overall(value, aspects, key, rules),
        "aspects": aspects if fine is None else aspects | {"fine-grained": fine},
        "model": value.get("model"),
    }


def _original(row: Row, rules: Rules) -> Row:
    completions = listed(row.get("completions"), "completions")
    responses = [_completion(one, f"completions[{at}]", rules) for at, one in enumerate(completions)]
    return {"prompt": row.get("instruction"), "responses": responses, "subset": row.get("source")}


def _argilla(row: Row, rules: Rules) -> Row:
    sides = {f"score_{side}": numeral(row.get(f"{side}_avg_rating"), f"{side}_avg_rating") for side in _SIDES}
    models = {f"{side}_model": row.get(f"{side}_model") for side in _SIDES}
    texts = {side: row.get(f"{side}_response") for side in _SIDES}
    return {"prompt": row.get("instruction"), "subset": row.get("source"), **texts, **sides, **models}


_SIDES = ("chosen", "rejected")


def _chats_with_scores(columns: set[str], rows: Sequence[Row]) -> bool:
    return {"prompt_id", "messages"} <= columns or ("prompt" not in columns and isinstance(rows[0].get("chosen"), list))


def _sampled(row: Row, rules: Rules) -> Row:
    """All samples with their reward-model scores; the stored pair must be the best and the worst of them."""
    texts, scores = (listed(row.get(name), name) for name in ("all_generated_responses", "all_rm_scores"))
    if len(texts) != len(scores):
        rule = f"{len(texts)} all_generated_responses, but {len(scores)} all_rm_scores"
        raise RowRefused("malformed row", rule, "give one score a response")
    values = [numeral(score, f"all_rm_scores[{at}]") for at, score in enumerate(scores)]
    known = [value for value in values if value is not None]
    for side, extreme in (("chosen", max), ("rejected", min)):
        said = row.get(side)
        if isinstance(said, list | tuple) and said and isinstance(said[-1], Mapping):
            said = said[-1].get("content")
        if not known or not isinstance(said, str):
            continue
        ends = [text for text, value in zip(texts, values, strict=True) if value == extreme(known)]
        if not any(isinstance(text, str) and same(Response(text), Response(said)) for text in ends):
            rule = f"{side} is not the response of the {extreme.__name__}imal all_rm_scores"
            if rules.contradiction == "drop":
                fix = 'correct it, or set contradiction to "keep" to read the scores'
                raise RowRefused("contradiction", rule, fix)
            rules.warn("contradiction", rule, f"the scores are read (contradiction={rules.contradiction})")
    responses = [{"text": text, "score": value} for text, value in zip(texts, values, strict=True)]
    return {"id": row.get("prompt_id"), "prompt": row.get("prompt"), "responses": responses}


SPILLED = "answers with turns of the user"


def _nectar(row: Row, rules: Rules) -> Row:
    answers = listed(row.get("answers"), "answers")
    kept = []
    for at, answer in enumerate(answers):
        if not isinstance(answer, Mapping):
            raise RowRefused("malformed response", f"answers[{at}] is {shown(answer)}", "give {answer, rank}")
        said = answer.get("answer")
        if isinstance(said, str) and ("\n\nHuman:" in said or said.startswith("Human:")):
            rules.warn(SPILLED, f"answers[{at}] goes on with a Human: turn", "the answer is left out")
            continue
        rank = numeral(answer.get("rank"), f"answers[{at}].rank")
        kept.append({"text": said, "score": None if rank is None else 0.0 - rank, "model": answer.get("model")})
    if answers and not kept:
        raise RowRefused(SPILLED, "every answer goes on with a Human: turn", "remove the row")
    prompt = row.get("prompt")
    turns = asked(prompt) if isinstance(prompt, str) and prompt.startswith("\n\nHuman:") else prompt
    source = row.get("source")
    subset = source[0] if isinstance(source, list | tuple) and len(source) == 1 else source
    return {"prompt": turns, "responses": kept, "subset": subset}


DIALECTS = (
    Dialect(
        "ultrafeedback",
        "multi-response",
        ("instruction", "completions"),
        ("openbmb/UltraFeedback",),
        ("source",),
        translate=_original,
        marks=lambda columns, rows: entries_hold(rows, "completions", "response"),
        notes=(
            "grade = overall_score (1 to 10); ratings by aspect are kept as aspects; a 10 whose aspects average 2 or "
            "less is read as 1, above 4 it stays, between them the grade is left out",
            "each completion's own system prompt (custom_system_prompt) is not read",
        ),
    ),
    Dialect(
        "ultrafeedback-binarized",
        "pair",
        ("chosen", "rejected", "score_chosen", "score_rejected"),
        (
            "HuggingFaceH4/ultrafeedback_binarized",
            "trl-lib/ultrafeedback_binarized",
            "allenai/ultrafeedback_binarized_cleaned",
        ),
        marks=_chats_with_scores,
    ),
    Dialect(
        "ultrafeedback-argilla",
        "pair",
        ("instruction", "chosen_response", "rejected_response", "chosen_avg_rating", "rejected_avg_rating"),
        ("argilla/ultrafeedback-binarized-preferences", "argilla/ultrafeedback-binarized-avg-rating-for-dpo"),
        ("source", "chosen_model", "rejected_model"),
        translate=_argilla,
        notes=("grade = mean of the aspects' ratings",),
    ),
    Dialect(
        "ultrafeedback-argilla-cleaned",
        "pair",
        ("prompt", "chosen", "rejected", "chosen-rating", "rejected-rating"),
        ("argilla/ultrafeedback-binarized-preferences-cleaned",),
        notes=("grade = mean of the aspects' ratings",),
    ),
    Dialect(
        "simpo-on-policy",
        "multi-response",
        ("prompt", "all_generated_responses", "all_rm_scores"),
        (
            "princeton-nlp/llama3-ultrafeedback-armorm",
            "princeton-nlp/llama3-ultrafeedback",
            "princeton-nlp/gemma2-ultrafeedback-armorm",
            "princeton-nlp/mistral-instruct-ultrafeedback",
        ),
        ("prompt_id", "chosen", "rejected"),
        translate=_sampled,
        notes=("grade = all_rm_scores; chosen and rejected must be the best and the worst of them",),
    ),
    Dialect(
        "nectar",
        "multi-response",
        ("prompt", "answers"),
        ("berkeley-nest/Nectar",),
        ("source",),
        translate=_nectar,
        marks=lambda columns, rows: entries_hold(rows, "answers", "answer", "rank"),
        notes=("grade = -rank (1 is best)",),
    ),
)
