"""Which texts are nearly the same: their words, their overlap, and a search that does not compare all with all.

Two texts are compared by the sets of their windows of 8 bytes, after case, punctuation and white space are set aside:
overlap = |A and B| / |A or B| (Jaccard's index). Candidates come from a MinHash signature of 60 numbers in 12 bands of
5: texts of overlap J share a band with probability 1 - (1 - J^5)^12, which is .99 at .8 and .9999 at .9. Whoever
asks verifies them, so that what is found is exact; only some pairs just above the threshold are missed.

Source: Broder (1997), resemblance; Li, Owen and Zhang (2012), one permutation hashing: one hash a window instead of 60,
the smallest of each of 60 ranges of the hash; Shrivastava and Li (2014): an empty range takes the next one's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Words64 = npt.NDArray[np.uint64]
Words32 = npt.NDArray[np.uint32]
Rows = npt.NDArray[np.int64]

WINDOW = 8
BANDS, PER_BAND = 12, 5
_RANGES = BANDS * PER_BAND
_NO_WORD = re.compile(r"[\W_]+")
_ASCII = bytes(ord(chr(code).lower()) if chr(code).isalnum() and code < 128 else 32 for code in range(256))


def normalised(text: str) -> str:
    r"""The words of a text, without case, punctuation and white space; the bare text where there are no words.

    Example:
        >>> normalised("  Name a\n FRUIT, please!"), normalised(" ?! ")
        ('name a fruit please', '?!')
    """
    if text.isascii():  # the same, several times faster
        words = b" ".join(text.encode().translate(_ASCII).split()).decode()
    else:
        words = _NO_WORD.sub(" ", text.casefold()).strip()
    return words or text.strip()


def digest64(text: str) -> int:
    """A hash of 64 bits, the same on every machine.

    Example:
        >>> digest64("name a fruit")
        12893652121239795353
    """
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest())


def windows(text: str) -> Words64:
    """The distinct windows of 8 bytes of a normalised text, sorted; a shorter text is one window.

    Example:
        >>> len(windows("name a fruit")), len(windows("yes")), len(windows("aaaaaaaaaaaa"))
        (5, 1, 1)
    """
    return np.unique(_windows(text))


def _windows(text: str) -> Words64:
    raw = text.encode(errors="replace").ljust(WINDOW, b"\0")
    overlapping: Words64 = np.ndarray(len(raw) - WINDOW + 1, "<u8", raw, strides=(1,))  # a word from every byte on
    return overlapping.astype(np.uint64)


def overlap(left: str, right: str) -> float:
    """|A and B| / |A or B| of the windows of two normalised texts, in [0, 1].

    Example:
        >>> overlap("name a fruit", "name a fruit"), overlap("name a fruit", "say no more")
        (1.0, 0.0)
    """
    a, b = windows(left), windows(right)
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def _mixed(words: Words64) -> Words64:
    """A good hash of 64-bit words (the finaliser of splitmix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


_SPAN = (1 << 64) // _RANGES + 1
_EDGES = np.array([at * _SPAN for at in range(_RANGES)], np.uint64)
_ODD = np.array([(2 * at + 1) * 0x9E3779B97F4A7C15 % (1 << 64) for at in range(PER_BAND)], np.uint64)


def bands(text: str) -> Words32:
    """The 12 bands of a normalised text's signature: two texts that share one, at its place, may be nearly the same.

    Example:
        >>> bool((bands("name a fruit") == bands("name a fruit")).all()), len(bands("name a fruit"))
        (True, 12)
    """
    hashes = np.sort(_mixed(_windows(text)))
    first = np.searchsorted(hashes, _EDGES)
    filled = np.append(first[1:], len(hashes)) > first
    signature = hashes[np.minimum(first, len(hashes) - 1)] % np.uint64(_SPAN)
    if not filled.all():
        places = np.flatnonzero(filled)
        signature = signature[places[np.searchsorted(places, np.arange(_RANGES)) % len(places)]]
    mixed = _mixed(signature.reshape(BANDS, PER_BAND) * _ODD)
    folded = np.bitwise_xor.reduce(mixed, axis=1)
    return (_mixed(folded) >> np.uint64(32)).astype(np.uint32)


class NearIndex:
    """Texts by number, and which of them may be nearly the same; 48 bytes a text.

    Example:
        >>> index = NearIndex()
        >>> for text in ("name a fruit please", "name a fruit, please"):
        ...     index.add(normalised(text))
        >>> index.candidates().tolist()
        [[0, 1]]
    """

    def __init__(self) -> None:
        self._bands = bytearray()
        self._last: tuple[str, bytes] = ("", b"")

    def add(self, text: str) -> None:
        """Take one normalised text; its number is how many came before."""
        if text != self._last[0] or not self._bands:
            self._last = (text, bands(text).tobytes())
        self._bands += self._last[1]

    def __len__(self) -> int:
        return len(self._bands) // (4 * BANDS)

    def _table(self) -> Words32:
        return np.frombuffer(self._bands, np.uint32).reshape(-1, BANDS)

    def candidates(self, among: Rows | None = None) -> Rows:
        """Pairs of texts that share a band, `[pair, 2]`, smaller number first.

        Texts of one band are linked each to the one before and to the first, not all with all: what is nearly the same
        throughout comes out connected, at a cost that grows with the texts and not with their square.

        Args:
            among: only these numbers, ascending; all if None.
        """
        table = self._table()
        rows = np.arange(len(table)) if among is None else among
        found = []
        for band in range(BANDS):
            values = table[rows, band]
            order = np.argsort(values, kind="stable")
            same = np.append(values[order][1:] == values[order][:-1], False)
            starts = np.flatnonzero(same & ~np.append(False, same[:-1]))
            follows = np.flatnonzero(same) + 1
            first = starts[np.searchsorted(starts, follows, side="right") - 1] if len(starts) else follows
            found += [(rows[order[follows - 1]], rows[order[follows]]), (rows[order[first]], rows[order[follows]])]
        return _distinct(found)

    def candidates_with(self, other: NearIndex) -> Rows:
        """Pairs (number here, number in `other`) that share a band: of equal bands of `other`, the first."""
        mine, theirs = self._table(), other._table()
        found = []
        for band in range(BANDS):
            values, first = np.unique(theirs[:, band], return_index=True)
            if not len(values):
                continue
            at = np.minimum(np.searchsorted(values, mine[:, band]), len(values) - 1)
            hits = np.flatnonzero(values[at] == mine[:, band])
            found.append((hits, first[at[hits]]))
        return _distinct(found, ordered=False)


def _distinct(found: list[tuple[Rows, Rows]], *, ordered: bool = True) -> Rows:
    pairs = np.concatenate([np.stack(pair, axis=1) for pair in found]) if found else np.empty((0, 2), np.int64)
    pairs = pairs.astype(np.int64)
    if ordered:
        pairs = np.sort(pairs, axis=1)
        pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    return np.unique(pairs, axis=0) if len(pairs) else pairs


def connected(count: int, links: Rows) -> Rows:
    """Of every number below `count`, the smallest number it is linked to, directly or through others.

    Example:
        >>> connected(4, np.array([[1, 3]])).tolist()
        [0, 1, 2, 1]
    """
    root = np.arange(count)

    def find(number: int) -> int:
        while root[number] != number:
            root[number] = root[root[number]]
            number = int(root[number])
        return number

    for left, right in links:
        low, high = sorted((find(int(left)), find(int(right))))
        root[high] = low
    moved = np.flatnonzero(root != np.arange(count))
    for number in moved:
        root[number] = find(int(number))
    return root


def pieces(pairs: Rows, size: int) -> Iterator[Rows]:
    """Pairs, so many at a time."""
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]
