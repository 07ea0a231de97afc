"""MMPO against its published numbers, its derivation, and the defects of its released code.

p = sigmoid(gamma * m), L = -p log sigmoid(z) - (1 - p) log sigmoid(-z), z = beta * h (policy) or d (reward model).
"""

import math

import pytest
import torch
from contract import draw, without_annotations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import marginkit as mk
from marginkit.core.loss import Loss
from marginkit.core.objectives import logistic
from marginkit.core.targets import soft_label
from marginkit.core.tensors import Labels, PairScores, Rewards, Target
from marginkit.errors import BadInput

NAN = float("nan")
LOGITS = st.floats(-30.0, 30.0, allow_nan=False)
PROBS = st.floats(0.0, 1.0, allow_nan=False)


def f64(values: object) -> Tensor:
    """A tensor in float64."""
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x: float) -> float:
    """In closed form."""
    return 1.0 / (1.0 + math.exp(-x))


def cross_entropy(z: float, p: float) -> float:
    """L in closed form, in the paper's own two terms."""
    return p * math.log1p(math.exp(-z)) + (1.0 - p) * math.log1p(math.exp(z))


def entropy(p: float) -> float:
    """H(p) in nats."""
    return -sum(q * math.log(q) for q in (p, 1.0 - p) if q > 0.0)


def policy_scores(h: Tensor, **labels: Tensor) -> PairScores:
    """Scores of pairs whose gap of log-ratios is h."""
    logp = torch.stack((h - 40.0, torch.full_like(h, -66.0)), 1)
    ref = torch.stack((torch.full_like(h, -40.0), torch.full_like(h, -66.0)), 1)
    return PairScores(logp=logp, ref_logp=ref, **labels)


def head_scores(d: Tensor, **labels: Tensor) -> PairScores:
    """Scores of pairs whose gap of heads is d."""
    return PairScores(head=torch.stack((d, torch.zeros_like(d)), 1), **labels)


# ------------------------------------------------------------------------------------------------ golden values


@pytest.mark.parametrize(
    ("gamma", "grade_gap", "prob"),
    [
        (0.3, 1.0, 0.574443),
        (0.3, 3.0, 0.710950),
        (0.3, 9.0, 0.937027),
        (1.1, 1.0, 0.750260),
        (1.1, 3.0, 0.964429),
        (1.1, 9.0, 0.999950),
        (2.2, 0.5, 0.750260),
        (2.2, 1.0, 0.900250),
        (2.2, 3.0, 0.998641),
        (2.2, 9.0, 1.000000),
    ],
)
def test_prob_is_the_sigmoid_of_gamma_times_the_grade_gap(gamma: float, grade_gap: float, prob: float) -> None:
    """The released gammas on UltraFeedback's scale, from two grades and from a strength."""
    gap = torch.zeros(1, dtype=torch.float64)
    for labels in (Labels(grade=f64([[grade_gap + 1.0, 1.0]])), Labels(strength=f64([grade_gap]))):
        found = soft_label(labels, gap, gamma=gamma).prob.item()
        assert found == pytest.approx(sigmoid(gamma * grade_gap), abs=1e-15)
        assert found == pytest.approx(prob, abs=5e-7)


@pytest.mark.parametrize(
    ("z", "p", "value", "slope"),
    [
        (0.9, sigmoid(0.9), 0.601299, 0.0),
        (0.0, 1.0, 0.693147, -0.5),
        (2.0, 0.7, 0.726928, 0.180797),
        (-1.5, 0.9, 1.551413, -0.717574),
    ],
)
def test_loss_and_slope_are_the_published_numbers(z: float, p: float, value: float, slope: float) -> None:
    """The assertable values of the paper's loss, policy form and reward-model form."""
    for loss, scores in (
        (mk.recipe("mmpo", beta=0.1), lambda x: policy_scores(x / 0.1, prob=f64([p]))),
        (mk.recipe("mmpo_rm"), lambda x: head_scores(x, prob=f64([p]))),
    ):
        x = f64([z]).requires_grad_(True)
        found = loss(scores(x))
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert found.item() == pytest.approx(cross_entropy(z, p), abs=1e-12)
        assert found.item() == pytest.approx(value, abs=5e-7)
        assert gradient.item() == pytest.approx(sigmoid(z) - p, abs=1e-12)
        assert gradient.item() == pytest.approx(slope, abs=5e-7)


