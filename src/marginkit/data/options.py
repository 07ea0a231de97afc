"""Options of a method by name: what it takes is read off its signature or its fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from marginkit.errors import BadInput


def option_defaults(method: Callable[..., Any]) -> dict[str, Any]:
    """The options of a method with their defaults: the fields of a dataclass, or the keyword-only parameters.

    Example:
        >>> def method(rows, *, weight=1.0): ...
        >>> option_defaults(method)
        {'weight': 1.0}
    """
    if is_dataclass(method):
        return {field.name: field.default for field in fields(method)}
    found = inspect.signature(method).parameters.values()
    return {each.name: each.default for each in found if each.kind is inspect.Parameter.KEYWORD_ONLY}


def checked(name: str, method: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, if the method knows each of them and none is of another kind than its default.

    Args:
        name: what the user calls the method.
        method: its function, or the dataclass of its options.
        options: as given; numbers may be strings, as on a command line.

    Raises:
        BadInput: an unknown option, or a value of the wrong kind.

    Example:
        >>> def method(rows, *, weight=1.0, low=None): ...
        >>> checked("method", method, {"weight": "2"})
        {'weight': 2.0}
    """
    known = option_defaults(method)
    made: dict[str, Any] = {}
    for option, value in options.items():
        if option not in known:
            close = get_close_matches(option, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"its options are {', '.join(known) or 'none'}"
            raise BadInput(f"{name}: unknown option {option}; {hint}")
        made[option] = _as_default(name, option, value, known[option])
    return made


def _as_default(name: str, option: str, value: Any, default: Any) -> Any:
    """A string as a command line gives it, in the kind of the default; numbers stay numbers."""
    if isinstance(value, str):
        plain = value.strip()
        if isinstance(default, bool):
            if plain.lower() not in ("true", "false"):
                raise BadInput(f"{name}: {option}={value}: true or false")
            return plain.lower() == "true"
        try:
            return float(plain)
        except ValueError:
            if isinstance(default, (int, float)):
                raise BadInput(f"{name}: {option}={value}: must be a number") from None
            return plain
    if isinstance(default, bool) != isinstance(value, bool):
        raise BadInput(
            f"{name}: {option}={value!r}: {'true or false' if isinstance(default, bool) else 'not a truth value'}"
        )
    if isinstance(default, float) and not isinstance(value, (int, float)):
        raise BadInput(f"{name}: {option}={value!r}: must be a number")
    return float(value) if isinstance(default, float) else value
