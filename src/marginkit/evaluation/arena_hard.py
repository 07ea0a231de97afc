"""Arena-Hard: the two games of each question to a win rate against the baseline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import Array, estimates, of_sums, ratio
from marginkit.evaluation.judgment_files import JudgedRow, Paths, read_rows
from marginkit.records import Estimate

WEIGHT = 3
"""How often a strong verdict counts."""
RULES = ("v2", "v0.1")
V01 = "arena-hard-v0.1"
BASELINES = {
    "hard_prompt": "o3-mini-2025-01-31",
    "coding": "o3-mini-2025-01-31",
    "math": "o3-mini-2025-01-31",
    "creative_writing": "gemini-2.0-flash-001",
    V01: "gpt-4-0314",
}
"""The baseline of each category, where a row does not name one."""
LABELS = {
    "A>B": (1.0,),
    "A>>B": (1.0,) * WEIGHT,
    "A=B": (0.5,),
    "A<<B": (0.0,) * WEIGHT,
    "A<B": (0.0,),
    "B>A": (0.0,),
    "B>>A": (0.0,) * WEIGHT,
    "B=A": (0.5,),
    "B<<A": (1.0,) * WEIGHT,
    "B<A": (1.0,),
}
"""What a verdict says of the one shown first (A): 1 it won, counted three times where the verdict is strong."""
UPSTREAM_DRAWS = 100
_VERDICTS = (re.compile(r"\[\[([AB<>=]+)\]\]"), re.compile(r"\[([AB<>=]+)\]"))


def read_verdict(judgment: str) -> str | None:
    """The label in a judgment: the last `[[...]]` of A, B, <, > and =, else the last `[...]`; None where there is none.

    Example:
        >>> read_verdict("[[A>B]] no, rather [[b>>a]]"), read_verdict("so [A=B]"), read_verdict("A is better")
        ('B>>A', 'A=B', None)

    Source: arena-hard-auto gen_judgment.py (v2), over the upper-cased text.
    """
    for pattern in _VERDICTS:
        found = pattern.findall(judgment.upper())
        if found:
            return str(found[-1])
    return None


def verdict_scores(first: str | None, second: str | None, rule: str = "v2") -> tuple[float, ...]:
    """What the two games of a question say of the model: scores in [0, 1], strong verdicts three times.

    In the first game A is the baseline and B the model, in the second they are swapped: the list is that of the second,
    then one minus that of the first.

    Args:
        first: label of the first game; None where it has no verdict.
        second: of the second.
        rule: `v2`: a game without a verdict drops the question; `v0.1`: it drops that game alone.

    Raises:
        BadInput: a label that is none.

    Example:
        >>> verdict_scores("B>>A", "A>B"), verdict_scores("A=B", "B>A"), verdict_scores(None, "A>B")
        ((1.0, 1.0, 1.0, 1.0), (0.0, 0.5), ())

    Source: arena-hard-auto show_result.py.
    """
    for label in (first, second):
        if label is not None and label not in LABELS:
            raise BadInput(f"the label {label!r} is none of {', '.join(LABELS)}")
    if rule == "v2" and (first is None or second is None):
        return ()
    own = () if second is None else LABELS[second]
    return own + (() if first is None else tuple(1 - score for score in LABELS[first]))


@dataclass(frozen=True, slots=True)
class Battles:
    """The verdicts of one model in one category, one row a verdict.

    Args:
        model: who was judged.
        category: of the questions.
        baseline: against whom.
        judge: by whom.
        question: `[row]`, whose verdict it is.
        score: `[row]`, in [0, 1].
        questions: how many have a verdict.
        missing: questions without, left out (v0.1: games).
        rule: how it was read, `v2` or `v0.1`.
    """

    model: str
    category: str
    baseline: str
    judge: str
    question: list[str]
    score: Array
    questions: int
    missing: int
    rule: str


@dataclass(frozen=True, slots=True)
class Upstream:
    """A number with the interval that the benchmark's own script prints.

    Args:
        value: mean (with style control: median) of the bootstraps.
        low: lower end.
        high: upper end.
        level: coverage that is aimed at: .90, v0.1 .95.
    """

    value: float
    low: float
    high: float
    level: float

    def to_json(self) -> dict[str, float]:
        """Plain numbers."""
        return {name: getattr(self, name) for name in ("value", "low", "high", "level")}

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


@dataclass(frozen=True, slots=True)
class ArenaHardModel:
    """Win rate of one model in one category, in percent.

    Args:
        model: who was judged.
        category: of the questions.
        baseline: against whom; its own rate is 50.
        judge: by whom.
        score: percent, with our 95% interval over questions.
        upstream: percent, as Arena-Hard prints it: 100 bootstraps of verdicts, not of questions, so too narrow.
        questions: how many count.
        missing: questions without both verdicts, left out (v0.1: games).
        verdicts: rows; a strong verdict is three.
    """

    model: str
    category: str
    baseline: str
    judge: str
    score: Estimate
    upstream: Upstream
    questions: int
    missing: int
    verdicts: int

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, estimates as they are elsewhere."""
        names = ("model", "category", "baseline", "judge", "questions", "missing", "verdicts")
        found = {name: getattr(self, name) for name in names}
        return found | {"score": self.score.to_json(), "upstream": self.upstream.to_json()}


_Judged = dict[str, tuple[JudgedRow, tuple[float, ...], int]]
"""Question -> its row, its scores, and what is missing."""