def test_a_reward_model_at_d_1_with_gamma_1_1_pays_0_563002() -> None:
    """T = sigmoid(1.1) = 0.750260; the minimum, 0.562049, is at d = 1.1."""
    loss = mk.recipe("mmpo_rm", gamma=1.1)
    found = loss(head_scores(f64([1.0, 1.1]), strength=f64([1.0, 1.0])))
    assert found.tolist() == pytest.approx([0.563002, 0.562049], abs=5e-7)
    assert found.tolist() == pytest.approx([cross_entropy(1.0, sigmoid(1.1)), entropy(sigmoid(1.1))], abs=1e-12)


# ---------------------------------------------------------------------------------------------- relation to DPO


def test_mmpo_with_every_prob_1_is_dpo_bit_for_bit() -> None:
    """Values and gradients are the same numbers, in both dtypes, near and far."""
    for dtype in (torch.float32, torch.float64):
        logp = draw(64, 2, seed=1, low=-900.0, high=-1.0, dtype=dtype)
        ref = draw(64, 2, seed=2, low=-900.0, high=-1.0, dtype=dtype)
        found = []
        for loss, labels in (
            (mk.recipe("mmpo", beta=0.1), {"prob": torch.ones(64, dtype=dtype)}),
            (mk.recipe("dpo", beta=0.1), {}),
        ):
            leaf = logp.clone().requires_grad_(True)
            value = loss(PairScores(logp=leaf, ref_logp=ref, **labels))
            found.append((value.detach(), torch.autograd.grad(value.sum(), leaf)[0]))
        (soft, soft_gradient), (hard, hard_gradient) = found
        assert torch.equal(soft, hard)
        assert torch.equal(soft_gradient, hard_gradient)
        gap = 0.1 * (logp - ref)[:, 0] - 0.1 * (logp - ref)[:, 1]
        assert torch.allclose(soft, -torch.nn.functional.logsigmoid(gap), rtol=1e-5)


def test_a_large_gamma_approaches_dpo_on_graded_pairs_and_not_on_ties() -> None:
    """Gamma -> infinity is DPO only where the grades differ."""
    h = f64([-3.0, 4.0])
    scores = policy_scores(h, grade=f64([[5.0, 4.0], [4.0, 4.0]]))
    found = mk.recipe("mmpo", beta=0.1, gamma=1e3)(scores)
    assert found[0].item() == pytest.approx(cross_entropy(-0.3, 1.0), abs=1e-12)
    assert found[1].item() == pytest.approx(cross_entropy(0.4, 0.5), abs=1e-12)


def test_gamma_0_means_prob_one_half_and_not_dpo() -> None:
    """The released code tests gamma for truth, so that 0 silently trains hard labels; here the formula holds."""
    scores = policy_scores(f64([3.0]), grade=f64([[9.0, 1.0]]))
    assert soft_label(scores.labels, torch.zeros(1, dtype=torch.float64), gamma=0.0).prob.tolist() == [0.5]
    found = mk.recipe("mmpo", beta=0.1, gamma=0.0)(scores).item()
    assert found == pytest.approx(cross_entropy(0.3, 0.5), abs=1e-12)
    assert found != pytest.approx(mk.recipe("dpo", beta=0.1)(scores).item(), abs=0.1)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.2, 1e4])
def test_a_tie_has_prob_one_half_at_every_gamma(gamma: float) -> None:
    """Whether it is marked as a tie, or the grades are equal, or both; and it is kept."""
    gap = torch.zeros(1, dtype=torch.float64)
    equal = f64([[4.0, 4.0]])
    for labels in (
        Labels(grade=equal),
        Labels(grade=equal, tie=torch.tensor([True])),
        Labels(grade=f64([[9.0, 1.0]]), tie=torch.tensor([True])),
        Labels(tie=torch.tensor([True])),
        Labels(strength=f64([0.0])),
    ):
        made = soft_label(labels, gap, gamma=gamma)
        assert made.prob.tolist() == [0.5]
        assert made.keep.tolist() == [True]


