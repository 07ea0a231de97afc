"""The catalogue: every recipe is a YAML file; names, options and typos are handled here, without torch."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import math
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from marginkit.errors import BadInput

RECIPES = Path(__file__).parent / "recipes"
Kind = Literal["policy", "reward_model", "sft"]
PARTS = ("reward", "target", "objective")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Option(_Frozen):
    """One option of a recipe: its type, default, range and meaning."""

    type: Literal["float", "int", "bool", "str"]
    default: Any = None
    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    choices: tuple[str, ...] = ()
    unit: str = ""
    help: str
    source: str = ""  # where the default comes from; "ours" where no paper or code has one
    parameter: str | None = None  # of the function, where its name is not the paper's
    auto: bool = False  # in a run it may be `auto`: chosen from the data

    def range_text(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return " | ".join(self.choices)
        bounds = [("> ", self.gt), (">= ", self.ge), ("< ", self.lt), ("<= ", self.le)]
        return " and ".join(f"{sign}{value:g}" for sign, value in bounds if value is not None) or "any"

    def check(self, where: str, value: Any) -> Any:
        """The value in the option's type.

        Raises:
            BadInput: wrong type or out of range.
        """
        if (value is None and self.default is None) or (self.auto and value == "auto"):
            return value
        good: Any = None
        if self.type == "bool":
            good = value if isinstance(value, bool) else None
        elif self.type == "str":
            good = value if isinstance(value, str) else None
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            good = float(value) if self.type == "float" else (int(value) if int(value) == value else None)
        if good is None:
            raise BadInput(f"{where}: must be {self.type} ({self.range_text()}), got {value!r}")
        if self.choices and good not in self.choices:
            raise BadInput(
                f"{where}: must be {self.range_text()}, got {value!r}{did_you_mean(str(good), self.choices)}"
            )
        if self.type in ("float", "int"):
            inside = (
                (self.gt is None or good > self.gt)
                and (self.ge is None or good >= self.ge)
                and (self.lt is None or good < self.lt)
                and (self.le is None or good <= self.le)
            )
            if not inside:
                raise BadInput(f"{where}: must be {self.range_text()}, got {value!r}")
        return good


class PartSpec(_Frozen):
    """One part of a recipe: its function, the options on offer, and how the other parameters are filled."""

    function: str
    options: dict[str, Option] = {}
    fixed: dict[str, Any] = {}  # parameter -> value, not on offer
    shares: dict[str, str] = {}  # parameter -> "part.option", the value of another part's option

    def parameter(self, option: str) -> str:
        """The function's own name of an option."""
        return option if option not in self.options else self.options[option].parameter or option


class Paper(_Frozen):
    """Where a recipe comes from."""

    title: str
    arxiv: str = ""
    where: str = ""
    code: str = ""


