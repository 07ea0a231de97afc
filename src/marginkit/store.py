"""The score store: what a model says of a response, computed once and kept between runs.

One folder a model (`store/<fingerprint>/`), one SQLite file a writer. A key is the hash of the tokens the model saw
(prompt ids, response ids) and of what else decides the number (quantity, dtype, attention, versions), so tokenizer,
template and truncation are in it by what they produce. A value is a number, a vector or a text (what a judge answered),
each kind in a table of its own. A transaction holds one batch: `kill -9` loses at most that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from filelock import FileLock, Timeout

from marginkit.errors import RunFailed

_SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (id TEXT PRIMARY KEY, json TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, settings TEXT NOT NULL, value REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, settings TEXT NOT NULL, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS texts (key BLOB PRIMARY KEY, settings TEXT NOT NULL, value TEXT NOT NULL);
"""
_FLOAT32 = np.dtype("<f4")  # whatever machine reads the file
Array = np.ndarray[Any, np.dtype[Any]]
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "fuse.sshfs", "9p"}


def score_key(settings_id: str, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> bytes:
    """Sixteen bytes that name one score: settings, prompt tokens, response tokens."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(settings_id.encode())
    digest.update(len(prompt_ids).to_bytes(8, "little"))
    digest.update(array("q", prompt_ids).tobytes())
    digest.update(array("q", response_ids).tobytes())
    return digest.digest()


class ScoreStore:
    """Scores of one model under one set of settings; what other writers left in the same folder is read too.

    Args:
        folder: where stores live.
        model: fingerprint of the model.
        settings: what else decides the numbers (quantity, dtype, attention, versions).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with ScoreStore(folder, "m1", {"quantity": "logp"}) as store:
        ...         store.add([(store.key([1, 2], [3]), -4.5)])
        ...     with ScoreStore(folder, "m1", {"quantity": "logp"}) as store:
        ...         store.get([store.key([1, 2], [3]), store.key([1, 2], [4])])
        [-4.5, None]
    """

    def __init__(self, folder: str | Path, model: str, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder) / model
        self.settings = dict(settings)
        text = json.dumps(self.settings, sort_keys=True)
        self.settings_id = hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock, self._path = self._claim()
            self._writer = _connect(self._path)
            self._writer.executescript(_SCHEMA)
            self._writer.execute("INSERT OR IGNORE INTO settings VALUES (?, ?)", (self.settings_id, text))
        except (OSError, sqlite3.Error) as error:
            raise RunFailed(f"score store {self.folder}: {error}; choose another with store.path=FOLDER") from None
        self.added = 0
        others = [path for path in sorted(self.folder.glob("*.sqlite")) if path != self._path]
        self._readers = [self._writer, *filter(None, map(_open_reader, others))]

    def _claim(self) -> tuple[FileLock, Path]:
        """The first file no living writer holds: one writer a file keeps SQLite out of its multi-writer corners."""
        for number in range(10_000):
            path = self.folder / f"writer-{number:03}.sqlite"
            lock = FileLock(path.with_suffix(".lock"), timeout=0)
            try:
                lock.acquire()
            except Timeout:
                continue
            return lock, path
        raise OSError("10,000 writers at once")

    def key(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> bytes:
        """The key of one response under these settings."""
        return score_key(self.settings_id, prompt_ids, response_ids)

    def get(self, keys: Sequence[bytes]) -> list[float | None]:
        """The kept scores, None where there is none; another writer's broken file is read as far as it goes.

        Raises:
            RunFailed: the file of this writer cannot be read.
        """
        return self._read("scores", keys)

    def add(self, rows: Iterable[tuple[bytes, float]]) -> None:
        """Keep one batch of scores, all or nothing.

        Raises:
            RunFailed: the disk is full or the file cannot be written.
        """
        self._write("scores", rows)

    def get_vectors(self, keys: Sequence[bytes]) -> list[Array | None]:
        """The kept vectors, [d] float32 each, under the rules of `get`."""
        found = self._read("vectors", keys)
        return [None if value is None else np.frombuffer(value, _FLOAT32).astype(np.float32) for value in found]

    def add_vectors(self, rows: Iterable[tuple[bytes, Array]]) -> None:
        """Keep one batch of vectors, rounded to float32, under the rules of `add`."""
        self._write("vectors", ((key, np.asarray(vector, _FLOAT32).tobytes()) for key, vector in rows))

    def get_texts(self, keys: Sequence[bytes]) -> list[str | None]:
        """The kept texts, under the rules of `get`."""
        return self._read("texts", keys)

    def add_texts(self, rows: Iterable[tuple[bytes, str]]) -> None:
        """Keep one batch of texts, under the rules of `add`."""
        self._write("texts", rows)

    def _read(self, table: str, keys: Sequence[bytes]) -> list[Any]:
        found: dict[bytes, Any] = {}
        for reader in self._readers:
            missing = list({key for key in keys if key not in found})
            for start in range(0, len(missing), 500):
                some = missing[start : start + 500]
                marks = ",".join("?" * len(some))
                with self._spared(reader):
                    found.update(reader.execute(f"SELECT key, value FROM {table} WHERE key IN ({marks})", some))
        return [found.get(key) for key in keys]

    def _write(self, table: str, rows: Iterable[tuple[bytes, Any]]) -> None:
        batch = [(key, self.settings_id, value) for key, value in rows]
        try:
            with self._writer:
                self._writer.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)", batch)
            self.added += len(batch)
        except sqlite3.Error as error:
            raise RunFailed(f"score store {self._path}: {error}; what was kept before stays usable") from None

    def under_other_settings(self) -> list[tuple[int, dict[str, Any]]]:
        """How many scores of this model are kept under other settings, and which settings those are."""
        counts: dict[str, int] = {}
        for reader in self._readers:
            query = (
                "SELECT json, COUNT(*) FROM scores JOIN settings ON settings.id = scores.settings "
                "WHERE settings != ? GROUP BY json"
            )
            with self._spared(reader):
                for text, count in reader.execute(query, (self.settings_id,)).fetchall():
                    counts[text] = counts.get(text, 0) + count
        return [(count, json.loads(text)) for text, count in sorted(counts.items())]

    @contextlib.contextmanager
    def _spared(self, reader: sqlite3.Connection) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if reader is self._writer:
                raise RunFailed(f"score store {self._path}: {error}; choose another with store.path=FOLDER") from None

    def close(self) -> None:
        """Fold the journal into the file and let the next writer have it."""
        with contextlib.suppress(sqlite3.Error):
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for connection in self._readers:
            connection.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30)
    # WAL shares memory between processes, which a network file system cannot do
    connection.execute(f"PRAGMA journal_mode={'DELETE' if on_network(path) else 'WAL'}")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def _open_reader(path: Path) -> sqlite3.Connection | None:
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)
    try:
        connection.execute("SELECT 1 FROM scores LIMIT 1")
    except sqlite3.Error:  # another writer has only just made it, or it was cut short: nothing to read there
        connection.close()
        return None
    return connection


def on_network(path: Path) -> bool:
    """Whether the file lies on a network file system, as far as /proc/mounts tells."""
    mounts = Path("/proc/mounts")
    if not mounts.is_file():
        return False
    place, best = str(path.resolve()), ("", "")
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(" ")
        if len(fields) > 2 and (place + "/").startswith(fields[1].rstrip("/") + "/") and len(fields[1]) >= len(best[0]):
            best = (fields[1], fields[2])
    return best[1] in _NETWORK


# -- fingerprints


def file_fingerprint(path: Path, memory: Path | None = None) -> str:
    """Hash of a file's content, remembered by (path, size, mtime) so that a large file is read once."""
    status = path.stat()
    name = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    known: dict[str, str] = {}
    if memory is not None and memory.is_file():
        with contextlib.suppress(json.JSONDecodeError):
            known = json.loads(memory.read_text(encoding="utf-8"))
    if name not in known:
        with path.open("rb") as source:
            known[name] = hashlib.file_digest(source, "sha256").hexdigest()
        if memory is not None:
            memory.parent.mkdir(parents=True, exist_ok=True)
            partial = memory.with_name(f"{memory.name}.{os.getpid()}")
            partial.write_text(json.dumps(known, indent=0), encoding="utf-8")
            partial.replace(memory)
    return known[name]


def folder_fingerprint(folder: str | Path, memory: Path | None = None) -> str:
    """Sixteen hex digits of a saved model: its weights and configuration; for an adapter those of its base as well."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.name in ("config.json", "adapter_config.json") or path.suffix in (".safetensors", ".bin"):
            if path.name == "training_args.bin":
                continue
            digest.update(path.name.encode() + file_fingerprint(path, memory).encode())
    adapter = Path(folder) / "adapter_config.json"
    base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"] if adapter.is_file() else None
    if base is not None and Path(base).is_dir():
        digest.update(folder_fingerprint(base, memory).encode())
    return digest.hexdigest()[:16]
