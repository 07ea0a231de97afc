"""The checks of the contract over target functions; contract.py has those over rewards and objectives."""

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import product

import torch
from inputs import (
    EVERYTHING,
    EVIDENCE,
    PAIRS,
    SEEN,
    Case,
    alike,
    apply,
    draw,
    equal_targets,
    nobody,
    refused,
    rows,
    some_labels,
    some_pair_scores,
    some_population,
)
from torch import Tensor

from marginkit.core.parts import COLUMNS
from marginkit.core.tensors import Labels, PairScores, Population, Target
from marginkit.errors import BadInput, ShapeError

Check = Callable[[Case], None]

# Scores that the model being trained computes.
TRAINED = ("logp", "head", "log_collision", "hidden")
DEFAULTS = {"margin": 0.0, "prob": 1.0, "weight": 1.0, "scale": 1.0, "keep": 1.0, "zero": 0.0}
REMEMBERED = {"nothing": set(), "queue": {"past"}, "moments": {"mean", "sd"}}
TIE = torch.tensor([False, True, False, False, True])


# ------------------------------------------------------------------------------------------------------ calling


def target_of(
    case: Case,
    labels: Labels,
    gap: Tensor | None = None,
    population: Population | None = None,
    scores: PairScores | None = None,
) -> Target:
    """The function's target, with a population, a fresh generator and the scores that it declares."""
    gap = draw(PAIRS, seed=42) if gap is None else gap
    population = replace(population or some_population(), generator=torch.Generator().manual_seed(7))
    if case.part.scores and scores is None:
        scores = some_pair_scores(*case.part.scores, num=len(gap))
    made: Target = apply(case, labels, gap, population, scores)
    return made


def labels_of(
    case: Case, names: tuple[str, ...], seed: int = 21, dtype: torch.dtype = torch.float64, num: int = PAIRS
) -> Labels:
    """Labels with this evidence, and what the declaration says is there besides."""
    circumstance = (case.part.needs & {"chance"}) | case.part.reads
    return some_labels(*{*names, *circumstance}, seed=seed, dtype=dtype, num=num, per=case.part.per)


def _needed(case: Case) -> list[str]:
    return sorted(case.part.needs & set(EVIDENCE))


def _evidence(case: Case) -> list[tuple[str, ...]]:
    return [tuple(dict.fromkeys(chosen)) for chosen in product(*(EVIDENCE[need] for need in _needed(case)))]


def _accepts(case: Case, names: tuple[str, ...]) -> bool:
    try:
        target_of(case, labels_of(case, names))
    except ShapeError:
        raise
    except BadInput:
        return False
    return True


def evidence_for(case: Case) -> list[tuple[str, ...]]:
    """The smallest sets of label columns that satisfy what the target declares; with its options one at least does."""
    found = [names for names in _evidence(case) if _accepts(case, names)]
    assert found, f"{case} refuses every evidence that it declares"
    return found


def readable(case: Case) -> set[str]:
    """The label columns that the target may look at; `tie` always."""
    return {name for need in _needed(case) for name in EVIDENCE[need]} | case.part.reads | case.part.needs | {"tie"}


def _population_of_equals(level: float, num: int = SEEN) -> Population:
    one, zero = torch.full((num,), level, dtype=torch.float64), torch.zeros(num, dtype=torch.float64)
    return replace(some_population(num=num), rewards=torch.stack((one, zero), 1), past=one, mean=one[0], sd=zero[0])


def _finite(case: Case, made: Target) -> None:
    for name in COLUMNS:
        assert torch.isfinite(getattr(made, name)).all(), f"{case}: {name} is {getattr(made, name).tolist()}"


# ------------------------------------------------------------------------------------------------------- checks


def every_column_is_one_value_a_pair(case: Case) -> None:
    """All columns are [P] and `zero` is [P, 2] (all [R] per response), in the dtype of the gap."""
    for dtype, names in product((torch.float32, torch.float64), evidence_for(case)):
        made = target_of(case, labels_of(case, names), draw(PAIRS, seed=42, dtype=dtype))
        for name in COLUMNS:
            shape = (PAIRS, 2) if name == "zero" and case.part.per == "pair" else (PAIRS,)
            assert getattr(made, name).shape == shape, f"{case}: {name}"
            assert getattr(made, name).dtype == (torch.bool if name == "keep" else dtype), f"{case}: {name}"


