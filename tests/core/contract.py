"""What every function of the algebra must hold: one check a claim, each over one `Case` (a function and its options).

test_contract.py runs the checks over everything that `marginkit.core` declares, test_graveyard.py over known defects,
which they must reject. A new function is found by its declaration; it needs a row here only if one of its options has
no default in the catalogue (`OPTIONS`), or if it declares evidence that is new (`EVIDENCE`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import product
from types import ModuleType
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from marginkit.core import objectives, rewards, targets
from marginkit.core.parts import Part
from marginkit.core.tensors import SCORE_FIELDS, Labels, Population, Rewards, SequenceScores, Target
from marginkit.errors import BadInput, ShapeError
from marginkit.registry import PARTS, Recipe, load_recipe, recipe_names

MODULES: dict[str, ModuleType] = {"reward": rewards, "target": targets, "objective": objectives}

# Options without a default in the catalogue, by function.
OPTIONS: dict[str, dict[str, Any]] = {
    "constant_margin": {"margin": 0.5},
    "soft_label": {"gamma": 0.3},
}

# What satisfies each declared need: any one of these label columns.
EVIDENCE: dict[str, tuple[str, ...]] = {
    "utility_gap": ("prob", "target_gap", "utility", "strength", "grade"),
    "grade_gap": ("strength", "grade"),
}

# Scores that the model being trained computes; a gradient has to reach them.
TRAINED = ("logp", "head", "log_collision", "hidden")

PAIRS = 5
COLUMNS = ("margin", "prob", "weight", "scale")


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


Check = Callable[[Case], None]


# ---------------------------------------------------------------------------------------------------- discovery


def declared(kind: str) -> dict[str, Callable[..., Any]]:
    """Every function that its module declares with the decorator of this kind."""
    module = MODULES[kind]
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(part := getattr(value, "part", None), Part)
        and part.kind == kind
        and value.__module__ == module.__name__
    }


def cases(kind: str) -> list[Case]:
    """Every declared function, once for each set of options in the catalogue and for each choice of an option."""
    found: list[Case] = []
    for name, function in declared(kind).items():
        for options in _option_sets(kind, name):
            case = Case(function, options)
            if case not in found:
                found.append(case)
    return found


def _option_sets(kind: str, name: str) -> Iterator[dict[str, Any]]:
    used = False
    for recipe in map(load_recipe, recipe_names()):
        spec = getattr(recipe, kind)
        if spec is None or spec.function != f"{MODULES[kind].__name__}:{name}":
            continue
        used = True
        values = {
            option: declared_option.choices or (OPTIONS.get(name, {}).get(option, declared_option.default),)
            for option, declared_option in spec.options.items()
        }
        for chosen in product(*values.values()):
            yield dict(zip(values, chosen, strict=True))
    if not used:
        yield OPTIONS.get(name, {})


def recipes() -> list[Recipe]:
    """The whole catalogue."""
    return [load_recipe(name) for name in recipe_names()]


def recipe_options(recipe: Recipe) -> dict[str, Any]:
    """Values for the options of a recipe that have no default."""
    functions = {part: spec.function.split(":")[1] for part in PARTS if (spec := getattr(recipe, part)) is not None}
    return {
        name: OPTIONS[functions[part]][name]
        for name, (part, option) in recipe.options().items()
        if option.default is None
    }


# ------------------------------------------------------------------------------------------------------- inputs


def draw(
    *shape: int, seed: int = 0, low: float = -3.0, high: float = 3.0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Uniform numbers, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return (low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def some_rewards(case: Case, seed: int = 1) -> Tensor:
    """[P, 2] or [R] logits, as the objective's declaration wants them."""
    return draw(PAIRS, 2, seed=seed) if case.part.per == "pair" else draw(PAIRS, seed=seed)


def some_target(num_pairs: int = PAIRS, **columns: Any) -> Target:
    """A target in which every column that is not given varies from pair to pair."""
    made: dict[str, Any] = {
        "margin": draw(num_pairs, seed=11, low=0.0, high=1.0),
        "prob": draw(num_pairs, seed=12, low=0.05, high=0.95),
        "scale": draw(num_pairs, seed=13, low=0.5, high=1.5),
    }
    return Target.of(torch.zeros(num_pairs, dtype=torch.float64), **(made | columns))


