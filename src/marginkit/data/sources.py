"""Reading graded feedback: any file, any of the known layouts, into groups and a ledger of what was refused."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from marginkit.data import dialects
from marginkit.data.checks import Finding, Findings, RowRefused, shown
from marginkit.data.columns import Columns
from marginkit.data.files import RawRow, Stream, open_streams
from marginkit.data.rows import Contradiction, Origin, Rules, Ties
from marginkit.data.splits import assign_clusters
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group, group_to_json

_ROWS_TO_DETECT = 50
_ROWS_PER_PROGRESS = 200

Source = str | Path | Iterable[Any]


def read_groups(
    source: Source,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    ties: Ties = "half",
    contradiction: Contradiction = "drop",
    contradiction_limit: float = 0.05,
    strict: bool = False,
    config_name: str | None = None,
    limit: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> tuple[Groups, Findings]:
    """Read graded feedback of any known layout.

    The layouts (detected from the columns of the first rows): `native` (what `write_groups` writes), `multi-response`
    (prompt, responses), `pair` (chosen, rejected, with whatever grades them), `sft` (messages; instruction, output;
    prompt, completion). Rows are streamed; only a plain .json file is read whole.

    Args:
        source: a .jsonl, .ndjson, .json, .parquet, .csv or .tsv file; a folder that `datasets.save_to_disk` wrote; the
            name of a hub dataset (streamed, no remote code); a list of these; or an iterable of rows (dicts).
        split: read only this split; other rows are not counted as read.
        columns: file column -> known column or "ignore"; `{"margin": "logits"}` reads margins as target gaps in logits.
            Works on the fields of responses too.
        ties: equal evidence gives half (a flagged tie), label (the given order) or drop.
        contradiction: evidence against the given order: drop the row, keep it as it is (strength < 0 then),
            trust_label (set the evidence aside, P = 1) or trust_grade (swap the two).
        contradiction_limit: with contradiction="drop", refuse the file above this share of rows.
        strict: refuse the file if any row breaks a rule.
        config_name: the configuration of a hub dataset.
        limit: read at most so many rows.
        progress: called now and then with (rows read, rows in all or None).

    Returns:
        The groups, one a row, and the findings: read == kept + sum of dropped, always.

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
    reading = _Reading(streams, split, Columns(columns), limit, progress)
    groups = Groups.from_iterable(reading.groups(ties, contradiction))
    findings = reading.finish()
    _refuse_too_many(findings, contradiction_limit, strict)
    groups.dropped = dict(findings.dropped)
    return (groups if findings.dialect == "native" else assign_clusters(groups)), findings


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise BadInput(f"{name}={value!r}: the choices are {', '.join(known)}")


