"""The table of methods: every reward x target x objective of the catalogue either trains or is refused for a reason."""

import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from contract_targets import labels_of
from inputs import EVERYTHING, OPTIONS, Case, cases, declared, some_labels, some_pair_scores, some_scores

import marginkit as mk
from marginkit.core.composition import check_composition
from marginkit.core.loss import Loss
from marginkit.core.objectives import logistic
from marginkit.core.parts import COLUMNS, objective, target
from marginkit.core.rewards import head, implicit
from marginkit.core.targets import none
from marginkit.core.tensors import Labels, PairScores, Population, Rewards, SequenceScores, Target
from marginkit.errors import BadInput

# Kind of refusal -> the whole of what it may say.
REASONS = {
    "logp": r"objective \w+ needs log-probabilities: use reward logp, not \w+",
    "anchored": r"objective \w+ looks at each reward by itself, but the zero of reward \w+ means nothing; "
    r"use an anchored reward \(implicit, implicit_mean\) or an objective on the gap",
    "no target": r"objective \w+ needs a target",
    "reads no target": r"objective \w+ is a loss per response and reads no target, but target \w+ is given",
    "per": r"target \w+ is per (pair|response), objective \w+ per (pair|response)",
    "column": r"target \w+ makes (a margin|a soft label|a scale of the gap|a reward level), "
    r"which objective \w+ does not read",
    "tie": r"target \w+ gives a tie the margin 0 to match, but objective \w+ is least beyond its margin: "
    r"a tie would be trained toward a winner; use grade_margin",
}
SFT_REASONS = {
    "sft head": r"objective\.sft_weight: a reward model has no log-probabilities to train",
    "sft response": r"objective\.sft_weight: a loss per response has no chosen response",
}


@cache
def first(kind: str) -> dict[str, Case]:
    """Each declared function with its first options."""
    found: dict[str, Case] = {}
    for case in cases(kind):
        found.setdefault(case.function.__name__, case)
    return found


def composed(reward: str, target_name: str | None, objective_name: str, **more: Any) -> Loss:
    """The loss of three functions of the catalogue."""
    of, asks = first("reward")[reward], first("objective")[objective_name]
    made = None if target_name is None else first("target")[target_name]
    return Loss(
        name="cell",
        reward=of.function,
        target=None if made is None else made.function,
        objective=asks.function,
        reward_options=of.options,
        target_options={} if made is None else made.options,
        objective_options=asks.options,
        **more,
    )


def reason(message: str, reasons: dict[str, str]) -> str:
    """The one kind of refusal that the message is."""
    assert "\n" not in message
    [kind] = [name for name, pattern in reasons.items() if re.fullmatch(pattern, message)]
    return kind


CELLS = list(product(declared("reward"), [None, *declared("target")], declared("objective")))


def outcome(cell: tuple[str, str | None, str], **more: Any) -> str | Loss:
    """The loss of a cell, or why there is none."""
    try:
        return composed(*cell, **more)
    except BadInput as refusal:
        return reason(str(refusal), REASONS | SFT_REASONS)


def scores_for(loss: Loss) -> PairScores | SequenceScores:
    """Generic scores with every label, as the loss wants them."""
    if loss.per == "response":
        scores = some_scores(*EVERYTHING)
        return SequenceScores(
            **{name: getattr(scores, name) for name in EVERYTHING},
            grade=some_labels("grade", num=6, per="response").grade,
        )
    labels = some_labels("grade", "strength", "chance", "progress", "weight")
    scores = some_pair_scores(*EVERYTHING)
    columns = {name: value for name in Labels.__slots__ if (value := getattr(labels, name)) is not None}
    return PairScores(**{name: getattr(scores, name) for name in EVERYTHING}, **columns)


