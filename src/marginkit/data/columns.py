"""Column names: which layout they belong to, what each column is read as, and which are not read."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from marginkit.data.checks import RowRefused, shown
from marginkit.data.dialects import nearest
from marginkit.data.dialects.record import Dialect
from marginkit.data.files import typed_cell
from marginkit.data.layouts import ALIASES, COLUMNS, RESPONSE_ALIASES, RESPONSE_FIELDS, detect
from marginkit.errors import BadInput
from marginkit.records import NATIVE_FORMAT

_SPELLINGS = {"logits": "target_gap", "strength": "margin"}  # what `columns` may also call a known column
_NEEDED = ("prompt", "chosen", "rejected", "responses", "messages", "instruction", "output", "completion")


class Columns:
    """What the columns of one reading are read as.

    Args:
        given: file column -> known column or "ignore", as the user says; wins over everything.

    Example:
        >>> columns = Columns({"better": "chosen"})
        >>> columns.detect("a.jsonl", [{"prompt": "?", "better": "x", "rejected": "y"}])
        'pair'
        >>> columns.row({"prompt": "?", "better": "x", "rejected": "y", "lang": "en"})
        {'prompt': '?', 'rejected': 'y', 'chosen': 'x'}
        >>> columns.notes()
        ['columns not read: lang']
    """

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        self.given = {key: _SPELLINGS.get(name, name) for key, name in (given or {}).items()}
        self._seen: set[str] = set()  # all columns and response fields so far
        self._names: dict[str, tuple[int, str | None]] = {}  # column -> (precedence, known name or None)
        self._plans: dict[
            tuple[str, ...], list[tuple[str, str]]
        ] = {}  # columns of a row -> (column, known name), in order
        self._unread: set[str] = set()
        self._unread_fields: set[str] = set()
        self._notes: dict[str, None] = {}
        self._file = self._layout = ""

    def detect(self, file: str, rows: Sequence[Mapping[Any, Any]]) -> str:
        """Find the layout of a file from its first rows.

        Raises:
            BadInput: no layout fits, or `columns` names what the layout does not have.
        """
        held = list(dict.fromkeys(str(key) for row in rows for key in row))
        named = self.names(held)
        layout = next(iter(Counter(filter(None, (detect(self.names(row)) for row in rows))).most_common(1)), (None,))[0]
        layout = layout or detect(named)
        formats = [row["format"] for row in rows if str(row.get("format")).startswith("marginkit/")]
        if formats and layout == "multi-response":
            layout = "native"
            if NATIVE_FORMAT not in formats:
                raise BadInput(f"{file}: format {shown(formats[0])}, but this version reads {shown(NATIVE_FORMAT)}")
        if layout is None:
            for key, name in self.given.items():
                if key in _NEEDED and name not in (*_NEEDED, "ignore"):
                    rule = f"takes the column {key!r} away, and no layout has one named {name!r}"
                    raise BadInput(f"columns.{key}={name}: {rule}; the file's name comes first: {name}={key}")
            near = [_layouts(held), nearest(named)]
            listed = ", ".join(held) or "(none)"
            raise BadInput(f"{file}: no known layout has the columns {listed}; {'; '.join(filter(None, near))}")
        known = {*COLUMNS[layout], "ignore", *(RESPONSE_FIELDS if layout == "multi-response" else ())}
        for key, name in self.given.items():
            if key in held and name not in known:
                hint = did_you_mean(name, known)
                raise BadInput(f"columns.{key}={name}: the {layout} layout has no column {name!r}{hint}")
        self._file, self._layout, self._names, self._plans = file, layout, {}, {}
        for key in held:
            self._learn(key, held)
        return layout

    def names(self, held: Iterable[str]) -> set[str]:
        """What columns are called, after the renames that are given."""
        return {self.given.get(key, key) for key in held}

    def take(self, file: str, dialect: Dialect, held: Iterable[str]) -> None:
        """Read the renamed columns of a file as a dialect: note those that it does not read.

        Raises:
            BadInput: `columns` names what the dialect does not have.
        """
        self._file, self._layout = file, dialect.layout
        known = {*dialect.needs, *dialect.reads}
        for key, name in self.given.items():
            if key in self._seen and name != "ignore" and name not in known and dialect.needs:
                hint = did_you_mean(name, known)
                raise BadInput(f"columns.{key}={name}: the dialect {dialect.name} has no column {name!r}{hint}")
        self._unread |= {key for key in held if key not in known}

    def renamed(self, row: Mapping[Any, Any]) -> dict[str, Any]:
        """A row under the names that `columns` gives; what it ignores is left out.

        Raises:
            RowRefused: a column is not named by a string.
        """
        read: dict[str, Any] = {}
        self._seen.update(row)
        for key, value in row.items():
            name = self.given.get(key, key)
            if not isinstance(name, str):
                raise RowRefused("not an object", f"a column is named {shown(key)}", "name columns by strings")
            if name != "ignore" and (key in self.given or name not in read):
                read[name] = value.tolist() if hasattr(value, "tolist") else value  # rows of a data frame hold arrays
        return read

    def row(self, row: Mapping[Any, Any], *, untyped: bool = False) -> dict[str, Any]:
        """A row under its known names; `untyped` turns table cells into what their column holds."""
        plan = self._plans.get(tuple(row)) or self._plan(row)
        renamed: dict[str, Any] = {}
        for key, name in plan:
            value = row[key]
            if value is None and name in renamed:
                continue
            if hasattr(value, "tolist"):  # rows of a data frame hold arrays
                value = value.tolist()
            renamed[name] = typed_cell(name, value) if untyped else value
            if value is not None and name in ("margin", "target_gap") and self._layout == "pair":
                self._note_gap(key, name, row.get("margin_scale"))
        return renamed

    def _plan(self, row: Mapping[Any, Any]) -> list[tuple[str, str]]:
        """The columns of a row that are read: given names win over known ones, these over aliases."""
        for key in row:
            if key not in self._names:
                if not isinstance(key, str):
                    raise RowRefused("not an object", f"a column is named {shown(key)}", "name columns by strings")
                self._learn(key, row)
        ordered = ((self._names[key], key) for key in sorted(row, key=lambda key: self._names[key][0]))
        plan = [(key, name) for (_, name), key in ordered if name is not None]
        if len(self._plans) < 100:  # rows of ever other columns are not worth remembering
            self._plans[tuple(row)] = plan
        return plan

    def response(self, row: Mapping[Any, Any]) -> dict[str, Any]:
        """One entry of `responses` under its known names."""
        renamed: dict[str, Any] = {}
        for key, value in row.items():
            self._seen.add(key)
            name = self.given.get(key) or (key if key in RESPONSE_FIELDS else RESPONSE_ALIASES.get(key))
            if name in RESPONSE_FIELDS:
                if value is not None or name not in renamed:
                    renamed[name] = value
            elif name != "ignore":
                self._unread_fields.add(str(key))
        return renamed

    def notes(self) -> list[str]:
        """How columns were taken, and which were not read."""
        notes = list(self._notes)
        for kind, unread in (("columns", self._unread), ("response fields", self._unread_fields)):
            if unread:
                notes.append(f"{kind} not read: {', '.join(sorted(unread))}")
        if "logit" in self._unread_fields:
            notes.append("columns.logit=utility reads the responses' logit as their value in logits")
        return notes

    def check_given(self) -> None:
        """Every key of `columns` was there.

        Raises:
            BadInput: one was not.
        """
        never = next((key for key in self.given if key not in self._seen), None)
        if never is not None:
            raise BadInput(f"columns.{never}: {self._file} has no such column{did_you_mean(never, self._seen)}")

    def _learn(self, key: str, held: Iterable[str]) -> None:
        self._seen.add(key)
        known = COLUMNS[self._layout]
        if key in self.given:
            name = self.given[key]
            self._names[key] = (2, name if name in known else None)
        elif key in known:
            self._names[key] = (1, key)
        elif ALIASES.get(key) in known and self._layout != "native":
            self._names[key] = (0, ALIASES[key])
        else:
            taken = {*held, *self.given.values()}
            meant = _misspelt(key, [name for name in known if name not in taken])
            if meant:
                raise BadInput(
                    f"{self._file}: column {key!r} is not known; did you mean {meant!r}? Rename it, or set "
                    f'columns={{"{key}": "{meant}"}} or {{"{key}": "ignore"}}'
                )
            self._unread.add(key)
            self._names[key] = (0, None)

    def _note_gap(self, key: str, name: str, scale: object) -> None:
        if name == "target_gap":
            self._notes[f"{key} read as target gap (logits)"] = None
            return
        words = str(scale).lower()
        hint = (
            "; its margin_scale says log-odds, so that is recommended"
            if "log-odds" in words or "logit" in words
            else ""
        )
        text = f"{key} read as strength (dataset units); columns.{key}=logits reads it as a target gap{hint}"
        self._notes[text] = None


def _misspelt(key: str, known: Sequence[str]) -> str | None:
    swapped = next((name for name in known if sorted(name) == sorted(key)), None)
    return swapped or next(iter(difflib.get_close_matches(key, known, n=1, cutoff=0.88)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest known name, or all of them, as the end of a message.

    Example:
        >>> did_you_mean("choosen", ["prompt", "chosen"])
        "; did you mean 'chosen'?"
    """
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(known))}"


def _layouts(held: Sequence[str]) -> str:
    """What the known layouts need, and the near misses among the columns held."""
    near = []
    for key in held:
        close = [] if key in _NEEDED else difflib.get_close_matches(key, _NEEDED, n=1, cutoff=0.8)
        near += [f"{key!r}: did you mean {name!r}?" for name in close if name not in held]
    return " ".join(
        [
            *near,
            "A layout needs chosen and rejected, or prompt and responses, or messages, or instruction and output, or",
            'prompt and completion; rename with columns={"<column>": "<known name>"}, or give a mapping',
        ]
    )
