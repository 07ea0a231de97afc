"""The contract over every function that the algebra declares."""

import importlib
import pkgutil

import pytest
import torch
from contract import CHECKS, Check, largest_gradient_jump, some_rewards
from inputs import MODULES, OPTIONS, Case, cases, declared, draw, some_labels, some_scores, some_target
from torch import Tensor
from torch.nn.functional import softplus

from marginkit import core
from marginkit.core.evidence import graded
from marginkit.core.objectives import logistic, nll
from marginkit.core.parts import Part, objective, reward, target
from marginkit.core.rewards import implicit
from marginkit.core.tensors import Labels, PairScores, Population, Rewards, SequenceScores, Target

EVERY = [
    pytest.param(check, case, id=f"{case}-{check.__name__}")
    for kind in CHECKS
    for case in cases(kind)
    for check in CHECKS[kind]
]


@pytest.mark.parametrize(("check", "case"), EVERY)
def test_every_declared_function_keeps_its_contract(check: Check, case: Case) -> None:
    """Each declaration is true, in both directions."""
    check(case)


@reward(needs={"logp", "ref_logp", "length"}, anchored=True)
def squashed(scores: SequenceScores | PairScores, *, beta: float = 1.0) -> Rewards:
    """A user's reward: a bounded log-ratio a token."""
    return Rewards(torch.tanh(beta * (scores.logp - scores.ref_logp) / scores.length.clamp(min=1.0)))


@target(needs={"grade_gap", "rm_head"}, makes={"margin", "keep"}, couples="population", remembers="queue")
def between_grades_and_teacher(
    labels: Labels, gap: Tensor, population: Population | None, scores: PairScores, *, share: float = 0.5
) -> Target:
    """A user's target: grades and another model's gap, less what is usual by now."""
    keep, grades = graded(labels, gap, "this margin")
    assert population is not None
    if not len(population.gaps):
        return Target.of(gap, keep=keep)
    past = population.gaps[:0] if population.past is None else population.past
    usual = torch.cat((population.gaps, past)).mean().to(gap.dtype)
    teacher = scores.rm_head[:, 0] - scores.rm_head[:, 1]
    return Target.of(gap, margin=share * grades + (1.0 - share) * torch.tanh(teacher) - usual, keep=keep)


@objective(uses={"margin", "scale", "zero"}, asks="own")
def barrier(rewards: Rewards, target: Target, *, k: float = 0.1) -> Tensor:
    """A user's objective: a logistic with a pull to the level."""
    slack = target.scale * rewards.gap - target.margin
    return softplus(-slack) + k * ((rewards.value - target.zero) ** 2).sum(1)


OWN = [
    pytest.param(check, Case(function, options), id=f"{function.__name__}-{check.__name__}")
    for function, options in ((squashed, {"beta": 0.5}), (between_grades_and_teacher, {}), (barrier, {"k": 0.2}))
    for check in CHECKS[function.part.kind]
]


@pytest.mark.parametrize(("check", "case"), OWN)
def test_a_users_own_function_is_held_to_the_same(check: Check, case: Case) -> None:
    """Any decorated function goes through the contract, in the catalogue or not."""
    check(case)


def test_discovery_finds_what_is_there() -> None:
    """The contract cannot be empty: these functions exist and are found."""
    assert {"logp", "implicit", "per_token", "head"} <= set(declared("reward"))
    assert {"none", "soft_label", "madpo_weight", "gamma_po", "aplot"} <= set(declared("target"))
    assert {"logistic", "nll", "balanced", "value_squared"} <= set(declared("objective"))


def test_no_module_of_the_core_declares_unseen() -> None:
    """A module with declared functions that `inputs.MODULES` does not name would go untested."""
    named = {module.__name__ for modules in MODULES.values() for module in modules}
    for found in pkgutil.iter_modules(core.__path__, "marginkit.core."):
        module = importlib.import_module(found.name)
        own = [
            name
            for name, value in vars(module).items()
            if isinstance(getattr(value, "part", None), Part) and value.__module__ == module.__name__
        ]
        assert bool(own) == (found.name in named), f"{found.name} declares {own}"


def test_every_declared_function_is_a_case_with_all_its_options() -> None:
    """A function without a case would go untested; an option without a value would crash elsewhere than here."""
    for kind in CHECKS:
        found = cases(kind)
        assert {case.function for case in found} == set(declared(kind).values())
        for case in found:
            for name in (name for name, value in case.options.items() if value is None):
                known = OPTIONS.get(case.function.__name__, {}).get(name, ())
                assert None in known, f"{case}: give the option a value in inputs.OPTIONS"


def test_helpers_of_the_core_are_not_taken_for_parts() -> None:
    """Only what is declared with a decorator of its module's kind counts."""
    assert "soft_prob" not in declared("target")
    assert "grade_gap" not in declared("target")
    assert "reward" not in declared("reward")


def test_random_inputs_vary_from_pair_to_pair() -> None:
    """With equal rows no coupling could ever be seen."""
    target, labels, scores = (
        some_target(),
        some_labels("grade", "utility", "prob", "target_gap", "strength", "weight"),
        some_scores("logp", "ref_logp", "length", "head", "rm_head", "log_collision"),
    )
    columns = [
        some_rewards(Case(logistic)),
        some_rewards(Case(nll)),
        *(getattr(target, name) for name in ("margin", "prob", "scale")),
        *(getattr(labels, name) for name in ("grade", "utility", "prob", "target_gap", "strength", "weight")),
        *(getattr(scores, name) for name in ("logp", "ref_logp", "length", "head", "rm_head", "log_collision")),
    ]
    for column in columns:
        flat = column.reshape(len(column), -1)
        assert len(torch.unique(flat, dim=0)) == len(flat)
    assert torch.equal(draw(3, seed=1), draw(3, seed=1))
    assert not torch.equal(draw(3, seed=1), draw(3, seed=2))


def test_labels_of_the_inputs_say_that_chosen_is_better() -> None:
    """Otherwise a logarithm of a grade gap would be refused for the wrong reason."""
    labels = some_labels("grade", "utility", "prob", "target_gap", "strength")
    assert (labels.grade[:, 0] > labels.grade[:, 1]).all()
    assert (labels.utility[:, 0] > labels.utility[:, 1]).all()
    assert (labels.prob > 0.5).all()
    assert (labels.target_gap > 0).all()
    assert (labels.strength > 0).all()


def test_the_smoothness_probe_sees_no_jump_where_there_is_only_curvature() -> None:
    """Steep is not broken: the logistic's steepest step halves away."""
    assert largest_gradient_jump(Case(logistic)) < 1e-7


def test_the_reference_is_kept_out_of_the_gradient_by_the_caller() -> None:
    """`implicit` does not detach: a reference that asks for a gradient gets -beta; the shell hands it in detached."""
    scores = some_scores("logp", "ref_logp")
    live = scores.ref_logp.requires_grad_(True)
    implicit(SequenceScores(logp=scores.logp, ref_logp=live), beta=0.1).value.sum().backward()
    assert torch.equal(live.grad, torch.full((6,), -0.1, dtype=torch.float64))
