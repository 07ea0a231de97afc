"""Asking what is not known yet: several requests at once, each answer kept as it comes, within a budget."""

from __future__ import annotations

import hashlib
import json
import logging
import queue
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from marginkit.errors import RunFailed
from marginkit.groups import batched
from marginkit.judges.budget import Budget
from marginkit.judges.client import RequestFailed
from marginkit.judges.questions import Question
from marginkit.judges.reading import Answer
from marginkit.store import ScoreStore

_LOG = logging.getLogger("marginkit")
_BATCH = 512  # questions looked up in the store at once
_AT_FIRST = 3  # refusals before the first answer after which the judge is given up
_IN_A_ROW = 20  # failures or unread answers after which the judge is given up

Send = Callable[[Question], Answer]


class AnswerStore:
    """The answers of one judge, in the score store; a batch in, a batch out.

    Args:
        folder: where stores live.
        model: the judge.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with AnswerStore(folder, "some/judge").open() as answers:
        ...         answers.add_texts([(b"a key of 16 byte", as_text(Answer("[[A]]")))])
        ...         [found, none] = answers.get_texts([b"a key of 16 byte", b"another"])
        >>> from_text(found).text, none
        ('[[A]]', None)
    """

    def __init__(self, folder: str | Path, model: str) -> None:
        self.folder = Path(folder)
        self.model = model
        digest = hashlib.sha256(model.encode()).hexdigest()[:8]
        self.name = f"judge-{re.sub(r'[^A-Za-z0-9.]+', '-', model)[:60]}-{digest}"

    def open(self) -> ScoreStore:
        """The store itself; one writer a file."""
        return ScoreStore(self.folder, self.name, {"judge": self.model})

    @property
    def exists(self) -> bool:
        """Whether anything was ever kept."""
        return (self.folder / self.name).is_dir()


def as_text(answer: Answer) -> str:
    """An answer as it is kept."""
    return json.dumps(asdict(answer))


def from_text(text: str) -> Answer:
    """A kept answer."""
    return Answer(**json.loads(text))


def looked_up(questions: Iterable[Question], store: ScoreStore | None) -> Iterator[list[tuple[Question, bool]]]:
    """Batches of questions, each once a batch, and whether its answer is kept."""
    for batch in batched(questions, _BATCH):
        once = list({question.key: question for question in batch}.values())
        kept = [None] * len(once) if store is None else store.get_texts([question.key for question in once])
        yield [(question, text is not None) for question, text in zip(once, kept, strict=True)]


@dataclass
class Asked:
    """What came of asking.

    Args:
        answered: new answers kept.
        failed: keys of the questions given up, with the reason.
        details: one message a reason.
        stopped: why the rest was not asked; None if all was.
    """

    answered: int = 0
    failed: dict[bytes, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None


def ask_all(
    questions: Iterable[Question],
    store: ScoreStore,
    send: Send,
    readable: Callable[[Answer], bool],
    budget: Budget,
    *,
    concurrency: int,
    stop: Callable[[], None],
    tell: Callable[[], None] = lambda: None,
) -> Asked:
    """Send every question that has no kept answer.

    The first goes alone: a wrong key, address or model costs one request, and its token count corrects the estimates.
    An interrupt waits for what is in flight, which is paid for, and keeps it; a second one does not wait.

    Args:
        questions: what is to be known; asked in this order.
        store: where answers are kept, one transaction each.
        send: sends one question.
        readable: whether an answer says what was asked.
        budget: admits requests.
        concurrency: requests at once.
        stop: ends the waits of `send` for another try.
        tell: called after each answer.

    Returns:
        What came of it.

    Raises:
        RunFailed: the judge cannot be used: no access, no such model, nothing answered at first, or 20 failures or
            unread answers in a row.
    """
    outcome = Asked()
    crew = _Crew(send, concurrency)
    flying: dict[bytes, Question] = {}
    landed: set[bytes] = set()  # since the last look into the store
    useless: Counter[str] = Counter()  # in a row

    def land() -> None:
        question, result = crew.result()
        del flying[question.key]
        landed.add(question.key)
        _keep(question, result, store, budget)
        if isinstance(result, Answer):
            outcome.answered += 1
            if readable(result):
                useless.clear()
            else:
                useless[f"unread answers such as {result.text[:60]!r}"] += 1
        elif isinstance(result, RequestFailed):
            outcome.failed[question.key] = result.reason
            outcome.details.setdefault(result.reason, str(result))
            useless[str(result)] += 1
            if not outcome.answered and (result.tried_again or useless.total() >= _AT_FIRST):
                raise RunFailed(f"the judge answers nothing: {result}; check the endpoint and its log")
        else:
            raise result
        tell()
        if useless.total() >= _IN_A_ROW:
            why = useless.most_common(1)[0][0]
            raise RunFailed(f"the judge is given up after {_IN_A_ROW} requests in a row without use: {why}")

    try:
        for batch in looked_up(questions, store):
            landed.clear()
            for question, kept in batch:
                if kept or question.key in flying or question.key in landed or question.key in outcome.failed:
                    continue
                while len(flying) >= (concurrency if outcome.answered else 1):
                    land()
                while not (admitted := budget.admit(question.tokens)) and flying:
                    land()
                if not admitted:
                    outcome.stopped = "budget"
                    break
                flying[question.key] = question
                crew.give(question)
            if outcome.stopped:
                break
        while flying:
            land()
    except (KeyboardInterrupt, RunFailed) as error:
        stop()
        if flying and isinstance(error, KeyboardInterrupt):
            _LOG.warning("interrupted; waiting for %d requests in flight (again to drop them)", len(flying))
        for question, result in crew.finish():
            _keep(question, result, store, budget)
        raise
    finally:
        crew.dismiss()
    return outcome


def _keep(question: Question, result: Answer | Exception, store: ScoreStore, budget: Budget) -> None:
    if isinstance(result, Answer):
        store.add_texts([(question.key, as_text(result))])
        budget.book(question.tokens, result.tokens_in, result.tokens_out)
    else:
        budget.release(question.tokens)


class _Crew:
    """Threads that send questions; daemons, so that a second interrupt ends the program at once."""

    def __init__(self, send: Send, size: int) -> None:
        self._send = send
        self._inbox: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[tuple[Question, Answer | Exception]] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(size)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while (question := self._inbox.get()) is not None:
            result: Answer | Exception
            try:
                result = self._send(question)
            except Exception as error:  # handed to the main thread, which raises it
                result = error
            self._outbox.put((question, result))

    def give(self, question: Question) -> None:
        self._inbox.put(question)

    def result(self) -> tuple[Question, Answer | Exception]:
        return self._outbox.get()

    def finish(self) -> list[tuple[Question, Answer | Exception]]:
        """What is still to come, when all of it has come."""
        self.dismiss()
        for thread in self._threads:
            thread.join()
        return [self._outbox.get() for _ in range(self._outbox.qsize())]

    def dismiss(self) -> None:
        for _ in self._threads:
            self._inbox.put(None)
