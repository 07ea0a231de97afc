"""What is asked about a group: one request an order and sample, with the key that its answer is kept under."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from marginkit.data.rows import same
from marginkit.errors import BadInput
from marginkit.judges.templates import TEMPLATES, Ask, Template, render
from marginkit.records import Group, Pair, content_text

PAIRWISE: tuple[Ask, ...] = ("logprobs", "verdict", "evidence")
_MAX_TOKENS: dict[Ask, int] = {"logprobs": 1, "expected": 1, "verdict": 1024, "evidence": 512, "score": 1024}
_TEMPERATURE: dict[Ask, float] = {"logprobs": 1.0, "expected": 1.0, "verdict": 0.0, "evidence": 1.0, "score": 0.0}
_UNBOUNDED = 2048  # tokens an answer is taken to have at most where the request sets no limit


@dataclass(frozen=True, slots=True)
class Question:
    """One request to the judge.

    Args:
        shown: indices of the responses, in the order in which they are shown.
        sample: which of several samples.
        body: the request.
        key: names the answer in the store: model, messages, settings and sample, not the endpoint.
    """

    shown: tuple[int, ...]
    sample: int
    body: Mapping[str, Any]
    key: bytes

    @property
    def tokens(self) -> tuple[int, int]:
        """About how many tokens go in (four bytes each), and how many come out at most."""
        bytes_in = sum(len(m["content"].encode("utf-8", "replace")) for m in self.body["messages"])
        limit = self.body.get("max_completion_tokens") or self.body.get("max_tokens") or _UNBOUNDED
        return math.ceil(bytes_in / 4) + 8 * len(self.body["messages"]), int(limit)


@dataclass(frozen=True)
class Manner:
    """How the judge is asked; everything that decides an answer, and nothing about the endpoint.

    Args:
        model: the name the endpoint knows the judge by.
        ask: logprobs, verdict or evidence (pairs); score or expected (single responses).
        template: what it is shown.
        pairs: given (the pairs in the data, all where there are none) or all.
        orders: both, or coin (one order a pair, by a coin that the texts decide).
        samples: answers a question.
        scale: lowest and highest score.
        temperature: of sampling; None for the default of `ask` (0 for one written answer, else 1).
        max_tokens: of an answer; None for the default of `ask`.
        top_logprobs: how many tokens come with their log-probability.
        seed: sent with each request, plus the number of the sample.
        request: further fields of the request; a field that is None is left out of it.

    Raises:
        BadInput: a value makes no sense.
    """

    model: str
    ask: Ask = "logprobs"
    template: Template | None = None
    pairs: Literal["given", "all"] = "given"
    orders: Literal["both", "coin"] = "both"
    samples: int = 1
    scale: tuple[int, int] = (1, 10)
    temperature: float | None = None
    max_tokens: int | None = None
    top_logprobs: int = 5
    seed: int = 0
    request: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, known in (
            ("ask", self.ask, get_args(Ask)),
            ("pairs", self.pairs, ("given", "all")),
            ("orders", self.orders, ("both", "coin")),
        ):
            if value not in known:
                raise BadInput(f"{name}={value!r}: a judge knows {', '.join(known)}")
        if not self.model.strip():
            raise BadInput("model: name the judge as its endpoint does")
        counts = {"samples": self.samples, "max_tokens": self.max_tokens, "top_logprobs": self.top_logprobs}
        for name, count in counts.items():
            if count is not None and not (_whole(count) and count >= 1):
                raise BadInput(f"{name}={count}: a whole number, at least 1")
        if not _whole(self.seed):
            raise BadInput(f"seed={self.seed}: a whole number")
        if len(self.scale) != 2 or not all(map(_whole, self.scale)):
            raise BadInput(f"scale={self.scale}: two whole numbers, as in [1, 10]")
        low, high = self.scale
        if not low < high:
            raise BadInput(f"scale={low},{high}: the lowest score comes first, and is lower")
        if self.ask == "expected" and not 0 <= low < high <= 9:
            raise BadInput(f"scale={low},{high}: expected reads one token, so scores have one digit; take scale=1,9")
        if not isinstance(self.request, Mapping):
            raise BadInput(f'request={self.request!r}: fields and values, as in {{"top_p": 0.9}}')
        if reserved := {"model", "messages", "stream", "n"} & set(self.request):
            raise BadInput(f"request.{min(reserved)}: is set by the way of asking; leave it out")

    @property
    def pairwise(self) -> bool:
        """Whether two responses are shown at a time."""
        return self.ask in PAIRWISE

    @cached_property
    def shown_in(self) -> Template:
        """The template that is used."""
        return self.template or TEMPLATES[self.ask]

    def settings(self) -> dict[str, Any]:
        """Plain values, enough to ask again."""
        return {
            "ask": self.ask,
            "model": self.model,
            "template": self.shown_in.hash,
            "pairs": self.pairs,
            "orders": self.orders,
            "samples": self.samples,
            "scale": list(self.scale),
            "temperature": self._temperature,
            "max_tokens": self.max_tokens or _MAX_TOKENS[self.ask],
            "top_logprobs": self.top_logprobs,
            "seed": self.seed,
            "request": dict(self.request),
        }

    @property
    def _temperature(self) -> float:
        if self.temperature is not None:
            return self.temperature
        return 1.0 if self.samples > 1 else _TEMPERATURE[self.ask]

    def judged_pairs(self, group: Group) -> list[Pair]:
        """The pairs that are judged: those given, or every i < j; a pair given twice counts once."""
        given = {frozenset((pair.chosen, pair.rejected)): pair for pair in reversed(group.pairs)}
        if self.pairs == "given" and given:
            return list(reversed(given.values()))
        indices = range(len(group.responses))
        return [given.get(frozenset(both)) or Pair(*both) for both in itertools.combinations(indices, 2)]

    def questions(self, group: Group) -> Iterator[Question]:
        """Every request about a group; pairs of equal texts are not asked about."""
        if not self.pairwise:
            for index in range(len(group.responses)):
                yield from self._samples(group, (index,))
            return
        for pair in self.judged_pairs(group):
            i, j = pair.chosen, pair.rejected
            if same(group.responses[i], group.responses[j]):
                continue
            for shown in self.shown_orders(group, i, j):
                yield from self._samples(group, shown)

    def shown_orders(self, group: Group, i: int, j: int) -> tuple[tuple[int, int], ...]:
        """The orders in which two responses are shown."""
        if self.orders == "both":
            return ((i, j), (j, i))
        texts = sorted(((content_text(group.responses[at].turns), at) for at in (i, j)), key=lambda one: one[0])
        heads = hashlib.blake2b("\0".join(text for text, _ in texts).encode("utf-8", "surrogatepass")).digest()[0] & 1
        first, second = (at for _, at in (texts if heads else reversed(texts)))
        return ((first, second),)

    def _samples(self, group: Group, shown: tuple[int, ...]) -> Iterator[Question]:
        messages = render(self.shown_in, group.prompt, tuple(group.responses[i] for i in shown), self.scale)
        for sample in range(self.samples):
            fields: dict[str, Any] = {
                "model": self.model,
                "messages": messages,
                "temperature": self._temperature,
                "max_tokens": self.max_tokens or _MAX_TOKENS[self.ask],
                "seed": self.seed + sample,
            }
            if self.ask in ("logprobs", "expected"):
                fields |= {"logprobs": True, "top_logprobs": self.top_logprobs}
            body = {name: value for name, value in (fields | dict(self.request)).items() if value is not None}
            content = json.dumps([body, self.seed + sample], sort_keys=True).encode()
            yield Question(shown, sample, body, hashlib.blake2b(content, digest_size=16).digest())


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
