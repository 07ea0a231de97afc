"""Progress on stderr: what is being done, how far it is and how long it will take. Silent where nobody watches."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Any, Self


def is_first() -> bool:
    """Whether this process writes and speaks: of several that `accelerate launch` or torchrun started, one does."""
    return int(os.environ.get("RANK", "0")) == 0


class progress:  # used like a function: with progress(total, "score responses") as bar
    """A progress bar on stderr while a block runs; nothing on a pipe or in a log file.

    Args:
        total: how many steps there are, if known.
        what: what is being done, in two words.

    Example:
        >>> with progress(2, "count sheep") as bar:
        ...     bar(1)
        ...     bar(1)
    """

    def __init__(self, total: int | None, what: str) -> None:
        from tqdm import tqdm

        # disable=None: off when stderr is not a terminal
        self._bar: Any = tqdm(total=total, desc=what, file=sys.stderr, leave=False, dynamic_ncols=True, disable=None)

    def __call__(self, steps: int = 1) -> None:
        """So many more steps are done."""
        self._bar.update(steps)

    def to(self, done: int, total: int | None = None) -> None:
        """So many steps are done in all."""
        if total is not None and self._bar.total != total:
            self._bar.total = total
        self._bar.update(done - self._bar.n)

    def say(self, words: str) -> None:
        """Put words behind the bar."""
        self._bar.set_postfix_str(words, refresh=False)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
