"""What the contract is asked of: every declared function with its options, and inputs that vary from pair to pair.

A new function is found by its declaration; it needs a row here only if one of its options has no default in the
catalogue (`OPTIONS`), or if it declares evidence that is new (`EVIDENCE`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cache
from itertools import product
from types import ModuleType
from typing import Any

import jaxtyping
import torch
from torch import Tensor

from marginkit.core import adaptive, anchored, objectives, rewards, scored, targets, transport
from marginkit.core.parts import Part
from marginkit.core.tensors import SCORE_FIELDS, Labels, PairScores, Population, SequenceScores, Target
from marginkit.errors import BadInput
from marginkit.registry import PARTS, Recipe, arguments, load_recipe, recipe_names

MODULES: dict[str, tuple[ModuleType, ...]] = {
    "reward": (rewards,),
    "target": (targets, scored, adaptive, transport),
    "objective": (objectives, anchored),
}

# Values of parameters that have no default in the catalogue, by function; each is tried.
OPTIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "soft_label": {"gamma": (0.3,)},
    "madpo_weight": {"c_min": (None, 0.3)},
    "token_margin": {"gamma_end": (None, 0.2)},
    "kto_zero": {"z0": (None, 0.7)},
}

# What satisfies each declared need of labels: any one of these columns.
EVIDENCE: dict[str, tuple[str, ...]] = {
    "utility_gap": ("prob", "target_gap", "utility", "strength", "grade"),
    "grade_gap": ("strength", "grade"),
    "grade": ("grade",),
}

PAIRS = 5
SEEN = 16
EVERYTHING = (*SCORE_FIELDS, "hidden")


@dataclass(frozen=True)
class Case:
    """A function with options, under test."""

    function: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def part(self) -> Part:
        """The declaration."""
        return self.function.part

    def __str__(self) -> str:
        """The function and what distinguishes this case of it."""
        given = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return self.function.__name__ + (f"({given})" if given else "")


# ---------------------------------------------------------------------------------------------------- discovery


def declared(kind: str) -> dict[str, Callable[..., Any]]:
    """Every function that a module of this kind declares with the kind's decorator."""
    return {
        name: value
        for module in MODULES[kind]
        for name, value in vars(module).items()
        if isinstance(part := getattr(value, "part", None), Part)
        and part.kind == kind
        and value.__module__ == module.__name__
    }


@cache
def cases(kind: str) -> tuple[Case, ...]:
    """Every declared function, once for each set of options in the catalogue and for each choice of an option."""
    found: list[Case] = []
    for name, function in declared(kind).items():
        for options in _option_sets(kind, name, f"{function.__module__}:{name}"):
            case = Case(function, options)
            if case not in found:
                found.append(case)
    return tuple(found)


def alike(case: Case) -> list[Case]:
    """The case, then the other sets of options of its function: what is declared has to show in one of them."""
    return [case, *(other for other in cases(case.part.kind) if other.function is case.function and other != case)]


def _option_sets(kind: str, name: str, function: str) -> Iterator[dict[str, Any]]:
    for spec in recipes():
        own = getattr(spec, kind)
        if own is None or own.function != function:
            continue
        values: dict[str, tuple[Any, ...]] = {}
        for option, found in own.options.items():
            if found.type == "bool":
                values[option] = (True, False)
            elif found.choices:
                values[option] = found.choices
            elif found.default is None:
                values[option] = OPTIONS.get(name, {}).get(own.parameter(option), (None,))
            else:
                values[option] = (found.default,)
        for chosen in product(*values.values()):
            resolved = arguments(spec, {kind: dict(zip(values, chosen, strict=True))})[kind][1]
            yield {word: value for word, value in resolved.items() if word not in ("sft_weight", "sft_per")}


def recipes() -> list[Recipe]:
    """The whole catalogue."""
    return [load_recipe(name) for name in recipe_names()]


def recipe_options(recipe: Recipe) -> dict[str, Any]:
    """A value for every option of a recipe that has no default and cannot do without one."""
    found = {}
    for part in PARTS:
        own = getattr(recipe, part)
        known = {} if own is None else OPTIONS.get(own.function.split(":")[1], {})
        for option, spec in {} if own is None else own.options.items():
            if spec.default is None:
                [found[option], *_] = known.get(own.parameter(option), (None,))
    return {option: value for option, value in found.items() if value is not None}


# ------------------------------------------------------------------------------------------------------- inputs


def draw(
    *shape: int, seed: int = 0, low: float = -3.0, high: float = 3.0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Uniform numbers, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return (low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)).to(dtype)


def some_target(num_pairs: int = PAIRS, per: str = "pair", **columns: Any) -> Target:
    """A target in which every column that is not given varies from pair to pair (from response to response)."""
    zero = (num_pairs, 2) if per == "pair" else (num_pairs,)
    made: dict[str, Any] = {
        "margin": draw(num_pairs, seed=11, low=0.0, high=1.0),
        "prob": draw(num_pairs, seed=12, low=0.05, high=0.95),
        "scale": draw(num_pairs, seed=13, low=0.5, high=1.5),
        "zero": draw(*zero, seed=14, low=-0.5, high=0.5),
    }
    return Target.of(torch.zeros(num_pairs, dtype=torch.float64), **(made | columns))


