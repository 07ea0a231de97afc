"""How a training run went: what it logged, as curves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Gap against target at one evaluation, in buckets of the target gap (of the grade gap where targets are hard).

    Args:
        step: when; optimizer steps, epochs for a head on embeddings.
        measure: target_gap (logits) or grade_gap (dataset units).
        target: mean of the measure in each bucket.
        gap: mean gap in each bucket, logits.
        count: pairs in each bucket.
    """

    step: float
    measure: str
    target: Sequence[float]
    gap: Sequence[float]
    count: Sequence[int]


@dataclass(frozen=True, slots=True)
class History:
    """What a run logged.

    Args:
        unit: what the steps are: step or epoch.
        series: metric -> (step, value), in order; values that were not finite are left out.
        snapshots: gap against target, one an evaluation.
        broken: lines that could not be read: a run that was killed while it wrote leaves one.
    """

    unit: str
    series: Mapping[str, Points]
    snapshots: Sequence[Snapshot] = ()
    broken: int = 0

    def first(self, name: str) -> float | None:
        """The first value of a metric; None if there is none."""
        return self.series[name][0][1] if self.series.get(name) else None

    def last(self, name: str) -> float | None:
        """Its last value."""
        return self.series[name][-1][1] if self.series.get(name) else None

    @property
    def end(self) -> float:
        """The last step that anything was logged at."""
        return max((points[-1][0] for points in self.series.values() if points), default=0.0)


def read_history(run: str | Path) -> History:
    r"""Read `log.jsonl` (and `snapshots.jsonl`) of a run directory; a run without them has an empty history.

    Args:
        run: the run directory.

    Returns:
        One series a metric. A step that was logged twice, by a run that was resumed, counts as it was logged last.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "log.jsonl").write_text('{"step": 1, "loss": 0.7}\n{"step": 2, "loss": null}\n{"st')
        >>> found = read_history(folder)
        >>> found.series, found.broken
        ({'loss': [(1.0, 0.7)]}, 1)
    """
    folder = Path(run)
    lines, broken = _lines(folder / "log.jsonl")
    unit = "step" if any("step" in line for line in lines) else "epoch"
    series: dict[str, dict[float, float]] = {}
    for line in lines:
        at = line.get(unit)
        if not isinstance(at, (int, float)) or not math.isfinite(at):
            continue
        for name, value in line.items():
            if name not in ("step", "epoch") and isinstance(value, (int, float)) and math.isfinite(value):
                series.setdefault(name, {})[float(at)] = float(value)
    shots, cut = _lines(folder / "snapshots.jsonl")
    by_step: dict[float, Snapshot] = {}
    for shot in shots:
        found = _snapshot(shot)
        if found is None:
            cut += 1
        else:
            by_step[found.step] = found
    snapshots = [by_step[step] for step in sorted(by_step)]
    return History(unit, {name: sorted(points.items()) for name, points in series.items()}, snapshots, broken + cut)


def _snapshot(shot: dict[str, Any]) -> Snapshot | None:
    """A line of `snapshots.jsonl`; None if it is no snapshot."""
    target, gap, count = (shot.get(name) for name in ("target", "gap", "count"))
    if not (isinstance(target, list) and isinstance(gap, list) and isinstance(count, list)):
        return None
    if not target or not len(target) == len(gap) == len(count):
        return None
    if not all(isinstance(one, (int, float)) and math.isfinite(one) for one in (shot.get("step"), *target, *gap)):
        return None
    return Snapshot(float(shot["step"]), str(shot.get("measure")), target, gap, count)


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file of lines, and how many lines are none."""
    if not path.is_file():
        return [], 0
    found, broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            broken += 1
            continue
        if isinstance(content, dict):
            found.append(content)
        else:
            broken += 1
    return found, broken
