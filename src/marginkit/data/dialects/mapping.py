"""Any other file: a short mapping from the fields of its rows to the columns of a layout, in YAML or as a dict."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from marginkit.data.checks import RowRefused, shown
from marginkit.data.dialects.record import Dialect, Side, coded, duel, held, listed, numeral, pick
from marginkit.data.rows import Row
from marginkit.errors import BadInput

_COMMON = ("id", "prompt", "system", "tools", "split", "subset", "source", "cluster")
_GAPS = ("margin", "target_gap")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "responses": (*_COMMON, "responses", "gather"),
    "pair": (
        *(*_COMMON, "chosen", "rejected", *_GAPS, "p_chosen", "votes", "tie", "weight"),
        *(f"{name}_{side}" for name in ("score", "aspects") for side in ("chosen", "rejected")),
        *("chosen_model", "rejected_model"),
    ),
    "winner": (
        *(*_COMMON, "response_a", "response_b", "winner", "p_a", "preference", "weight"),
        *(f"{name}_{side}" for name in ("score", "aspects", "model") for side in "ab"),
    ),
}
_RESPONSE_KEYS = ("from", "text", "score", "utility", "aspects", "model")
_NUMBERS = (
    *("score_chosen", "score_rejected", "score_a", "score_b", "score", "utility"),
    *(*_GAPS, "p_chosen", "p_a", "preference", "weight"),
)
_ABSENT = object()
_SIGNED = tuple(name for name in _NUMBERS if name not in ("p_chosen", "p_a", "weight"))


def read_mapping(source: str | Path | Mapping[str, Any], rows: Sequence[Row]) -> Dialect:
    """The dialect that a mapping describes.

    Three forms: `responses` (several a row, as a list of objects, parallel lists or separate columns), `chosen` and
    `rejected`, or `response_a` and `response_b` with a `winner` (codes), `p_a`, a signed `preference` or two scores.
    Values are dotted paths; `-path` is a number of which lower is better.

    Args:
        source: a YAML file, or what it would hold.
        rows: the first rows, in which every path must be found.

    Returns:
        A dialect named `mapping`.

    Raises:
        BadInput: an unknown key, a form that is incomplete, or a path that no row has.

    Example:
        >>> rows = [{"q": "Name a fruit.", "answers": [{"body": "Apple.", "errors": 0}]}]
        >>> given = {"prompt": "q", "responses": {"from": "answers", "text": "body", "score": "-errors"}}
        >>> read_mapping(given, rows).translate(rows[0], None)["responses"]
        [{'text': 'Apple.', 'score': 0.0}]
    """
    where = "mapping" if isinstance(source, Mapping) else Path(source).name
    given = dict(source) if isinstance(source, Mapping) else _load(Path(source))
    form = "responses" if "responses" in given else "winner" if {"response_a", "response_b"} & set(given) else "pair"
    needs = {"responses": ("responses",), "pair": ("chosen", "rejected"), "winner": ("response_a", "response_b")}[form]
    _check_keys(given, _KEYS[form], where)
    for name in needs:
        if name not in given:
            forms = "responses, or chosen and rejected, or response_a and response_b"
            raise BadInput(f"{where}: {name} is missing; a mapping names {forms}")
    if form != "pair" and "prompt" not in given:
        raise BadInput(f"{where}: prompt is missing; name its field")
    if form == "winner" and not any(name in given for name in ("winner", "p_a", "preference", "score_a")):
        raise BadInput(f"{where}: nothing says which response is better; give winner, p_a, preference, or two scores")
    _check_values(given, where)
    _check_paths(given, rows, where)
    if form == "responses":
        given["responses"] = _one_or_lists(given["responses"], rows, where)
    makers = {"responses": _responses, "pair": _pair, "winner": _winner}
    gather = given.get("gather")
    return Dialect(
        "mapping",
        "multi-response" if form == "responses" else "pair",
        (),
        reads=tuple(_heads(given)),
        translate=lambda row, rules: makers[form](row, given),
        key=None if gather is None else lambda row: held({"key": pick(row, gather)}, "key"),
    )


def _one_or_lists(described: Any, rows: Sequence[Row], where: str) -> Any:
    """An object without `from` is of parallel lists where its text is a list, and else of one response a row."""
    if isinstance(described, list) or "from" in described:
        return described
    texts = [pick(row, described["text"]) for row in rows]
    if not any(isinstance(text, list | tuple) or (isinstance(text, str) and text.startswith('["')) for text in texts):
        return [described]
    if "aspects" in described:
        raise BadInput(f"{where}: responses: aspects of parallel lists are not read; leave them out")
    return described


def _load(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); name a YAML file or a dialect") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise BadInput(f"{place}: not readable YAML ({problem})") from None
    if not isinstance(content, dict) or not content:
        raise BadInput(f"{path}: holds {shown(content)}; a mapping says which field is the prompt, which the responses")
    return {str(key): value for key, value in content.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Checks of the mapping itself


def _nearest(name: str, known: Iterable[str]) -> str:
    listed = sorted(set(known))
    close = difflib.get_close_matches(name, listed, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(listed[:20]) or 'none'}"


def _check_keys(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise BadInput(f"{where}: {key} is no key of this form{_nearest(key, known)}")


def _entries(responses: object, where: str) -> list[Mapping[str, Any]]:
    """The one or several objects that describe responses."""
    listing = responses if isinstance(responses, list) else [responses]
    entries: list[Mapping[str, Any]] = [entry for entry in listing if isinstance(entry, Mapping)]
    if not entries or len(entries) < len(listing):
        raise BadInput(
            f"{where}: responses is {shown(responses)}; give {{from, text, score}} or a list of {{text, score}}"
        )
    for entry in entries:
        _check_keys(entry, _RESPONSE_KEYS, f"{where}: responses")
        if "text" not in entry:
            raise BadInput(f"{where}: responses: text is missing; name its field, or . for the entry itself")
        if isinstance(responses, list) and "from" in entry:
            raise BadInput(f"{where}: responses: from is for one list of responses; leave it out of a list of columns")
    return entries


def _check_values(given: Mapping[str, Any], where: str) -> None:
    if "responses" in given:
        for entry in _entries(given["responses"], where):
            _check_values(entry, f"{where}: responses")
    for key, value in given.items():
        if key == "responses":
            continue
        if key.startswith("aspects"):
            if not isinstance(value, Mapping) or not all(isinstance(path, str) for path in value.values()):
                raise BadInput(f"{where}: {key} is {shown(value)}; give {{aspect: path}}")
        elif key == "winner":
            _check_winner(value, where)
        elif not isinstance(value, str) or not value.strip("-"):
            raise BadInput(f"{where}: {key} is {shown(value)}; give the path of a field")
        elif value.startswith("-") and key not in _SIGNED:
            raise BadInput(f"{where}: {key}: {value}: only {', '.join(_SIGNED)} can be turned round by -")


def _check_winner(value: object, where: str) -> None:
    if not isinstance(value, Mapping) or not isinstance(value.get("from"), str):
        raise BadInput(f"{where}: winner is {shown(value)}; give {{from: path, a: [codes], b: [codes], tie: [codes]}}")
    _check_keys(value, ("from", "a", "b", "tie"), f"{where}: winner")
    if not {"a", "b"} <= set(value):
        raise BadInput(
            f"{where}: winner: say which codes mean a and which mean b, e.g. a: [A], b: [B], tie: [tie, null]"
        )
    seen: set[object] = set()
    for codes in (_codes(value, name) for name in ("a", "b", "tie")):
        for code in codes:
            if not isinstance(code, str | int | float | None) or code in seen:
                raise BadInput(f"{where}: winner: code {shown(code)} is there twice, or no string or number")
            seen.add(code)


def _codes(winner: Mapping[str, Any], name: str) -> list[Any]:
    codes = winner.get(name, [])
    return codes if isinstance(codes, list) else [codes]


def _fields(value: object, prefix: str = "", depth: int = 4) -> set[str]:
    """The dotted paths of what a row holds."""
    found: set[str] = set()
    if isinstance(value, Mapping) and depth:
        for key, inner in value.items():
            found |= {f"{prefix}{key}"} | _fields(inner, f"{prefix}{key}.", depth - 1)
    elif isinstance(value, list | tuple) and depth and value:
        found |= {f"{prefix}0"} | _fields(value[0], f"{prefix}0.", depth - 1)
    return found


def _has(row: object, path: str) -> bool:
    return path == "." or pick(row, path, _ABSENT) is not _ABSENT


def _paths(given: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for key, value in given.items():
        if key.startswith("aspects"):
            yield from ((f"{key}.{name}", path) for name, path in value.items())
        elif key == "winner":
            yield "winner.from", value["from"]
        elif key != "responses":
            yield key, value


def _heads(given: Mapping[str, Any]) -> set[str]:
    """The columns that a mapping reads, by the whole path or by its first part."""
    described = given.get("responses", [])
    entries = described if isinstance(described, list) else [described]
    lists = [entry for entry in entries if "from" in entry]
    paths = [path for _, path in _paths(given)] + [entry["from"] for entry in lists]
    paths += [path for entry in entries if "from" not in entry for _, path in _paths(entry)]
    bare = [path.removeprefix("-") for path in paths]
    return {*bare, *(path.partition(".")[0] for path in bare)}


def _check_paths(given: Mapping[str, Any], rows: Sequence[Any], where: str) -> None:
    """Every path is in some of the first rows: a misspelt one would read as absent evidence in all of them."""

    def check(key: str, path: str, among: Sequence[Any]) -> None:
        bare = path.removeprefix("-")
        if not any(_has(row, bare) for row in among):
            known = set().union(*(_fields(row) for row in among))
            raise BadInput(f"{where}: {key}: no row has a field {bare}{_nearest(bare, known)}")

    for key, path in _paths(given):
        check(key, path, rows)
    for entry in _entries(given["responses"], where) if "responses" in given else ():
        among = rows
        if "from" in entry:
            check("responses.from", entry["from"], rows)
            among = _listed_in(rows, entry["from"])
            if not among:
                raise BadInput(
                    f"{where}: responses.from: {entry['from']} is a list with entries in none of the first rows"
                )
        for key, path in _paths({name: value for name, value in entry.items() if name != "from"}):
            check(f"responses.{key}", path, among)


def _listed_in(rows: Sequence[Any], path: str) -> list[Any]:
    """All entries of the lists under a path; what is no list is refused row by row, later."""
    entries: list[Any] = []
    for row in rows:
        with suppress(RowRefused):
            entries += listed(pick(row, path), path)
    return entries


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def _value(row: object, key: str, path: str) -> Any:
    if path == ".":
        return row
    if key not in _NUMBERS:
        return pick(row, path)
    number = numeral(pick(row, path.removeprefix("-")), path.removeprefix("-"))
    return 0.0 - number if number is not None and path.startswith("-") else number


def _aspects(row: object, paths: Mapping[str, str]) -> dict[str, float | None]:
    return {str(name): _value(row, "score", path) for name, path in paths.items()}


def _read(row: object, given: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {
        name: _aspects(row, given[name]) if name.startswith("aspects") else _value(row, name, given[name])
        for name in names
        if name in given
    }


def _pair(row: Row, given: Mapping[str, Any]) -> Row:
    return _read(row, given, _KEYS["pair"])


def _winner(row: Row, given: Mapping[str, Any]) -> Row:
    read = _read(row, given, [name for name in _KEYS["winner"] if name != "winner"])
    sides = [
        Side(read.get(f"response_{letter}"), read.get(f"score_{letter}"), read.get(f"model_{letter}"),
             read.get(f"aspects_{letter}"))
        for letter in "ab"
    ]  # fmt: skip
    p_a, preference = read.get("p_a"), read.get("preference")
    toward_a = preference
    if p_a is not None:
        toward_a = p_a - 0.5
    elif preference is None and sides[0].score is not None and sides[1].score is not None:
        toward_a = sides[0].score - sides[1].score
    if "winner" in given:
        winner = given["winner"]
        codes = {code: side for side, name in ((0, "a"), (1, "b"), (None, "tie")) for code in _codes(winner, name)}
        better = coded(pick(row, winner["from"]), winner["from"], codes)
    elif toward_a is None:
        raise RowRefused("missing evidence", "nothing says which response is better", "remove the row")
    else:
        better = None if toward_a == 0 else 0 if toward_a > 0 else 1
    sign = -1 if better == 1 else 1
    evidence = {} if preference is None else {"margin": sign * preference}
    if p_a is not None:
        evidence["p_chosen"] = p_a if better != 1 else 1 - p_a
    rest = {name: read[name] for name in (*_COMMON, "weight") if name in read and name != "prompt"}
    return {**duel(read["prompt"], sides, better, **evidence), **rest}


def _responses(row: Row, given: Mapping[str, Any]) -> Row:
    made = _read(row, given, _COMMON)
    described = given["responses"]
    if isinstance(described, list):  # one column a response
        read = [_read(row, entry, _RESPONSE_KEYS[1:]) for entry in described]
        return made | {"responses": [one for one in read if one["text"] is not None]}
    fields = {name: path for name, path in described.items() if name != "from"}
    if "from" in described:
        entries = listed(pick(row, described["from"]), described["from"])
        return made | {"responses": [_read(entry, fields, fields) for entry in entries]}
    columns = {name: listed(pick(row, path.removeprefix("-")), path) for name, path in fields.items()}  # parallel lists
    count = len(columns["text"])
    if any(len(column) != count for column in columns.values()):
        rule = ", ".join(f"{len(column)} in {fields[name]}" for name, column in columns.items())
        raise RowRefused("malformed row", f"the lists differ in length ({rule})", "give one entry a response")
    turned = {name: "-." if fields[name].startswith("-") else "." for name in fields}
    return made | {
        "responses": [
            {name: _entry(column[at], name, turned[name]) for name, column in columns.items()} for at in range(count)
        ]
    }


def _entry(value: object, key: str, path: str) -> Any:
    if key not in _NUMBERS:
        return value
    number = numeral(value, key)
    return 0.0 - number if number is not None and path == "-." else number
