"""How numbers are written, and where the ticks of an axis go."""

from __future__ import annotations

import math
from collections.abc import Iterable

from marginkit.records import Estimate

BEYOND = 1e300
"""Numbers of this size are not drawn."""


def number(value: float | None) -> str:
    """A number to be read: three digits that count, thousands with commas, a dash for none.

    Example:
        >>> [number(value) for value in (0.12345, 12345.6, 3.0, 0.00001234, float("nan"))]
        ['0.123', '12,346', '3', '1.23e-05', '-']
    """
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.3g}"
    return f"{value:.3g}"


def interval(found: Estimate) -> str:
    """The interval of an estimate as words; empty where it has none.

    Example:
        >>> interval(Estimate(0.5, 0.4, 0.6, 10, 10))
        '[0.400, 0.600]'
    """
    if math.isnan(found.low) or math.isnan(found.high):
        return ""
    digits = 3 if max(abs(found.low), abs(found.high)) < 100 else 1
    return f"[{found.low:.{digits}f}, {found.high:.{digits}f}]"


def point(found: Estimate) -> str:
    """The value of an estimate as words."""
    if math.isnan(found.value):
        return "-"
    return f"{found.value:.{3 if abs(found.value) < 100 else 1}f}"


def in_words(rows: Iterable[tuple[str, Estimate]]) -> str:
    """Estimates by name, for those who do not see a figure of them.

    Example:
        >>> in_words([("NLL", Estimate(-0.05, -0.08, -0.02, 900, 300))])
        'NLL: -0.050 [-0.080, -0.020]'
    """
    return "; ".join(f"{name}: {one}" for name, one in rows)


def tick(value: float) -> str:
    """A round number at an axis.

    Example:
        >>> [tick(value) for value in (0.5, 2000.0, -3.0, 1e-05)]
        ['0.5', '2,000', '-3', '1e-05']
    """
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two others: steps of 1, 2 or 5 times a power of ten.

    Example:
        >>> ticks(0.03, 0.97)
        [0.2, 0.4, 0.6, 0.8]
    """
    if not (math.isfinite(low) and math.isfinite(high)) or high - low < 1 / BEYOND:
        return [low] if math.isfinite(low) else []
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * min((m for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9)), default=10)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) + 0.0 for index in range(first, last + 1)]


def spread(values: Iterable[float], *, zero: bool = False) -> tuple[float, float]:
    """The range of an axis that shows all values, with a little room; (0, 1) where there are none.

    What is not finite, or beyond 1e300, where floats end, has no place on an axis.

    Example:
        >>> spread([1.0, 2.0, float("nan")])
        (0.95, 2.05)
    """
    finite = [value for value in values if abs(value) < BEYOND]
    if zero:
        finite.append(0.0)
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    if high - low <= 1e-12 * max(abs(low), abs(high)) or high - low < 1 / BEYOND:
        room = abs(low) * 0.1 if abs(low) > 1 / BEYOND else 1.0
        return low - room, high + room
    room = 0.05 * (high - low)
    return (low if zero and low == 0 else low - room), (high if zero and high == 0 else high + room)
