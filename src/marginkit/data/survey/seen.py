"""One group as the topics of a survey see it: its pairs, what is known of them, its texts, computed once for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from marginkit.data.grades import Evidence, pair_evidence
from marginkit.data.pairing import pairs_of
from marginkit.data.survey.nearness import digest64, normalised
from marginkit.data.survey.remarks import Report
from marginkit.records import Group, Pair, content_text


@dataclass(frozen=True, slots=True)
class Seen:
    """A group and what several topics need of it.

    Args:
        row: its index among the groups.
        group: the group.
        pairs: those in the data, else all that its evidence orders.
        evidence: of every pair.
        prompt: its words, normalised.
        prompt_key: hash of `prompt`.
        texts: the responses as they are.
        words: the responses, normalised.
        keys: hashes of `words`.
        cluster: hash of its cluster.
    """

    row: int
    group: Group
    pairs: tuple[Pair, ...]
    evidence: tuple[Evidence, ...]
    prompt: str
    prompt_key: int
    texts: tuple[str, ...]
    words: tuple[str, ...]
    keys: tuple[int, ...]
    cluster: int

    @property
    def judged(self) -> list[tuple[Pair, Evidence]]:
        """The pairs that are no ties, with their evidence."""
        return [both for both in zip(self.pairs, self.evidence, strict=True) if not both[0].tie]


def look_at(row: int, group: Group) -> Seen:
    """Compute what the topics share.

    Example:
        >>> from marginkit.records import Response
        >>> seen = look_at(0, Group("a", "Name a fruit!", (Response("Apple.", grade=3.0), Response("No.", grade=1.0))))
        >>> seen.prompt, seen.words, seen.evidence[0].grade_gap
        ('name a fruit', ('apple', 'no'), 2.0)
    """
    pairs = tuple(pairs_of(group))
    prompt = normalised(content_text(group.prompt))
    key = digest64(prompt)
    texts = tuple(response.text for response in group.responses)
    words = tuple(map(normalised, texts))
    return Seen(
        row=row,
        group=group,
        pairs=pairs,
        evidence=tuple(pair_evidence(group, pair) for pair in pairs),
        prompt=prompt,
        prompt_key=key,
        texts=texts,
        words=words,
        keys=tuple(map(digest64, words)),
        cluster=key if group.cluster is None else digest64(group.cluster),
    )


class Topic(Protocol):
    """One thing a survey looks at: it sees every group once, then reports."""

    def see(self, seen: Seen) -> None:
        """Take one group."""
        ...

    def report(self) -> Report:
        """What came of it, when all groups have been seen."""
        ...