def single_precision_is_enough(case: Case) -> None:
    """The same target in float32, to its digits."""
    for names in evidence_for(case):
        made = target_of(case, labels_of(case, names))
        coarse = target_of(
            case,
            labels_of(case, names, dtype=torch.float32),
            draw(PAIRS, seed=42, dtype=torch.float32),
            scores=some_pair_scores(*case.part.scores, dtype=torch.float32) if case.part.scores else None,
        )
        for name in COLUMNS:
            exact, found = getattr(made, name).double(), getattr(coarse, name).double()
            assert torch.allclose(exact, found, rtol=1e-3, atol=1e-4), f"{case}: {name} {found} for {exact}"


def no_gradient_passes(case: Case) -> None:
    """A target is data: neither gap, labels, scores nor population get a gradient through it."""
    for names in evidence_for(case):
        labels = labels_of(case, names)
        live = Labels(**{name: getattr(labels, name).requires_grad_(True) for name in names})
        live = replace(labels, **{name: getattr(live, name) for name in names})
        scores = some_pair_scores(*case.part.scores) if case.part.scores else None
        for name in case.part.scores:
            getattr(scores, name).requires_grad_(True)
        seen = some_population()
        seen.rewards.requires_grad_(True)
        made = target_of(case, live, draw(PAIRS, seed=42).requires_grad_(True), seen, scores)
        for name in COLUMNS:
            column: Tensor = getattr(made, name)
            assert not column.requires_grad, f"{case}: {name} carries a gradient"


def finite_when_all_gaps_are_equal(case: Case) -> None:
    """At initialisation every gap is 0, here and in the population: every column is a number."""
    for names, (level, dtype) in product(evidence_for(case), ((0.0, torch.float64), (2.5, torch.float32))):
        gap = torch.full((PAIRS,), level, dtype=dtype)
        for seen in (some_population(), _population_of_equals(level), _population_of_equals(0.1, 3)):
            _finite(case, target_of(case, labels_of(case, names), gap, seen))


def finite_or_refused_when_evidence_is_equal(case: Case) -> None:
    """Equal grades: log(0) is refused in words, or does not happen."""
    equal = {
        "grade": torch.full((PAIRS, 2) if case.part.per == "pair" else (PAIRS,), 4.0, dtype=torch.float64),
        "utility": torch.full((PAIRS, 2), 0.5, dtype=torch.float64),
        "prob": torch.full((PAIRS,), 0.5, dtype=torch.float64),
        "target_gap": torch.zeros(PAIRS, dtype=torch.float64),
        "strength": torch.zeros(PAIRS, dtype=torch.float64),
    }
    for names in evidence_for(case):
        try:
            made = target_of(case, replace(labels_of(case, names), **{name: equal[name] for name in names}))
        except BadInput:
            continue
        _finite(case, made)


def finite_for_every_population(case: Case) -> None:
    """One pair, two, equal ones, far ones, no spread, nothing remembered: every column is a number."""
    if case.part.couples != "population":
        return
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    seen = [
        *nobody(),
        *(some_population(num=num) for num in (1, 2)),
        *(replace(some_population(num=num), past=None, mean=None, sd=None, updates=0) for num in (1, 2, SEEN)),
        _population_of_equals(1e4, 1),
        replace(some_population(), rewards=draw(SEEN, 2, seed=41, low=-1e4, high=1e4)),
        replace(some_population(), rewards=1e-6 * draw(SEEN, 2, seed=41)),
        replace(some_population(), sd=zero),
        replace(some_population(), mean=-1e4 * one, sd=1e-9 * one),
    ]
    gap = draw(PAIRS, seed=42, dtype=torch.float32) * torch.tensor([1.0, 1.0, 30.0, 1e4, 1e4])
    for population in seen:
        _finite(case, target_of(case, labels_of(case, evidence_for(case)[0]), gap, population))


def finite_for_every_score(case: Case) -> None:
    """Scores far out, all equal, all 0, an empty response: every column is a number, no weight is negative."""
    if not case.part.scores:
        return
    ordinary = some_pair_scores(*case.part.scores)
    names = evidence_for(case)[0]
    for dtype in (torch.float32, torch.float64):
        for factor in (0.0, 1e3, 1e5):
            for signs in ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0)):
                by = {"logp": 0.01, "ref_logp": 0.01, "log_collision": 0.05, "length": 1.0 / max(factor, 1.0)}
                far = {name: getattr(ordinary, name) * factor * by.get(name, 1.0) for name in case.part.scores}
                for name in ("rm_head", "head"):
                    if name in far:
                        far[name] = far[name].abs() * torch.tensor(signs, dtype=torch.float64)
                if "length" in far:
                    far["length"] = far["length"].round()
                scores = PairScores(**{name: value.to(dtype) for name, value in far.items()})
                made = target_of(case, labels_of(case, names), draw(PAIRS, seed=42, dtype=dtype), scores=scores)
                _finite(case, made)
                assert (made.weight >= 0).all(), f"{case}: weight {made.weight.tolist()}"


