"""What asking costs: an estimate before, a limit during, what the server counted after."""

from __future__ import annotations

import math
import re
import threading
from dataclasses import dataclass
from typing import Literal

from marginkit.errors import BadInput

_LIMIT = re.compile(r"\s*([\d._]+(?:[eE]\+?\d+)?)\s*([kKM]?)\s*(requests?|tokens?)?\s*")
_TIMES = {"": 1, "k": 1_000, "K": 1_000, "M": 1_000_000}


@dataclass(frozen=True, slots=True)
class Limit:
    """So many requests, tokens, or so much money in the currency of the prices."""

    amount: float
    of: Literal["requests", "tokens", "money"]


def read_limit(text: str | float | None, priced: bool) -> Limit | None:
    """A budget as it is written.

    Args:
        text: "500 requests", "2M tokens", or an amount of money.
        priced: whether prices are known.

    Returns:
        The limit; None for none.

    Raises:
        BadInput: not a budget, or money without prices.

    Example:
        >>> read_limit("2M tokens", priced=False)
        Limit(amount=2000000.0, of='tokens')
    """
    if text is None:
        return None
    found = _LIMIT.fullmatch(str(text))
    try:
        amount = float(found[1]) * _TIMES[found[2]] if found else -1.0
    except ValueError:
        amount = -1.0
    if found is None or not 0 <= amount < math.inf:
        raise BadInput(f"budget={text}: write 500requests, 2Mtokens, or an amount of money such as 5.00")
    of: Literal["requests", "tokens", "money"] = "money"
    if found[3]:
        of = "requests" if found[3].startswith("r") else "tokens"
    elif not priced:
        raise BadInput(f"budget={text}: an amount of money needs price_in and price_out, per million tokens")
    return Limit(amount, of)


class Budget:
    """Admits requests as long as they fit, counting those in flight at what they may cost at most.

    A request in flight counts as its estimate times the largest ratio of counted to estimated tokens seen so far, and
    as its longest answer. Answers from a server that counts nothing are booked at their estimate.

    Args:
        limit: of requests, tokens or money; None for none.
        price_in: money per million tokens of questions.
        price_out: money per million tokens of answers.

    Example:
        >>> budget = Budget(Limit(300, "tokens"))
        >>> budget.admit((100, 50)), budget.admit((100, 100))
        (True, False)
        >>> budget.book((100, 50), 120, 10)
        >>> budget.admit((100, 40)), budget.tokens_in, budget.tokens_out
        (True, 120, 10)
    """

    def __init__(self, limit: Limit | None = None, price_in: float = 0.0, price_out: float = 0.0) -> None:
        self.limit = limit
        self.prices = (price_in, price_out)
        self.requests = self.retries = self.tokens_in = self.tokens_out = self.uncounted = 0
        self._flying: list[tuple[int, int]] = []
        self._ratio = 1.0
        self._lock = threading.Lock()

    @property
    def cost(self) -> float:
        """Money spent."""
        return self.price(self.tokens_in, self.tokens_out)

    def price(self, tokens_in: float, tokens_out: float) -> float:
        """Money for so many tokens."""
        return (tokens_in * self.prices[0] + tokens_out * self.prices[1]) / 1e6

    def admit(self, tokens: tuple[int, int]) -> bool:
        """Whether one more request fits; if so it is in flight."""
        with self._lock:
            flying = [*self._flying, tokens]
            into = self.tokens_in + self._ratio * sum(t for t, _ in flying)
            out = self.tokens_out + sum(t for _, t in flying)
            spent = {"requests": self.requests + 1, "tokens": into + out, "money": self.price(into, out)}
            if self.limit is not None and spent[self.limit.of] > self.limit.amount * (1 + 1e-12):
                return False
            self._flying = flying
            self.requests += 1
            return True

    def admit_retry(self) -> bool:
        """Whether a request may be sent once more; its tokens are in flight already."""
        with self._lock:
            if self.limit is not None and self.limit.of == "requests" and self.requests + 1 > self.limit.amount:
                return False
            self.requests += 1
            self.retries += 1
            return True

    def book(self, tokens: tuple[int, int], tokens_in: int | None, tokens_out: int | None) -> None:
        """A request has been answered."""
        with self._lock:
            self._flying.remove(tokens)
            if tokens_in is None or tokens_out is None:
                self.uncounted += 1
            elif tokens[0]:
                self._ratio = max(self._ratio, tokens_in / tokens[0])
            self.tokens_in += tokens[0] if tokens_in is None else tokens_in
            self.tokens_out += tokens[1] if tokens_out is None else tokens_out

    def release(self, tokens: tuple[int, int]) -> None:
        """A request has failed; what failed is not charged."""
        with self._lock:
            self._flying.remove(tokens)
