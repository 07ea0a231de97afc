"""What may be kept: every row counted once, repeated rows refused, ids made unique."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from marginkit.data.checks import Finding, Findings, RowRefused, shown
from marginkit.data.rows import Row
from marginkit.data.seen import DigestMap, digest, evidence_digest, texts_digest, whole_digest
from marginkit.records import Group

_ROWS_PER_PROGRESS = 200


class Admission:
    """The ledger of one reading, and what it remembers of the rows before.

    Args:
        findings: counts and findings go here.
        progress: called now and then with (rows read, rows in all or None).
        total: rows in all, where that is known.
    """

    def __init__(
        self, findings: Findings, progress: Callable[[int, int | None], None] | None, total: int | None
    ) -> None:
        self.findings, self._progress, self._total = findings, progress, total
        self._place = ""
        self._remarks: list[Finding] = []  # on the rows at hand: they count only if these are kept
        self._rows, self._ids, self._keys = DigestMap(), DigestMap(), DigestMap()
        self._returned = 0

    def at(self, place: str) -> int:
        """Remarks are on this row from now on; returns how many there are, for `forget`."""
        self._place = place
        return len(self._remarks)

    def warn(self, reason: str, rule: str, fix: str) -> None:
        """Remark on the row at hand."""
        self._remarks.append(Finding(self._place, reason, rule, fix, "warn"))

    def forget(self, since: int = 0) -> None:
        """Take back the remarks since `at`."""
        del self._remarks[since:]

    def keep(self) -> None:
        """Count one row that went into a group, and the remarks on the rows at hand."""
        self.findings.kept += 1
        if self._remarks:
            for remark in self._remarks:
                self.findings.add(remark)
            self._remarks = []
        self._count()

    def drop(self, place: str, refused: RowRefused) -> None:
        """Count one row that is left out."""
        self.findings.add(Finding(place, refused.reason, refused.rule, refused.fix))
        self._count()

    def _count(self) -> None:
        self.findings.read += 1
        if self._progress and self.findings.read % _ROWS_PER_PROGRESS == 0:
            self._progress(self.findings.read, self._total)

    def finish(self) -> None:
        """Say what only the end shows."""
        if self._returned:
            self.findings.note(
                f"{self._returned} times a prompt came again after rows of others; such groups stay apart, since only "
                "consecutive rows make one group"
            )
        if self._progress:
            self._progress(self.findings.read, self._total)

    def remember_key(self, key: str) -> None:
        """A run of rows of this key begins."""
        seen = digest(key.encode(errors="surrogatepass"))
        if self._keys.get(seen):
            self._returned += 1
        self._keys.put(seen, 1)

    def refuse_repeated(self, row: Row) -> None:
        """Refuse a row that is wholly equal to one before it.

        Raises:
            RowRefused: it is.
        """
        try:
            said = json.dumps(row, ensure_ascii=False, sort_keys=True, default=str).encode(errors="surrogatepass")
        except (TypeError, ValueError, RecursionError):
            raise RowRefused("not JSON", "the row holds a value that JSON has no form for", "correct it") from None
        seen = digest(said)
        if self._rows.get(seen) is not None:
            raise RowRefused("duplicate row", "the same row was read before", "remove the row")
        self._rows.put(seen, 0)

    def admit(self, group: Group, *, whole: bool = False) -> Group:
        """Refuse a group that was read before, and give it an id of its own.

        Args:
            group: what the rows at hand became.
            whole: only a wholly equal group is a repetition; else the same prompt and responses are.

        Returns:
            The group, under another id where its own is taken.

        Raises:
            RowRefused: it was read before, or cannot be written.
        """
        said, evidence = texts_digest(group), evidence_digest(group)
        seen = whole_digest(group, said, evidence) if whole else said
        before = self._rows.get(seen)
        if before is not None:
            other = "" if whole or before == evidence else ", with other evidence"
            rule = f"the same prompt and responses were read before{other}"
            raise RowRefused("duplicate row", rule, "remove the row, or merge the evidence of both")
        self._rows.put(seen, evidence)
        return self._with_unique_id(group)

    def _with_unique_id(self, group: Group) -> Group:
        key = digest(group.id.encode())
        count, unique = (self._ids.get(key) or 0) + 1, group.id
        if count > 1:
            while self._ids.get(digest((unique := f"{group.id}#{count}").encode())):
                count += 1
            self._ids.put(digest(unique.encode()), 1)
            self.warn("duplicate id", f"id {shown(group.id)} was read before", f"renamed to {shown(unique)}")
        self._ids.put(key, count)
        return group if unique == group.id else replace(group, id=unique)
