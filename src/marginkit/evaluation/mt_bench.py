"""MT-Bench: the judgments that FastChat writes to scores, single answers and pairs."""

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

REPEATS = ("last", "all")
WINNERS = ("model_1", "model_2", "tie", "error")
SCALE = (1.0, 10.0)
_RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
_RATING_ELSE = re.compile(r"\[(\d+\.?\d*)\]")


def read_rating(judgment: str) -> float | None:
    """The score in a judgment: the first `[[x]]`, else the first `[x]`; None where there is none (upstream: -1).

    Example:
        >>> read_rating("Good. Rating: [[7.5]] [[3]]"), read_rating("[2] of [[a]]"), read_rating("seven")
        (7.5, 2.0, None)

    Source: FastChat fastchat/llm_judge/common.py, run_judge_single.
    """
    found = _RATING.search(judgment) or _RATING_ELSE.search(judgment)
    return None if found is None else float(found.group(1))


@dataclass(frozen=True, slots=True)
class MtBenchModel:
    """Scores of one model, from 1 to 10, with intervals over questions (both turns of a question together).

    Args:
        model: who was judged.
        turn_1: mean score of the first turns.
        turn_2: of the second turns; n = 0 where there are none.
        average: of all rows; not the mean of the two where rows are missing.
        questions: how many have a score.
        unread: judgments without a score (-1), left out.
        repeated: rows that a later one replaces (or, as upstream, that count again).
        off_scale: scores outside 1 to 10, counted like the others.
    """

    model: str
    turn_1: Estimate
    turn_2: Estimate
    average: Estimate
    questions: int
    unread: int
    repeated: int
    off_scale: int

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, estimates as they are elsewhere."""
        counts = ("model", "questions", "unread", "repeated", "off_scale")
        estimated = ("turn_1", "turn_2", "average")
        return {name: getattr(self, name) for name in counts} | {n: getattr(self, n).to_json() for n in estimated}


@dataclass(frozen=True, slots=True)
class MtBench:
    """Scores of all models in the files, the best average first.

    Args:
        judge: who judged.
        repeats: `last` or `all`.
        models: one entry each.
    """

    judge: str
    repeats: str
    models: list[MtBenchModel]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, estimates as they are elsewhere."""
        return {"judge": self.judge, "repeats": self.repeats, "models": [model.to_json() for model in self.models]}


def score_mt_bench(
    paths: Paths, *, judge: str | None = None, repeats: str = "last", resamples: int = 1000, seed: int = 0
) -> MtBench:
    """Turn-1, turn-2 and average score of every model in `*_single.jsonl`.

    Each is the mean over rows, rows with score -1 left out; the average is over the rows of both turns.

    Args:
        paths: FastChat's judgments: `question_id, model, judge, score, turn`; where there is no `score` it is
            read from the `judgment`.
        judge: whose judgments to take where the files hold several.
        repeats: FastChat appends, so judging twice doubles rows. `last` keeps the last one of each (model, question,
            turn); `all` counts them all, as upstream.
        resamples: of the bootstrap over questions.
        seed: of the bootstrap.

    Raises:
        BadInput: a key is missing, several judges, or no row has a score.

    Source: FastChat fastchat/llm_judge/show_result.py. Deviation: repeated rows, and intervals, which it has none of.
    """
    if repeats not in REPEATS:
        raise BadInput(f"repeats={repeats!r}: is {' or '.join(REPEATS)}")
    rows, name = _of_one_judge(read_rows(paths), judge)
    by_model: dict[str, list[tuple[str | int, int, float]]] = {}
    for row in rows:
        entry = (row.identifier("question_id"), _turn(row), _score(row))
        by_model.setdefault(row.name("model"), []).append(entry)
    found = [_model(model, entries, repeats, resamples, seed) for model, entries in by_model.items()]
    return MtBench(name, repeats, sorted(found, key=lambda one: -one.average.value))


def _turn(row: JudgedRow) -> int:
    turn = row.number("turn")
    if turn not in (1, 2):
        row.refuse(f"'turn' is {turn:g}; it is 1 or 2")
    return int(turn)


