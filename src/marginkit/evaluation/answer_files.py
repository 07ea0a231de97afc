"""Questions of a judge benchmark to prompts, and what was drawn for them to the files that its judge reads."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from marginkit.errors import BadInput
from marginkit.evaluation.benchmark_questions import Question
from marginkit.records import Content, Group, Response

CHOICES = ("only", "first", "best")
MISSING = ("error", "empty")
TEMPERATURES = {
    "writing": "0.7",
    "roleplay": "0.7",
    "stem": "0.1",
    "humanities": "0.1",
    "extraction": "0",
    "math": "0",
    "coding": "0",
    "reasoning": "0",
}
"""At which MT-Bench's answers are drawn, by category; 0.7 for any other."""

_CODE = re.compile("```([^`]*)```")
_SHOWN = 3


def prompt_rows(
    benchmark: str,
    questions: Sequence[Question],
    first: Iterable[Group] | None = None,
    *,
    plain: bool = False,
    missing: str = "error",
) -> list[dict[str, Any]]:
    """What `marginkit sample` reads: one prompt a question.

    MT-Bench needs two passes: the prompts of the second are `user, assistant, user` with the first answers between. Its
    rows carry the temperature as their `split` (`t0.7`, `t0.1`, `t0`), so that each can be drawn at its own.

    Args:
        benchmark: which.
        questions: of it.
        first: the first answers, as sampled, for the prompts of the second turn; None for those of the first.
        plain: plain text instead of chat turns, for models without a template; first turns only.
        missing: of questions without a first answer: `error`, or `empty` to ask no second one.

    Returns:
        Rows of `prompt, id, subset, split`; questions with equal prompts share one.

    Raises:
        BadInput: first answers are missing, or there is no second turn.

    Example:
        >>> prompt_rows("mt-bench", [Question(81, ("Write.", "Again."), "writing")])
        [{'prompt': [{'role': 'user', 'content': 'Write.'}], 'id': '81', 'subset': 'writing', 'split': 't0.7'}]
    """
    if first is not None and (plain or any(len(question.turns) < 2 for question in questions)):
        raise BadInput("second turns are chat turns, of questions that have two; leave plain and the first answers out")
    answers = None if first is None else Answers(first, "only")
    if answers is not None:
        answers.require([(question.id, question.turns[:1]) for question in questions], missing)
    rows = []
    for question in questions:
        if answers is not None and question.turns[:1] not in answers:
            continue
        said = [{"role": "user", "content": question.turns[0]}]
        if answers is not None:
            said += [{"role": "assistant", "content": answers[question.turns[:1]][0]}]
            said += [{"role": "user", "content": question.turns[1]}]
        row: dict[str, Any] = {"prompt": question.turns[0] if plain else said, "id": str(question.id)}
        if question.category is not None:
            row["subset"] = question.category
        if benchmark == "mt-bench":
            row["split"] = f"t{TEMPERATURES.get(question.category or '', '0.7')}"
        rows.append(row)
    return rows


