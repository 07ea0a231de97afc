"""Edit distances between responses: one code point a token, so that a fast string distance does the work."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from marginkit.errors import BadInput

Tokenize = Callable[[list[str]], Sequence[Sequence[int]]]
"""Texts to token ids, without special tokens."""
_LAST_CODE_POINT = 0x10FFFF
_CHUNK = 100_000


def words_as_text(texts: Iterable[str]) -> list[str]:
    """One code point a word; a word has the same one in all texts of the call.

    Args:
        texts: words are what white space separates.

    Raises:
        BadInput: more different words than there are code points.

    Example:
        >>> one, two = words_as_text(["a b c", "a c"])
        >>> len(one), edit_distance(one, two)
        (3, 1)
    """
    codes: dict[Hashable, int] = {}
    try:
        return ["".join([chr(codes.setdefault(word, len(codes))) for word in text.split()]) for text in texts]
    except ValueError:
        raise BadInput(f"more than {_LAST_CODE_POINT + 1} different words in the responses to one prompt") from None


def ids_as_text(ids: Sequence[int] | npt.NDArray[Any]) -> str:
    """One code point a token id.

    Args:
        ids: token ids below 0x110000.

    Raises:
        BadInput: an id is too large or negative.

    Example:
        >>> len(ids_as_text([5, 100_000, 0xD800]))
        3
    """
    return points_of(ids_as_bytes(ids))


def ids_as_bytes(ids: Sequence[int] | npt.NDArray[Any]) -> bytes:
    """Token ids as UTF-32: what another process gets sooner than the text that `points_of` makes of it.

    Args:
        ids: token ids below 0x110000.

    Raises:
        BadInput: an id is too large or negative.
    """
    numbers = np.asarray(ids, dtype=np.int64)
    if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) <= _LAST_CODE_POINT:
        raise BadInput(f"token ids from {numbers.min()} to {numbers.max()}: an edit distance needs 0 to 0x10FFFF")
    return numbers.astype("<u4").tobytes()


def points_of(utf32: bytes) -> str:
    """One code point a token, from the bytes of `ids_as_bytes`."""
    return utf32.decode("utf-32-le", "surrogatepass")


def as_text(texts: Sequence[str], tokenize: Tokenize | None) -> list[str]:
    """Responses to one prompt, one code point a token, or a word where there is no tokenizer."""
    return words_as_text(texts) if tokenize is None else [ids_as_text(ids) for ids in tokenize(list(texts))]


def edit_distance(left: str, right: str, cutoff: int | None = None) -> int:
    """The Levenshtein distance: insert, delete and substitute cost 1.

    Args:
        left: a response, one code point a token.
        right: another.
        cutoff: stop as soon as the distance is known to be above it.

    Returns:
        The distance; any number above `cutoff` where it is above.

    Example:
        >>> edit_distance("kitten", "sitting"), edit_distance("kitten", "sitting", cutoff=1) > 1
        (3, True)
    """
    from rapidfuzz.distance import Levenshtein

    return int(Levenshtein.distance(left, right, score_cutoff=cutoff))


def edit_distances(
    left: Sequence[str], right: Sequence[str], *, workers: int = -1, progress: Callable[[int], None] | None = None
) -> npt.NDArray[np.int64]:
    """Distances of many pairs, on all cores.

    Args:
        left: [P] responses, one code point a token.
        right: [P] others.
        workers: threads; -1 for all cores.
        progress: called with the number of pairs as they are done.

    Returns:
        [P] distances.

    Example:
        >>> edit_distances(["abc", ""], ["abd", "xy"]).tolist()
        [1, 2]
    """
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cpdist

    found = np.zeros(len(left), dtype=np.int64)
    for start in range(0, len(left), _CHUNK):
        part = slice(start, min(start + _CHUNK, len(left)))
        found[part] = cpdist(left[part], right[part], scorer=Levenshtein.distance, workers=workers, dtype=np.int64)
        if progress is not None:
            progress(part.stop - part.start)
    return found
