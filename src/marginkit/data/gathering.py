"""From raw rows to groups: one row a group, several rows that belong together, or a tree of messages in many rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from marginkit.data.admission import Admission
from marginkit.data.checks import RowRefused, shown
from marginkit.data.columns import Columns
from marginkit.data.files import RawRow, Stream, typed_cell
from marginkit.data.layouts import to_group
from marginkit.data.multi_rows import merge, moved
from marginkit.data.recognising import Way
from marginkit.data.rows import Origin, Row, Rules
from marginkit.records import Comparison, Group

MOST_GATHERED = 10_000  # rows of one group
_Held = Sequence[tuple[RawRow, Row]]


def join(groups: Sequence[Group], rules: Rules | None) -> Group:
    """One group of several that answer the same prompt: all their responses, each text once, and all comparisons.

    Args:
        groups: groups of one prompt, without pairs.
        rules: where remarks on equal responses go; None where they are expected.

    Returns:
        The first group with what the others add.

    Example:
        >>> from marginkit.records import Response
        >>> groups = [Group("a", "?", (Response("x", grade=1.0),)), Group("b", "?", (Response("y", grade=2.0),))]
        >>> [response.text for response in join(groups, None).responses]
        ['x', 'y']
    """
    if len(groups) == 1:
        return groups[0]
    responses, places = merge((response for group in groups for response in group.responses), rules)
    compared: list[Comparison] = []
    start = 0
    for group in groups:
        compared += moved(group.comparisons, places[start:])
        start += len(group.responses)
    return replace(groups[0], responses=tuple(responses), comparisons=tuple(compared))


class RowReader:
    """Reads the rows of one stream.

    Args:
        way: how they are read.
        stream: where they come from.
        rules: the policies.
        columns: the names of columns.
        admission: counts them, and refuses what was read before.
        skip: asked of a row's split: whether the row is none of those to read.
    """

    def __init__(
        self,
        way: Way,
        stream: Stream,
        rules: Rules,
        columns: Columns,
        admission: Admission,
        skip: Callable[[object], bool],
    ) -> None:
        self._way, self._stream, self._columns, self._admission, self._skip = way, stream, columns, admission, skip
        self._dialect = way.dialect
        self._rules = rules if way.dialect is None else replace(rules, rename_response=lambda row: row)
        self._whole = way.layout == "native" and way.dialect is None

    def groups(self, rows: Iterator[RawRow]) -> Iterator[Group]:
        """Every row that can be kept, as a group of its own or with its neighbours."""
        if self._dialect is not None and (self._dialect.key or self._dialect.unfold):
            yield from self._gathered(rows)
            return
        for raw in rows:
            group = self._single(raw)
            if group is not None:
                yield group

    def _single(self, raw: RawRow) -> Group | None:
        admission = self._admission
        admission.at(raw.place)
        admission.forget()
        try:
            row = self._row(raw)
            group = self._translated(row, raw)
            if group is None:
                return None
            if self._dialect is not None and self._dialect.repeats:
                admission.refuse_repeated(row)
                group = admission.admit(group, whole=True)
            else:
                group = admission.admit(group, whole=self._whole)
        except RowRefused as refused:
            admission.drop(raw.place, refused)
            return None
        admission.keep()
        return group

    def _row(self, raw: RawRow) -> Row:
        value = raw.value
        if isinstance(value, RowRefused):
            raise value
        if not isinstance(value, Mapping):
            raise RowRefused("not an object", f"the row is {shown(value)}", "a row is one JSON object")
        if self._dialect is None:
            return self._columns.row(value, untyped=self._stream.untyped)
        return self._columns.renamed(value)

    def _translated(self, row: Row, raw: RawRow) -> Group | None:
        if self._dialect is not None and self._dialect.translate is not None:
            row = self._dialect.translate(row, self._rules)
            if self._stream.untyped:
                row = {name: typed_cell(name, value) for name, value in row.items()}
        return self._group(row, raw)

    def _group(self, row: Row, raw: RawRow) -> Group | None:
        """The group of a row of the layout; None if its split is not read."""
        if self._skip(row.get("split")):
            return None
        stream = self._stream
        try:
            return to_group(
                self._way.layout, row, Origin(f"{stream.stem}:{raw.number}", stream.source, stream.split), self._rules
            )
        except UnicodeEncodeError:
            rule = "a text holds half of a surrogate pair, which is no character"
            raise RowRefused("not Unicode", rule, "correct its \\ud800 to \\udfff escapes") from None

    def _gathered(self, rows: Iterator[RawRow]) -> Iterator[Group]:
        """Runs of rows of equal key, in memory one run at a time."""
        assert self._dialect is not None
        make = self._joined if self._dialect.unfold is None else self._unfolded
        held: list[tuple[RawRow, Row]] = []
        last: object = None
        for raw in rows:
            try:
                row = self._row(raw)
                key = raw.number if self._dialect.key is None else self._dialect.key(row)
            except RowRefused as refused:
                self._admission.drop(raw.place, refused)
                continue
            if held and (key != last or len(held) >= MOST_GATHERED):
                yield from make(held)
                held = []
            if key != last and isinstance(key, str):
                self._admission.remember_key(key)
            held.append((raw, row))
            last = key
        yield from make(held)

    def _joined(self, held: _Held) -> Iterator[Group]:
        """Each row a group of its own, then one of all that answer the same prompt."""
        assert self._dialect is not None
        admission = self._admission
        pieces: list[tuple[RawRow, Group]] = []
        for raw, row in held:
            since = admission.at(raw.place)
            try:
                piece = self._translated(row, raw)
                if piece is None:
                    continue
                if self._dialect.repeats:
                    admission.refuse_repeated(row)
            except RowRefused as refused:
                admission.forget(since)
                admission.drop(raw.place, refused)
            else:
                pieces.append((raw, piece))
        for _, run in itertools.groupby(pieces, key=lambda one: one[1].prompt):
            same = list(run)
            admission.at(same[0][0].place)
            try:
                group = join([piece for _, piece in same], None if self._dialect.repeats else self._rules)
                group = admission.admit(group, whole=self._dialect.repeats)
            except RowRefused as refused:
                for raw, _ in same:
                    admission.drop(raw.place, refused)
            else:
                for _ in same:
                    admission.keep()
                yield group
        admission.forget()

    def _unfolded(self, held: _Held) -> Iterator[Group]:
        """All groups that rows hold together; a row is kept if it is part of one."""
        assert self._dialect is not None
        assert self._dialect.unfold is not None
        admission = self._admission
        kept: set[int] = set()
        other_split: set[int] = set()
        refused: dict[int, list[RowRefused]] = {}
        for made, used in self._dialect.unfold([row for _, row in held], self._rules):
            raw = held[used[0]][0]
            since = admission.at(raw.place)
            try:
                if isinstance(made, RowRefused):
                    raise made
                group = self._group(made, raw)
                if group is None:
                    other_split.update(used)
                    continue
                group = admission.admit(group)
            except RowRefused as error:
                admission.forget(since)
                for at in used:
                    refused.setdefault(at, []).append(error)
            else:
                kept.update(used)
                yield group
        for at, (raw, _) in enumerate(held):
            reasons = refused.get(at, [])
            if at in kept:
                admission.at(raw.place)
                if reasons:
                    rule = f"{len(reasons)} of its parts are left out, the first because {reasons[0].rule}"
                    admission.warn("part of the row left out", rule, reasons[0].fix)
                admission.keep()
            elif at not in other_split:
                alone = RowRefused("no answers", "the message was not answered, and answers none here", "nothing to do")
                admission.drop(raw.place, reasons[0] if reasons else alone)
        admission.forget()