def some_labels(*names: str, seed: int = 21, dtype: torch.dtype = torch.float64) -> Labels:
    """Labels with only these columns, each of which varies from pair to pair; chosen is better by every evidence."""
    better = {
        "grade": torch.stack(
            (draw(PAIRS, seed=seed, low=6.0, high=9.0), draw(PAIRS, seed=seed + 1, low=1.0, high=5.0)), 1
        ),
        "utility": torch.stack((draw(PAIRS, seed=seed + 2, low=1.0), draw(PAIRS, seed=seed + 3, high=0.5)), 1),
        "prob": draw(PAIRS, seed=seed + 4, low=0.55, high=0.95),
        "target_gap": draw(PAIRS, seed=seed + 5, low=0.2),
        "strength": draw(PAIRS, seed=seed + 6, low=0.5),
        "weight": draw(PAIRS, seed=seed + 7, low=0.5, high=2.0),
    }
    return Labels(**{name: better[name].to(dtype) for name in names})


def some_scores(*names: str, seed: int = 31, num: int = 6) -> SequenceScores:
    """Scores of six responses with only these fields, as a forward pass would give them."""
    log_probs = draw(num, seed=seed, low=-60.0, high=-20.0)
    made = {
        "logp": log_probs,
        "ref_logp": log_probs + draw(num, seed=seed + 1),
        "length": draw(num, seed=seed + 2, low=5.0, high=40.0).round(),
        "head": draw(num, seed=seed + 3),
        "rm_head": draw(num, seed=seed + 4),
        "log_collision": draw(num, seed=seed + 5, low=-30.0, high=-1.0),
        "hidden": draw(num, 4, seed=seed + 6),
    }
    return SequenceScores(**{name: made[name] for name in names})


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


# --------------------------------------------------------------------------------------------------- objectives


def loss_of(case: Case, value: Tensor, target: Target | None = None) -> Tensor:
    """The objective's loss; a target goes only to objectives per pair."""
    if case.part.per == "response":
        return apply(case, Rewards(value))
    return apply(case, Rewards(value), some_target(len(value)) if target is None else target)


def gradient_of(case: Case, value: Tensor, target: Target | None = None) -> Tensor:
    """Gradient of the summed loss with respect to the rewards."""
    value = value.detach().clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss_of(case, value, target).sum(), value)
    return gradient


def rows(target: Target, index: Tensor) -> Target:
    """Some pairs of a target."""
    return Target(**{column.name: getattr(target, column.name)[index] for column in fields(Target)})


def one_loss_for_each_pair(case: Case) -> None:
    """[P] in, [P] out, in the dtype of the rewards."""
    for dtype in (torch.float32, torch.float64):
        value = some_rewards(case).to(dtype)
        target = Target.of(torch.zeros(PAIRS, dtype=dtype), margin=0.3, prob=0.8)
        loss = loss_of(case, value, target)
        assert loss.shape == (PAIRS,)
        assert loss.dtype == dtype


def each_pair_alone_gives_the_same_loss(case: Case) -> None:
    """No pair sees another, unless the declaration says so; then one does."""
    value, target = some_rewards(case), some_target()
    together = loss_of(case, value, target)
    alone = [loss_of(case, value[i : i + 1], rows(target, torch.tensor([i]))) for i in range(PAIRS)]
    if case.part.couples == "none":
        assert close(together, torch.cat(alone)), f"{case}: in the batch {together}, alone {alone}"
    else:
        assert not close(together, torch.cat(alone)), (
            f"{case} declares couples={case.part.couples}, but no pair matters"
        )


def permuting_the_pairs_permutes_the_losses(case: Case) -> None:
    """The order of a batch means nothing."""
    value, target = some_rewards(case), some_target()
    order = torch.tensor([3, 0, 4, 1, 2])
    assert close(loss_of(case, value[order], rows(target, order)), loss_of(case, value, target)[order])