def each_pair_alone_gets_the_same_target(case: Case) -> None:
    """Given the same population, no pair sees another, unless the declaration says batch; then one does."""
    gap, population = draw(PAIRS, seed=42), some_population()
    differs = False
    for names in evidence_for(case):
        labels = labels_of(case, names)
        scores = some_pair_scores(*case.part.scores) if case.part.scores else None
        together = target_of(case, labels, gap, population, scores)
        for i in range(PAIRS):
            own = torch.tensor([i])
            alone = target_of(case, rows(labels, own), gap[own], population, scores and rows(scores, own))
            same = equal_targets(alone, rows(together, own))
            assert same or case.part.couples == "batch", f"{case}: pair {i} alone differs"
            differs |= not same
    assert differs == (case.part.couples == "batch"), f"{case} declares couples={case.part.couples}"


def permuting_the_pairs_permutes_the_target(case: Case) -> None:
    """The order of a batch means nothing."""
    order, gap = torch.tensor([3, 0, 4, 1, 2]), draw(PAIRS, seed=42)
    for names in evidence_for(case):
        labels = labels_of(case, names)
        scores = some_pair_scores(*case.part.scores) if case.part.scores else None
        plain = target_of(case, labels, gap, scores=scores)
        moved = target_of(case, rows(labels, order), gap[order], scores=scores and rows(scores, order))
        assert equal_targets(moved, rows(plain, order)), f"{case}: the place in the batch matters"


def the_population_matters_exactly_if_declared(case: Case) -> None:
    """Other rewards in the population change the target, or else nothing does, nor its absence."""
    names = evidence_for(case)[0]
    seen = some_population()
    other = replace(seen, rewards=draw(SEEN, 2, seed=2, low=-6.0, high=6.0))
    alone = [replace(population, past=None, mean=None, sd=None, updates=0) for population in (seen, other)]

    def same(variant: Case) -> bool:
        first, second = (target_of(variant, labels_of(variant, names), population=found) for found in alone)
        return equal_targets(first, second)

    if case.part.couples == "population":
        assert not all(same(variant) for variant in alike(case)), f"{case} declares a population and does not use it"
        scores = some_pair_scores(*case.part.scores) if case.part.scores else None
        refused(lambda: apply(case, labels_of(case, names), draw(PAIRS), None, scores), BadInput, "population")
    else:
        assert same(case), f"{case} uses a population and does not declare it"
        without = apply(
            case,
            labels_of(case, names),
            draw(PAIRS, seed=42),
            None,
            some_pair_scores(*case.part.scores) if case.part.scores else None,
        )
        assert equal_targets(target_of(case, labels_of(case, names)), without)


def an_empty_population_means_no_adaptation(case: Case) -> None:
    """Before anything is seen every pair gets the same, whatever its gap, its scores and its chance."""
    if case.part.couples != "population":
        return
    names = evidence_for(case)[0]
    found = [
        target_of(
            case,
            labels_of(case, names, seed=seed),
            draw(PAIRS, seed=seed),
            population,
            some_pair_scores(*case.part.scores, seed=seed) if case.part.scores else None,
        )
        for population in nobody()
        for seed in (21, 57)
    ]
    for made in found:
        _finite(case, made)
        assert made.keep.all(), f"{case} leaves pairs out before it has seen any"
        assert equal_targets(made, found[0]), f"{case} adapts to nobody"
        assert equal_targets(made, rows(made, torch.zeros(PAIRS, dtype=torch.long))), f"{case}: pairs differ"


def memory_matters_exactly_if_declared(case: Case) -> None:
    """What is declared as remembered changes the target; other things that a population may hold never do."""
    assert case.part.remembers == "nothing" or case.part.couples == "population"
    names, seen = evidence_for(case)[0], some_population()
    other = {
        "past": draw(40, seed=3, low=-6.0, high=6.0),
        "mean": seen.mean + 1.0,
        "sd": seen.sd * 2.0,
        "chance": seen.chance.flip(0),
    }
    wanted = REMEMBERED[case.part.remembers] | (case.part.needs & {"chance"})
    for name, value in other.items():

        def same(variant: Case, name: str = name, value: Tensor = value) -> bool:
            labels = labels_of(variant, names)
            made = target_of(variant, labels, population=replace(seen, **{name: value}))
            return equal_targets(made, target_of(variant, labels, population=seen))

        if name not in wanted or case.part.couples != "population":
            assert same(case), f"{case} reads population.{name} and does not declare it"
        else:
            assert not all(same(variant) for variant in alike(case)), f"{case} never uses population.{name}"


