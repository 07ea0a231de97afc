"""The questions of the judge benchmarks, from the files that their authors publish."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from marginkit.errors import BadInput
from marginkit.evaluation.judgment_files import JudgedRow, Paths, read_rows

BENCHMARKS = ("mt-bench", "alpaca-eval", "arena-hard")


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a benchmark.

    Args:
        id: as the benchmark names it; its place in the file for AlpacaEval.
        turns: what the user says, turn by turn.
        category: where the benchmark has categories.
    """

    id: str | int
    turns: tuple[str, ...]
    category: str | None = None


def read_questions(benchmark: str, paths: Paths) -> list[Question]:
    """Read the questions of a benchmark, from the file that its authors publish.

    Args:
        benchmark: mt-bench (`question_id, category, turns`), alpaca-eval (`instruction`: any file of outputs, too) or
            arena-hard (`uid, category, prompt`; v0.1: `question_id, turns: [{content}]`).
        paths: the file.

    Raises:
        BadInput: no such benchmark, a key is missing, a question stands there twice, or one is empty.
    """
    if benchmark not in BENCHMARKS:
        raise BadInput(f"benchmark {benchmark!r}: is one of {', '.join(BENCHMARKS)}")
    found: dict[str | int, Question] = {}
    for at, row in enumerate(read_rows(paths)):
        question = _QUESTION[benchmark](row, at)
        if question.id in found:
            row.refuse(f"question {question.id} stands here for the second time; give each question once")
        if not question.turns or not all(turn.strip() for turn in question.turns):
            row.refuse(f"question {question.id} is empty")
        found[question.id] = question
    return list(found.values())


def _mt_bench_question(row: JudgedRow, _: int) -> Question:
    turns = row.get("turns")
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        row.refuse("'turns' is a list of texts")
    category = row.value.get("category")
    return Question(row.identifier("question_id"), tuple(turns), None if category is None else str(category))


def _alpaca_eval_question(row: JudgedRow, at: int) -> Question:
    return Question(at, (row.text("instruction"),))


def _arena_hard_question(row: JudgedRow, _: int) -> Question:
    if "uid" in row.value:
        return Question(row.identifier("uid"), (row.text("prompt"),), row.name("category"))
    turns = row.get("turns")
    if not isinstance(turns, list) or not all(
        isinstance(t, Mapping) and isinstance(t.get("content"), str) for t in turns
    ):
        row.refuse("'turns' is a list of {\"content\": text}")
    return Question(row.identifier("question_id"), tuple(turn["content"] for turn in turns), "arena-hard-v0.1")


_QUESTION: dict[str, Callable[[JudgedRow, int], Question]] = {
    "mt-bench": _mt_bench_question,
    "alpaca-eval": _alpaca_eval_question,
    "arena-hard": _arena_hard_question,
}
