"""Grade responses, or pairs of them, by a language model behind any OpenAI-compatible endpoint."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from marginkit.errors import BadInput
from marginkit.groups import Groups, batched
from marginkit.judges.asking import AnswerStore, Asked, ask_all, from_text, looked_up
from marginkit.judges.budget import Budget, read_limit
from marginkit.judges.client import Client, completions_url, read_key
from marginkit.judges.evidence import Tally, judged_group
from marginkit.judges.questions import Manner
from marginkit.judges.reading import Answer, Unread, read
from marginkit.judges.templates import Ask, read_template
from marginkit.progress import progress
from marginkit.records import Group
from marginkit.store import ScoreStore

_LOG = logging.getLogger("marginkit")
_GROUPS_AT_ONCE = 64


@dataclass(frozen=True)
class Plan:
    """What asking would take: questions in all, those whose answer is kept, and the tokens and money of the others.

    Args:
        questions: in all; the same question from two groups counts once where they lie close together.
        kept: answered before.
        tokens_in: of the questions to ask, four bytes each.
        tokens_out: of their answers, at most.
        cost: money, at most, by that estimate.
    """

    questions: int
    kept: int
    tokens_in: int
    tokens_out: int
    cost: float

    @property
    def to_ask(self) -> int:
        """Questions without a kept answer."""
        return self.questions - self.kept


@dataclass(frozen=True)
class JudgeReport:
    """What a judge was asked, what came back and what it cost.

    Args:
        settings: how it was asked; never the key.
        plan: the estimate before.
        asked: what came of it; None after a dry run.
        budget: requests, tokens and money spent.
        tally: what became of pairs, responses and groups.
        unread: answers that did not say what was asked, by reason.
    """

    settings: Mapping[str, Any]
    plan: Plan
    asked: Asked | None
    budget: Budget
    tally: Tally
    unread: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        plan = {
            "questions": self.plan.questions,
            "kept_before": self.plan.kept,
            "estimate": {
                "requests": self.plan.to_ask,
                "tokens_in": self.plan.tokens_in,
                "tokens_out_at_most": self.plan.tokens_out,
                "cost_at_most": self.plan.cost if any(self.budget.prices) else None,
            },
        }
        if self.asked is None:
            return plan
        tally = self.tally
        failed = Counter(self.asked.failed.values())
        return plan | {
            "spent": {
                "requests": self.budget.requests,
                "retries": self.budget.retries,
                "tokens_in": self.budget.tokens_in,
                "tokens_out": self.budget.tokens_out,
                "cost": self.budget.cost if any(self.budget.prices) else None,
                "answers_without_a_count": self.budget.uncounted,
            },
            "answered": self.asked.answered,
            "failed": {reason: {"count": n, "such_as": self.asked.details[reason]} for reason, n in failed.items()},
            "unread": dict(self.unread),
            "stopped": self.asked.stopped,
            "judged": tally.judged,
            "ties": tally.ties,
            "identical": tally.identical,
            "not_judged": dict(+tally.missing),
            "replaced": tally.replaced,
            "clipped": tally.clipped,
            "position_bias": tally.position(),
            "given_order": {"agrees": tally.agree, "turned": tally.disagree},
        }


def judge(
    groups: Groups,
    *,
    endpoint: str,
    model: str,
    ask: Ask = "logprobs",
    template: str | Path | None = None,
    pairs: Literal["given", "all"] = "given",
    orders: Literal["both", "coin"] = "both",
    samples: int = 1,
    scale: tuple[int, int] | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    top_logprobs: int = 5,
    seed: int = 0,
    request: Mapping[str, Any] | None = None,
    key_variable: str = "OPENAI_API_KEY",
    store: str | Path = "store",
    budget: str | float | None = None,
    price_in: float | None = None,
    price_out: float | None = None,
    concurrency: int = 8,
    timeout: float = 120.0,
    retries: int = 5,
    backoff: float = 1.0,
    dry_run: bool = False,
) -> tuple[Groups, JudgeReport]:
    """Have a language model compare or score the responses; answers are kept, so a second run asks what is missing.

    logprobs: P(A) against P(B) as the next token, both orders; target gap m = (logit p_AB - logit p_BA) / 2.
    verdict: [[A]], [[B]] or [[C]] in words; votes, one comparison an order, which pairs are made of.
    evidence: reasons first, then a score of each; strength = difference of the mean scores over both orders.
    score: one response at a time; grade = mean of the samples. expected: grade = sum of s P(s) over the score tokens.

    Args:
        groups: what is to be judged.
        endpoint: base URL of a server that speaks /v1/chat/completions: vLLM, llama.cpp, Ollama, OpenAI ...
        model: the judge, as the endpoint names it.
        ask: logprobs, verdict, evidence, score or expected.
        template: a YAML file with `user` and `system`; None for the built-in one.
        pairs: given (the pairs in the data, all of a group without any) or all.
        orders: both, which cancels the bias of position, or coin, which halves the cost and does not.
        samples: answers a question; FairEval takes 3 of `evidence`.
        scale: lowest and highest score; None for 1 to 10, of `expected` 1 to 9.
        temperature: None for 0 where one answer is written, else 1.
        max_tokens: of an answer; None for 1 (log-probabilities), 512 (evidence) or 1024.
        top_logprobs: how many tokens come with their log-probability.
        seed: another seed asks anew.
        request: further fields of each request; None takes a field out, as in {"seed": None}.
        key_variable: environment variable with the key; it may be absent.
        store: folder of the store that answers are kept in.
        budget: "500requests", "2Mtokens" or money (5.0); nothing is sent that may exceed it.
        price_in: money per million tokens of questions.
        price_out: money per million tokens of answers.
        concurrency: requests at once.
        timeout: seconds for one try.
        retries: tries after the first, of what can pass (429, 5xx, timeouts).
        backoff: seconds before the second try; doubles with each.
        dry_run: only estimate; the groups come back as they were.

    Returns:
        The judged groups and a report. Groups without a judged pair or response are left out, `dropped` counts them by
        reason: "one response only", "not judged: budget", "not judged: no verdict", "not judged: HTTP 400" ...

    Raises:
        BadInput: settings that make no sense.
        RunFailed: the judge cannot be used: no access, no such model, nothing but failures. What is done is kept.

    Example:
        >>> from marginkit.records import Response
        >>> groups = Groups.from_iterable([Group("a", "Name a fruit.", (Response("Apple."), Response("A carrot.")))])
        >>> _, report = judge(groups, endpoint="http://localhost:8000/v1", model="some/judge", dry_run=True)
        >>> report.plan.to_ask, report.plan.tokens_out
        (2, 2)

    Source: AlpacaEval 2 (logprobs), MT-bench (verdict, score), FairEval (evidence; its released code shows both orders
    alike and exchanges the scores, here the answers change places). Prompts are ours.
    """
    manner = Manner(
        model=model,
        ask=ask,
        template=None if template is None else read_template(template, ask),
        pairs=pairs,
        orders=orders,
        samples=samples,
        scale=scale or ((1, 9) if ask == "expected" else (1, 10)),
        temperature=temperature,
        max_tokens=max_tokens,
        top_logprobs=top_logprobs,
        seed=seed,
        request={} if request is None else request,
    )
    if concurrency < 1 or retries < 0 or timeout <= 0 or backoff < 0:
        raise BadInput("concurrency is at least 1, retries and backoff at least 0, timeout above 0")
    if (price_in is None) != (price_out is None):
        raise BadInput("price_in and price_out go together, per million tokens")
    limit = read_limit(budget, priced=price_in is not None)
    purse = Budget(limit, price_in or 0.0, price_out or 0.0)
    settings = manner.settings() | {"endpoint": completions_url(endpoint), "budget": budget}
    key = read_key(key_variable)
    answers = AnswerStore(store, model)
    plan = _plan(groups, manner, answers, purse)
    if dry_run:
        return groups, JudgeReport(settings, plan, None, purse, Tally())
    with (
        answers.open() as kept,
        Client(
            endpoint,
            key,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            concurrency=concurrency,
            admit_retry=purse.admit_retry,
        ) as client,
        progress(plan.to_ask, "ask the judge") as bar,
    ):
        asked = ask_all(
            chain.from_iterable(map(manner.questions, groups)),
            kept,
            lambda question: client.ask(question.body),
            lambda answer: isinstance(_read(answer, manner), float),
            purse,
            concurrency=concurrency,
            stop=client.stop,
            tell=_telling(bar, purse),
        )
        report = JudgeReport(settings, plan, asked, purse, Tally())
        judged = Groups.from_iterable(_judged(groups, manner, kept, report))
    judged.dropped = dict(Counter(groups.dropped) + report.tally.dropped)
    return judged, report


def _plan(groups: Groups, manner: Manner, answers: AnswerStore, purse: Budget) -> Plan:
    store = answers.open() if answers.exists else None
    questions = kept = tokens_in = tokens_out = 0
    try:
        with progress(None, "plan") as bar:
            for batch in looked_up(chain.from_iterable(map(manner.questions, groups)), store):
                questions += len(batch)
                kept += sum(known for _, known in batch)
                for question, known in batch:
                    if not known:
                        into, out = question.tokens
                        tokens_in += into
                        tokens_out += out
                bar(len(batch))
    finally:
        if store is not None:
            store.close()
    return Plan(questions, kept, tokens_in, tokens_out, purse.price(tokens_in, tokens_out))


def _telling(bar: progress, purse: Budget) -> Callable[[], None]:
    def tell() -> None:
        bar(1)
        cost = f", cost {purse.cost:.2f}" if any(purse.prices) else ""
        bar.say(f"{purse.tokens_in + purse.tokens_out:,} tokens{cost}")

    return tell


def _judged(groups: Groups, manner: Manner, store: ScoreStore, report: JudgeReport) -> Iterator[Group]:
    """Each group with what the store now knows of it: the same whatever order the answers came in."""
    asked = report.asked or Asked()
    for batch in batched(groups, _GROUPS_AT_ONCE):
        questions = [list(manner.questions(group)) for group in batch]
        texts = iter(store.get_texts([question.key for some in questions for question in some]))
        for group, some in zip(batch, questions, strict=True):
            values: dict[tuple[tuple[int, ...], int], float | str] = {}
            for question in some:
                text = next(texts)
                if text is None:
                    values[question.shown, question.sample] = asked.failed.get(question.key, asked.stopped or "lost")
                    continue
                found = values[question.shown, question.sample] = _read(from_text(text), manner)
                if isinstance(found, str):
                    report.unread[found] += 1
            made = judged_group(group, manner, values, report.tally)
            if made is not None:
                yield made


def _read(answer: Answer, manner: Manner) -> float | str:
    try:
        return read(answer, manner.ask, manner.scale)
    except Unread as reason:
        return str(reason)
