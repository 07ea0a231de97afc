"""The texts of the pairs a model is most wrong about, kept beside its tables: a page needs neither data nor model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from marginkit.evaluation.mistakes import Mistake, confident_mistakes
from marginkit.groups import Groups
from marginkit.records import Content, Group
from marginkit.rundir import write_whole
from marginkit.tables import Scores

FILE = "mistakes.jsonl"
LONGEST = 2000


def write_mistakes(groups: Groups, scores: Scores, folder: Path) -> Path | None:
    """Write `mistakes.jsonl` into a folder of tables: at most 200 pairs, 2,000 characters of each text.

    The first line holds how many mistakes there are in all. None of it is ever sent to the hub.

    Args:
        groups: what was scored.
        scores: the tables.
        folder: where they are.

    Returns:
        The file; None where there are no pairs.
    """
    if not scores.pairs.num_rows:
        return None
    found, count = confident_mistakes(scores.pairs)
    wanted = {one.group for one in found}
    places = {name: at for at, name in enumerate(groups.column("id")) if name in wanted}
    lines = [json.dumps({"mistakes": count, "shown": len(found), "pairs": scores.pairs.num_rows})]
    for one in found:
        place = places.get(one.group)
        if place is not None:
            lines.append(json.dumps(_row(groups[place], one), ensure_ascii=True))
    target = folder / FILE
    write_whole(target, "\n".join(lines) + "\n")
    return target


def _row(group: Group, one: Mistake) -> dict[str, Any]:
    pair = group.pairs[one.pair]
    chosen, rejected = group.responses[pair.chosen], group.responses[pair.rejected]
    texts = {"prompt": _with_roles(group.prompt), "chosen": chosen.text, "rejected": rejected.text}
    clipped = sum(max(0, len(text) - LONGEST) for text in texts.values())
    graded = {"grade_chosen": chosen.grade, "grade_rejected": rejected.grade, "strength": pair.strength}
    told = {"group": group.id, "source": group.source, "gap": one.gap, "prob": one.prob, "label": one.label}
    evidence = {name: value for name, value in graded.items() if value is not None}
    votes = None if pair.votes is None else list(pair.votes)
    return told | evidence | {"votes": votes, "clipped": clipped} | {k: text[:LONGEST] for k, text in texts.items()}


def _with_roles(prompt: Content) -> str:
    """A prompt as it would be read out: one turn after the other, each with who says it."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt)
