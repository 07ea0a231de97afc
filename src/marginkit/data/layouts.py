"""From one parsed row to one group: the four layouts a file may have, one small reader each.

A row comes in under known column names (`columns` has renamed them, or a dialect has translated the row). What breaks a
rule raises `RowRefused`; what is kept with a remark goes to `Rules.warn`. Nothing is guessed: a value that is not there
stays None.
"""

from __future__ import annotations

from collections.abc import Mapping

from marginkit.data import checks
from marginkit.data.checks import RowRefused, shown
from marginkit.data.multi_rows import multi_row
from marginkit.data.native_rows import native_row
from marginkit.data.pair_rows import pair_row
from marginkit.data.rows import Origin, Row, Rules, finish
from marginkit.records import Content, Group, Response

_COMMON = ("id", "split", "subset", "source", "cluster", "system", "tools")
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "native": ("format", *Group.__slots__),
    "multi-response": (*_COMMON, "prompt", "responses", "comparisons"),
    "pair": (
        *_COMMON,
        *("prompt", "chosen", "rejected", "score_chosen", "score_rejected", "margin", "target_gap", "p_chosen"),
        *("votes", "tie", "weight", "chosen_model", "rejected_model", "margin_scale"),
        *("aspects_chosen", "aspects_rejected", "ratings_chosen", "ratings_rejected"),
    ),
    "sft": (*_COMMON, "messages", "instruction", "input", "output", "prompt", "completion"),
}
RESPONSE_FIELDS = ("text", "content", "turns", "score", "grade", "ratings", "aspects", "utility", "model")
ALIASES: Mapping[str, str] = {
    "prompt_id": "id",
    "category": "subset",
    "origin": "source",
    **{
        alias: f"score_{side}"
        for side in ("chosen", "rejected")
        for alias in (
            *(f"{side}_rating", f"{side}_avg_rating", f"{side}_score", f"{side}_reward"),
            *(f"{side}-rating", f"{side}-avg-rating", f"rating_{side}"),
        )
    },
    **{f"{side}{name}": f"{side}_model" for side in ("chosen", "rejected") for name in ("_source", "-model")},
    "pair_weight": "weight",
    "precomputed_margin": "margin",
}
RESPONSE_ALIASES: Mapping[str, str] = {"source": "model"}


def detect(columns: set[str]) -> str | None:
    """The layout these (known) column names belong to, or None; native rows are multi-response rows that say so."""
    if "responses" in columns:
        return "multi-response"
    if {"chosen", "rejected"} <= columns:
        return "pair"
    if "messages" in columns or {"instruction", "output"} <= columns or {"prompt", "completion"} <= columns:
        return "sft"
    return None


def _sft_row(row: Row, origin: Origin, rules: Rules) -> Group:
    if row.get("messages") is not None:
        messages = row["messages"]
        if not isinstance(messages, list | tuple) or not messages:
            raise RowRefused("missing text", f"messages is {shown(messages)}", "give a list of chat turns")
        turns = checks.turns(messages, "messages")
        asked = next((at for at in reversed(range(len(turns))) if turns[at].role in ("user", "system")), -1) + 1
        said = checks.answer(turns[asked:], "messages")
        if not asked:
            raise RowRefused("missing prompt", "messages hold no user or system turn", "add the prompt")
        return finish(row, origin, turns[:asked], (Response(said),))
    if row.get("instruction") is not None or row.get("output") is not None:
        head, said = checks.text(row.get("instruction"), "instruction"), checks.content(row.get("output"), "output")
        more = checks.text(row["input"], "input") if row.get("input") else ""
        prompt: Content = f"{head}\n\n{more}" if more.strip() else head
        return finish(row, origin, checks.prompt(prompt, "instruction"), (Response(checks.answer(said, "output")),))
    if "completion" not in row:  # none of the layouts is filled in: name the one whose column is there
        checks.text(None, "messages" if "messages" in row else "output")
    said = checks.answer(checks.content(row.get("completion"), "completion"), "completion")
    return finish(row, origin, checks.prompt(row.get("prompt")), (Response(said),))


_READERS = {"native": native_row, "multi-response": multi_row, "pair": pair_row, "sft": _sft_row}


def to_group(layout: str, row: Row, origin: Origin, rules: Rules) -> Group:
    """Read one row of a layout.

    Raises:
        RowRefused: the first rule it breaks.
    """
    return _READERS[layout](row, origin, rules)
