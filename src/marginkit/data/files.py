"""From a file, a folder, a hub name or rows in memory to numbered raw rows, one at a time."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from marginkit.data.checks import RowRefused, shown
from marginkit.data.splits import resolve_split
from marginkit.errors import BadInput

READABLE = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")  # the texts among them also as .gz
LINE_LIMIT = 1 << 26  # bytes of one line, and characters of one table cell
JSON_LIMIT = 1 << 30  # bytes of a .json file, which is read whole
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_ROWS_PER_BATCH = 256
_WIDE = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}  # byte order marks; UTF-32 begins like UTF-16 or with zeros


@dataclass(frozen=True, slots=True)
class RawRow:
    """One input row: where it is, and what is there (`RowRefused` where it could not be parsed)."""

    place: str
    number: int
    value: object


@dataclass(frozen=True, slots=True)
class Stream:
    """The rows of one file, or of one split of a dataset.

    Args:
        file: its name in findings.
        stem: its name in generated ids.
        rows: read once, as they come.
        total: how many, where that is known before reading.
        source: what `Group.source` takes.
        split: what rows without a split column take.
        untyped: the rows are table cells, all strings.
        hub: the name of the hub dataset.
    """

    file: str
    stem: str
    rows: Iterator[RawRow]
    total: int | None = None
    source: str | None = None
    split: str | None = None
    untyped: bool = False
    hub: str | None = None


def open_streams(source: object, *, split: str | None = None, config_name: str | None = None) -> list[Stream]:
    """Find out what `source` is; nothing but headers is read yet.

    Raises:
        BadInput: there is no such file, or nothing here reads it.
    """
    if isinstance(source, str | Path):
        return _named(source, split, config_name)
    if hasattr(source, "column_names") and isinstance(source, Mapping):
        return _dataset_streams(source, "dataset", split)
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise BadInput(f"source is {shown(source)}: give a path, a hub name, a list of them, or an iterable of rows")
    if isinstance(source, list | tuple) and source and all(isinstance(item, str | Path) for item in source):
        return [stream for item in source for stream in open_streams(item, split=split, config_name=config_name)]
    total = len(source) if isinstance(source, Sized) else None
    rows = (RawRow(f"row {n}", n, row) for n, row in enumerate(source, 1))
    return [Stream("rows in memory", "row", rows, total)]


def _named(source: str | Path, split: str | None, config_name: str | None) -> list[Stream]:
    path, name = Path(source), str(source)
    if path.is_dir():
        return _saved(path, split)
    if not path.exists():
        known = _kind(path) in READABLE
        if _HUB_NAME.fullmatch(name) and isinstance(source, str) and not known and not path.parent.is_dir():
            return _hub(name, split, config_name)
        raise BadInput(f"{name}: no such file{_nearest(path)}")
    kind, packed = _kind(path), path.suffix.lower() == ".gz"
    if kind not in READABLE or (packed and kind == ".parquet"):
        what = path.suffix or "a file without an extension"
        raise BadInput(f"{name}: cannot read {what}; marginkit reads {', '.join(READABLE)}, and text files as .gz")
    if path.stat().st_size == 0:
        raise BadInput(f"{name} is empty; give a file with at least one row")
    if kind != ".parquet":
        _refuse_wide(path)
    total = None
    if kind == ".parquet":
        rows, total = _parquet(path)
    elif kind == ".json":
        rows, total = _json(path)
    else:
        rows = _lines(path) if kind in (".jsonl", ".ndjson") else _table(path, "\t" if kind == ".tsv" else None)
    stem = Path(path.stem).stem if packed else path.stem
    return [Stream(path.name, stem, rows, total, stem, untyped=kind in (".csv", ".tsv"))]


def _kind(path: Path) -> str:
    """The extension that says what is in a file; that of a.jsonl.gz is .jsonl."""
    kind = path.suffix.lower()
    return Path(path.stem).suffix.lower() if kind == ".gz" else kind


def _nearest(path: Path) -> str:
    """The files of the folder with the most similar names, as the end of a message."""
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent} either"
    present = sorted(entry.name for entry in path.parent.iterdir())
    close = difflib.get_close_matches(path.name, present, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    readable = [name for name in present if _kind(Path(name)) in READABLE]
    return f"; {path.parent} holds {', '.join(readable[:5]) or 'no file that marginkit reads'}"


# ---------------------------------------------------------------------------------------------------------------------
# Text files


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader[Any]]:
    """The bytes of a file, unpacked on the way where it is a .gz."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb", buffering=0) as raw:
            yield io.BufferedReader(raw, 1 << 20)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadInput(f"{path.name}: broken gzip ({_first_line(error)}); pack it again") from None


