"""A dataset that a verb makes: the groups in the native form, and beside them how they were made and from what.

FILE.jsonl            the groups
FILE.manifest.json    command, settings, inputs, what was read, kept and left out by reason, what was measured
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from marginkit.errors import BadInput
from marginkit.groups import Groups, write_groups

SUFFIX = ".manifest.json"


def manifest_path(path: str | Path) -> Path:
    """Where the manifest of a dataset lies.

    Example:
        >>> manifest_path("out/best.jsonl").name
        'best.manifest.json'
    """
    return Path(path).with_suffix(SUFFIX)


def check_target(path: str | Path, sources: Sequence[str]) -> Path:
    """The file a dataset may be written to; to be asked before the work is done.

    Args:
        path: a .jsonl file.
        sources: what the dataset is made from.

    Raises:
        BadInput: the path is no .jsonl file, or one of the sources.

    Example:
        >>> check_target("out/best.jsonl", ["ratings.jsonl"]).name
        'best.jsonl'
    """
    target = Path(path)
    if target.suffix != ".jsonl":
        raise BadInput(f"out={target}: name a .jsonl file")
    if any(Path(source).is_file() and target.resolve() == Path(source).resolve() for source in sources):
        raise BadInput(f"out={target}: would replace what it is made from; name another file")
    return target


def write_dataset(
    groups: Groups,
    path: str | Path,
    *,
    verb: str,
    settings: Mapping[str, Any],
    sources: Sequence[str],
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write groups and their manifest; what the groups lost on the way is in it, by reason.

    Args:
        groups: the result of a verb; its `dropped` says what was left out.
        path: a .jsonl file; it and FILE.manifest.json appear whole or not at all.
        verb: what made them: check, grade, pair, select, sample.
        settings: the options of the verb, plain values, enough to repeat it; never a secret.
        sources: the files or datasets it read; files are named with their content's hash.
        facts: what was measured on the way.

    Returns:
        The manifest.

    Raises:
        BadInput: the path is no .jsonl file, or one of the sources.
    """
    target = check_target(path, sources)
    target.parent.mkdir(parents=True, exist_ok=True)
    inputs = [{"name": source, "sha256": _content_hash(source)} for source in sources]
    write_groups(groups, target)
    manifest: dict[str, Any] = {
        "format": "marginkit-dataset/1",
        "verb": verb,
        "settings": dict(settings),
        "sources": inputs,
        "groups": len(groups),
        "pairs": sum(len(group.pairs) for group in groups),
        "dropped": dict(groups.dropped),
        "facts": dict(facts or {}),
        "fingerprint": groups.fingerprint(),
        "version": version("marginkit"),
        "command": list(sys.argv),
    }
    place = manifest_path(target)
    partial = place.with_name(place.name + ".partial")
    partial.write_text(json.dumps(manifest, indent=2, ensure_ascii=False, default=str), encoding="utf-8")
    partial.replace(place)
    return manifest


def _content_hash(source: str) -> str | None:
    """The hash of a file; None for a hub name or a folder."""
    if not Path(source).is_file():
        return None
    with Path(source).open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