def gradients(loss: Loss) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss on generic scores and its gradient with respect to what the reward needs of the model."""
    scores = scores_for(loss)
    leaves = [getattr(scores, name).requires_grad_(True) for name in ("logp", "head") if name in loss.reward.part.needs]
    value = loss(scores)
    return value.detach(), list(torch.autograd.grad(value.sum(), leaves))


@pytest.mark.parametrize("name", declared("reward"))
def test_every_cell_of_the_table_trains_or_is_refused_with_a_reason(name: str) -> None:
    """A loss that composes is finite on generic scores, and so is its gradient, which is not 0 everywhere."""
    found = {cell: outcome(cell) for cell in CELLS if cell[0] == name}
    losses = {cell: loss for cell, loss in found.items() if isinstance(loss, Loss)}
    assert losses
    assert len(losses) < len(found)
    for cell, loss in losses.items():
        value, gradient = gradients(loss)
        assert torch.isfinite(value).all(), f"{cell}: {value.tolist()}"
        assert gradient, cell
        for part in gradient:
            assert torch.isfinite(part).all(), f"{cell}: gradient"
            assert (part != 0).any(), f"{cell}: no gradient at all"


def test_the_reasons_of_the_table_are_these_and_no_others() -> None:
    """Each reason that the code knows is met, and each refusal is one of them; neither side of the table is empty."""
    counts = Counter("composes" if isinstance(found := outcome(cell), Loss) else found for cell in CELLS)
    assert set(counts) == {"composes", *REASONS}
    assert min(counts.values()) > 0
    assert sum(counts.values()) == len(declared("reward")) * (len(declared("target")) + 1) * len(declared("objective"))
    assert counts["composes"] > 300
    assert sum(counts.values()) - counts["composes"] > 1000


def test_an_sft_term_is_refused_exactly_where_there_is_no_chosen_log_probability() -> None:
    """What composes without the term composes with it, unless a head is trained, or responses without a pair."""
    counts: Counter[str] = Counter()
    for cell in CELLS:
        without, with_sft = outcome(cell), outcome(cell, sft_weight=1.0)
        if isinstance(without, Loss):
            wanted = {True: "sft head", False: "sft response" if without.per == "response" else "composes"}
            kind = "composes" if isinstance(with_sft, Loss) else with_sft
            if without.target is not None:
                assert kind == wanted["head" in without.reward.part.needs], cell
            counts[kind] += 1
        else:
            assert with_sft == without, cell
    assert set(counts) >= {"composes", *SFT_REASONS}


def test_a_column_that_a_target_makes_is_read_by_the_objective_of_every_loss() -> None:
    """The rule behind the table, from the declarations themselves."""
    for cell in CELLS:
        if isinstance(loss := outcome(cell), Loss) and loss.target is not None:
            assert loss.target.part.makes - {"weight", "keep"} <= loss.objective.part.uses, cell
            assert loss.target.part.per == loss.objective.part.per, cell


# --------------------------------------------------------------------------------------------- named cells, by name


@pytest.mark.parametrize(
    ("parts", "options"),
    [
        (("per_token", "soft_label", "logistic"), {"beta": 2.0, "gamma": 0.3}),
        (("implicit", "madpo_weight", "hinge"), {"beta": 0.1, "c_max": 4.0, "tau": 2.0, "lam": 1.0}),
        (("head", "gamma_po", "logistic"), {"gamma": 1.0, "tau": 10.0, "centred": True}),
        (("implicit_mean", "matched_gap", "kl_backward"), {"beta": 2.0, "scale": 0.5}),
        (("implicit", "length_margin", "hinge"), {"beta": 0.1, "alpha": 0.01}),
        (("per_token", "grade_margin", "logistic"), {"beta": 2.0, "scale": 0.5}),
        (("implicit", "beta_scale", "squared"), {"beta": 0.1, "a": 0.6, "rho": 0.2}),
        (("implicit", "soft_label", "sppo"), {"beta": 1.0, "gamma": 0.3, "eta": 10.0}),
        (("implicit", "grade_weight", "bco"), {"beta": 0.1, "scale": 1.0}),
        (("log_odds", "wpo_weight", "robust_logistic"), {"clamp": True, "eps": 0.1}),
        (("head", "aplot", "focal"), {"eps": 0.1, "semantic": 0.1, "gamma": 2.0}),
        (("head", "soft_label", "centred_logistic"), {"gamma": 0.3, "c": 0.01}),
        (("logp", "none", "logistic"), {}),
        (("implicit_mean", "kto_zero", "kto"), {"beta": 1.0, "lam_d": 1.0, "lam_u": 1.0}),
        (("logp", None, "nll"), {}),
        (("per_token", "grade_value", "value_squared"), {"beta": 1.0, "scale": 1.0}),
    ],
)
def test_a_sensible_combination_composes(parts: tuple[Any, ...], options: dict[str, Any]) -> None:
    """By short names, with the parameters of the functions; it trains."""
    loss = mk.compose(*parts, **options)
    assert loss.name == "composed"
    value, gradient = gradients(loss)
    assert torch.isfinite(value).all()
    assert all(torch.isfinite(part).all() and (part != 0).any() for part in gradient)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            ("implicit", "soft_label", "hinge"),
            "target soft_label makes a soft label, which objective hinge does not read",
        ),
        (
            ("per_token", "none", "balanced"),
            "objective balanced looks at each reward by itself, but the zero of reward per_token means nothing; "
            "use an anchored reward (implicit, implicit_mean) or an objective on the gap",
        ),
        (
            ("head", "matched_gap", "logistic"),
            "target matched_gap gives a tie the margin 0 to match, but objective logistic is least beyond its margin: "
            "a tie would be trained toward a winner; use grade_margin",
        ),
        (
            ("implicit", "beta_scale", "balanced"),
            "target beta_scale makes a scale of the gap, which objective balanced does not read",
        ),
        (
            ("implicit", "kto_zero", "logistic"),
            "target kto_zero makes a reward level, which objective logistic does not read",
        ),
        (
            ("implicit", "gamma_po", "nca"),
            "target gamma_po makes a margin, which objective nca does not read",
        ),
        (("head", "none", "nll"), "objective nll needs log-probabilities: use reward logp, not head"),
        (("implicit", None, "logistic"), "objective logistic needs a target"),
        (("head", None, "value_squared"), "objective value_squared needs a target"),
        (
            ("logp", "none", "nll"),
            "objective nll is a loss per response and reads no target, but target none is given",
        ),
        (("head", "grade_value", "logistic"), "target grade_value is per response, objective logistic per pair"),
        (("head", "none", "value_squared"), "target none is per pair, objective value_squared per response"),
    ],
)
def test_a_senseless_combination_is_refused_in_one_line(parts: tuple[Any, ...], message: str) -> None:
    """Exact text."""
    with pytest.raises(BadInput) as refusal:
        composed(*parts)
    assert str(refusal.value) == message


def test_a_head_takes_no_sft_term() -> None:
    """Exact text; nor does a loss per response."""
    with pytest.raises(BadInput, match=r"^objective\.sft_weight: a reward model has no log-probabilities to train$"):
        mk.compose("head", "none", "logistic", sft_weight=1.0)
    with pytest.raises(BadInput, match=r"^objective\.sft_weight: a loss per response has no chosen response$"):
        mk.compose("logp", "grade_value", "value_squared", scale=1.0, sft_weight=1.0)


# ----------------------------------------------------------------------------------------------------- compose itself


@objective(uses={"margin", "scale"}, matches=True)
def cubic(rewards: Rewards, target: Target, *, k: float = 1.0) -> torch.Tensor:
    """A user's own."""
    return k * (target.scale * rewards.gap - target.margin).abs() ** 3