def _score(row: JudgedRow) -> float:
    if "score" not in row.value and "judgment" in row.value:
        rating = read_rating(row.text("judgment"))
        return -1.0 if rating is None else rating
    return row.number("score")


def _model(
    model: str, entries: Sequence[tuple[str | int, int, float]], repeats: str, resamples: int, seed: int
) -> MtBenchModel:
    last = {(question, turn): score for question, turn, score in entries}
    repeated = len(entries) - len(last)
    kept = [(q, t, s) for (q, t), s in last.items()] if repeats == "last" else list(entries)
    scored = [entry for entry in kept if entry[2] != -1]
    if not scored:
        raise BadInput(f"{model}: none of its {len(entries)} judgments has a score; was the judge's answer cut short?")
    turn = np.asarray([entry[1] for entry in scored])
    score = np.asarray([entry[2] for entry in scored])
    questions = np.asarray([str(entry[0]) for entry in scored])
    parts = {"turn_1": turn == 1, "turn_2": turn == 2, "average": turn > 0}
    asked = {name: of_sums(_mean, score * part, part) for name, part in parts.items() if part.any()}
    found = estimates(asked, questions, resamples=resamples, seed=seed)
    none = Estimate(float("nan"), float("nan"), float("nan"), 0, 0)

    def of(name: str) -> Estimate:
        one = found.get(name, none)
        return Estimate(one.value, one.low, one.high, int(parts[name].sum()), one.clusters)

    return MtBenchModel(
        model,
        of("turn_1"),
        of("turn_2"),
        of("average"),
        len(set(questions)),
        len(kept) - len(scored),
        repeated,
        int(((score < SCALE[0]) | (score > SCALE[1])).sum()),
    )


def _mean(total: Array) -> Array:
    return ratio(total[..., 0], total[..., 1])


@dataclass(frozen=True, slots=True)
class MtBenchRecord:
    """Games of one model against others, each pair of answers shown in both orders.

    Args:
        model: who played.
        win_rate: share of games won, with the interval over questions.
        loss_rate: share lost.
        win_rate_adjusted: share won, ties as half.
        wins: games won in both orders.
        losses: games lost in both.
        ties: ties, and games in which the order decided.
    """

    model: str
    win_rate: Estimate
    loss_rate: Estimate
    win_rate_adjusted: Estimate
    wins: int
    losses: int
    ties: int

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, estimates as they are elsewhere."""
        rates = ("win_rate", "loss_rate", "win_rate_adjusted")
        counts = ("model", "wins", "losses", "ties")
        return {name: getattr(self, name) for name in counts} | {n: getattr(self, n).to_json() for n in rates}


@dataclass(frozen=True, slots=True)
class MtBenchPairs:
    """Records of all models, the highest adjusted win rate first.

    Args:
        judge: who judged.
        baseline: whose games alone count; None for all.
        models: one entry each, the baseline left out.
        errors: games without a verdict in one order or both, left out.
        repeated: rows that a later one replaces.
        swayed: share of games in which the two orders disagree.
    """

    judge: str
    baseline: str | None
    models: list[MtBenchRecord]
    errors: int
    repeated: int
    swayed: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, estimates as they are elsewhere."""
        names = ("judge", "baseline", "errors", "repeated", "swayed")
        return {name: getattr(self, name) for name in names} | {"models": [one.to_json() for one in self.models]}


