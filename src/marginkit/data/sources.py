"""Reading graded feedback: any file, any known dialect or layout, into groups and a ledger of what was refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from marginkit.data.admission import Admission
from marginkit.data.checks import Findings, RowRefused, shown
from marginkit.data.columns import Columns
from marginkit.data.files import RawRow, Stream, open_streams
from marginkit.data.gathering import RowReader
from marginkit.data.recognising import Mapped, Way, find_way
from marginkit.data.rows import Contradiction, Rules, Ties
from marginkit.data.splits import FEW_PROMPTS, assign_clusters, text_digest
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group

_ROWS_TO_DETECT = 50

Source = str | Path | Iterable[Any]


def read_groups(
    source: Source,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    mapping: Mapped | None = None,
    ties: Ties = "half",
    contradiction: Contradiction = "drop",
    contradiction_limit: float = 0.05,
    strict: bool = False,
    config_name: str | None = None,
    limit: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> tuple[Groups, Findings]:
    """Read graded feedback of any known dialect or layout.

    The dialects are known datasets (UltraFeedback, SHP, HelpSteer ...: docs/data.md lists them), recognised by their
    columns. What is none of them is read by its layout: `native` (what `write_groups` writes), `multi-response`
    (prompt, responses), `pair` (chosen, rejected, with whatever grades them), `sft` (messages; instruction, output;
    prompt, completion). For any other file `mapping` says which field is what. Rows are streamed; only a plain .json
    file is read whole.

    Args:
        source: a .jsonl, .ndjson, .json, .csv or .tsv file, packed as .gz or not; a .parquet file; a folder that
            `datasets.save_to_disk` wrote; the name of a hub dataset (streamed, no remote code); a list of these; or an
            iterable of rows (dicts).
        split: read only this split; other rows are not counted as read.
        columns: file column -> known column or "ignore"; `{"margin": "logits"}` reads margins as target gaps in logits.
            Works on the fields of responses too.
        mapping: a YAML file (or its content as a dict) that maps the fields of rows to columns; or the name of a
            dialect, to read the rows as that one.
        ties: equal evidence gives half (a flagged tie), label (the given order) or drop.
        contradiction: evidence against the given order: drop the row, keep it as it is (strength < 0 then),
            trust_label (set the evidence aside, P = 1) or trust_grade (swap the two).
        contradiction_limit: with contradiction="drop", refuse the file above this share of rows.
        strict: refuse the file if any row breaks a rule.
        config_name: the configuration of a hub dataset.
        limit: read at most so many rows.
        progress: called now and then with (rows read, rows in all or None).

    Returns:
        The groups, and the findings: read == kept + sum of dropped, always. A group is a row, except in dialects whose
        rows are single ratings or messages: there consecutive rows of one prompt are one group.

    Raises:
        BadInput: the source cannot be read at all, no layout fits, a column is misspelt, or too many rows are refused.

    Example:
        >>> rows = [{"prompt": "Name a fruit.", "chosen": "Apple.", "rejected": "Carrot.", "margin": 2.5},
        ...         {"prompt": "Name a fruit.", "chosen": "Pear.", "rejected": "Pear.", "margin": 1.0}]
        >>> groups, findings = read_groups(rows)
        >>> groups[0].pairs[0].strength, findings.dropped
        (2.5, {'identical responses': 1})
        >>> print(findings.items[0])
        row 2: chosen and rejected are the same; remove the row
    """
    _one_of("ties", ties, ("half", "label", "drop"))
    _one_of("contradiction", contradiction, ("drop", "keep", "trust_label", "trust_grade"))
    if limit is not None and limit < 1:
        raise BadInput(f"limit={limit}: read at least 1 row, or None for all")
    streams = open_streams(source, split=split, config_name=config_name)
    reading = _Reading(streams, split, Columns(columns), mapping, limit, progress)
    groups = Groups.from_iterable(reading.groups(ties, contradiction))
    findings = reading.finish()
    _refuse_too_many(findings, contradiction_limit, strict)
    groups.dropped = dict(findings.dropped)
    return reading.clustered(groups), findings


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise BadInput(f"{name}={value!r}: the choices are {', '.join(known)}")


def _refuse_too_many(findings: Findings, contradiction_limit: float, strict: bool) -> None:
    broken = findings.broken
    if strict and broken:
        first = next(finding for finding in findings.items if finding.reason in broken and finding.severity == "drop")
        raise BadInput(f"{sum(broken.values())} of {findings.read} rows break a rule (strict), the first: {first}")
    count = findings.dropped.get("contradiction", 0)
    if count and count / findings.read > contradiction_limit:
        first = next(finding for finding in findings.items if finding.reason == "contradiction")
        share = f"{count} of {findings.read} rows ({count / findings.read:.1%})"
        raise BadInput(
            f"{findings.file}: {share} contradict their label, above contradiction_limit={contradiction_limit:g}; the "
            f"first: {first.place}: {first.rule}; check which column is which, or set contradiction to "
            '"keep", "trust_label" or "trust_grade"'
        )


class _Reading:
    """One reading: the rows of all streams, and what is remembered between them."""

    def __init__(
        self,
        streams: list[Stream],
        split: str | None,
        columns: Columns,
        mapping: Mapped | None,
        limit: int | None,
        progress: Callable[[int, int | None], None] | None,
    ) -> None:
        self.streams, self.split, self.columns, self.mapping, self.limit = streams, split, columns, mapping, limit
        totals = [stream.total for stream in streams]
        total = None if None in totals else sum(total for total in totals if total is not None)
        self.findings = Findings(", ".join(stream.file for stream in streams))
        self.admission = Admission(self.findings, progress, total)
        self.taken = 0
        self.ways: dict[str, Way] = {}
        self.other_splits: set[str] = set()
        self.prompts: set[str] = set()
        self.pairs_only = True

    def groups(self, ties: Ties, contradiction: Contradiction) -> Iterator[Group]:
        """Every row that can be kept, as a group of its own or with its neighbours."""
        rules = Rules(ties, contradiction, self.admission.warn, self.columns.response)
        for stream in self.streams:
            first, way = self._open(stream)
            skip = partial(self._skip, stream.split is not None)
            reader = RowReader(way, stream, rules, self.columns, self.admission, skip)
            for group in reader.groups(self._up_to_limit(itertools.chain(first, stream.rows))):
                if len(self.prompts) < FEW_PROMPTS:
                    self.prompts.add(text_digest(group.prompt))
                self.pairs_only = self.pairs_only and len(group.responses) == 2
                yield group
        if self.split is not None and not self.findings.read:
            held = ", ".join(sorted(self.other_splits)) or "no splits"
            raise BadInput(f"{self.findings.file}: no row has split {self.split!r}; the data has {held}")
        self.columns.check_given()

    def finish(self) -> Findings:
        """The ledger, complete."""
        self.findings.dialect = ", ".join(self.ways)
        self.findings.recognised = "; ".join(way.why for way in self.ways.values())
        for note in (*(note for way in self.ways.values() for note in way.notes), *self.columns.notes()):
            self.findings.note(note)
        self.admission.finish()
        return self.findings

    def clustered(self, groups: Groups) -> Groups:
        """Groups with their clusters; the rows have brought theirs, unless there are too few prompts to tell."""
        few = self.pairs_only and len(self.prompts) < FEW_PROMPTS
        return assign_clusters(groups) if few and "native" not in self.ways else groups

    def _open(self, stream: Stream) -> tuple[list[RawRow], Way]:
        """Take the first rows off a stream and find out how they are read."""
        first = list(itertools.islice(stream.rows, _ROWS_TO_DETECT))
        if not first:
            raise BadInput(f"{stream.file} is empty; give at least one row")
        objects = [raw.value for raw in first if isinstance(raw.value, Mapping)]
        if not objects:
            value = first[0].value
            fix = "a row is one object; an array of rows belongs in a .json file"
            said = value.rule if isinstance(value, RowRefused) else f"the row is {shown(value)}"
            fix = value.fix if isinstance(value, RowRefused) and value.reason != "broken JSON" else fix
            raise BadInput(f"{first[0].place}: {said}; {fix}; none of the first rows can be read")
        way = find_way(stream.file, objects, self.columns, stream.hub, self.mapping)
        self.ways.setdefault(way.name, way)
        return first, way

    def _up_to_limit(self, rows: Iterable[RawRow]) -> Iterator[RawRow]:
        for raw in rows:
            if self.limit is not None and self.taken >= self.limit:
                self.findings.note(f"stopped after {self.limit} rows (limit)")
                return
            self.taken += 1
            yield raw

    def _skip(self, named: bool, split: object) -> bool:
        """Whether a row of this split is none of those to read; it does not count as read then."""
        if self.split is None or named or split == self.split:
            return False
        self.other_splits |= {str(split)} if split else set()
        self.taken -= 1
        return True