def finite_at_initialisation(case: Case) -> None:
    """Policy == reference, or a head of zeros: value and gradient are numbers."""
    for level in (0.0, -40.0):
        value = torch.full_like(some_rewards(case), level)
        for prob in (0.0, 0.5, 1.0):
            _all_finite(case, value, Target.of(torch.zeros(PAIRS, dtype=torch.float64), prob=prob))
        _all_finite(case, value, some_target())


def finite_as_far_as_declared(case: Case) -> None:
    """Value and gradient are numbers for |reward| up to `finite_to`, in float32 too."""
    far = case.part.finite_to
    corners = [(far, -far), (-far, far), (far, far), (-far, -far), (far, 0.0), (0.0, -far)]
    for dtype in (torch.float32, torch.float64):
        value = torch.tensor(corners, dtype=dtype)
        value = value if case.part.per == "pair" else value[:, 0].contiguous()
        for prob in (0.0, 0.5, 1.0):
            _all_finite(case, value, Target.of(torch.zeros(len(corners), dtype=dtype), prob=prob))


def _all_finite(case: Case, value: Tensor, target: Target) -> None:
    assert torch.isfinite(loss_of(case, value, target)).all(), f"{case}: loss at rewards {value.tolist()}"
    assert torch.isfinite(gradient_of(case, value, target)).all(), f"{case}: gradient at rewards {value.tolist()}"


def shift_invariant_exactly_if_declared(case: Case) -> None:
    """A constant added to both rewards of a pair changes nothing, or else something."""
    value = some_rewards(case)
    constant = draw(PAIRS, seed=5, low=1.0, high=4.0)
    moved = value + (constant[:, None] if value.ndim == 2 else constant)
    same = close(loss_of(case, value), loss_of(case, moved))
    assert same == case.part.shift_invariant, f"{case} declares shift_invariant={case.part.shift_invariant}"


def smooth_exactly_if_declared(case: Case) -> None:
    """The gradient has no jump, or else it has one."""
    jump = largest_gradient_jump(case)
    if case.part.smooth:
        assert jump < 1e-5, f"{case} declares a continuous gradient, which jumps by {jump:.3g}"
    else:
        assert jump > 1e-3, f"{case} declares a kink, but its gradient jumps by no more than {jump:.3g}"


def largest_gradient_jump(case: Case) -> float:
    """Follow the gradient along lines through the rewards and halve the steepest steps until only a jump is left."""
    directions = [(1.0, -1.0), (1.0, 0.0), (0.0, 1.0), (0.3, -1.7)] if case.part.per == "pair" else [(1.0, 0.0)]
    largest = 0.0
    for direction, prob in product(directions, (1.0, 0.7)):

        def gradient(steps: Tensor, direction: tuple[float, float] = direction, prob: float = prob) -> Tensor:
            value = steps[:, None] * torch.tensor(direction, dtype=torch.float64) + torch.tensor([0.11, -0.07])
            value = value if case.part.per == "pair" else value[:, 0].contiguous()
            target = Target.of(torch.zeros(len(steps), dtype=torch.float64), prob=prob, margin=0.5)
            return gradient_of(case, value, target).reshape(len(steps), -1)

        steps = torch.linspace(-8.0, 8.0, 1601, dtype=torch.float64)
        change = (gradient(steps[1:]) - gradient(steps[:-1])).abs().amax(1)
        low = steps[:-1][change.topk(5).indices]
        high = low + (steps[1] - steps[0])
        for _ in range(26):
            middle = (low + high) / 2
            at_low, at_middle, at_high = gradient(torch.cat((low, middle, high))).chunk(3)
            left = (at_middle - at_low).abs().amax(1) > (at_high - at_middle).abs().amax(1)
            low, high = torch.where(left, low, middle), torch.where(left, middle, high)
        largest = max(largest, float((gradient(high) - gradient(low)).abs().max()))
    return largest


def gradient_is_the_derivative(case: Case) -> None:
    """Autograd agrees with finite differences, in float64."""
    target = some_target()
    value = some_rewards(case).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda v: loss_of(case, v, target), (value,), raise_exception=False)