def read_battles(paths: Paths, *, rule: str | None = None, judge: str | None = None) -> list[Battles]:
    """Read judgments, by category and model.

    Args:
        paths: `model_judgment/JUDGE/MODEL.jsonl`: `uid, category, judge, model, baseline, games` (v0.1: `question_id`
            without category and baseline); a game's `score` is its label, or null, or read from its `judgment`.
        rule: see `verdict_scores`; None takes v0.1 for rows named `question_id`, else v2.
        judge: whose judgments to take where the files hold several.

    Raises:
        BadInput: a key is missing, an unknown label, a question twice for one model, several judges or baselines.
    """
    rows = read_rows(paths)
    rule = rule or ("v2" if "uid" in rows[0].value else "v0.1")
    if rule not in RULES:
        raise BadInput(f"rule={rule!r}: is {' or '.join(RULES)}")
    judges = sorted({row.name("judge") for row in rows})
    if judge is None and len(judges) > 1:
        raise BadInput(f"the files hold judgments of {', '.join(judges)}; choose one with --judge")
    if judge is not None and judge not in judges:
        raise BadInput(f"no judgment of {judge!r}; the judges are {', '.join(judges)}")
    found: dict[tuple[str, str], _Judged] = {}
    for row in rows:
        if judge is not None and row.name("judge") != judge:
            continue
        category = row.name("category") if "category" in row.value else V01
        name = str(row.identifier("uid" if "uid" in row.value else "question_id"))
        questions = found.setdefault((category, row.name("model")), {})
        if name in questions:
            row.refuse(f"question {name} of {row.text('model')} was there before; the file was appended to, keep one")
        labels = _labels(row)
        try:
            scores = verdict_scores(*labels, rule)
        except BadInput as error:
            row.refuse(str(error))
        without = sum(label is None for label in labels)
        questions[name] = (row, scores, without if rule == "v0.1" else int(without > 0))
    return [_battles(category, model, questions, rule) for (category, model), questions in found.items()]


def _labels(row: JudgedRow) -> tuple[str | None, str | None]:
    games = row.get("games")
    if not isinstance(games, list) or len(games) != 2:
        row.refuse(f"'games' has {len(games) if isinstance(games, list) else 'no list of'} games; a question has two")
    found: list[str | None] = []
    for number, game in enumerate(games, 1):
        if game is None:
            found.append(None)
            continue
        if not isinstance(game, dict) or not {"score", "judgment"} & set(game):
            row.refuse(f"game {number} has no 'score'")
        label = game["score"] if "score" in game else read_verdict(str(game["judgment"]))
        if label is not None and not isinstance(label, str):
            row.refuse(f"the 'score' of game {number} is a label such as A>B, or null")
        found.append(label)
    return found[0], found[1]


def _baseline(row: JudgedRow, category: str) -> str:
    return row.name("baseline") if row.value.get("baseline") is not None else BASELINES.get(category, "")


def _battles(category: str, model: str, questions: _Judged, rule: str) -> Battles:
    first = next(iter(questions.values()))[0]
    baselines = {_baseline(row, category) for row, _, _ in questions.values()}
    if len(baselines) > 1 or not next(iter(baselines)):
        first.refuse(f"{model}, {category}: the baseline is not one ({', '.join(sorted(baselines))})")
    names = [name for name, (_, scores, _) in questions.items() for _ in scores]
    scores = np.asarray([score for _, scores, _ in questions.values() for score in scores])
    missing = sum(without for _, _, without in questions.values())
    if not len(scores):
        first.refuse(f"{model}, {category}: none of its {len(questions)} questions has a verdict")
    baseline = next(iter(baselines))
    return Battles(model, category, baseline, first.name("judge"), names, scores, len(set(names)), missing, rule)


def score_arena_hard(battles: Sequence[Battles], *, resamples: int = 1000, seed: int = 0) -> list[ArenaHardModel]:
    """Win rate of each model in each category: 100 mean of its verdicts, strong ones counted three times.

    Against one common baseline this equals the Bradley-Terry win rate of v0.1's script.

    Args:
        battles: what `read_battles` gave.
        resamples: of our bootstrap over questions.
        seed: of both bootstraps; upstream's is not seeded, its last digit moves.

    Returns:
        By category, the best first.

    Source: arena-hard-auto show_result.py. Deviation: `score` is the mean itself, not that of 100 bootstraps, and its
    interval is over questions: the two games and three copies of a verdict are not independent.
    """
    found = []
    for one in battles:
        level = 0.9 if one.rule == "v2" else 0.95
        score = estimates(
            {"score": of_sums(_percent, one.score, np.ones_like(one.score))}, np.asarray(one.question),
            resamples=resamples, seed=seed,
        )["score"]  # fmt: skip
        generator = np.random.default_rng(seed)
        rows = generator.integers(len(one.score), size=(UPSTREAM_DRAWS, len(one.score)))
        upstream = _upstream(100 * one.score[rows].mean(1), level, np.mean)
        found.append(
            ArenaHardModel(
                one.model,
                one.category,
                one.baseline,
                one.judge,
                score,
                upstream,
                one.questions,
                one.missing,
                len(one.score),
            )
        )
    return sorted(found, key=lambda one: (one.category, -one.score.value))


def _percent(total: Array) -> Array:
    return 100 * ratio(total[..., 0], total[..., 1])


def _upstream(drawn: Array, level: float, centre: Any) -> Upstream:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Upstream(float(centre(drawn)), float(low), float(high), level)