def test_a_tie_at_equal_rewards_has_no_gradient() -> None:
    """Nothing to learn: the gap is where the grades want it."""
    d = f64([0.0]).requires_grad_(True)
    loss = mk.recipe("mmpo_rm", gamma=0.3)(head_scores(d, grade=f64([[4.0, 4.0]])))
    (gradient,) = torch.autograd.grad(loss.sum(), d)
    assert gradient.item() == 0.0
    assert loss.item() == pytest.approx(math.log(2.0), abs=1e-12)


def test_a_misordered_pair_trains_the_reverse_preference() -> None:
    """M < 0 gives prob < 1/2: the same loss as the pair the right way round."""
    loss = mk.recipe("mmpo_rm", gamma=0.3)
    wrong = loss(head_scores(f64([1.2]), grade=f64([[2.0, 6.0]])))
    right = loss(head_scores(f64([-1.2]), grade=f64([[6.0, 2.0]])))
    assert wrong.item() == pytest.approx(right.item(), abs=1e-12)


# ---------------------------------------------------------------------------------------------------- properties


@given(z=LOGITS, p=PROBS)
def test_gradient_is_beta_times_sigmoid_minus_prob(z: float, p: float) -> None:
    """dL/dh = beta * (sigmoid(beta * h) - p), through the whole recipe."""
    beta = 0.05
    h = f64([z / beta]).requires_grad_(True)
    loss = mk.recipe("mmpo", beta=beta)(policy_scores(h, prob=f64([p])))
    (gradient,) = torch.autograd.grad(loss.sum(), h)
    assert gradient.item() == pytest.approx(beta * (sigmoid(z) - p), abs=1e-12)


@given(z=LOGITS, p=PROBS)
def test_loss_is_the_cross_entropy_of_both_terms(z: float, p: float) -> None:
    """The stable one-term form equals the paper's two terms."""
    found = logistic(Rewards(f64([[z, 0.0]])), Target.of(f64([0.0]), prob=f64([p]))).item()
    assert found == pytest.approx(cross_entropy(z, p), abs=1e-11)


@given(z=LOGITS, p=PROBS)
def test_loss_is_at_least_the_entropy_of_prob(z: float, p: float) -> None:
    """L = KL(p || sigmoid(z)) + H(p) >= H(p)."""
    found = logistic(Rewards(f64([[z, 0.0]])), Target.of(f64([0.0]), prob=f64([p]))).item()
    assert found >= entropy(p) - 1e-11


@given(gamma=st.floats(0.0, 3.0), grade_gap=st.floats(0.0, 9.0), beta=st.floats(0.01, 0.5), step=st.floats(0.05, 5.0))
def test_loss_is_the_entropy_exactly_where_the_gap_is_the_target_gap(
    gamma: float, grade_gap: float, beta: float, step: float
) -> None:
    """Equality iff beta * h = gamma * m: a larger gap costs as well as a smaller one, by the KL divergence."""
    loss = mk.recipe("mmpo", beta=beta, gamma=gamma)
    wanted = gamma * grade_gap
    h = f64([wanted / beta, (wanted + step) / beta, (wanted - step) / beta])
    at, above, below = loss(policy_scores(h, strength=f64([grade_gap] * 3))).tolist()
    p = sigmoid(wanted)
    assert at == pytest.approx(entropy(p), abs=1e-10)
    for found, z in ((above, wanted + step), (below, wanted - step)):
        q = sigmoid(z)
        divergence = sum(a * math.log(a / b) for a, b in ((p, q), (sigmoid(-wanted), sigmoid(-z))))
        assert found - at == pytest.approx(divergence, rel=1e-4, abs=1e-10)
        assert found > at


@given(z=LOGITS, p=PROBS)
def test_swapping_the_pair_and_the_prob_changes_nothing(z: float, p: float) -> None:
    """(w, l, p) and (l, w, 1 - p) are the same statement."""
    loss = mk.recipe("mmpo_rm")
    one = loss(PairScores(head=f64([[z, 0.3]]), prob=f64([p]))).item()
    other = loss(PairScores(head=f64([[0.3, z]]), prob=f64([1.0 - p]))).item()
    assert one == pytest.approx(other, abs=1e-11)