def _refuse_wide(path: Path) -> None:
    with _opened(path) as content:
        start = content.read(4)
    wide = _WIDE.get(start[:2]) or ("UTF-32" if start == b"\0\0\xfe\xff" else None)
    if wide:
        raise BadInput(f"{path.name}: its byte order mark says {wide}; save the file as UTF-8")


def _parsed(raw: bytes) -> object:
    try:
        return json.loads(raw.decode())
    except UnicodeDecodeError:
        return RowRefused("not UTF-8", f"the line is not UTF-8 ({shown(raw[:20])})", "save the file as UTF-8")
    except RecursionError:
        return RowRefused("broken JSON", "the JSON is nested too deeply", "flatten the row")
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno} column {error.colno}"
        rule = f"the JSON is broken at {place} ({error.msg}): {shown(raw[:60].decode(errors='replace'))}"
        return RowRefused("broken JSON", rule, "one JSON object a line; correct the line")
    except ValueError:
        return RowRefused("broken JSON", "the JSON holds an integer of thousands of digits", "correct the line")


def _lines(path: Path) -> Iterator[RawRow]:
    with _opened(path) as content:
        for n, line in enumerate(iter(partial(content.readline, LINE_LIMIT + 1), b""), 1):
            if len(line) > LINE_LIMIT and not line.endswith(b"\n"):
                while (more := content.readline(1 << 20)) and not more.endswith(b"\n"):
                    pass
                rule = f"the line has more than {LINE_LIMIT:,} bytes"
                fix = "write one row a line; is it a .json file?"
                yield RawRow(f"{path.name}:{n}", n, RowRefused("over-long line", rule, fix))
                continue
            if n == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line := line.strip():  # a blank line is no row
                yield RawRow(f"{path.name}:{n}", n, _parsed(line))


def _json(path: Path) -> tuple[Iterator[RawRow], int]:
    """A whole JSON file: it has to be in memory at once, so large data belongs in JSON lines."""
    with _opened(path) as content:
        whole = content.read(JSON_LIMIT + 1)
    if len(whole) > JSON_LIMIT:
        rule = f"a .json file is read whole, and this one has more than {JSON_LIMIT:,} bytes"
        raise BadInput(f"{path.name}: {rule}; write one row a line, as .jsonl")
    value = _parsed(whole.removeprefix(b"\xef\xbb\xbf"))
    if isinstance(value, RowRefused):
        raise BadInput(f"{path.name}: {value.rule}; if it holds one object a line, name it .jsonl")
    if isinstance(value, dict):
        lists = [key for key, held in value.items() if isinstance(held, list)]
        if len(lists) != 1:
            rule = f"the object holds {len(lists)} lists ({', '.join(lists)})" if lists else "the object holds no list"
            raise BadInput(f"{path.name}: {rule}; give an array of rows, or an object with one list of rows")
        value = value[lists[0]]
    if not isinstance(value, list):
        raise BadInput(f"{path.name}: holds {shown(value)}; give an array of rows")
    return (RawRow(f"{path.name} row {n}", n, row) for n, row in enumerate(value, 1)), len(value)


_LISTS = ("votes", "responses", "comparisons", "messages", "tools", "aspects_chosen", "aspects_rejected")
_NUMBERS = ("score_chosen", "score_rejected", "margin", "target_gap", "p_chosen", "weight")


def typed_cell(name: str, cell: Any) -> Any:
    """What a table cell says: cells have no type, so known columns give theirs; texts stay as they are.

    Example:
        >>> typed_cell("margin", "2.5"), typed_cell("margin", "N/A"), typed_cell("chosen", "2.5")
        (2.5, 'N/A', '2.5')
    """
    if not isinstance(cell, str):
        return cell
    bare = cell.strip()
    chat = name in ("prompt", "chosen", "rejected") and bare.startswith('[{"') and '"role"' in bare
    try:
        if name in _LISTS or chat:
            return json.loads(bare)
        if name in _NUMBERS and "_" not in bare:  # float() would read 1_0 as 10
            return float(bare)
    except (ValueError, RecursionError):
        return cell
    if name == "tie":
        return {"true": True, "false": False, "1": True, "0": False}.get(bare.lower(), cell)
    return cell


def _delimiter(path: Path) -> str:
    """What separates the cells of a .csv: a comma, but some programs write semicolons or tabs."""
    with _opened(path) as content:
        header = content.readline(1 << 16)
    return next((mark for mark in ",;\t" if mark.encode() in header), ",")


