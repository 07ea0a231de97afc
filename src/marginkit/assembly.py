"""From a recipe's name and options, or from three functions, to the loss itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from marginkit.errors import BadInput
from marginkit.registry import (
    PARTS,
    Recipe,
    arguments,
    did_you_mean,
    function_named,
    known_part,
    load_function,
    load_recipe,
    offered,
)

if TYPE_CHECKING:
    from marginkit.core.loss import Loss

_SFT = ("sft_weight", "sft_per")
# what each kind of model can say of a response
_SAID = {
    "policy": {"logp", "ref_logp", "length", "log_collision", "entropy", "rm_head"},
    "reward_model": {"head", "hidden", "length", "rm_head"},
    "sft": {"logp", "length"},
}


def build_loss(spec: Recipe, options: Mapping[str, Mapping[str, Any]], *, seed: int = 0) -> Loss:
    """Put a recipe's parts together.

    Args:
        spec: the recipe.
        options: the user's options by part (reward, target, objective).
        seed: of all chance.

    Raises:
        BadInput: an option is unknown or out of range, a function is not what its part needs, or the parts do not go
            together.
    """
    from marginkit.core.loss import Loss

    made: dict[str, Any] = {}
    for part, (name, values) in arguments(spec, options).items():
        if part == "objective":
            made |= {word: values.pop(word) for word in _SFT if word in values}
        made[part] = _declared(name, part) if name else None
        made[f"{part}_options"] = values
        if name:
            _check_parameters(made[part], part, name, values)
    loss = Loss(name=spec.name, seed=seed, **made)
    missing = sorted(loss.needs - _SAID[spec.kind])
    if missing:
        what = {"reward_model": "a reward model", "policy": "a policy", "sft": "SFT"}[spec.kind]
        raise BadInput(f"recipe {spec.name} trains {what}, which has no `{missing[0]}`; its parts need it")
    return loss


def _declared(name: str, part: str) -> Any:
    function = load_function(name)
    declared = getattr(function, "part", None)
    if declared is None or declared.kind != part:
        raise BadInput(f"{part}.name: {name} is not declared with @{part}(...)")
    return function


def _parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Option -> default of a function: its keyword-only parameters."""
    parameters = inspect.signature(function).parameters.values()
    return {found.name: found.default for found in parameters if found.kind is found.KEYWORD_ONLY}


_TYPES: dict[str, tuple[type, ...]] = {
    "float": (float, int),
    "int": (int,),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
}


