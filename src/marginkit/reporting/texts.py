"""Texts from a dataset, made fit to be shown: what cannot be seen is named, what is too long is cut and counted."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

LONGEST = 2000
"""Characters of a text from a dataset that a page shows."""

_PERHAPS = re.compile(r"[^\x20-\x7e\n\t]")
_JOINERS = "\u200c\u200d\u00ad"  # emoji, Persian and Indic scripts need the first two; a soft hyphen only breaks lines


def clip(text: str, longest: int = LONGEST) -> tuple[str, int]:
    """The beginning of a text, and how many characters are left out.

    Example:
        >>> clip("a long story", 6)
        ('a long', 6)
    """
    return text[:longest], max(0, len(text) - longest)


def brief(text: str, longest: int = 240) -> str:
    """A name or a line of a file, cut where it is too long to be one.

    Example:
        >>> brief("a long story", 6)
        'a long… (6 more characters)'
    """
    beginning, rest = clip(text, longest)
    return f"{beginning}… ({rest:,} more characters)" if rest else text


def runs(text: str) -> Iterator[tuple[bool, str]]:
    r"""A text cut into what can be shown as it is, and single characters that cannot be: (is such a one, characters).

    Control characters, marks that turn the direction of writing, other invisible ones and lone surrogates are those;
    line breaks and tabs are not.

    Example:
        >>> list(runs("ab\u202ec"))
        [(False, 'ab'), (True, '\u202e'), (False, 'c')]
    """
    start = 0
    text = text.replace("\r\n", "\n")
    for found in _PERHAPS.finditer(text):
        if _hidden(found.group()):
            if start < found.start():
                yield False, text[start : found.start()]
            yield True, found.group()
            start = found.end()
    if start < len(text):
        yield False, text[start:]


def _hidden(character: str) -> bool:
    if character in _JOINERS:
        return False
    no_character = ord(character) & 0xFFFE == 0xFFFE  # U+FFFE and its like, which XML knows no place for
    return no_character or unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def label(character: str) -> str:
    r"""The name that stands for a character which cannot be shown.

    Example:
        >>> label("\u202e")
        'U+202E'
    """
    return f"U+{ord(character):04X}"


def visible(text: str) -> str:
    r"""A text with every character that cannot be seen replaced by its name in brackets.

    Example:
        >>> visible("a\x00b")
        'a[U+0000]b'
    """
    return "".join(f"[{label(part)}]" if hidden else part for hidden, part in runs(text))