def chance_is_reproducible(case: Case) -> None:
    """The same population and the same seed of the generator give the same target, whatever else draws."""
    names, seen = evidence_for(case)[0], some_population(past=400)
    before = torch.get_rng_state()
    try:
        torch.manual_seed(1)
        first = target_of(case, labels_of(case, names), population=seen)
        torch.manual_seed(2)
        second = target_of(case, labels_of(case, names), population=seen)
    finally:
        torch.set_rng_state(before)
    assert equal_targets(first, second), f"{case} gives another target the second time"


def any_one_evidence_is_enough(case: Case) -> None:
    """Each way to satisfy a declared need works by itself; a target without needs works without labels."""
    for names in _evidence(case):
        assert any(_accepts(variant, names) for variant in alike(case)), f"{case} refuses {names}"


def missing_evidence_is_refused(case: Case) -> None:
    """No evidence at all, or none in one pair, is refused: absent is never 0. A response can be left out."""
    if "chance" in case.part.needs:
        without = replace(labels_of(case, evidence_for(case)[0]), chance=None)
        refused(lambda: target_of(case, without), BadInput, "`chance`", case.function.__name__)
    if not _needed(case):
        return
    refused(lambda: target_of(case, Labels()), BadInput)
    refused(lambda: target_of(case, some_labels("weight")), BadInput)
    for names in evidence_for(case):
        labels = labels_of(case, names)
        for name in names:
            getattr(labels, name)[2] = float("nan")
        if case.part.per == "response":
            made = target_of(case, labels)
            assert made.keep.tolist() == [True, True, False, True, True], f"{case}: keep {made.keep.tolist()}"
            _finite(case, made)
            continue
        refused(lambda found=labels: target_of(case, found), BadInput)


def evidence_matters_exactly_if_declared(case: Case) -> None:
    """A declared need or a column that is read changes the target; one that was not declared never does."""
    named = {column.name for column in fields(Labels)} - ({"utility"} if case.part.per == "response" else set())
    for names in evidence_for(case):
        labels = labels_of(case, names)
        plain = target_of(case, labels)
        for name in sorted(named - readable(case)):
            extra = getattr(some_labels(name, per=case.part.per), name)
            made = target_of(case, replace(labels, **{name: extra}))
            assert equal_targets(plain, made), f"{case} reads {name}"

    def matters(names: tuple[str, ...], column: str) -> bool:
        for variant in alike(case):
            if _accepts(variant, names):
                labels, other = (labels_of(variant, names, seed=seed) for seed in (21, 57))
                moved = replace(labels, **{column: getattr(other, column)})
                if not equal_targets(target_of(variant, labels), target_of(variant, moved)):
                    return True
        return False

    for names in _evidence(case):
        for name in names:
            assert matters(names, name), f"{case} declares {name} and does not use it"
    for name in sorted(case.part.reads | (case.part.needs & {"chance"})):
        assert matters(evidence_for(case)[0], name), f"{case} declares {name} and does not use it"


def scores_of_a_target_matter_exactly_if_declared(case: Case) -> None:
    """Each declared score changes the target and is refused by name if it is missing; no other is looked at."""
    names, needed = evidence_for(case)[0], case.part.scores
    labels, everything = labels_of(case, names), some_pair_scores(*EVERYTHING)
    plain = target_of(case, labels, scores=everything)
    if not needed:
        assert equal_targets(plain, target_of(case, labels))
        return
    other = some_pair_scores(*EVERYTHING, seed=77)
    for name in EVERYTHING:

        def same(variant: Case, name: str = name) -> bool:
            moved = replace(everything, **{name: getattr(other, name)})
            return equal_targets(
                target_of(variant, labels, scores=moved), target_of(variant, labels, scores=everything)
            )

        if name not in needed:
            assert same(case), f"{case} looks at {name} and does not declare it"
        else:
            assert not all(same(variant) for variant in alike(case)), f"{case} declares {name} and does not use it"
    assert equal_targets(plain, target_of(case, labels, scores=some_pair_scores(*needed)))
    for name in needed:
        less = replace(everything, **{name: None})
        refused(lambda found=less: target_of(case, labels, scores=found), BadInput, f"`{name}`", case.function.__name__)
    refused(lambda: apply(case, labels, draw(PAIRS), some_population(), None), BadInput, case.function.__name__)