def prob_matters_exactly_if_declared(case: Case) -> None:
    """Another prob gives another loss, or else the same."""
    value = some_rewards(case)
    same = close(loss_of(case, value, some_target(prob=0.9)), loss_of(case, value, some_target(prob=0.2)))
    uses_prob = case.part.uses_prob and case.part.per == "pair"
    assert same != uses_prob, f"{case} declares uses_prob={case.part.uses_prob}"


def a_flipped_label_is_the_same_label(case: Case) -> None:
    """Chosen and rejected swapped, with 1 - prob: the same statement, hence the same loss."""
    if case.part.per == "response" or not case.part.uses_prob:
        return
    value, target = some_rewards(case), some_target(margin=0.0)
    flipped = replace(target, prob=1.0 - target.prob)
    assert close(loss_of(case, value, target), loss_of(case, value.flip(1), flipped)), f"{case}: flipped label"


def weight_and_keep_are_left_to_the_shell(case: Case) -> None:
    """The objective is unweighted: applied twice, a weight would count squared."""
    value = some_rewards(case)
    marked = some_target(weight=draw(PAIRS, seed=6, low=2.0), keep=torch.tensor([True, False, True, False, False]))
    assert close(loss_of(case, value, some_target()), loss_of(case, value, marked)), f"{case} applies weight or keep"


def columns_are_refused(case: Case) -> None:
    """[B, 1] never broadcasts against [B]: the message names both shapes."""
    if case.part.per == "response":
        for value in (draw(PAIRS, 1), draw(PAIRS, 2)):
            refused(lambda v=value: loss_of(case, v), ShapeError, str(list(value.shape)), "[response]")
        return
    target = some_target()
    for value in (draw(PAIRS, 1), draw(PAIRS), draw(PAIRS, 3)):
        refused(lambda v=value: loss_of(case, v, target), ShapeError, str(list(value.shape)), "[pair, 2]")
    for name in (*COLUMNS, "keep"):
        column = replace(target, **{name: getattr(target, name)[:, None]})
        refused(lambda c=column: loss_of(case, some_rewards(case), c), ShapeError, name, f"[{PAIRS}, 1]", f"[{PAIRS}]")
    refused(lambda: apply(case, Rewards(some_rewards(case)), None), BadInput, "needs a target")


OBJECTIVE_CHECKS: tuple[Check, ...] = (
    one_loss_for_each_pair,
    each_pair_alone_gives_the_same_loss,
    permuting_the_pairs_permutes_the_losses,
    finite_at_initialisation,
    finite_as_far_as_declared,
    shift_invariant_exactly_if_declared,
    smooth_exactly_if_declared,
    gradient_is_the_derivative,
    prob_matters_exactly_if_declared,
    a_flipped_label_is_the_same_label,
    weight_and_keep_are_left_to_the_shell,
    columns_are_refused,
)


# ------------------------------------------------------------------------------------------------------ targets


def target_of(case: Case, labels: Labels, gap: Tensor | None = None, population: Population | None = None) -> Target:
    """The function's target; a population is handed in where it is declared."""
    if population is None and case.part.couples == "population":
        population = Population(gaps=draw(16, seed=41))
    return apply(case, labels, draw(PAIRS, seed=42) if gap is None else gap, population)


def evidence_for(case: Case) -> list[tuple[str, ...]]:
    """The smallest sets of label columns that satisfy what the target declares."""
    return [tuple(dict.fromkeys(chosen)) for chosen in product(*(EVIDENCE[need] for need in sorted(case.part.needs)))]


def readable(case: Case) -> set[str]:
    """The label columns that the target may look at; `tie` always."""
    return {name for need in case.part.needs for name in EVIDENCE[need]} | {"tie"}


def equal_targets(left: Target, right: Target) -> bool:
    """Every column is the same."""
    return all(
        close(getattr(left, column.name).double(), getattr(right, column.name).double()) for column in fields(Target)
    )


