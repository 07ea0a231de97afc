"""Files of judgments and questions as others write them: JSON lines or one JSON list, each row with its place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from marginkit.errors import BadInput

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """One row and where it stands.

    Args:
        where: `file:line`, and which entry of the list where the file is one list.
        value: the row.
    """

    where: str
    value: Mapping[str, Any]

    def refuse(self, why: str) -> NoReturn:
        """Raise BadInput with the row's place."""
        raise BadInput(f"{self.where}: {why}")

    def get(self, key: str) -> Any:
        """What stands under a key.

        Raises:
            BadInput: it is missing.
        """
        if key not in self.value:
            self.refuse(f"has no {key!r} (it has {', '.join(map(repr, list(self.value)[:8])) or 'nothing'})")
        return self.value[key]

    def text(self, key: str) -> str:
        """A text that is not optional."""
        found = self.get(key)
        if not isinstance(found, str):
            self.refuse(f"{key!r} is {_kind(found)}, not a text")
        return found

    def name(self, key: str) -> str:
        """A text that is shown again: no control characters, which could rewrite a terminal."""
        found = self.text(key)
        if not found.isprintable():
            self.refuse(f"{key!r} is {found[:60]!r}: a name holds characters that can be shown")
        return found

    def number(self, key: str) -> float:
        """A finite number that is not optional."""
        found = self.get(key)
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            self.refuse(f"{key!r} is {_kind(found)}, not a number")
        return float(found)

    def identifier(self, key: str) -> str | int:
        """A text or a whole number, as questions are named."""
        found = self.get(key)
        if isinstance(found, bool) or not isinstance(found, str | int):
            self.refuse(f"{key!r} is {_kind(found)}, not a name or a whole number")
        return self.name(key) if isinstance(found, str) else found


def read_rows(paths: Paths) -> list[JudgedRow]:
    """Rows of one or several files, in order.

    Args:
        paths: JSON lines, or one JSON list a file. NaN and Infinity are no JSON and are refused.

    Returns:
        At least one row.

    Raises:
        BadInput: a file is missing, empty, not UTF-8, or a row is not a JSON object.
    """
    found: list[JudgedRow] = []
    for path in [paths] if isinstance(paths, str | Path) else list(paths):
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadInput(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror or error}") from None
        rows = list(_list_rows(str(path), text) if text.lstrip()[:1] == "[" else _line_rows(str(path), text))
        if not rows:
            raise BadInput(f"{path}: is empty; a file of judgments or questions has one JSON object a line")
        found += rows
    if not found:
        raise BadInput("no file is given")
    return found


def _line_rows(path: str, text: str) -> Iterable[JudgedRow]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            yield _row(where, _decoded(where, line.strip(), 0)[0])


def _list_rows(path: str, text: str) -> Iterable[JudgedRow]:
    at = _skip(text, text.index("[") + 1)
    line, counted, entry = 1, 0, 0
    while at < len(text) and text[at] != "]":
        line, counted, entry = line + text.count("\n", counted, at), at, entry + 1
        where = f"{path}:{line} (entry {entry})"
        value, end = _decoded(where, text, at)
        yield _row(where, value)
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            raise BadInput(f"{where}: is not followed by a comma or the end of the list; the file is cut or damaged")
    if text[at : at + 1] != "]" or text[at + 1 :].strip():
        raise BadInput(f"{path}:{text.count(chr(10)) + 1}: the list does not end with the file; it is cut or damaged")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON; write null where there is none")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _decoded(where: str, text: str, at: int) -> tuple[Any, int]:
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise BadInput(f"{where}: is no JSON ({error.msg} at character {error.pos - at + 1})") from None
    except RecursionError:
        raise BadInput(f"{where}: is nested too deep") from None
    except ValueError as error:
        raise BadInput(f"{where}: {error}") from None
    if at == 0 and text[end:].strip():
        raise BadInput(f"{where}: something follows the JSON object; write one object a line")
    return value, end


def _row(where: str, value: Any) -> JudgedRow:
    if not isinstance(value, Mapping):
        raise BadInput(f"{where}: is {_kind(value)}, not a JSON object")
    return JudgedRow(where, value)


def _kind(value: Any) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