@given(gamma=st.floats(0.0, 1e6), grade_gap=st.floats(-1e3, 1e3), z=st.floats(-1e4, 1e4))
def test_value_and_gradient_are_finite_for_every_gamma_and_grade(gamma: float, grade_gap: float, z: float) -> None:
    """No exponential overflows, in float32 either (Python's exp does at 709)."""
    for dtype in (torch.float32, torch.float64):
        d = torch.tensor([z], dtype=dtype, requires_grad=True)
        loss = mk.recipe("mmpo_rm", gamma=gamma)(head_scores(d, strength=torch.tensor([grade_gap], dtype=dtype)))
        (gradient,) = torch.autograd.grad(loss.sum(), d)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient).all()


def test_prob_and_grades_get_no_gradient() -> None:
    """The target is data."""
    d = f64([0.4]).requires_grad_(True)
    for name, value in (("prob", [0.8]), ("target_gap", [1.0]), ("strength", [2.0]), ("grade", [[4.0, 1.0]])):
        label = f64(value).requires_grad_(True)
        gamma = 0.3 if name in ("strength", "grade") else None
        loss = mk.recipe("mmpo_rm", gamma=gamma)(head_scores(d, **{name: label}))
        assert torch.autograd.grad(loss.sum(), label, allow_unused=True) == (None,)


# ------------------------------------------------------------------------------------------ no pair sees another


def test_the_released_reward_trainer_would_give_another_loss_on_a_batch_of_two() -> None:
    """D = (1, 2), p = (.6, .9): 0.520095 pair by pair; the released broadcast of [B, 1] x [B] gives 0.595095."""
    d, p = f64([1.0, 2.0]), f64([0.6, 0.9])
    right = mk.recipe("mmpo_rm")(head_scores(d, prob=p)).mean().item()
    assert right == pytest.approx((cross_entropy(1.0, 0.6) + cross_entropy(2.0, 0.9)) / 2, abs=1e-12)
    assert right == pytest.approx(0.520095, abs=5e-7)

    column = d[:, None]
    released = -(p * torch.nn.functional.logsigmoid(column) + (1 - p) * torch.nn.functional.logsigmoid(-column))
    assert released.shape == (2, 2)
    assert released.mean().item() == pytest.approx(0.595095, abs=5e-7)
    mean_p = mk.recipe("mmpo_rm")(head_scores(d, prob=p.mean().expand(2))).mean().item()
    assert released.mean().item() == pytest.approx(mean_p, abs=1e-12)


@pytest.mark.parametrize("name", ["mmpo", "mmpo_rm"])
def test_each_pair_alone_gives_the_loss_it_has_in_the_batch(name: str) -> None:
    """Policy and reward model, with grades that differ from pair to pair."""
    loss = mk.recipe(name, gamma=0.3)
    gap, grade = draw(8, seed=3), draw(8, 2, seed=4, low=1.0, high=10.0)
    make = policy_scores if name == "mmpo" else head_scores
    together = loss(make(gap, grade=grade))
    alone = torch.cat([loss(make(gap[i : i + 1], grade=grade[i : i + 1])) for i in range(8)])
    assert torch.allclose(together, alone, rtol=0, atol=1e-14)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    assert torch.allclose(loss(make(gap[order], grade=grade[order])), together[order], rtol=0, atol=1e-14)


# ----------------------------------------------------------------------------------------- precedence of evidence


def prob_of(gamma: float | None = None, **columns: Tensor) -> list[float]:
    """The target's prob for these labels."""
    labels = Labels(**columns)
    rows = len(next(iter(columns.values())))
    found: list[float] = soft_label(labels, torch.zeros(rows, dtype=torch.float64), gamma=gamma).prob.tolist()
    return found