def every_column_is_one_value_a_pair(case: Case) -> None:
    """All five columns are [P], in the dtype of the gap."""
    for dtype in (torch.float32, torch.float64):
        for names in evidence_for(case):
            made = target_of(case, some_labels(*names), draw(PAIRS, seed=42, dtype=dtype))
            for name in COLUMNS:
                assert getattr(made, name).shape == (PAIRS,), f"{case}: {name}"
                assert getattr(made, name).dtype == dtype, f"{case}: {name}"
            assert made.keep.shape == (PAIRS,)
            assert made.keep.dtype == torch.bool


def no_gradient_passes(case: Case) -> None:
    """A target is data: neither the gap nor the labels get a gradient through it."""
    for names in evidence_for(case):
        labels = some_labels(*names)
        live = Labels(**{name: getattr(labels, name).requires_grad_(True) for name in names})
        made = target_of(case, live, draw(PAIRS, seed=42).requires_grad_(True))
        for name in COLUMNS:
            column: Tensor = getattr(made, name)
            assert not column.requires_grad, f"{case}: {name} carries a gradient"


def finite_when_all_gaps_are_equal(case: Case) -> None:
    """At initialisation every gap is 0: every column is a number."""
    for names, level in product(evidence_for(case), (0.0, 2.5)):
        _finite_target(case, target_of(case, some_labels(*names), torch.full((PAIRS,), level, dtype=torch.float64)))


def finite_or_refused_when_evidence_is_equal(case: Case) -> None:
    """Equal grades: log(0) is refused in words, or does not happen."""
    equal = {
        "grade": torch.full((PAIRS, 2), 4.0, dtype=torch.float64),
        "utility": torch.full((PAIRS, 2), 0.5, dtype=torch.float64),
        "prob": torch.full((PAIRS,), 0.5, dtype=torch.float64),
        "target_gap": torch.zeros(PAIRS, dtype=torch.float64),
        "strength": torch.zeros(PAIRS, dtype=torch.float64),
    }
    for names in evidence_for(case):
        try:
            made = target_of(case, Labels(**{name: equal[name] for name in names}))
        except BadInput:
            continue
        _finite_target(case, made)


def _finite_target(case: Case, made: Target) -> None:
    for name in COLUMNS:
        assert torch.isfinite(getattr(made, name)).all(), f"{case}: {name} is {getattr(made, name).tolist()}"


def each_pair_alone_gets_the_same_target(case: Case) -> None:
    """Given the same population, no pair sees another."""
    gap, population = draw(PAIRS, seed=42), Population(gaps=draw(16, seed=41))
    for names in evidence_for(case):
        labels = some_labels(*names)
        together = target_of(case, labels, gap, population)
        for i in range(PAIRS):
            own = Labels(**{name: getattr(labels, name)[i : i + 1] for name in names})
            alone = target_of(case, own, gap[i : i + 1], population)
            assert equal_targets(alone, rows(together, torch.tensor([i]))), f"{case}: pair {i} alone differs"


def the_population_matters_exactly_if_declared(case: Case) -> None:
    """Other gaps in the population change the target, or else nothing."""
    names = evidence_for(case)[0]
    seen = [Population(gaps=draw(16, seed=seed, low=-3.0 * seed, high=3.0 * seed)) for seed in (1, 2)]
    first, second = (target_of(case, some_labels(*names), population=population) for population in seen)
    if case.part.couples == "population":
        assert not equal_targets(first, second), f"{case} declares a population and does not use it"
        refused(lambda: apply(case, some_labels(*names), draw(PAIRS), None), BadInput, "population")
    else:
        assert equal_targets(first, second), f"{case} uses a population and does not declare it"
        assert equal_targets(first, apply(case, some_labels(*names), draw(PAIRS, seed=42), None))


def any_one_evidence_is_enough(case: Case) -> None:
    """Each way to satisfy a declared need works by itself; a target without needs works without labels."""
    for names in evidence_for(case):
        target_of(case, some_labels(*names))