def _words(annotation: Any) -> str:
    """An annotation as it stands in the source."""
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value is what a plain annotation (float, int | None ...) says; true for what is not plain."""
    words = [word.strip() for word in _words(annotation).split("|")]
    if not all(word in _TYPES for word in words):
        return True
    kinds = {kind for word in words for kind in _TYPES[word]}
    return type(value) in kinds


def _check_parameters(function: Callable[..., Any], part: str, name: str, values: Mapping[str, Any]) -> None:
    known = _parameters(function)
    annotations = {found.name: found.annotation for found in inspect.signature(function).parameters.values()}
    for option, value in values.items():
        if option not in known:
            raise BadInput(f"{part}.{option}: {name} has no such option{did_you_mean(option, known)}")
        if not _fits(value, annotations[option]):
            raise BadInput(f"{part}.{option}: {name} takes {_words(annotations[option])}, got {value!r}")
    for option, default in known.items():
        if default is inspect.Parameter.empty and option not in values:
            raise BadInput(f"{part}.{option}: {name} needs it, and it was not given")


def recipe(name: str, *, seed: int = 0, **options: Any) -> Loss:
    """The loss of a recipe alone, for any training loop: one callable, options under the paper's names.

    Args:
        name: a recipe of the catalogue.
        seed: of all chance, for recipes that have any.
        **options: its options (`marginkit list NAME` shows them); every policy recipe also takes `sft_weight` and
            `sft_per`.

    Returns:
        A callable `PairScores -> [pair]` with `state_dict()`.

    Raises:
        BadInput: unknown name or option, or a value out of range.

    Example:
        >>> recipe("mmpo", beta=0.01, gamma=0.3).target_options
        {'gamma': 0.3}
    """
    spec = load_recipe(name)
    known = {option: part for part in PARTS for option in offered(spec, part)}
    by_part: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
    for option, value in options.items():
        if option not in known:
            listed = ", ".join(spec.options()) or "none"
            raise BadInput(f"{name}({option}=...): no such option{did_you_mean(option, known)} (known: {listed})")
        by_part[known[option]][option] = value
    return build_loss(spec, by_part, seed=seed)


def compose(
    reward: str | Callable[..., Any],
    target: str | Callable[..., Any] | None,
    objective: str | Callable[..., Any],
    *,
    name: str = "composed",
    sft_weight: float = 0.0,
    sft_per: Literal["token", "sequence"] = "token",
    seed: int = 0,
    reward_options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
    objective_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Loss:
    """A loss from any reward, target and objective that go together: the table of methods, cell by cell.

    Args:
        reward: a function declared with @reward, or its name in the catalogue.
        target: a function declared with @target, or its name; None for a loss per response without one.
        objective: a function declared with @objective, or its name.
        name: of the loss, in messages.
        sft_weight: weight of the NLL of the chosen response, added to the loss of its pair.
        sft_per: token or sequence.
        seed: of all chance.
        reward_options: parameters of the reward alone.
        target_options: of the target alone.
        objective_options: of the objective alone.
        **options: parameters of the three functions by their own names. One that two of them have has to be given by
            part, unless the catalogue says that it is the same thing (the beta that AMaPO's margin has to know).

    Returns:
        A callable like that of `recipe`.

    Raises:
        BadInput: an unknown name or option, or parts that do not go together, with the reason.

    Example:
        >>> loss = compose("per_token", "soft_label", "logistic", beta=2.0, gamma=0.3)
        >>> sorted(loss.needs)
        ['length', 'logp']
    """
    from marginkit.core.loss import Loss

    made: dict[str, Any] = {}
    used: dict[str, str] = {}
    own_options = (reward_options, target_options, objective_options)
    for part, given, own in zip(PARTS, (reward, target, objective), own_options, strict=True):
        if given is None:
            if part != "target":
                raise BadInput(f"{part} is missing: a function declared with @{part}(...), or its name")
            made |= {part: None, f"{part}_options": {}}
            continue
        label = given if isinstance(given, str) else getattr(given, "__name__", repr(given))
        function = _declared(function_named(part, given, f"{part}."), part) if isinstance(given, str) else given
        if getattr(getattr(function, "part", None), "kind", None) != part:
            raise BadInput(f"{part}: {label} is not declared with @{part}(...)")
        checks, shares = known_part(part, f"{function.__module__}:{function.__name__}")
        known = _parameters(function)
        chosen = {option: value for option, value in options.items() if option in known} | dict(own or {})
        for option in chosen.keys() & used.keys() - (own or {}).keys():
            if option not in shares:
                raise BadInput(
                    f"compose({option}=...): {used[option]} and {part} {label} both have it; "
                    f"say which with {part}_options={{{option!r}: ...}}"
                )
        for option, (other, word) in shares.items():
            if option not in chosen and word in made.get(f"{other}_options", {}):
                chosen[option] = made[f"{other}_options"][word]
        values = {
            option: checks[option].check(option, value) if option in checks else value
            for option, value in chosen.items()
        }
        _check_parameters(function, part, label, values)
        made |= {part: function, f"{part}_options": values}
        used |= {option: f"{part} {label}" for option in values if option in options}
    for option in options:
        if option not in used:
            words = [word for part in PARTS if made[part] is not None for word in _parameters(made[part])]
            raise BadInput(f"compose({option}=...): no part has such an option{did_you_mean(option, words)}")
    return Loss(name=name, seed=seed, sft_weight=sft_weight, sft_per=sft_per, **made)
