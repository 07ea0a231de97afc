"""What `marginkit select` shows: a selection beside its candidates, a histogram of scores, two selections compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marginkit.cli.rendering import say, table
from marginkit.reporting.survey_words import plain

if TYPE_CHECKING:
    from marginkit.data.selection import Selected


def show_selection(made: Selected, target: Path) -> None:
    """Print what was kept and what was left out."""
    facts = made.facts
    before, after = facts["candidates"], facts["kept"]
    rows = [
        (name.replace("_", " "), plain(before[name]), plain(after.get(name, "")))
        for name in before
        if before[name] is not None
    ]
    table(f"{facts['how']} -> {target}", ("", "candidates", "kept"), rows)
    told = [(f"left out: {reason}", str(count)) for reason, count in made.dropped.items()]
    told += [(name.replace("_", " "), plain(facts[name])) for name in _CORRELATIONS if facts[name] is not None]
    told += [(name.replace("_", " "), plain(value)) for name, value in facts["method"].items() if value is not None]
    table("", ("", ""), told)
    if facts["wanted"] > after["pairs"] and facts["top"] is not None:
        say(f"asked for {facts['wanted']} pairs, but only {after['pairs']} have a score")
    bars = histogram(made.scores, made.kept)
    if bars:
        table("scores (█ kept, ░ not)", ("score", "pairs", ""), bars)


_CORRELATIONS = ("rank_correlation_with_length", "rank_correlation_with_length_difference")


def histogram(scores: Any, kept: Any, bins: int = 12, width: int = 60) -> list[tuple[str, str, str]]:
    """Rows of a text histogram: range, count, bar; nothing where all scores are the same.

    Args:
        scores: [P], NaN left out.
        kept: [P].
        bins: rows.
        width: of the longest bar.

    Example:
        >>> import numpy as np
        >>> histogram(np.array([0.0, 1.0, 1.0]), np.array([False, True, False]), bins=2, width=2)
        [('0 .. 0.5', '1', '░'), ('0.5 .. 1', '2', '█░')]
    """
    import numpy as np

    there = np.isfinite(scores)
    if not there.any() or np.ptp(scores[there]) == 0:
        return []
    counts, edges = np.histogram(scores[there], bins=bins)
    taken, _ = np.histogram(scores[there & kept], bins=edges)
    rows = []
    for count, own, low, high in zip(counts, taken, edges, edges[1:], strict=False):
        full = round(width * count / counts.max())
        solid = round(width * own / counts.max())
        rows.append((f"{low:.3g} .. {high:.3g}", str(count), "█" * solid + "░" * (full - solid)))
    return rows


def show_comparison(files: Sequence[str], found: Mapping[str, Any]) -> None:
    """Print what `compare_selections` found."""
    names = ("shared", "turned", "jaccard", "share_of_first", "share_of_second")
    table(
        f"{files[0]} and {files[1]}",
        ("pairs in both", ""),
        [(name.replace("_", " "), plain(found[name])) for name in names if found[name] is not None],
    )
    told = [
        (name.replace("_", " "), plain(found["first"][name]), plain(found["second"][name])) for name in found["first"]
    ]
    table("what is in them", ("", files[0], files[1]), told)
    if not found["shared"] and not found["turned"]:
        say("no pair is in both: are they made from the same groups?")