class Answers:
    """What was drawn, by what the user said: a question is found by its text.

    Args:
        groups: as `marginkit sample` wrote them.
        choose: of several responses: `only` refuses them, `first` takes the first drawn, `best` the one with the
            highest grade (`marginkit sample --reward`).

    Raises:
        BadInput: several responses and `only`, no grades and `best`, or one prompt with two answers.

    Example:
        >>> answers = Answers([Group("a", "Name a fruit.", (Response("Fig.", 1.0), Response("Pear.", 2.0)))], "best")
        >>> answers["Name a fruit.",]
        ('Pear.',)
    """

    def __init__(self, groups: Iterable[Group], choose: str = "only") -> None:
        if choose not in CHOICES:
            raise BadInput(f"choose={choose!r}: is one of {', '.join(CHOICES)}")
        self._found: dict[tuple[str, ...], tuple[str, ...]] = {}
        for group in groups:
            asked, said = _turns(group.prompt)
            answer = (*said, _chosen(group, choose).text)
            if self._found.setdefault(asked, answer) != answer:
                raise BadInput(f"prompt {group.id} is answered in two ways; give the answers of one model and one pass")

    def __contains__(self, asked: tuple[str, ...]) -> bool:
        return asked in self._found

    def __getitem__(self, asked: tuple[str, ...]) -> tuple[str, ...]:
        return self._found[asked]

    def require(self, questions: Sequence[tuple[str | int, tuple[str, ...]]], missing: str) -> None:
        """Refuse to go on where a question has no answer, unless `missing` is `empty`.

        Raises:
            BadInput: names how many, and the first of them.
        """
        if missing not in MISSING:
            raise BadInput(f"missing={missing!r}: is {' or '.join(MISSING)}")
        names = [name for name, turns in questions if turns not in self]
        if names and missing == "error":
            some = ", ".join(str(name) for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            raise BadInput(
                f"{len(names)} of {len(questions)} questions have no answer ({some}); draw them with the prompts of "
                "`marginkit benchmark prompts`, or say --missing empty for empty answers, which a judge counts as lost"
            )

    def of(self, question: Question) -> tuple[str, ...]:
        """The answers to all turns of a question; empty texts from the first that is missing on."""
        for upto in range(len(question.turns), 0, -1):
            if question.turns[:upto] in self:
                return self[question.turns[:upto]] + ("",) * (len(question.turns) - upto)
        return ("",) * len(question.turns)

    def lacking(self, questions: Iterable[Question]) -> int:
        """How many questions have no answer to their last turn."""
        return sum(question.turns not in self for question in questions)


def _turns(prompt: Content) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the user said, and what was answered before."""
    if isinstance(prompt, str):
        return (prompt,), ()
    return (
        tuple(turn.content for turn in prompt if turn.role == "user"),
        tuple(turn.content for turn in prompt if turn.role == "assistant"),
    )


def _chosen(group: Group, choose: str) -> Response:
    if len(group.responses) == 1 or choose == "first":
        return group.responses[0]
    if choose == "only":
        raise BadInput(
            f"prompt {group.id} has {len(group.responses)} responses; draw one (-n 1), or say --choose first, or "
            "--choose best for the highest grade"
        )
    grades = [response.grade for response in group.responses]
    if None in grades:
        raise BadInput(f"prompt {group.id} has responses without a grade; draw with --reward, or say --choose first")
    return group.responses[max(range(len(grades)), key=lambda k: grades[k])]  # type: ignore[arg-type,return-value]


def answer_rows(
    benchmark: str,
    questions: Sequence[Question],
    answers: Answers,
    model: str,
    *,
    now: float,
    missing: str = "error",
    count_tokens: Callable[[str], int] | None = None,
) -> list[dict[str, Any]]:
    """The answers of one model in the form that a benchmark's judge reads.

    Args:
        benchmark: mt-bench (one JSON line each, FastChat's), alpaca-eval (one JSON list) or arena-hard (JSON lines).
        questions: all of them, in the benchmark's order, which is kept.
        answers: what was drawn.
        model: its name in the files.
        now: seconds since 1970, the files' `tstamp`.
        missing: `error`, or `empty` to answer with an empty text.
        count_tokens: for Arena-Hard's `token_len`; without it there is no metadata, and no style control.

    Raises:
        BadInput: a question has no answer.

    Example:
        >>> questions = [Question(0, ("Name a fruit.",))]
        >>> answers = Answers([Group("a", "Name a fruit.", (Response("Fig."),))])
        >>> answer_rows("alpaca-eval", questions, answers, "mine", now=0.0)
        [{'instruction': 'Name a fruit.', 'input': '', 'output': 'Fig.', 'generator': 'mine'}]

    Source: FastChat fastchat/llm_judge/gen_model_answer.py; alpaca_eval README; arena-hard-auto gen_answer.py and
    utils/add_markdown_info.py. Deviation: `answer_id` and `ans_id` are hashes of what they name, so that writing
    the file twice gives one file but for `tstamp`.
    """
    answers.require([(question.id, question.turns) for question in questions], missing)
    rows: list[dict[str, Any]] = []
    for question in questions:
        said = answers.of(question)
        mark = hashlib.sha256("\0".join([model, str(question.id), *said]).encode()).hexdigest()[:22]
        if benchmark == "mt-bench":
            choices = [{"index": 0, "turns": list(said)}]
            rows.append(
                {"question_id": question.id, "answer_id": mark, "model_id": model, "choices": choices, "tstamp": now}
            )
        elif benchmark == "alpaca-eval":
            rows.append({"instruction": question.turns[0], "input": "", "output": said[-1], "generator": model})
        else:
            messages: list[dict[str, Any]] = []
            for asked, answer in zip(question.turns, said, strict=True):
                messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": {"answer": answer}}]
            row = {"uid": question.id, "ans_id": mark, "model": model, "messages": messages, "tstamp": now}
            rows.append(row if count_tokens is None else row | {"metadata": style_of(said[-1], count_tokens(said[-1]))})
    return rows


def style_of(answer: str, token_len: int) -> dict[str, Any]:
    r"""What Arena-Hard's style control looks at: length and markdown, counted outside of code blocks.

    Args:
        answer: the text.
        token_len: its tokens; upstream counts those of gpt-4o.

    Example:
        >>> found = style_of("# A\n- b\n1. c **d**\n```\n# no\n```", 9)
        >>> found["token_len"], sum(found["header_count"].values()), found["list_count"], found["bold_count"]["**"]
        (9, 1, {'ordered': 1, 'unordered': 1}, 1)

    Source: arena-hard-auto utils/add_markdown_info.py.
    """
    for block in _CODE.findall(answer):  # the inside goes wherever it stands, the marks stay: as upstream
        answer = answer.replace(block, "")

    def count(pattern: str) -> int:
        return len(re.findall(pattern, answer, re.MULTILINE))

    return {
        "token_len": token_len,
        "header_count": {f"h{level}": count(rf"^#{{{level}}}\s") for level in range(1, 7)},
        "list_count": {"ordered": count(r"^\s*\d+\.\s"), "unordered": count(r"^\s*[-*+]\s")},
        "bold_count": {"**": count(r"\*\*[^*\n]+\*\*"), "__": count(r"__[^_\n]+__")},
    }


def best_of_n_rows(
    groups: Iterable[Group], rewards: Mapping[tuple[str, int], float], n: int | None, generator: str
) -> Iterator[dict[str, str]]:
    """The best of the first n responses to each prompt, in AlpacaEval's form.

    Args:
        groups: prompts with their responses.
        rewards: of `(group, response)`: the proxy.
        n: how many responses take part; all if None. The first of equals is kept.
        generator: the name in the file.

    Raises:
        BadInput: fewer than n responses, or one without a reward.

    Example:
        >>> group = Group("a", "Name a fruit.", (Response("Fig."), Response("Pear.")))
        >>> list(best_of_n_rows([group], {("a", 0): 0.5, ("a", 1): 2.0}, 2, "best-of-2"))[0]["output"]
        'Pear.'
    """
    for group in groups:
        count = len(group.responses) if n is None else n
        if not 1 <= count <= len(group.responses):
            raise BadInput(f"prompt {group.id} has {len(group.responses)} responses, fewer than n={count}")
        lacking = [k for k in range(count) if (group.id, k) not in rewards]
        if lacking:
            raise BadInput(f"prompt {group.id}: response {lacking[0]} has no reward; score this same file")
        best = max(range(count), key=lambda k: rewards[group.id, k])
        asked, _ = _turns(group.prompt)
        yield {
            "instruction": "\n".join(asked),
            "input": "",
            "output": group.responses[best].text,
            "generator": generator,
        }
