"""What training costs while it runs: tokens computed, tokens a padded pair trainer would have, goodput."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Tally:
    """Sums over optimizer steps, all ranks together.

    Args:
        steps: optimizer steps.
        seconds: from a step's first forward pass to the end of its update.
        seen: tokens of the data: each prompt and each response once.
        tokens: tokens computed with gradients, padding and repeated prompts included.
        pair_tokens: tokens that a trainer of padded pairs would have computed, see `cost.pair_tokens`.
        operations: irreducible floating-point operations, see `cost`.
    """

    steps: int = 0
    seconds: float = 0.0
    seen: float = 0.0
    tokens: float = 0.0
    pair_tokens: float = 0.0
    operations: float = 0.0

    def add(self, other: Tally) -> None:
        """Add another's sums."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Speedometer:
    """Times optimizer steps, and tells what they computed and how close to the machine's peak.

    Args:
        peak: operations a second of all ranks together.
    """

    def __init__(self, peak: float) -> None:
        self.peak = peak
        self.total = Tally()
        self._recent = Tally()
        self._began = 0.0
        self._step = Tally()

    def start(self, seen: float, tokens: float, pair_tokens: float, operations: float) -> None:
        """A step begins, which will compute so much."""
        self._step = Tally(1, 0.0, seen, tokens, pair_tokens, operations)
        self._began = time.perf_counter()

    def stop(self) -> None:
        """The step is over."""
        self._step.seconds = time.perf_counter() - self._began
        self._recent.add(self._step)
        self.total.add(self._step)

    def recent(self) -> dict[str, float]:
        """For a log line: since the last one."""
        told, self._recent = self._in_numbers(self._recent), Tally()
        return {f"speed/{name}": value for name, value in told.items()}

    def _in_numbers(self, tally: Tally) -> dict[str, float]:
        if not tally.seconds:
            return {}
        told = {
            "tokens_per_second": tally.seen / tally.seconds,
            "goodput": tally.operations / tally.seconds / self.peak,
        }
        if tally.pair_tokens:
            told["times_padded_pairs"] = tally.pair_tokens / tally.tokens
        return told

    def summary(self) -> dict[str, Any]:
        """For the manifest: all steps of this process."""
        counts = {name: getattr(self.total, name) for name in Tally.__slots__}
        counts |= {name: int(counts[name]) for name in ("seen", "tokens", "pair_tokens")}
        return counts | {"peak_operations_per_second": self.peak} | self._in_numbers(self.total)