def test_evidence_is_taken_in_the_order_prob_logits_tie_strength_grades_row_by_row() -> None:
    """Each row falls to the first evidence that it has; NaN marks what it lacks."""
    found = prob_of(
        gamma=0.3,
        prob=f64([0.8, NAN, NAN, NAN, NAN, NAN]),
        target_gap=f64([5.0, 1.5, NAN, NAN, NAN, NAN]),
        utility=f64([[9.0, 0.0], [9.0, 0.0], [1.0, 0.2], [NAN, 1.0], [NAN, NAN], [1.0, NAN]]),
        tie=torch.tensor([True, True, True, True, False, False]),
        strength=f64([7.0, 7.0, 7.0, 7.0, 2.0, NAN]),
        grade=f64([[9.0, 1.0], [9.0, 1.0], [9.0, 1.0], [9.0, 1.0], [9.0, 1.0], [4.0, 1.0]]),
    )
    wanted = [0.8, sigmoid(1.5), sigmoid(0.8), 0.5, sigmoid(0.6), sigmoid(0.9)]
    assert found == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ({"prob": [0.8], "target_gap": [5.0]}, 0.8),
        ({"prob": [NAN], "target_gap": [1.5]}, sigmoid(1.5)),
        ({"target_gap": [1.5], "utility": [[9.0, 0.0]]}, sigmoid(1.5)),
        ({"target_gap": [NAN], "utility": [[1.0, 0.2]]}, sigmoid(0.8)),
        ({"prob": [0.3]}, 0.3),
        ({"prob": [0.0]}, 0.0),
        ({"prob": [1.0], "grade": [[1.0, 9.0]]}, 1.0),
    ],
)
def test_evidence_in_probabilities_or_logits_needs_no_gamma(columns: dict[str, object], wanted: float) -> None:
    """Votes, judge odds and utilities are the target as they are."""
    assert prob_of(**{name: f64(value) for name, value in columns.items()}) == pytest.approx([wanted], abs=1e-12)


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ({"strength": [2.0], "grade": [[9.0, 1.0]]}, sigmoid(0.6)),
        ({"strength": [NAN], "grade": [[4.0, 1.0]]}, sigmoid(0.9)),
        ({"strength": [0.0], "grade": [[4.0, 1.0]]}, 0.5),
        ({"prob": [NAN], "strength": [2.0]}, sigmoid(0.6)),
        ({"utility": [[NAN, 0.0]], "grade": [[4.0, 1.0]]}, sigmoid(0.9)),
    ],
)
def test_a_strength_comes_before_the_difference_of_grades(columns: dict[str, object], wanted: float) -> None:
    """And both need gamma; a strength of 0 is evidence, not absence."""
    found = prob_of(gamma=0.3, **{name: f64(value) for name, value in columns.items()})
    assert found == pytest.approx([wanted], abs=1e-12)


# ------------------------------------------------------------------------------------------------------ refusals

NEEDS_GAMMA = (
    "soft labels from grades need `gamma` (logits per dataset unit): prob = sigmoid(gamma * grade gap); "
    "give gamma, or pairs with prob, votes, target_gap or utilities"
)
NO_EVIDENCE = (
    "soft labels need evidence of how much better the chosen response is: a prob, votes, a target gap, utilities, "
    "a strength or two grades; a pair has none of them"
)
IDLE_GAMMA = (
    "gamma is given, but every pair already has a probability or a gap in logits, "
    "which needs none; drop gamma, or drop that evidence"
)


def message_of(loss: Loss, scores: PairScores) -> str:
    """What the recipe says when it refuses."""
    with pytest.raises(BadInput) as refusal:
        loss(scores)
    return str(refusal.value)


@pytest.mark.parametrize(
    "columns",
    [
        {"grade": [[4.0, 1.0], [3.0, 2.0]]},
        {"strength": [1.0, 2.0]},
        {"prob": [0.8, NAN], "grade": [[4.0, 1.0], [3.0, 2.0]]},
    ],
)
def test_grades_without_gamma_are_refused(columns: dict[str, object]) -> None:
    """One pair that has only grades is enough; the message says what gamma is and what would do instead."""
    scores = head_scores(f64([0.0, 0.0]), **{name: f64(value) for name, value in columns.items()})
    assert message_of(mk.recipe("mmpo_rm"), scores) == NEEDS_GAMMA


@pytest.mark.parametrize(
    "columns",
    [
        {"weight": [1.0, 1.0]},
        {"grade": [[4.0, 1.0], [NAN, 2.0]]},
        {"strength": [1.0, NAN]},
        {"prob": [0.8, NAN], "grade": [[4.0, 1.0], [3.0, NAN]]},
    ],
)
def test_a_pair_without_evidence_is_refused(columns: dict[str, object]) -> None:
    """Absent is never 0, never prob 1 and never prob 1/2."""
    scores = head_scores(f64([0.0, 0.0]), **{name: f64(value) for name, value in columns.items()})
    assert message_of(mk.recipe("mmpo_rm", gamma=0.3), scores) == NO_EVIDENCE