def _table(path: Path, delimiter: str | None) -> Iterator[RawRow]:
    csv.field_size_limit(LINE_LIMIT)  # the default refuses texts over 128 KiB
    delimiter = delimiter or _delimiter(path)
    with _opened(path) as content, io.TextIOWrapper(content, encoding="utf-8-sig", newline="") as sink:
        reader = csv.reader(sink, delimiter=delimiter)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise BadInput(f"{path.name}:1: column {twice!r} is there twice; rename one of them")
            n = reader.line_num + 1
            for cells in reader:
                value: object = {key: cell or None for key, cell in zip(header, cells, strict=False)}
                if len(cells) != len(header):
                    rule = f"{len(cells)} cells, but the header names {len(header)} columns"
                    value = RowRefused("broken table row", rule, "quote cells that hold the delimiter or line breaks")
                if cells:
                    yield RawRow(f"{path.name}:{n}", n, value)
                n = reader.line_num + 1
        except UnicodeDecodeError:
            where = f"at line {reader.line_num + 1} or soon after"
            raise BadInput(f"{path.name}: not UTF-8, {where}; save the file as UTF-8") from None
        except csv.Error as error:
            raise BadInput(f"{path.name}:{reader.line_num}: broken table ({error}); save it as JSON lines") from None


# ---------------------------------------------------------------------------------------------------------------------
# Arrow files and datasets


def _without_nulls(value: Any) -> Any:
    """Arrow gives every struct all keys; a null key says no more than an absent one. Nulls in lists stay."""
    if isinstance(value, dict):
        return {key: _without_nulls(held) for key, held in value.items() if held is not None}
    return [_without_nulls(held) for held in value] if isinstance(value, list) else value


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _without_nulls(value) for key, value in row.items()}


def _parquet(path: Path) -> tuple[Iterator[RawRow], int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from marginkit.groups import GROUP_SCHEMA, Groups
    from marginkit.records import group_to_json

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"{path.name}: not a Parquet file ({_first_line(error)}); write it again") from None

    def rows() -> Iterator[Mapping[str, Any]]:
        if file.schema_arrow.names == GROUP_SCHEMA.names and file.schema_arrow.equals(GROUP_SCHEMA):
            yield from map(group_to_json, Groups.from_parquet(path))
            return
        try:
            for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH):
                yield from map(_plain, batch.to_pylist())
        except (pa.ArrowInvalid, OSError) as error:
            raise BadInput(f"{path.name}: broken Parquet file ({_first_line(error)}); write it again") from None

    numbered = (RawRow(f"{path.name} row {n}", n, row) for n, row in enumerate(rows(), 1))
    return numbered, int(file.metadata.num_rows)


def _saved(path: Path, split: str | None) -> list[Stream]:
    """A folder that `datasets` saved with save_to_disk."""
    if not ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
        readable = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in READABLE)
        hint = f"name a file in it ({', '.join(readable[:5])})" if readable else "name a file"
        raise BadInput(f"{path}: a folder, but not one that datasets.save_to_disk wrote; {hint}")
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read ({_first_line(error)}); save it again") from None
    return _dataset_streams(loaded, path.name, split)


def _hub(name: str, split: str | None, config_name: str | None) -> list[Stream]:
    """A dataset of the hub, streamed; code that it may hold is not run."""
    import datasets

    try:
        loaded = datasets.load_dataset(name, config_name, streaming=True)
    except Exception as error:  # whatever the hub client raises, the user named a dataset that cannot be had
        what = f"{type(error).__name__}: {_first_line(error)}"
        raise BadInput(
            f"{name}: no such file, and not to be had from the hub ({what}); check the name and the network"
        ) from None
    return _dataset_streams(loaded, name, split)


def _dataset_streams(loaded: Any, name: str, split: str | None) -> list[Stream]:
    """One stream per split of a dataset dict, or one for a dataset."""
    if not isinstance(loaded, Mapping):
        return [_dataset_stream(loaded, name, None)]
    wanted = list(loaded) if split is None else [resolve_split(loaded, split)]
    return [_dataset_stream(loaded[part], name, part) for part in wanted]


def _dataset_stream(part: Any, name: str, split: str | None) -> Stream:
    where = name if split is None else f"{name}/{split}"
    stem, hub = (where, None) if "/" not in name else (where.split("/", 1)[1], name)
    rows = (RawRow(f"{where} row {n}", n, _plain(row)) for n, row in enumerate(part, 1))
    total = len(part) if hasattr(part, "__len__") else None
    return Stream(where, stem, rows, total, name, split, hub=hub)