def some_labels(
    *names: str, seed: int = 21, dtype: torch.dtype = torch.float64, num: int = PAIRS, per: str = "pair"
) -> Labels:
    """Labels with only these columns, each of which varies from pair to pair; chosen is better by every evidence."""
    better = {
        "grade": torch.stack((draw(num, seed=seed, low=6.0, high=9.0), draw(num, seed=seed + 1, low=1.0, high=5.0)), 1),
        "utility": torch.stack((draw(num, seed=seed + 2, low=1.0), draw(num, seed=seed + 3, high=0.5)), 1),
        "prob": draw(num, seed=seed + 4, low=0.55, high=0.95),
        "target_gap": draw(num, seed=seed + 5, low=0.2),
        "strength": draw(num, seed=seed + 6, low=0.5),
        "weight": draw(num, seed=seed + 7, low=0.5, high=2.0),
        "chance": draw(num, seed=seed + 8, low=0.02, high=0.98),
        "progress": draw(num, seed=seed + 9, low=0.05, high=0.95),
    }
    if per == "response":
        better["grade"] = better["grade"][:, 0]
    return Labels(**{name: better[name].to(dtype) for name in names})


def _scores(names: Iterable[str], seed: int, *shape: int) -> dict[str, Tensor]:
    log_probs = draw(*shape, seed=seed, low=-60.0, high=-20.0)
    made = {
        "logp": log_probs,
        "ref_logp": log_probs + draw(*shape, seed=seed + 1),
        "length": draw(*shape, seed=seed + 2, low=5.0, high=40.0).round(),
        "head": draw(*shape, seed=seed + 3),
        "rm_head": draw(*shape, seed=seed + 4),
        "log_collision": draw(*shape, seed=seed + 5, low=-30.0, high=-1.0),
        "hidden": draw(*shape, 4, seed=seed + 6),
        "entropy": draw(*shape, seed=seed + 7, low=1.0, high=60.0),
    }
    return {name: made[name] for name in names}


def some_scores(*names: str, seed: int = 31, num: int = 6) -> SequenceScores:
    """Scores of six responses with only these fields, as a forward pass would give them."""
    return SequenceScores(**_scores(names, seed, num))


def some_pair_scores(*names: str, seed: int = 31, num: int = PAIRS, dtype: torch.dtype = torch.float64) -> PairScores:
    """Scores of pairs of different responses, with only these fields."""
    return PairScores(**{name: value.to(dtype) for name, value in _scores(names, seed, num, 2).items()})


def some_population(seed: int = 41, num: int = SEEN, past: int = 40) -> Population:
    """What other pairs may look like, with everything that any memory adds."""
    return Population(
        rewards=draw(num, 2, seed=seed),
        past=draw(past, seed=seed + 1),
        chance=draw(num, seed=seed + 2, low=0.02, high=0.98),
        mean=draw(seed=seed + 3, low=-0.4, high=0.4),
        sd=draw(seed=seed + 4, low=0.8, high=1.6),
        updates=3,
    )


def nobody() -> list[Population]:
    """Before anything is seen, for every memory."""
    blank = Population(rewards=torch.zeros(0, 2, dtype=torch.float64))
    zero = torch.zeros((), dtype=torch.float64)
    return [
        blank,
        replace(blank, past=torch.zeros(0, dtype=torch.float64), chance=torch.zeros(0, dtype=torch.float64)),
        replace(blank, mean=zero, sd=zero, updates=0),
    ]


def rows(record: Any, index: Tensor) -> Any:
    """Some pairs of a Target, of Labels or of PairScores."""
    columns = {column.name: getattr(record, column.name) for column in fields(record)}
    return type(record)(**{name: None if value is None else value[index] for name, value in columns.items()})


# ------------------------------------------------------------------------------------------------------ calling


@contextmanager
def without_annotations() -> Iterator[None]:
    """What a user meets: beartype, which only tests switch on, would speak first."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def refused(call: Callable[[], object], error: type[BadInput], *words: str) -> None:
    """The call is refused with this error and a message of one line that has these words."""
    with without_annotations():
        try:
            call()
        except error as refusal:
            message = str(refusal)
        except Exception as other:
            raise AssertionError(f"expected {error.__name__}, got {type(other).__name__}: {other}") from other
        else:
            raise AssertionError(f"not refused; expected {error.__name__}")
    assert "\n" not in message
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"


def apply(case: Case, *arguments: Any) -> Any:
    """Call the function; a crash that is not a refusal is a failed check."""
    try:
        return case.function(*arguments, **case.options)
    except BadInput:
        raise
    except Exception as error:
        raise AssertionError(f"{case} crashed: {type(error).__name__}: {error}") from error


def close(left: Tensor, right: Tensor) -> bool:
    """Equal within rounding in float64."""
    return left.shape == right.shape and torch.allclose(left, right, rtol=1e-10, atol=1e-10, equal_nan=True)


def equal_targets(left: Target, right: Target) -> bool:
    """Every column is the same."""
    return all(
        close(getattr(left, column.name).double(), getattr(right, column.name).double()) for column in fields(Target)
    )
