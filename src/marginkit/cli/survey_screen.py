"""A survey on one screen: what was read, the verdict, what to look at; everything with `--all`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from marginkit.cli.rendering import say, table
from marginkit.reporting.survey_words import figures_of, kept_of, named_counts, sizes

if TYPE_CHECKING:
    from marginkit.data.checks import Findings
    from marginkit.data.summary import Survey
    from marginkit.data.survey.remarks import Remark

_BLOCKS = "▁▂▃▄▅▆▇█"
_STYLES = {"problem": "bold red", "warning": "yellow", "note": "cyan", "ok": "green"}
_WORST_SHOWN = 3
_SPLITS_SHOWN = 8
_LINES_SHOWN = 14  # of remarks, so that all of it stays on a screen of 40 lines


def show_survey(findings: Findings, survey: Survey, *, everything: bool) -> None:
    """Print a survey.

    Args:
        findings: of the reading.
        survey: what was found.
        everything: all remarks, figures and rows, not only what fits on a screen.
    """
    _head(findings, survey.facts)
    say("")
    _styled(f"{'VERDICT':<9}", survey.verdict(), _STYLES[survey.level])
    say("")
    grave = [remark for remark in survey.remarks if remark.level != "ok"]
    left_out = _remarks(grave, None if everything else _LINES_SHOWN)
    if everything:
        _remarks([remark for remark in survey.remarks if remark.level == "ok"], None)
    else:
        topics = dict.fromkeys(remark.topic for remark in survey.remarks if remark.level == "ok")
        topics = {topic: None for topic in topics if topic not in {remark.topic for remark in grave}}
        _wrapped("ok", ", ".join(topics), _STYLES["ok"]) if topics else None
    _rows(findings, survey, everything)
    if everything:
        _figures(survey.facts)
    rest = f"{left_out} more remarks; " if left_out else ""
    if not everything:
        say(f"{rest}--all shows every figure and row, --json the same for programs")


def _width() -> int:
    from rich.console import Console

    console = Console()
    return min(100, console.width) if console.is_terminal else 100


def _styled(first: str, rest: str, style: str) -> None:
    """A line whose first words have a colour where there is a terminal; data is never read as markup."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    console.print(Text(first, style) + Text(rest))


def _wrapped(level: str, words: str, style: str, topic: str = "") -> int:
    """A remark: level, topic, and its sentence wrapped beside them; how many lines it took."""
    head = f"{level:<9}{topic:<16}" if topic else f"{level:<9}"
    lines = textwrap.wrap(_visible(words), max(30, _width() - len(head)), break_on_hyphens=False) or [""]
    _styled(head, lines[0], style)
    for line in lines[1:]:
        say(" " * len(head) + line)
    return len(lines)


def _visible(words: str) -> str:
    """Text of the data without what a terminal would act on."""
    return "".join(character if character.isprintable() else "·" for character in words)


def _head(findings: Findings, facts: Mapping[str, Any]) -> None:
    name = findings.file if len(findings.file) <= 60 else "…" + findings.file[-59:]
    kept = kept_of(findings.read, findings.kept)
    _styled(_visible(name), f"  {findings.dialect} rows, {kept}", "bold")
    if findings.recognised:
        _wrapped("", findings.recognised, "dim")
    lines = [("", " · ".join(sizes(facts)))]
    if facts["splits"]:
        lines.append(("splits", named_counts(facts["splits"], _SPLITS_SHOWN)))
    if facts["evidence"]:
        kinds = named_counts(facts["evidence"], len(facts["evidence"]))
        lines.append(("evidence", f"{kinds} · type {facts['dataset_type']}"))
    if facts["histogram"]:
        lines.append(("grades", _grades_line(facts)))
    for head, words in lines:
        _wrapped(head, words, "dim")


def _grades_line(facts: Mapping[str, Any]) -> str:
    bars, grades, gamma = facts["histogram"], facts["grades"], facts["gamma_for_75_percent"]
    top = max(bar["share"] for bar in bars)
    drawn = "".join(_BLOCKS[min(7, int(8 * bar["share"] / top))] for bar in bars)
    start = "" if gamma is None else f"   gamma {gamma:.3g} puts the median gap at .75"
    return f"{grades['low']:g} {drawn} {grades['high']:g}{start}"


def _remarks(remarks: Sequence[Remark], lines: int | None) -> int:
    """Print remarks while there is room; how many are left out (a way out that does not fit is left out first)."""
    used = 0
    for number, remark in enumerate(remarks):
        if lines is not None and used >= lines and remark.level != "problem":
            return len(remarks) - number
        brief = lines is not None and remark.level == "note"
        words = remark.says + (f"; {remark.fix}" if remark.fix and not brief else "")
        used += _wrapped(remark.level, words, _STYLES[remark.level], remark.topic)
    return 0


def _rows(findings: Findings, survey: Survey, everything: bool) -> None:
    refused = [str(finding) for finding in findings.items]
    found = [f"{row.id}: {row.reason}" for row in survey.worst]
    if everything:
        for title, lines in (("rows of the reader", refused), ("rows to look at", found), ("notes", findings.notes)):
            if lines:
                table(title, ("",), [(_visible(line),) for line in lines])
        return
    shown = [*refused[:_WORST_SHOWN], *_one_of_each(survey)[:_WORST_SHOWN]]
    for line in shown:
        say("row      " + textwrap.shorten(_visible(line), _width() - 9, placeholder=" …"))
    for note in findings.notes[:2]:
        _wrapped("read", note, "dim")


def _one_of_each(survey: Survey) -> list[str]:
    """The worst row of every kind; kinds are told apart by how their reason begins."""
    seen: set[str] = set()
    found = []
    for row in survey.worst:
        kind = "".join(character for character in row.reason if not character.isdigit())[:12]
        if kind not in seen:
            seen.add(kind)
            found.append(f"{row.id}: {row.reason}")
    return found


def _figures(facts: Mapping[str, Any]) -> None:
    bars = facts["histogram"]
    if bars:
        top = max(bar["share"] for bar in bars)
        table("grades", ("from", "to", "share", ""), [_bar(bar, top) for bar in bars])
    if facts["models"]:
        rows = [(name, f"{rate['win_rate']:.2f}", f"{rate['pairs']:,}") for name, rate in facts["models"].items()]
        table("wins by model, over pairs of different models", ("model", "wins", "pairs"), rows[:30])
    table("figures", ("", ""), list(figures_of(facts, ("histogram", "gap_histogram", "models", "constant_answers"))))


def _bar(bar: Mapping[str, float], top: float) -> tuple[str, str, str, str]:
    return f"{bar['low']:g}", f"{bar['high']:g}", f"{bar['share']:.1%}", "█" * round(40 * bar["share"] / top)
