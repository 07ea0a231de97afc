"""The catalogue: every recipe is a YAML file; names, options and typos are handled here, without torch."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from marginkit.errors import BadInput

if TYPE_CHECKING:
    from marginkit.core.loss import Loss

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
    source: str = "ours"

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
        if value is None and self.default is None:
            return None
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
    """One part of a recipe: the function and its options."""

    function: str
    options: dict[str, Option] = {}


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
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


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


def resolve_options(
    spec: Recipe, part: str, given: Mapping[str, Any], *, prefix: str | None = None
) -> tuple[str, dict[str, Any]]:
    """The function of a part and all its options, checked, defaults filled in.

    Args:
        spec: the recipe.
        part: reward, target or objective.
        given: the user's options; `function` replaces the part's function and then takes any options.
        prefix: how to name a key in messages.

    Raises:
        BadInput: an unknown option, a wrong type, a value out of range.
    """
    where = f"{part}." if prefix is None else prefix
    own: PartSpec | None = getattr(spec, part)
    given = dict(given)
    function = given.pop("function", None)
    if function is not None and (own is None or function != own.function):
        return str(function), given
    if own is None:
        if given:
            raise BadInput(f"{where}{next(iter(given))}: recipe {spec.name} has no {part}")
        return "", {}
    for name in given:
        if name not in own.options:
            known = ", ".join(f"{where}{option}" for option in own.options) or "none"
            raise BadInput(
                f"{where}{name}: recipe {spec.name} has no such option"
                f"{did_you_mean(name, own.options)} (known: {known})"
            )
    return own.function, {
        name: option.check(f"{where}{name}", given.get(name, option.default)) for name, option in own.options.items()
    }


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


def build_loss(spec: Recipe, options: Mapping[str, Mapping[str, Any]]) -> Loss:
    """Put a recipe's parts together.

    Args:
        spec: the recipe.
        options: the user's options by part (reward, target, objective).

    Raises:
        BadInput: an option is unknown or out of range, or a function is not what its part needs.
    """
    from marginkit.core.loss import Loss

    made: dict[str, Any] = {}
    for part in PARTS:
        function_name, resolved = resolve_options(spec, part, options.get(part, {}))
        if not function_name:
            made[part], made[f"{part}_options"] = None, {}
            continue
        function = load_function(function_name)
        declared = getattr(function, "part", None)
        if declared is None or declared.kind != part:
            raise BadInput(f"{part}.function: {function_name} is not declared with @{part}(...)")
        known = {
            name: parameter.default
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        for option in resolved:
            if option not in known:
                raise BadInput(f"{part}.{option}: {function_name} has no such option{did_you_mean(option, known)}")
        for option, default in known.items():
            if default is inspect.Parameter.empty and option not in resolved:
                raise BadInput(f"{part}.{option}: {function_name} needs it, and it was not given")
        made[part], made[f"{part}_options"] = function, resolved
    return Loss(name=spec.name, **made)


def recipe(name: str, **options: Any) -> Loss:
    """The loss of a recipe alone, for any training loop: one callable, options under the paper's names.

    Args:
        name: a recipe of the catalogue.
        **options: its options (`marginkit list NAME` shows them).

    Returns:
        A callable `PairScores -> [pair]` with `state_dict()`.

    Raises:
        BadInput: unknown name or option, or a value out of range.

    Example:
        >>> recipe("mmpo", beta=0.01, gamma=0.3).target_options
        {'gamma': 0.3}
    """
    spec = load_recipe(name)
    known = spec.options()
    by_part: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
    for option, value in options.items():
        if option not in known:
            listed = ", ".join(known) or "none"
            raise BadInput(f"{name}({option}=...): no such option{did_you_mean(option, known)} (known: {listed})")
        by_part[known[option][0]][option] = value
    return build_loss(spec, by_part)
