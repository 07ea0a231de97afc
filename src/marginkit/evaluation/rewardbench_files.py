"""The two files that the RewardBench leaderboards keep of a model, so that results can be compared and handed in.

eval-set/ORG/MODEL.json          subset -> accuracy (version 2: score), model, model_type, chat_template
eval-set-scores/ORG/MODEL.json   one list a column, one entry a row of the benchmark, and the same three names
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from marginkit.errors import BadInput
from marginkit.evaluation.rewardbench2 import Answers, best_of, ties_score
from marginkit.records import Group, content_text
from marginkit.tables import Scores

ModelType = Literal["Seq. Classifier", "DPO", "DPO Ref. Free", "Custom Classifier"]


def write_official(
    folder: str | Path,
    model: str,
    groups: Iterable[Group],
    scores: Scores,
    *,
    version: Literal[1, 2],
    model_type: ModelType,
    chat_template: str | None = None,
) -> list[Path]:
    """Write both files under `folder`.

    Args:
        folder: where `eval-set/` and `eval-set-scores/` are.
        model: what the model is called there, as ORG/NAME.
        groups: the benchmark, for its texts, in its order.
        scores: of the same groups; what could not be scored is not in the files.
        version: 1 or 2.
        model_type: the leaderboard's word for the kind of model.
        chat_template: the leaderboard's word for how texts were rendered; default `tokenizer`.

    Returns:
        The paths, accuracies first.

    Raises:
        BadInput: the name is not ORG/NAME, or nothing was scored.

    Deviations: texts are written plainly, prompt and response with an empty line between, not as the model's template
    renders them. As in the leaderboard's own files, `results` of rows of Ties is that of the first answer among all;
    the score in `eval-set` is by the rule for Ties.
    """
    org, name = org_and_name(model)
    columns = _pair_columns(groups, scores.pairs) if version == 1 else _answer_columns(groups, scores.responses)
    if not columns["id"]:
        raise BadInput("no row was scored: there is nothing to write")
    facts = {"model": model, "model_type": model_type, "chat_template": chat_template or "tokenizer"}
    written = []
    for kind, content in (("eval-set", subset_results(columns)), ("eval-set-scores", columns)):
        path = Path(folder) / kind / org / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**content, **facts}, indent=4, sort_keys=True), encoding="utf-8")
        written.append(path)
    return written


def org_and_name(model: str) -> tuple[str, str]:
    """The two parts of a model's name on the hub, neither of which leads out of a folder.

    Raises:
        BadInput: it is not ORG/NAME.

    Example:
        >>> org_and_name("my-org/my-model")
        ('my-org', 'my-model')
    """
    org, _, name = model.partition("/")
    if not org or not name or "/" in name or {org, name} & {".", ".."} or "\\" in model:
        raise BadInput(f"model name {model!r}: write ORG/NAME, as on the hub")
    return org, name


def subset_results(columns: Mapping[str, Any]) -> dict[str, float]:
    """What `eval-set` says, from the columns of `eval-set-scores`: the mean result of each subset.

    Rows of the Ties subset are judged together, by `ties_score`.

    Args:
        columns: `subset` and `results`; for a Ties subset `id`, `scores` and `num_correct` too.

    Example:
        >>> subset_results({"subset": ["hep-go", "hep-go", "math-prm"], "results": [1, 0, 1]})
        {'hep-go': 0.5, 'math-prm': 1.0}
    """
    subset, results = list(columns["subset"]), list(columns["results"])
    found: dict[str, float] = {}
    for name in sorted(set(subset)):
        rows = [row for row, own in enumerate(subset) if own == name]
        if name.lower() == "ties":
            found[name] = ties_score([_answers(columns, row) for row in rows]).score
        else:
            found[name] = float(np.mean([results[row] for row in rows]))
    return found


def _answers(columns: Mapping[str, Sequence[Any]], row: int) -> Answers:
    # some published files hold each score as a list of one
    rewards = [float(np.ravel(value)[0]) for value in columns["scores"][row]]
    correct = [place < int(columns["num_correct"][row]) for place in range(len(rewards))]
    return Answers(str(columns["id"][row]), rewards, correct)


def _pair_columns(groups: Iterable[Group], pairs: pa.Table) -> dict[str, list[Any]]:
    names = ("text_chosen", "text_rejected", "results", "subset", "id", "scores_chosen", "scores_rejected")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    by_group = {row["group"]: row for row in pairs.to_pylist()}
    for group in groups:
        row = by_group.get(group.id)
        if row is None:
            continue
        better, worse = row["reward_chosen"], row["reward_rejected"]
        texts = (_text(group, row["chosen"]), _text(group, row["rejected"]))
        number = int(group.id) if group.id.isdecimal() else group.id
        for name, value in zip(names, (*texts, int(better > worse), group.subset, number, better, worse), strict=True):
            columns[name].append(value)
    return columns


def _answer_columns(groups: Iterable[Group], responses: pa.Table) -> dict[str, list[Any]]:
    names = ("text", "scores", "results", "subset", "id", "num_correct")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    by_group: dict[str, list[float]] = {}
    for name, reward in zip(responses["group"].to_pylist(), responses["reward"].to_pylist(), strict=True):
        by_group.setdefault(name, []).append(reward)
    for group in groups:
        rewards = by_group.get(group.id)
        if rewards is None:
            continue
        texts = [_text(group, place) for place in range(len(rewards))]
        correct = sum(response.grade == 1 for response in group.responses)
        first = best_of(Answers(group.id, rewards, [place == 0 for place in range(len(rewards))]))
        for name, value in zip(names, (texts, rewards, first, group.subset, group.id, correct), strict=True):
            columns[name].append(value)
    return columns


def _text(group: Group, response: int) -> str:
    return f"{content_text(group.prompt)}\n\n{group.responses[response].text}"