def missing_evidence_is_refused(case: Case) -> None:
    """No evidence at all, or none in one pair, is refused: absent is never 0."""
    if not case.part.needs:
        return
    refused(lambda: target_of(case, Labels()), BadInput)
    refused(lambda: target_of(case, some_labels("weight")), BadInput)
    for names in evidence_for(case):
        labels = some_labels(*names)
        for name in names:
            getattr(labels, name)[2] = float("nan")
        refused(lambda found=labels: target_of(case, found), BadInput)


def evidence_matters_exactly_if_declared(case: Case) -> None:
    """A declared need changes the target; a column that was not declared never does."""
    unread = [column.name for column in fields(Labels) if column.name not in readable(case)]
    for names in evidence_for(case):
        plain = target_of(case, some_labels(*names))
        for name in unread:
            assert equal_targets(plain, target_of(case, some_labels(*names, name))), f"{case} reads {name}"
    for need in case.part.needs:
        for name in EVIDENCE[need]:
            others = [EVIDENCE[other][0] for other in case.part.needs if other != need]
            first, second = (target_of(case, some_labels(name, *others, seed=seed)) for seed in (21, 57))
            assert not equal_targets(first, second), f"{case} declares {need} and does not use {name}"


def a_tie_has_no_winner(case: Case) -> None:
    """A tie is left out or gets prob 1/2; the other pairs are as they were."""
    tie = torch.tensor([False, True, False, False, True])
    for names in evidence_for(case):
        if {"prob", "target_gap", "utility"} & set(names):
            continue  # such evidence says more than the tie does
        plain = target_of(case, some_labels(*names))
        tied = target_of(case, replace(some_labels(*names), tie=tie))
        assert (~tied.keep[tie] | (tied.prob[tie] == 0.5)).all(), f"{case}: a tie is trained toward a winner"
        assert equal_targets(rows(plain, ~tie), rows(tied, ~tie)), f"{case}: a tie changes other pairs"
        nothing_else = target_of(case, replace(some_labels(*names), tie=torch.zeros(PAIRS, dtype=torch.bool)))
        assert equal_targets(plain, nothing_else), f"{case}: a tie column without ties changes the target"


def label_columns_are_refused(case: Case) -> None:
    """A gap or a label of the wrong shape never broadcasts."""
    for names in evidence_for(case):
        labels = some_labels(*names)
        refused(lambda found=labels: target_of(case, found, draw(PAIRS, 1)), ShapeError, f"[{PAIRS}, 1]")
        for name in names:
            column = replace(labels, **{name: draw(PAIRS, 1, low=0.1, high=0.9)})
            refused(lambda found=column: target_of(case, found), ShapeError, f"[{PAIRS}, 1]")


TARGET_CHECKS: tuple[Check, ...] = (
    every_column_is_one_value_a_pair,
    no_gradient_passes,
    finite_when_all_gaps_are_equal,
    finite_or_refused_when_evidence_is_equal,
    each_pair_alone_gets_the_same_target,
    the_population_matters_exactly_if_declared,
    any_one_evidence_is_enough,
    missing_evidence_is_refused,
    evidence_matters_exactly_if_declared,
    a_tie_has_no_winner,
    label_columns_are_refused,
)


# ------------------------------------------------------------------------------------------------------ rewards


def reward_of(case: Case, scores: Any) -> Tensor:
    """The function's rewards."""
    value: Tensor = apply(case, scores).value
    return value


def one_reward_for_each_response(case: Case) -> None:
    """[R] in, [R] out."""
    assert reward_of(case, some_scores(*case.part.needs)).shape == (6,)


def declared_scores_are_enough(case: Case) -> None:
    """With the declared fields and no others it works; without any one of them it is refused by name."""
    needs = case.part.needs
    reward_of(case, some_scores(*needs))
    for missing in needs:
        scores = some_scores(*(needs - {missing}))
        refused(lambda found=scores: reward_of(case, found), BadInput, f"`{missing}`", case.function.__name__)


