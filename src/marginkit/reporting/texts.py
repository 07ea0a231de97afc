"""Texts from a dataset, made fit to be shown: what cannot be seen is named, what is too long is cut and counted."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

LONGEST = 2000
"""Characters of a text from a dataset that a page shows."""

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
    for at, character in enumerate(text):
        if character.isascii() and character.isprintable():
            continue
        if _hidden(character):
            if start < at:
                yield False, text[start:at]
            yield True, character
            start = at + 1
    if start < len(text):
        yield False, text[start:]


def _hidden(character: str) -> bool:
    if character in "\n\t" or character in _JOINERS:
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


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