def _refuse_too_many(findings: Findings, contradiction_limit: float, strict: bool) -> None:
    broken = {reason: count for reason, count in findings.dropped.items() if reason != "tie"}
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
        limit: int | None,
        progress: Callable[[int, int | None], None] | None,
    ) -> None:
        self.streams, self.split, self.columns, self.limit, self.progress = streams, split, columns, limit, progress
        totals = [stream.total for stream in streams]
        self.total = None if None in totals else sum(total for total in totals if total is not None)
        self.findings = Findings(", ".join(stream.file for stream in streams))
        self.dialects: dict[str, None] = {}
        self.place = ""
        self.remarks: list[Finding] = []  # on the row at hand: they count only if it is kept
        self.rows: dict[bytes, bytes] = {}  # digest of the texts -> digest of all the row says
        self.ids: dict[bytes, int] = {}
        self.other_splits: set[str] = set()

    def groups(self, ties: Ties, contradiction: Contradiction) -> Iterator[Group]:
        """Every row that can be kept, as a group."""
        rules = Rules(ties, contradiction, self._warn, self.columns.response)
        for stream in self.streams:
            first, dialect = self._detect(stream)
            for raw in itertools.chain(first, stream.rows):
                if self.limit is not None and self.findings.read >= self.limit:
                    self.findings.note(f"stopped after {self.limit} rows (limit)")
                    return
                yield from self._row(raw, stream, dialect, rules)
        if self.split is not None and not self.findings.read:
            held = ", ".join(sorted(self.other_splits)) or "no splits"
            raise BadInput(f"{self.findings.file}: no row has split {self.split!r}; the data has {held}")
        self.columns.check_given()

    def finish(self) -> Findings:
        """The ledger, complete."""
        self.findings.dialect = ", ".join(self.dialects)
        for note in self.columns.notes():
            self.findings.note(note)
        if self.progress:
            self.progress(self.findings.read, self.total)
        return self.findings

    def _detect(self, stream: Stream) -> tuple[list[RawRow], str]:
        """Take the first rows off a stream and find out their dialect."""
        first = list(itertools.islice(stream.rows, _ROWS_TO_DETECT))
        if not first:
            raise BadInput(f"{stream.file} is empty; give at least one row")
        objects = [raw.value for raw in first if isinstance(raw.value, Mapping)]
        if not objects:
            value = first[0].value
            rule = value.rule if isinstance(value, RowRefused) else f"the row is {shown(value)}"
            raise BadInput(
                f"{first[0].place}: {rule}; none of the first rows is an object, so there is nothing to read"
            )
        dialect = self.columns.detect(stream.file, objects)
        self.dialects[dialect] = None
        return first, dialect

    def _row(self, raw: RawRow, stream: Stream, dialect: str, rules: Rules) -> Iterator[Group]:
        self.place, self.remarks = raw.place, []
        try:
            if isinstance(raw.value, RowRefused):
                raise raw.value
            if not isinstance(raw.value, Mapping):
                raise RowRefused("not an object", f"the row is {shown(raw.value)}", "a row is one JSON object")
            row = self.columns.row(raw.value, untyped=stream.untyped)
            if self.split is not None and stream.split is None and row.get("split") != self.split:
                self.other_splits |= {str(row["split"])} if row.get("split") else set()
                return
            group = dialects.to_group(
                dialect, row, Origin(f"{stream.stem}:{raw.number}", stream.source, stream.split), rules
            )
            self._refuse_duplicate(group, dialect)
            group = self._with_unique_id(group)
        except RowRefused as refused:
            self.findings.add(Finding(raw.place, refused.reason, refused.rule, refused.fix))
        else:
            self.findings.kept += 1
            for remark in self.remarks:
                self.findings.add(remark)
            yield group
        self.findings.read += 1
        if self.progress and self.findings.read % _ROWS_PER_PROGRESS == 0:
            self.progress(self.findings.read, self.total)

    def _refuse_duplicate(self, group: Group, dialect: str) -> None:
        whole = group_to_json(group)
        try:
            said = json.dumps(whole, ensure_ascii=False, sort_keys=True, allow_nan=False).encode()
        except UnicodeEncodeError:
            fix = "correct its \\ud800 to \\udfff escapes"
            raise RowRefused(
                "not Unicode", "a text holds half of a surrogate pair, which is no character", fix
            ) from None
        except (TypeError, ValueError, RecursionError):
            rule = "tools or tool_calls hold a value that JSON has no form for"
            raise RowRefused("not JSON", rule, "use plain numbers, strings, lists and objects") from None
        evidence = _digest(json.dumps([whole.get("pairs"), whole.get("comparisons"), _graded(whole)]).encode())
        if dialect != "native":  # native rows may repeat a text on purpose: only a wholly equal row is a duplicate
            said = json.dumps([whole["prompt"], [r["turns"] for r in whole["responses"]]], sort_keys=True).encode()
        before = self.rows.setdefault(_digest(said), evidence)
        if before is not evidence:
            other = "" if before == evidence else ", with other evidence"
            rule = f"the same prompt and responses were read before{other}"
            raise RowRefused("duplicate row", rule, "remove the row, or merge the evidence of both")

    def _with_unique_id(self, group: Group) -> Group:
        key = _digest(group.id.encode())
        count, unique = self.ids.get(key, 0) + 1, group.id
        if count > 1:
            while _digest((unique := f"{group.id}#{count}").encode()) in self.ids:
                count += 1
            self.ids[_digest(unique.encode())] = 1
            self._warn("duplicate id", f"id {shown(group.id)} was read before", f"renamed to {shown(unique)}")
        self.ids[key] = count
        return group if unique == group.id else replace(group, id=unique)

    def _warn(self, reason: str, rule: str, fix: str) -> None:
        self.remarks.append(Finding(self.place, reason, rule, fix, "warn"))


def _digest(said: bytes) -> bytes:
    return hashlib.blake2b(said, digest_size=16).digest()


def _graded(whole: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in response.items() if k not in ("turns", "model")} for response in whole["responses"]]