def columns_are_made_exactly_as_declared(case: Case) -> None:
    """A column that is not declared keeps its default for every input; one that is differs from it for some."""
    assert case.part.makes <= set(COLUMNS)

    def made(variant: Case) -> list[Target]:
        found = []
        for names, tie, seed in product(evidence_for(variant), (None, TIE), (21, 57)):
            labels = replace(labels_of(variant, names, seed=seed), tie=tie if variant.part.per == "pair" else None)
            if variant.part.per == "response":
                getattr(labels, names[0])[1] = float("nan")
            scores = some_pair_scores(*variant.part.scores, seed=seed) if variant.part.scores else None
            for seen in (some_population(seed), *nobody()):
                found.append(target_of(variant, labels, draw(PAIRS, seed=seed), seen, scores))
        return found

    def default(targets: list[Target], name: str) -> bool:
        return all(bool((getattr(found, name).double() == DEFAULTS[name]).all()) for found in targets)

    own = made(case)
    for name in COLUMNS:
        if name not in case.part.makes:
            assert default(own, name), f"{case} sets {name} and does not declare it"
        else:
            others = (made(variant) for variant in alike(case)[1:])
            assert not default(own, name) or not all(default(found, name) for found in others), (
                f"{case} declares {name} and never sets it"
            )


def a_tie_has_no_winner(case: Case) -> None:
    """A tie is left out or gets prob 1/2, or is matched at 0 where that is declared; the others are as without it."""
    if case.part.per == "response":
        return
    gap = draw(PAIRS, seed=42)
    for names in evidence_for(case):
        if {"prob", "target_gap", "utility"} & set(names):
            continue  # such evidence says more than the tie does
        labels = labels_of(case, names)
        scores = some_pair_scores(*case.part.scores) if case.part.scores else None
        tied = target_of(case, replace(labels, tie=TIE), gap, scores=scores)
        if case.part.ties_match:
            assert tied.keep[TIE].all(), f"{case} declares that ties stay"
            asked = torch.cat((tied.margin[TIE], tied.zero[TIE].flatten()))
            assert (asked == 0).all(), f"{case}: a tie is to match {asked.tolist()}"
            assert (tied.weight[TIE] > 0).all(), f"{case}: a tie counts nothing"
        else:
            assert (~tied.keep[TIE] | (tied.prob[TIE] == 0.5)).all(), f"{case}: a tie is trained toward a winner"
        others = target_of(case, rows(labels, ~TIE), gap[~TIE], scores=scores and rows(scores, ~TIE))
        assert equal_targets(others, rows(tied, ~TIE)), f"{case}: a tie changes other pairs"
        nothing_else = target_of(case, replace(labels, tie=torch.zeros(PAIRS, dtype=torch.bool)), gap, scores=scores)
        plain = target_of(case, labels, gap, scores=scores)
        assert equal_targets(plain, nothing_else), f"{case}: a tie column without ties changes the target"
        _finite(case, target_of(case, replace(labels, tie=torch.ones(PAIRS, dtype=torch.bool)), gap, scores=scores))


def label_columns_are_refused(case: Case) -> None:
    """A gap or a label of the wrong shape never broadcasts."""
    for names in evidence_for(case):
        labels = labels_of(case, names)
        refused(lambda found=labels: target_of(case, found, draw(PAIRS, 1)), ShapeError, f"[{PAIRS}, 1]")
        for name in names:
            column = replace(labels, **{name: draw(PAIRS, 1, low=0.1, high=0.9)})
            refused(lambda found=column: target_of(case, found), ShapeError, f"[{PAIRS}, 1]")


TARGET_CHECKS: tuple[Check, ...] = (
    every_column_is_one_value_a_pair,
    single_precision_is_enough,
    no_gradient_passes,
    finite_when_all_gaps_are_equal,
    finite_or_refused_when_evidence_is_equal,
    finite_for_every_population,
    finite_for_every_score,
    each_pair_alone_gets_the_same_target,
    permuting_the_pairs_permutes_the_target,
    the_population_matters_exactly_if_declared,
    an_empty_population_means_no_adaptation,
    memory_matters_exactly_if_declared,
    chance_is_reproducible,
    any_one_evidence_is_enough,
    missing_evidence_is_refused,
    evidence_matters_exactly_if_declared,
    scores_of_a_target_matter_exactly_if_declared,
    columns_are_made_exactly_as_declared,
    a_tie_has_no_winner,
    label_columns_are_refused,
)