def test_a_users_own_function_composes_like_any_other() -> None:
    """The function itself in place of a name."""
    loss = mk.compose("head", "matched_gap", cubic, scale=0.5, k=2.0)
    scores = PairScores(head=torch.tensor([[2.0, 0.0]]), strength=torch.tensor([2.0]))
    assert loss(scores).tolist() == [2.0]
    with pytest.raises(BadInput, match="target soft_label makes a soft label, which objective cubic does not read"):
        mk.compose("head", "soft_label", cubic, gamma=0.3)


def test_an_option_that_several_parts_have_goes_to_each() -> None:
    """The beta of a reward and of the target that needs to know it."""
    loss = mk.compose("per_token", "amapo", "logistic", beta=2.5)
    assert (loss.reward_options, loss.target_options) == ({"beta": 2.5}, {"beta": 2.5})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: mk.compose("implicit", "soft_labels", "logistic", beta=0.1),
            r"^target\.name=soft_labels: no target of that name; did you mean soft_label\? \(known: .*amapo, .*; "
            r"your own: path/file\.py:function\)$",
        ),
        (
            lambda: mk.compose("implicit", "none", "logistic", beta=0.1, gama=0.3),
            r"^compose\(gama=\.\.\.\): no part has such an option$",
        ),
        (
            lambda: mk.compose("implicit", "soft_label", "logistic", beta=0.1, gama=0.3),
            r"^compose\(gama=\.\.\.\): no part has such an option; did you mean gamma\?$",
        ),
        (
            lambda: mk.compose("implicit", "none", "logistic"),
            r"^reward\.beta: implicit needs it, and it was not given$",
        ),
        (
            lambda: mk.compose(head, "none", torch.relu),
            r"^objective: relu is not declared with @objective\(\.\.\.\)$",
        ),
        (
            lambda: mk.compose(logistic, "none", logistic),
            r"^reward: logistic is not declared with @reward\(\.\.\.\)$",
        ),
        (
            lambda: mk.compose("head", "marginkit.core.evidence:graded", "logistic"),
            r"^target\.name: marginkit\.core\.evidence:graded is not declared with @target\(\.\.\.\)$",
        ),
    ],
)
def test_compose_says_what_is_wrong(call: Callable[[], object], message: str) -> None:
    """One line, with a hint where a name is near."""
    with pytest.raises(BadInput, match=message):
        call()


def test_composing_by_functions_needs_no_catalogue() -> None:
    """The check alone, and the loss alone."""
    check_composition(implicit, none, logistic)
    assert mk.compose(implicit, none, logistic, beta=0.1).needs == {"logp", "ref_logp"}


def test_every_column_has_a_meaning_in_words() -> None:
    """A user's target that makes any column is refused in words, not with a KeyError."""
    for column in sorted(set(COLUMNS) - {"weight", "keep"}):

        @target(makes={column})
        def own(labels: Labels, gap: torch.Tensor, population: Population | None) -> Target:
            return Target.of(gap)

        @objective()
        def bare(rewards: Rewards, target: Target) -> torch.Tensor:
            return -rewards.gap

        with pytest.raises(BadInput, match=REASONS["column"]):
            check_composition(head, own, bare)


def test_options_of_the_table_are_known() -> None:
    """Cells are built with the catalogue's own defaults; only these have none."""
    assert set(OPTIONS) <= set(declared("target"))
    assert labels_of(first("target")["token_margin"], ()).progress is not None
