"""What is in graded data, and what is wrong with it: one pass over the groups, every topic of the survey at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from marginkit.data.checks import Findings
from marginkit.data.survey.contents import Contents
from marginkit.data.survey.duplicates import Duplicates
from marginkit.data.survey.grades import Grades
from marginkit.data.survey.lengths import Lengths
from marginkit.data.survey.prompts import Meetings, Prompts
from marginkit.data.survey.raters import Raters
from marginkit.data.survey.reading import about_reading
from marginkit.data.survey.remarks import LEVELS, Level, Marks, Remark, Report, WorstRow
from marginkit.data.survey.seen import Topic, look_at
from marginkit.data.survey.texts import Texts
from marginkit.data.survey.tokens import Tokens
from marginkit.data.survey.writers import Writers
from marginkit.groups import Groups

_ROWS_PER_PROGRESS = 200


@dataclass(frozen=True, slots=True)
class Survey:
    """All that was found.

    Args:
        facts: the figures, plain values by name.
        remarks: what to make of them, the gravest first.
        worst: rows to look at first.
        marks: name of a removal -> one flag a row.
    """

    facts: Mapping[str, Any]
    remarks: tuple[Remark, ...]
    worst: tuple[WorstRow, ...]
    marks: Mapping[str, Marks]

    @property
    def level(self) -> Level:
        """The gravest level among the remarks."""
        return max((remark.level for remark in self.remarks), key=LEVELS.index, default="ok")

    def count(self, level: Level) -> int:
        """How many remarks have this level."""
        return sum(remark.level == level for remark in self.remarks)

    def verdict(self) -> str:
        """One sentence."""
        problems, warnings, notes = (self.count(level) for level in ("problem", "warning", "note"))
        counts = [_several(problems, "problem"), _several(warnings, "warning"), _several(notes, "note")]
        words = ", ".join(word for word in counts if word)
        if problems:
            return f"{words}: do not train on it as it is"
        if warnings:
            return f"{words}: look at the warnings before you train"
        return f"nothing wrong{f', {words}' if words else ''}"

    def to_json(self) -> dict[str, Any]:
        """Plain values: `summary` (the figures; what is not finite is None), `verdict`, `remarks`, `worst`."""
        return {
            "summary": _finite(self.facts),
            "verdict": {"level": self.level, "says": self.verdict()},
            "remarks": [remark.to_json() for remark in self.remarks],
            "worst": [worst.to_json() for worst in self.worst],
        }


def _finite(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON has no form for."""
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _several(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count > 1 else ''}" if count else ""


def summarise(
    groups: Groups,
    *,
    findings: Findings | None = None,
    against: Mapping[str, Groups] | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    chat_template: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Survey:
    """Survey graded data: figures, what to make of them, and the rows to look at.

    One pass, in bounded memory: counts, samples, sketches, and some 80 bytes of hashes a row. What is exact only while
    the data is small says so in its figures (docs/data_check.md lists the limits).

    Args:
        groups: groups as they were read; pairs are made from all of a group's evidence where the data gives none.
        findings: of the reading; their remarks come first.
        against: name of another file -> its groups, whose prompts should not be in these.
        tokenizer: a transformers tokenizer; adds what depends on tokens.
        max_length: prompt + response tokens; the tokenizer's own limit if None.
        chat_template: a file, `chatml`, or None for the tokenizer's own.
        progress: called now and then with the number of groups done since; those that are encoded count again.

    Returns:
        The survey. Among its facts: `groups, responses, pairs, ties, evidence, grades, gamma_for_75_percent` (logits
        per grade that put the median gap at 75%), `longer_wins` (share of untied pairs whose chosen response has more
        characters, equal lengths one half), `splits, clusters, prompts_in_several_splits`.

    Example:
        >>> from marginkit.records import Group, Response
        >>> group = Group("a", "Name a fruit.", (Response("Apple.", grade=3.0), Response("No.", grade=1.0)))
        >>> survey = summarise(Groups.from_iterable([group]))
        >>> survey.facts["pairs"], survey.facts["longer_wins"], round(survey.facts["gamma_for_75_percent"], 3)
        (1, 1.0, 0.549)
        >>> survey.level
        'ok'
    """
    others = {name: Prompts.of(other) for name, other in (against or {}).items()}
    topics: list[Topic] = [
        Contents(), Grades(), Raters(), Lengths(), Duplicates(), Meetings(groups, others), Writers(), Texts()
    ]  # fmt: skip
    for row, group in enumerate(groups):
        seen = look_at(row, group)
        for topic in topics:
            topic.see(seen)
        if progress is not None and (row + 1) % _ROWS_PER_PROGRESS == 0:
            progress(_ROWS_PER_PROGRESS)
    reports = [topic.report() for topic in topics]
    if tokenizer is not None:
        reports.append(Tokens(tokenizer, max_length, chat_template).survey(groups, progress))
    return _together(reports, [] if findings is None else about_reading(findings))


def _together(reports: list[Report], first: list[Remark]) -> Survey:
    remarks = [*first, *(remark for report in reports for remark in report.remarks)]
    return Survey(
        facts={name: fact for report in reports for name, fact in report.facts.items()},
        remarks=tuple(sorted(remarks, key=lambda remark: -LEVELS.index(remark.level))),
        worst=tuple(row for report in reports for row in report.worst),
        marks={name: marks for report in reports for name, marks in report.marks.items()},
    )
