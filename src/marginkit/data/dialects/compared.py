"""People who compared two responses, or rated one: SHP, WebGPT, summarize-from-feedback, alpaca_farm."""

from __future__ import annotations

import math
from collections.abc import Mapping

from marginkit.data.checks import RowRefused, shown
from marginkit.data.dialects.record import Dialect, Side, coded, duel, held, listed, numeral, pick
from marginkit.data.rows import Row, Rules

# ---------------------------------------------------------------------------------------------------------------------
# Stanford Human Preferences: up-votes of two comments


def _upvoted(row: Row, letter: str) -> Side:
    votes = numeral(row.get(f"score_{letter}"), f"score_{letter}")
    grade = None if votes is None else math.log(max(votes, 1.0))
    return Side(row.get(f"human_ref_{letter}"), grade, aspects={"upvotes": votes})


def _shp(row: Row, rules: Rules) -> Row:
    better = coded(numeral(row.get("labels"), "labels"), "labels", {1.0: 0, 0.0: 1})
    domain = row.get("domain")
    subset = domain.rpartition("_")[0] or domain if isinstance(domain, str) else None
    made = duel(row.get("history"), (_upvoted(row, "A"), _upvoted(row, "B")), better)
    return {**made, "subset": subset}


# ---------------------------------------------------------------------------------------------------------------------
# WebGPT and summarize-from-feedback


def _webgpt(row: Row, rules: Rules) -> Row:
    scores = [numeral(row.get(f"score_{at}"), f"score_{at}") for at in (0, 1)]
    sides = [Side(row.get(f"answer_{at}"), scores[at]) for at in (0, 1)]
    if scores[0] is None or scores[1] is None:
        raise RowRefused("missing evidence", "score_0 or score_1 is null", "remove the row")
    better = None if scores[0] == scores[1] else 0 if scores[0] > scores[1] else 1
    return {**duel(pick(row, "question.full_text"), sides, better), "subset": pick(row, "question.dataset")}


def _post(info: object) -> str:
    """The text to summarise, as the papers' models were given it."""
    post, article = pick(info, "post"), pick(info, "article")
    said = article if post is None else post
    if not isinstance(said, str) or not said.strip():
        raise RowRefused("missing prompt", f"info.post is {shown(post)}, and so is info.article", "remove the row")
    title, forum = pick(info, "title"), pick(info, "subreddit")
    head = f"SUBREDDIT: r/{forum}\n\n" if isinstance(forum, str) else ""
    head += f"TITLE: {title}\n\n" if isinstance(title, str) else ""
    return f"{head}{'POST' if post is not None else 'ARTICLE'}: {said}\n\nTL;DR:"


def _summaries(row: Row, rules: Rules) -> Row:
    two = listed(row.get("summaries"), "summaries")
    if len(two) != 2:
        raise RowRefused("malformed row", f"there are {len(two)} summaries", "a comparison is of two")
    choice = coded(row.get("choice"), "choice", {0: 0, 1: 1})
    said = numeral(pick(row, "extra.confidence"), "extra.confidence")
    if said is not None and not 1 <= said <= 9:
        raise RowRefused("evidence out of range", f"extra.confidence is {said:g}", "it runs from 1 to 9")
    strength = None if said is None else 5 - said if choice == 0 else said - 5
    sides = [Side(pick(summary, "text"), model=pick(summary, "policy")) for summary in two]
    made = duel(_post(row.get("info")), sides, choice, margin=strength)
    return {**made, "split": row.get("split"), "subset": pick(row, "info.site")}


def _axis(row: Row, rules: Rules) -> Row:
    axes = pick(row, "summary.axes") or {}
    if not isinstance(axes, Mapping):
        raise RowRefused("malformed row", f"summary.axes is {shown(axes)}", "give {axis: number}")
    values = {str(name): numeral(value, f"summary.axes.{name}") for name, value in axes.items()}
    known = {name: value for name, value in values.items() if value is not None}
    response = {
        "text": pick(row, "summary.text"),
        "score": known.get("overall"),
        "aspects": known,
        "ratings": [{"rater": row.get("worker"), "value": value, "aspect": name} for name, value in known.items()],
        "model": pick(row, "summary.policy"),
    }
    made = {"prompt": _post(row.get("info")), "responses": [response]}
    return {**made, "split": row.get("split"), "subset": pick(row, "info.site")}


# ---------------------------------------------------------------------------------------------------------------------
# alpaca_farm


def _alpaca_farm(row: Row, rules: Rules) -> Row:
    head, more = row.get("instruction"), row.get("input")
    prompt = f"{head}\n\n{more}" if isinstance(head, str) and isinstance(more, str) and more.strip() else head
    better = coded(numeral(row.get("preference"), "preference"), "preference", {1.0: 0, 2.0: 1})
    said = numeral(row.get("raw_preference"), "raw_preference")
    strength = None if said is None else 2.5 - said if better == 0 else said - 2.5
    return duel(prompt, [Side(row.get(f"output_{at}")) for at in (1, 2)], better, margin=strength)


DIALECTS = (
    Dialect(
        "shp",
        "pair",
        ("history", "human_ref_A", "human_ref_B", "score_A", "score_B", "labels"),
        ("stanfordnlp/SHP", "stanfordnlp/SHP-2"),
        ("domain",),
        translate=_shp,
        notes=(
            "labels: 1 is A; grade = ln(max(score, 1)), so that sigmoid(grade gap) is the share of the up-votes; the "
            "raw scores are kept as the aspect upvotes",
        ),
    ),
    Dialect(
        "webgpt",
        "pair",
        ("question", "answer_0", "answer_1", "score_0", "score_1"),
        ("openai/webgpt_comparisons",),
        translate=_webgpt,
        marks=lambda columns, rows: any(isinstance(row.get("question"), Mapping) for row in rows),
        repeats=True,
        notes=("grade = score_0 and score_1 (-1 to 1, one the negative of the other); equal scores are a tie",),
    ),
    Dialect(
        "summarize-from-feedback",
        "pair",
        ("info", "summaries", "choice"),
        ("openai/summarize_from_feedback",),
        ("extra", "split"),
        translate=_summaries,
        repeats=True,
        notes=(
            "strength = how far confidence (1 to 9) is from 5, toward the choice",
            "prompt = SUBREDDIT, TITLE and POST (or ARTICLE), then TL;DR:",
        ),
    ),
    Dialect(
        "summarize-from-feedback-axis",
        "multi-response",
        ("info", "summary"),
        ("openai/summarize_from_feedback",),
        ("worker", "split"),
        translate=_axis,
        marks=lambda columns, rows: any(isinstance(row.get("summary"), Mapping) for row in rows),
        key=lambda row: held(row, "info"),
        repeats=True,
        notes=(
            "grade = axes.overall (1 to 7), the mean over workers; every worker's axes are kept as ratings",
            "prompt = SUBREDDIT, TITLE and POST (or ARTICLE), then TL;DR:",
        ),
    ),
    Dialect(
        "alpaca-farm",
        "pair",
        ("instruction", "output_1", "output_2", "preference"),
        ("tatsu-lab/alpaca_farm",),
        ("input", "raw_preference"),
        translate=_alpaca_farm,
        marks=lambda columns, rows: (
            not {"generator_1", "generator_2"} & columns
            and all(
                str(row.get("preference")) in ("1", "2", "1.0", "2.0", "None") for row in rows
            )  # 0 and 1 are another code
        ),
        notes=("preference: 1 is output_1, 2 is output_2; strength = |raw_preference - 2.5| (1 to 4)",),
    ),
)
