"""What is asked in a file, without what was answered: the prompts to draw new responses to."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from marginkit.data import checks
from marginkit.data.checks import RowRefused, shown
from marginkit.data.files import RawRow, Stream, open_streams
from marginkit.data.rows import Origin, finish, same
from marginkit.data.sources import Source, read_groups
from marginkit.data.splits import assign_clusters
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group, Response, group_to_json

PROMPT_COLUMNS = frozenset({"prompt", "id", "system", "tools", "source", "subset", "split", "cluster"})
"""A file that has no column but these, and `prompt` among them, holds prompts alone."""

REPEATED = "repeated prompt"


def read_prompts(
    source: Source,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    mapping: str | None = None,
    limit: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Groups:
    """Read prompts, with the responses that came with them if there are any.

    Args:
        source: what `read_groups` reads, or rows of `prompt` (text or chat turns) with, as it may be, `id`, `system`,
            `tools`, `source`, `subset`, `split`, `cluster` and nothing else.
        split: read only this split.
        columns: as for `read_groups`; not for a file of prompts alone.
        mapping: as for `read_groups`; not for a file of prompts alone.
        limit: read at most so many rows.
        progress: called now and then with (rows read, rows in all or None).

    Returns:
        One group a row, without responses where the file holds prompts alone; `dropped` counts what was refused.

    Raises:
        BadInput: the source cannot be read, or no row is left.

    Example:
        >>> groups = read_prompts([{"prompt": "Name a fruit."}, {"prompt": " "}])
        >>> groups[0].prompt, groups.dropped
        ('Name a fruit.', {'empty prompt': 1})
    """
    if isinstance(source, Iterator):
        source = list(source)
    if columns or mapping or not _holds_prompts_alone(source, split):
        groups, _ = read_groups(source, split=split, columns=columns, mapping=mapping, limit=limit, progress=progress)
    else:
        groups = _prompts_alone(open_streams(source, split=split), split, limit)
    if not len(groups):
        reasons = (
            ", ".join(f"{reason}: {count}" for reason, count in groups.dropped.items()) or f"no row of split {split}"
        )
        raise BadInput(f"{source if isinstance(source, str) else 'the prompts'}: no prompt is left ({reasons})")
    return groups


def distinct_prompts(groups: Groups, *, with_given: bool = False) -> Groups:
    """Each prompt once, in the order of first appearance; further rows of it are counted as "repeated prompt".

    Pairs, comparisons and the grades of given responses are left behind: what is drawn is judged afresh.

    Args:
        groups: any.
        with_given: keep the given responses, those of repeated prompts merged; else none.

    Example:
        >>> rows = [Group(text, "Name a fruit.", (Response(text, grade=1.0),)) for text in ("Fig.", "Pear.")]
        >>> one = distinct_prompts(Groups.from_iterable(rows), with_given=True)
        >>> [response.text for response in one[0].responses], one.dropped
        (['Fig.', 'Pear.'], {'repeated prompt': 1})
    """
    first: dict[str, Group] = {}
    dropped = Counter(groups.dropped)
    for group in groups:
        key = _asked(group)
        given = tuple(Response(r.turns, model=r.model) for r in group.responses) if with_given else ()
        if key in first:
            dropped[REPEATED] += 1
            merged = merge_same([*first[key].responses, *given])
            first[key] = replace(first[key], responses=merged)
        else:
            first[key] = replace(group, responses=merge_same(given), pairs=(), comparisons=())
    return Groups.from_iterable(first.values(), dropped)


def merge_same(responses: Sequence[Response]) -> tuple[Response, ...]:
    """The responses that say something different, each once, the first of equals."""
    kept: list[Response] = []
    for response in responses:
        if not any(same(response, other) for other in kept):
            kept.append(response)
    return tuple(kept)


def _asked(group: Group) -> str:
    whole = group_to_json(group)
    return json.dumps([whole["prompt"], whole.get("tools")], sort_keys=True, ensure_ascii=False)


def _holds_prompts_alone(source: Source, split: str | None) -> bool:
    """Whether the first rows have a prompt and nothing that could answer it."""
    for stream in open_streams(source, split=split):
        rows = [raw.value for raw in itertools.islice(stream.rows, 20)]
        found = [set(row) for row in rows if isinstance(row, Mapping)]
        if not found or not all("prompt" in names and names <= PROMPT_COLUMNS for names in found):
            return False
    return True


def _prompts_alone(streams: list[Stream], split: str | None, limit: int | None) -> Groups:
    dropped: Counter[str] = Counter()

    def groups() -> Iterator[Group]:
        names: set[str] = set()
        for stream, raw in itertools.islice(_rows_of(streams, split), limit):
            try:
                group = _asks(raw.value, Origin(f"{stream.stem}:{raw.number}", stream.source, stream.split))
            except RowRefused as refused:
                dropped[refused.reason] += 1
                continue
            if group.id in names:
                group = replace(group, id=f"{group.id}#{raw.number}")
            names.add(group.id)
            yield group

    made = Groups.from_iterable(groups())
    made.dropped = dict(dropped)
    return assign_clusters(made)


def _rows_of(streams: list[Stream], split: str | None) -> Iterator[tuple[Stream, RawRow]]:
    for stream in streams:
        for raw in stream.rows:
            other = isinstance(raw.value, Mapping) and stream.split is None and raw.value.get("split") != split
            if split is None or not other:
                yield stream, raw


def _asks(row: object, origin: Origin) -> Group:
    if isinstance(row, RowRefused):
        raise row
    if not isinstance(row, Mapping):
        raise RowRefused("not an object", f"the row is {shown(row)}", "a row is one JSON object")
    return finish(row, origin, checks.prompt(row.get("prompt")), ())
