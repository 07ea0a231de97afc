"""What was read before: rows and ids as 64-bit digests, in tables of 32 to 64 bytes an entry."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable

from marginkit.data.checks import RowRefused
from marginkit.records import Content, Group

_MASK = (1 << 64) - 1


class DigestMap:
    """A map from 64-bit digests to 64-bit numbers in open addressing: 16 bytes a place, at most half of them taken.

    Two of n different digests are equal with a chance of n^2 / 2^65: one in 37 million for a million rows.

    Example:
        >>> seen = DigestMap()
        >>> seen.put(7, 1)
        >>> seen.get(7), seen.get(8), len(seen)
        (1, None, 1)
    """

    def __init__(self) -> None:
        self._size, self._used = 1024, 0
        self._keys, self._values = array("Q", bytes(8 * self._size)), array("Q", bytes(8 * self._size))

    def __len__(self) -> int:
        return self._used

    def get(self, key: int) -> int | None:
        """The number under a digest, or None."""
        at = self._place(key or 1)
        return self._values[at] if self._keys[at] else None

    def put(self, key: int, value: int) -> None:
        """Set the number under a digest."""
        at = self._place(key or 1)
        if not self._keys[at]:
            self._keys[at] = key or 1
            self._used += 1
        self._values[at] = value
        if 2 * self._used > self._size:
            self._grow()

    def _place(self, key: int) -> int:
        """Where a digest is, or the free place where it belongs."""
        keys, last = self._keys, self._size - 1
        at = key & last
        while keys[at] != key and keys[at]:
            at = (at + 1) & last
        return at

    def _grow(self) -> None:
        keys, values = self._keys, self._values
        self._size *= 2
        self._keys, self._values = array("Q", bytes(8 * self._size)), array("Q", bytes(8 * self._size))
        for key, value in zip(keys, values, strict=True):
            if key:
                at = self._place(key)
                self._keys[at], self._values[at] = key, value


def digest(said: bytes) -> int:
    """64 bits of some bytes."""
    return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest())


def texts_digest(group: Group) -> int:
    """64 bits of a group's prompt and responses.

    Raises:
        RowRefused: a text, a name or a tool call of the group has no form in UTF-8 JSON.
    """
    seen = hashlib.blake2b(digest_size=8)
    try:
        for content in (group.prompt, *(response.turns for response in group.responses)):
            said = content.encode() if isinstance(content, str) else _turns(content)
            seen.update(b"%d:" % len(said) if isinstance(content, str) else b"[%d:" % len(said))
            seen.update(said)
        if group.tools is not None:
            _json([dict(tool) for tool in group.tools])
        "".join(name for name in _names(group) if name is not None).encode()
    except UnicodeEncodeError:
        rule = "a text holds half of a surrogate pair, which is no character"
        raise RowRefused("not Unicode", rule, "correct its \\ud800 to \\udfff escapes") from None
    except (TypeError, ValueError, RecursionError):
        rule = "tools or tool_calls hold a value that JSON has no form for"
        raise RowRefused("not JSON", rule, "use plain numbers, strings, lists and objects") from None
    return int.from_bytes(seen.digest())


def evidence_digest(group: Group) -> int:
    """64 bits of what is said of a group's responses; they mean nothing in another process."""
    graded = tuple((r.grade, r.utility, r.ratings, tuple(sorted(r.aspects.items()))) for r in group.responses)
    return hash((group.pairs, group.comparisons, graded)) & _MASK


def whole_digest(group: Group, texts: int, evidence: int) -> int:
    """64 bits of all that a group holds, given those of its texts and evidence; only for this process."""
    names = (group.id, group.source, group.subset, group.split, group.cluster)
    models = tuple(response.model for response in group.responses)
    tools = None if group.tools is None else _json([dict(tool) for tool in group.tools])
    return hash((texts, evidence, names, models, tools)) & _MASK


def _turns(turns: Content) -> bytes:
    listed = []
    for turn in turns:
        assert not isinstance(turn, str)
        calls = None if turn.tool_calls is None else [dict(call) for call in turn.tool_calls]
        listed.append([turn.role, turn.content, turn.name, calls])
    return _json(listed)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False).encode()


def _names(group: Group) -> Iterable[str | None]:
    yield from (group.id, group.source, group.subset, group.split, group.cluster)
    for response in group.responses:
        yield response.model
        yield from response.aspects
        for rating in response.ratings:
            yield rating.rater
            yield rating.aspect
    for compared in group.comparisons:
        yield compared.rater
        yield compared.order