def scores_matter_exactly_if_declared(case: Case) -> None:
    """A declared field changes the reward; one that was not declared never does."""
    everything = (*SCORE_FIELDS, "hidden")
    before, other = some_scores(*everything), some_scores(*everything, seed=77)
    plain = reward_of(case, before)
    assert close(plain, reward_of(case, some_scores(*case.part.needs)))
    for name in everything:
        same = close(plain, reward_of(case, replace(before, **{name: getattr(other, name)})))
        assert same == (name not in case.part.needs), (
            f"{case}: {name} declared {name in case.part.needs}, used {not same}"
        )


def each_response_alone_gets_the_same_reward(case: Case) -> None:
    """A reward belongs to one response: not to its batch, its pair or its place in the pair."""
    scores = some_scores(*case.part.needs)
    together = reward_of(case, scores)
    for i in range(6):
        alone = SequenceScores(**{name: getattr(scores, name)[i : i + 1] for name in case.part.needs})
        assert close(together[i : i + 1], reward_of(case, alone)), f"{case}: response {i} alone differs"
    pairs = torch.tensor([[0, 1], [2, 3], [4, 0], [5, 2]])
    assert close(together[pairs], reward_of(case, scores.at(pairs))), f"{case}: [R] and [P, 2] disagree"


def finite_when_the_policy_is_the_reference(case: Case) -> None:
    """At initialisation the reward and its gradient are numbers."""
    scores = some_scores(*case.part.needs)
    if {"logp", "ref_logp"} <= case.part.needs:
        scores = replace(scores, ref_logp=scores.logp)
    trained = [name for name in TRAINED if name in case.part.needs]
    leaves = [getattr(scores, name).clone().requires_grad_(True) for name in trained]
    value = reward_of(case, replace(scores, **dict(zip(trained, leaves, strict=True))))
    assert torch.isfinite(value).all(), f"{case}: {value.tolist()}"
    if value.requires_grad:
        for name, gradient in zip(trained, torch.autograd.grad(value.sum(), leaves), strict=True):
            assert torch.isfinite(gradient).all(), f"{case}: gradient of {name}"


def the_gradient_reaches_the_model(case: Case) -> None:
    """Every output of the trained model that is declared gets a gradient, which is the derivative."""
    trained = [name for name in TRAINED if name in case.part.needs]
    assert trained, f"{case} reads nothing that is trained"
    scores = some_scores(*case.part.needs)
    leaves = tuple(getattr(scores, name).clone().requires_grad_(True) for name in trained)

    def value(*given: Tensor) -> Tensor:
        return reward_of(case, replace(scores, **dict(zip(trained, given, strict=True))))

    assert value(*leaves).requires_grad, f"{case} is cut off from the model"
    for name, gradient in zip(
        trained, torch.autograd.grad(value(*leaves).sum(), leaves, allow_unused=True), strict=True
    ):
        assert gradient is not None, f"{case}: no gradient reaches {name}"
        assert (gradient != 0).all(), f"{case}: no gradient reaches {name}"
    assert torch.autograd.gradcheck(value, leaves, raise_exception=False)


def score_columns_are_refused(case: Case) -> None:
    """[R, 1] beside [R] never broadcasts; alone it is refused by the objective."""
    if len(case.part.needs) < 2:
        return
    for name in case.part.needs:
        scores = some_scores(*case.part.needs)
        column = replace(scores, **{name: getattr(scores, name)[:, None]})
        refused(lambda found=column: reward_of(case, found), ShapeError, f"{name} [6, 1]", "[6]")


REWARD_CHECKS: tuple[Check, ...] = (
    one_reward_for_each_response,
    declared_scores_are_enough,
    scores_matter_exactly_if_declared,
    each_response_alone_gets_the_same_reward,
    finite_when_the_policy_is_the_reference,
    the_gradient_reaches_the_model,
    score_columns_are_refused,
)

CHECKS: dict[str, tuple[Check, ...]] = {
    "reward": REWARD_CHECKS,
    "target": TARGET_CHECKS,
    "objective": OBJECTIVE_CHECKS,
}


def rejects(check: Check, case: Case) -> None:
    """The check fails, or the seam itself refuses what the function made."""
    with pytest.raises((AssertionError, BadInput)):
        check(case)
