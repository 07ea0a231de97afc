"""Responses as they are drawn, kept on disk batch by batch: what was drawn before an interruption is not drawn again.

The first line of a draft says what it is a draft of; every further line holds the responses to one prompt.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from marginkit.errors import BadInput, RunFailed

FORMAT = "marginkit-draft/1"


@dataclass(frozen=True, slots=True)
class DraftedResponse:
    """One response as it was drawn.

    Args:
        text: its words.
        ended: whether it came to an end of its own; else it was cut.
        tokens: how many were drawn, the end included.
    """

    text: str
    ended: bool
    tokens: int


class Draft:
    """What has been drawn so far, by the prompt's place in its file.

    Args:
        path: a file; None keeps everything in memory.
        identity: what decides the draws, plain values; a draft of anything else is refused, never continued.

    Raises:
        BadInput: the file holds something else.

    Example:
        >>> draft = Draft(None, {"seed": 0})
        >>> draft.add([(0, [DraftedResponse("Pear.", True, 3)])])
        >>> draft.found[0][0].text
        'Pear.'
    """

    def __init__(self, path: str | Path | None, identity: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.found: dict[int, list[DraftedResponse]] = {}
        self._sink: Any = None
        self._lock: FileLock | None = None
        if self.path is None:
            return
        self._claim(self.path)
        head = json.dumps({"format": FORMAT} | dict(identity), sort_keys=True, default=str)
        try:
            whole = self._read(json.loads(head)) if self.path.is_file() else 0
        except BadInput:
            self.close()
            raise
        try:
            self._sink = self.path.open("r+" if whole else "w", encoding="utf-8", newline="\n")
            self._sink.seek(whole)
            self._sink.truncate()  # a last line that was cut short is drawn again
        except OSError as error:
            raise RunFailed(f"{self.path}: {error.strerror}; name another output file") from None
        if not whole:
            self._write(head + "\n")

    def _claim(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{path}.lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise BadInput(f"{path}: another process is writing it; wait for it, or name another output file") from None
        except OSError as error:
            raise RunFailed(f"{path}: {error.strerror}; name another output file") from None
        self._lock = lock

    def add(self, rows: Iterable[tuple[int, Sequence[DraftedResponse]]]) -> None:
        """Keep one batch, all of it on disk before this returns.

        Raises:
            RunFailed: the disk is full or the file cannot be written.
        """
        lines = []
        for at, responses in rows:
            self.found[at] = list(responses)
            kept = [[response.text, response.ended, response.tokens] for response in responses]
            lines.append(json.dumps({"prompt": at, "responses": kept}) + "\n")
        if self._sink is not None:
            self._write("".join(lines))

    def remove(self) -> None:
        """Take the file away, once what it held is kept elsewhere."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the file to be continued."""
        if self._sink is not None:
            self._sink.close()
            self._sink = None
        if self._lock is not None:
            self._lock.release()
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, text: str) -> None:
        try:
            self._sink.write(text)
            self._sink.flush()
            os.fsync(self._sink.fileno())
        except OSError as error:
            raise RunFailed(f"{self.path}: {error.strerror}; what was drawn before stays usable") from None

    def _read(self, head: Mapping[str, Any]) -> int:
        """Read what is there; returns how many bytes of it are whole lines."""
        assert self.path is not None
        whole = 0
        with self.path.open("rb") as source:
            for number, line in enumerate(source):
                try:
                    row = json.loads(line)
                    if not line.endswith(b"\n"):
                        break
                    if number == 0:
                        self._check(row, head)
                    else:
                        self.found[row["prompt"]] = [DraftedResponse(*kept) for kept in row["responses"]]
                except BadInput:
                    raise
                except (ValueError, KeyError, TypeError):
                    break
                whole += len(line)
        if not whole and self.path.stat().st_size and not self._cut_short(head):
            raise BadInput(f"{self.path}: is no draft of marginkit sample; remove it, or name another output file")
        return whole

    def _cut_short(self, head: Mapping[str, Any]) -> bool:
        """Whether the file is the beginning of the first line, left by a kill in the first moment."""
        assert self.path is not None
        return json.dumps(dict(head), sort_keys=True).startswith(self.path.read_text("utf-8", errors="replace"))

    def _check(self, row: Any, head: Mapping[str, Any]) -> None:
        if not isinstance(row, dict) or row.get("format") != FORMAT:
            raise ValueError("no draft")
        for key in sorted({*row, *head}):
            if row.get(key) != head.get(key):
                difference = f"{key} was {row.get(key)!r}, now {head.get(key)!r}"
                raise BadInput(
                    f"{self.path}: holds responses drawn otherwise ({difference}); remove it to draw anew, or name "
                    "another output file"
                )