class Recipe(_Frozen):
    """A named choice of reward, target and objective with a paper's numbers."""

    name: str
    kind: Kind
    version: int
    summary: str
    formula: str
    paper: Paper
    published: str = ""
    reconstructed: tuple[str, ...] = ()
    reward: PartSpec
    target: PartSpec | None = None
    objective: PartSpec
    deviations: tuple[str, ...] = ()
    train: dict[str, Any] = {}

    def options(self) -> dict[str, tuple[str, Option]]:
        """Option name -> (part, option); names are unique over the parts of a recipe."""
        return {
            name: (part, option)
            for part in PARTS
            if (spec := getattr(self, part)) is not None
            for name, option in spec.options.items()
        }


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint at the nearest known word, or nothing.

    Example:
        >>> did_you_mean("mppo", ["dpo", "mmpo"])
        '; did you mean mmpo?'
    """
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    if not near:
        return ""

    def likeness(name: str) -> tuple[float, bool]:  # of equals, the one that begins alike
        return difflib.SequenceMatcher(None, word, name).ratio(), name[:1] == word[:1]

    return f"; did you mean {max(near, key=likeness)}?"


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML file as a plain dict; `1e-4` is a number.

    Raises:
        BadInput: the file is not YAML, or not a mapping.
    """
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark is not None else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise BadInput(f"{place}: not readable YAML ({problem})") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected a mapping of keys, got {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


@cache
def recipe_names() -> tuple[str, ...]:
    """The names in the catalogue, sorted."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.yaml")))


@cache
def load_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        BadInput: no such recipe; the message names the nearest one.

    Example:
        >>> load_recipe("mmpo").options()["gamma"][0]
        'target'
    """
    if name not in recipe_names():
        raise BadInput(
            f"recipe {name!r} is not in the catalogue{did_you_mean(name, recipe_names())} "
            f"(known: {', '.join(recipe_names())})"
        )
    try:
        return Recipe.model_validate(read_yaml(RECIPES / f"{name}.yaml"))
    except ValidationError as error:  # a defect of the catalogue itself, found by its test
        raise BadInput(f"recipes/{name}.yaml: {error}") from None


SFT_OPTIONS = {
    "sft_weight": Option(
        type="float", default=0.0, ge=0, unit="1", source="ours", help="weight of the NLL of the chosen response, added"
    ),
    "sft_per": Option(
        type="str", default="token", choices=("token", "sequence"), source="TRL", help="that NLL a token, or summed"
    ),
}


def offered(spec: Recipe, part: str) -> dict[str, Option]:
    """The options of a part by the paper's names, the SFT term of every policy objective included."""
    own: PartSpec | None = getattr(spec, part)
    if own is None:
        return {}
    if part != "objective" or spec.kind != "policy":
        return own.options
    taken = {own.parameter(option) for option in own.options} | set(own.fixed)
    return own.options | {name: option for name, option in SFT_OPTIONS.items() if name not in taken}


@cache
def known_functions(part: str) -> dict[str, str]:
    """Short name -> `module:function` of every function that a recipe uses as this part."""
    specs = [getattr(load_recipe(name), part) for name in recipe_names()]
    return {spec.function.rpartition(":")[2]: spec.function for spec in specs if spec is not None}


@cache
def known_part(part: str, function: str) -> tuple[dict[str, Option], dict[str, tuple[str, str]]]:
    """What the catalogue knows of a function: parameter -> option; parameter -> the (part, parameter) it shares."""
    options: dict[str, Option] = dict(SFT_OPTIONS) if part == "objective" else {}
    shares: dict[str, tuple[str, str]] = {}
    for recipe in map(load_recipe, recipe_names()):
        spec: PartSpec | None = getattr(recipe, part)
        if spec is not None and spec.function == function:
            options |= {spec.parameter(option): found for option, found in spec.options.items()}
            shares |= {parameter: _shared(recipe, source) for parameter, source in spec.shares.items()}
    return options, shares


def _shared(recipe: Recipe, source: str) -> tuple[str, str]:
    """(part, function parameter) of a source written as part.option."""
    part, _, option = source.partition(".")
    return part, getattr(recipe, part).parameter(option)


def resolve_options(
    spec: Recipe, part: str, given: Mapping[str, Any], *, prefix: str | None = None
) -> tuple[str, dict[str, Any]]:
    """The function of a part and all its options, checked, defaults filled in.

    Args:
        spec: the recipe.
        part: reward, target or objective.
        given: the user's options; `name` replaces the part's function, by a short name of the catalogue, a
            `package.module:function` or a `path/file.py:function`, and its options are then the function's parameters.
        prefix: how to name a key in messages.

    Raises:
        BadInput: an unknown function or option, a wrong type, a value out of range.
    """
    where = f"{part}." if prefix is None else prefix
    own: PartSpec | None = getattr(spec, part)
    given = dict(given)
    name = given.pop("name", None)
    if name is not None:
        function = function_named(part, str(name), where)
        if own is None or function != own.function:
            known = known_part(part, function)[0]
            checked = {
                option: known[option].check(f"{where}{option}", value) if option in known else value
                for option, value in given.items()
            }
            return function, checked
    if own is None:
        if given:
            raise BadInput(f"{where}{next(iter(given))}: recipe {spec.name} has no {part}")
        return "", {}
    options = offered(spec, part)
    shared = {word: given.pop(word) for word in own.shares if word in given}  # the user's own instead
    for option in given:
        if option not in options:
            listed = ", ".join(f"{where}{word}" for word in options) or "none"
            raise BadInput(
                f"{where}{option}: recipe {spec.name} has no such option"
                f"{did_you_mean(option, options)} (known: {listed})"
            )
    checked = {
        word: option.check(f"{where}{word}", given.get(word, option.default)) for word, option in options.items()
    }
    return own.function, checked | shared


def function_named(part: str, name: str, where: str) -> str:
    """The `module:function` that a user's `name` of a part stands for; what has a colon is taken as it is.

    Raises:
        BadInput: no function of that short name in the catalogue.
    """
    if ":" in name:
        return name
    known = known_functions(part)
    if name not in known:
        raise BadInput(
            f"{where}name={name}: no {part} of that name{did_you_mean(name, known)} "
            f"(known: {', '.join(sorted(known))}; your own: path/file.py:function)"
        )
    return known[name]


def arguments(spec: Recipe, given: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Part -> (function, its parameters): options by the function's names, what is fixed, and what is shared.

    Raises:
        BadInput: as `resolve_options`; or a shared option is not there.
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    wanted: dict[str, dict[str, tuple[str, str]]] = {}
    for part in PARTS:
        function, options = resolve_options(spec, part, given.get(part, {}))
        own: PartSpec | None = getattr(spec, part)
        if own is not None and function == own.function:
            renamed = {own.parameter(word): value for word, value in options.items()}
            values = renamed | own.fixed
        else:
            values = (_sft_term(own) if part == "objective" else {}) | options
        found[part], wanted[part] = (function, values), known_part(part, function)[1]
    for part, shares in wanted.items():
        function, values = found[part]
        for parameter, (other, word) in shares.items():
            if parameter in values:
                continue
            if word not in found[other][1]:
                raise BadInput(
                    f"{part}.{parameter}: {function} takes the {word} of the {other}, but none is given to "
                    f"{found[other][0]}; give {other}.{word} if it has one, or {part}.{parameter}"
                )
            values[parameter] = found[other][1][word]
    return found


def _sft_term(own: PartSpec | None) -> dict[str, Any]:
    """The SFT term that belongs to a recipe, whatever objective takes the place of its own."""
    if own is None:
        return {}
    known = {own.parameter(word): option.default for word, option in own.options.items()} | own.fixed
    return {name: value for name, value in known.items() if name in SFT_OPTIONS}


def load_function(target: str) -> Any:
    """The function behind `package.module:name` or `path/file.py:name`.

    Raises:
        BadInput: there is no such module, file or name.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise BadInput(f"function {target!r}: write it as package.module:name or path/file.py:name")
    try:
        if place.endswith(".py"):
            module_spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            if module_spec is None or module_spec.loader is None or not Path(place).is_file():
                raise BadInput(f"function {target!r}: no file {place}")
            module = importlib.util.module_from_spec(module_spec)
            before = sys.modules.get(module.__name__)
            sys.modules[module.__name__] = module  # dataclasses look their module up while it loads
            try:
                module_spec.loader.exec_module(module)
            finally:
                if before is None:
                    del sys.modules[module.__name__]
                else:
                    sys.modules[module.__name__] = before
        else:
            module = importlib.import_module(place)
    except BadInput:
        raise
    except Exception as error:  # whatever a user's file does while it loads
        raise BadInput(f"function {target!r}: cannot import {place} ({str(error) or type(error).__name__})") from error
    try:
        return getattr(module, name)
    except AttributeError:
        public = [word for word in vars(module) if not word.startswith("_")]
        raise BadInput(f"function {target!r}: {place} has no {name}{did_you_mean(name, public)}") from None


def function_digest(target: str) -> str | None:
    """A hash of the file behind a user's own function, for the manifest; None for marginkit's own."""
    place = target.rpartition(":")[0]
    if place.startswith("marginkit.") or not place:
        return None
    if not place.endswith(".py"):
        found = importlib.util.find_spec(place)
        if found is None or found.origin is None:
            return None
        place = found.origin
    return hashlib.sha256(Path(place).read_bytes()).hexdigest()[:16]