def score_mt_bench_pairs(
    paths: Paths,
    *,
    baseline: str | None = None,
    judge: str | None = None,
    repeats: str = "last",
    resamples: int = 1000,
    seed: int = 0,
) -> MtBenchPairs:
    """Win rates from `*_pair.jsonl`: each row one question, one turn, and both orders.

    A game is won if both orders say so, and tied if either says tie or they disagree; a row with an error is left out.
    win_rate_adjusted = (wins + ties / 2) / (wins + losses + ties).

    Args:
        paths: FastChat's judgments: `question_id, turn, model_1, model_2, g1_winner, g2_winner`.
        baseline: count the games against this model alone.
        judge: whose judgments to take where the files hold several.
        repeats: `last` or `all`, as in `score_mt_bench`.
        resamples: of the bootstrap over questions.
        seed: of the bootstrap.

    Raises:
        BadInput: a key is missing, an unknown winner, several judges, or no game is left.

    Source: FastChat fastchat/llm_judge/show_result.py, display_result_pairwise.
    """
    if repeats not in REPEATS:
        raise BadInput(f"repeats={repeats!r}: is {' or '.join(REPEATS)}")
    rows, name = _of_one_judge(read_rows(paths), judge)
    games = [_game(row) for row in rows]
    last = {game[:4]: game for game in games}
    kept = list(last.values()) if repeats == "last" else games
    of_baseline = [game for game in kept if baseline is None or baseline in game[2:4]]
    if not of_baseline:
        raise BadInput(f"no game against the baseline {baseline!r}; the models are {', '.join(sorted(_names(kept)))}")
    told = [game for game in of_baseline if "error" not in game[4:]]
    if not told:
        raise BadInput(f"none of {len(of_baseline)} games has a verdict; was the judge's answer cut short?")
    models = sorted(_names(told) - {baseline})
    records = [_record(model, told, resamples, seed) for model in models]
    return MtBenchPairs(
        name,
        baseline,
        sorted(records, key=lambda one: -one.win_rate_adjusted.value),
        len(of_baseline) - len(told),
        len(games) - len(last),
        sum(first != second for *_, first, second in told) / len(told),
    )


_Game = tuple[str | int, int, str, str, str, str]


def _game(row: JudgedRow) -> _Game:
    winners = [row.text("g1_winner"), row.text("g2_winner")]
    for key, winner in zip(("g1_winner", "g2_winner"), winners, strict=True):
        if winner not in WINNERS:
            row.refuse(f"{key!r} is {winner!r}; it is one of {', '.join(WINNERS)}")
    models = (row.name("model_1"), row.name("model_2"))
    turn = _turn(row) if "turn" in row.value else 1
    return (row.identifier("question_id"), turn, *models, winners[0], winners[1])


def _names(games: Sequence[_Game]) -> set[str]:
    return {name for game in games for name in game[2:4]}


def _record(model: str, games: Sequence[_Game], resamples: int, seed: int) -> MtBenchRecord:
    own = [game for game in games if model in game[2:4]]
    won, lost = np.zeros(len(own)), np.zeros(len(own))
    for at, (_, _, model_1, model_2, first, second) in enumerate(own):
        if first == second and first != "tie":
            winner = model_1 if first == "model_1" else model_2
            won[at], lost[at] = winner == model, winner != model
    one = np.ones(len(own))
    asked = {"win": won, "loss": lost, "adjusted": won + (one - won - lost) / 2}
    found = estimates(
        {name: of_sums(_mean, column, one) for name, column in asked.items()},
        np.asarray([str(game[0]) for game in own]),
        resamples=resamples,
        seed=seed,
    )
    wins, losses = int(won.sum()), int(lost.sum())
    return MtBenchRecord(model, found["win"], found["loss"], found["adjusted"], wins, losses, len(own) - wins - losses)


def _of_one_judge(rows: Sequence[JudgedRow], judge: str | None) -> tuple[list[JudgedRow], str]:
    """The rows of one judge, and its name."""
    named: dict[str, list[JudgedRow]] = {}
    for row in rows:
        found = row.get("judge")
        name = found[0] if isinstance(found, list) and found else found
        if not isinstance(name, str) or not name.isprintable():
            row.refuse("'judge' is the judge's name, or a list that begins with it")
        named.setdefault(name, []).append(row)
    if judge is None and len(named) > 1:
        raise BadInput(f"the files hold judgments of {', '.join(sorted(named))}; choose one with --judge")
    if judge is not None and judge not in named:
        raise BadInput(f"no judgment of {judge!r}; the judges are {', '.join(sorted(named))}")
    chosen = judge or next(iter(named))
    return named[chosen], chosen