@pytest.mark.parametrize(
    "columns",
    [
        {"prob": [0.8, 0.7]},
        {"target_gap": [1.0, 2.0]},
        {"utility": [[1.0, 0.0], [2.0, 0.0]]},
        {"prob": [0.8, NAN], "utility": [[1.0, 0.0], [2.0, 0.0]]},
    ],
)
def test_a_gamma_that_no_pair_would_use_is_refused(columns: dict[str, object]) -> None:
    """A dead knob is an error that says so, by the recipe's name."""
    scores = head_scores(f64([0.0, 0.0]), **{name: f64(value) for name, value in columns.items()})
    assert message_of(mk.recipe("mmpo_rm", gamma=0.3), scores) == f"mmpo_rm: {IDLE_GAMMA}"


def test_a_gamma_beside_native_evidence_and_marked_ties_is_refused() -> None:
    """A marked tie needs no gamma either."""
    tie = torch.tensor([False, True])
    scores = head_scores(f64([0.0, 0.0]), prob=f64([0.8, NAN]), tie=tie)
    assert message_of(mk.recipe("mmpo_rm", gamma=0.3), scores) == f"mmpo_rm: {IDLE_GAMMA}"


def test_a_gamma_that_this_batch_does_not_use_may_be_used_by_the_next() -> None:
    """Where there are grades beside, a batch whose pairs all have a probability is chance, not a mistake."""
    scores = head_scores(f64([0.0, 0.0]), prob=f64([0.8, 0.7]), grade=f64([[4.0, 1.0], [3.0, 2.0]]))
    assert torch.isfinite(mk.recipe("mmpo_rm", gamma=0.3)(scores)).all()


def test_a_gamma_that_one_pair_uses_is_accepted() -> None:
    """Votes for some pairs and grades for the others is ordinary data."""
    scores = head_scores(f64([0.0, 0.0]), prob=f64([0.8, NAN]), grade=f64([[4.0, 1.0], [4.0, 1.0]]))
    found = mk.recipe("mmpo_rm", gamma=0.3).evaluate(scores).target
    assert found is not None
    assert found.prob.tolist() == pytest.approx([0.8, sigmoid(0.9)], abs=1e-12)
    assert mk.recipe("mmpo_rm", gamma=0.3)(scores).shape == (2,)


def test_a_pair_without_evidence_is_not_called_an_idle_gamma() -> None:
    """One pair has a prob and the other nothing: what is missing is evidence, and dropping gamma would not help."""
    scores = head_scores(f64([0.0, 0.0]), prob=f64([0.8, NAN]))
    assert message_of(mk.recipe("mmpo_rm", gamma=0.3), scores) == NO_EVIDENCE


# ----------------------------------------------------------------------------------------------------- precision


def test_a_tie_column_costs_no_precision() -> None:
    """In float64 the prob of a graded pair is the same with and without a column of ties."""
    grade = f64([[4.0, 1.0]])
    assert prob_of(gamma=0.3, grade=grade, tie=torch.tensor([False])) == prob_of(gamma=0.3, grade=grade)


def test_whole_number_strengths_stand_beside_ties() -> None:
    """HelpSteer's strengths are integers, and a column of integers says the same as one of floats."""
    tie, strength = torch.tensor([False, True]), torch.tensor([2, 0])
    with without_annotations():
        assert prob_of(gamma=0.3, tie=tie, strength=strength) == pytest.approx([sigmoid(0.6), 0.5], abs=1e-7)


def test_target_gap_of_the_recipe_is_gamma_times_the_grade_gap() -> None:
    """In logits, as the logs and the page show it; also where sigmoid saturates in float32."""
    loss = mk.recipe("mmpo", gamma=0.3)
    labels = Labels(grade=torch.tensor([[4.0, 1.0], [2.0, 2.0], [10.0, 1.0]]))
    assert loss.target_gap(labels, 3).tolist() == pytest.approx([0.9, 0.0, 2.7], abs=1e-5)
    sure = mk.recipe("mmpo", gamma=2.2).target_gap(Labels(grade=torch.tensor([[10.0, 1.0]])), 1)
    assert sure.tolist() == pytest.approx([19.8], abs=1e-3)
