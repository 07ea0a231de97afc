"""HTML and SVG elements; every text is escaped here, once, and nowhere else, and what cannot be seen is named."""

from __future__ import annotations

import itertools

from markupsafe import Markup, escape

from marginkit.reporting.texts import label, runs, visible

Content = str | Markup | None

_VOID = {"meta", "link", "input", "br", "hr", "circle", "line", "path", "rect", "polygon"}
_IN_SVG = {"circle", "line", "path", "rect", "polygon"}


def tag(name: str, /, *children: Content, **attributes: str | float | bool | None) -> Markup:
    """One element: `tag("td", text, class_="num")`.

    Args:
        name: of the element.
        children: texts, which are escaped, or elements, which are not; None is left out.
        attributes: `class_` and `for_` without the underscore at the end, other underscores as hyphens; None and False
            are left out, True stands without a value; numbers are rounded to two decimals.

    Example:
        >>> tag("p", "a < b", class_="note")
        Markup('<p class="note">a &lt; b</p>')
    """
    given = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    if name in _VOID and not any(children):
        return Markup(f"<{name}{given}{'/' if name in _IN_SVG else ''}>")
    return Markup(f"<{name}{given}>") + join(*children) + Markup(f"</{name}>")


def join(*parts: Content) -> Markup:
    """Elements and texts one after the other."""
    return Markup("").join(_safe(part) for part in parts if part is not None)


def _safe(part: str | Markup) -> Markup:
    return part if isinstance(part, Markup) else escape(visible(part))


def _attribute(key: str, value: str | float | bool) -> str:
    if value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    return f' {name}="{_safe(short(value) if isinstance(value, (int, float)) else value)}"'


def short(value: float) -> str:
    """A coordinate: two decimals at most, no zeros at the end.

    Example:
        >>> short(3.10), short(-0.001)
        ('3.1', '0')
    """
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def shown(text: str) -> Markup:
    r"""A text from a dataset; the names of what cannot be seen are set apart from it.

    Example:
        >>> shown("<b>\u202e")
        Markup('&lt;b&gt;<span class="cp" title="characters that are not shown">U+202E</span>')
    """
    parts: list[Content] = []
    for hidden, found in itertools.groupby(runs(text), key=lambda run: run[0]):
        if hidden:
            names = " ".join(label(character) for _, character in found)
            parts.append(tag("span", names, class_="cp", title="characters that are not shown"))
        else:
            parts += [part for _, part in found]
    return join(*parts)
