"""Each recipe against its formula written down a second time, the published numbers, and what TRL computes.

Golden pairs, (s_w, s_l, t_w, t_l): A healthy, B with a degraded chosen response, C at initialisation; in every one the
recipe's own loss is computed in float64.
"""

import math

import pytest
import torch
from contract import draw
from torch import Tensor
from torch.nn import functional as F

import marginkit as mk
from marginkit.assembly import build_loss
from marginkit.core.objectives import logistic
from marginkit.core.tensors import Labels, PairScores, Rewards, SequenceScores, Target
from marginkit.errors import BadInput
from marginkit.registry import load_recipe

POLICY = torch.tensor([[-40.0, -66.0], [-45.0, -70.0], [-42.0, -60.0]], dtype=torch.float64)
REFERENCE = torch.tensor([[-42.0, -60.0]] * 3, dtype=torch.float64)
LOG_RATIO_GAPS = (8.0, 7.0, 0.0)
LOG_2 = math.log(2.0)


def f64(values: object) -> Tensor:
    """A tensor in float64."""
    return torch.tensor(values, dtype=torch.float64)


def softplus(z: float) -> float:
    """log(1 + exp(z)) in closed form."""
    return math.log1p(math.exp(z))


def golden(**labels: Tensor) -> PairScores:
    """The pairs A, B and C."""
    return PairScores(logp=POLICY, ref_logp=REFERENCE, **labels)


def heads(*gaps: float, **labels: Tensor) -> PairScores:
    """Pairs whose heads are this far apart, around an arbitrary level."""
    return PairScores(head=f64([[gap + 5.5, 5.5] for gap in gaps]), **labels)


def random_policy(num_pairs: int = 32) -> PairScores:
    """Summed log-probs as a policy near its reference gives them."""
    ref = draw(num_pairs, 2, seed=1, low=-300.0, high=-10.0)
    return PairScores(logp=ref + draw(num_pairs, 2, seed=2, low=-15.0, high=15.0), ref_logp=ref)


# ------------------------------------------------------------------------------------------------ golden numbers


def test_dpo_is_the_published_loss_of_the_golden_pairs() -> None:
    """L = softplus(-beta * D) at beta 0.1."""
    found = mk.recipe("dpo", beta=0.1)(golden()).tolist()
    assert found == pytest.approx([softplus(-0.1 * gap) for gap in LOG_RATIO_GAPS], abs=1e-12)
    assert found == pytest.approx([0.371101, 0.403186, 0.693147], abs=5e-7)


def test_cdpo_is_the_published_loss_of_the_golden_pairs() -> None:
    """L = (1 - eps) softplus(-beta * D) + eps softplus(beta * D) at beta 0.1, eps 0.1."""
    found = mk.recipe("cdpo", beta=0.1, eps=0.1)(golden()).tolist()
    wanted = [0.9 * softplus(-0.1 * gap) + 0.1 * softplus(0.1 * gap) for gap in LOG_RATIO_GAPS]
    assert found == pytest.approx(wanted, abs=1e-12)
    assert found == pytest.approx([0.451101, 0.473186, 0.693147], abs=5e-7)


def test_mmpo_is_cdpo_with_a_rate_of_its_own_for_each_pair() -> None:
    """Eps = sigmoid(-gamma * m): three pairs, three rates."""
    found = mk.recipe("mmpo", beta=0.1, gamma=0.3)(golden(grade=f64([[9.0, 8.0], [6.0, 3.0], [10.0, 1.0]])))
    rates = [1.0 / (1.0 + math.exp(0.3 * m)) for m in (1.0, 3.0, 9.0)]
    for loss, rate, gap in zip(found.tolist(), rates, LOG_RATIO_GAPS, strict=True):
        assert loss == pytest.approx((1 - rate) * softplus(-0.1 * gap) + rate * softplus(0.1 * gap), abs=1e-12)


def test_bradley_terry_is_the_published_loss() -> None:
    """At d = 1: 0.313262; with margins 3, 2, 1, 0 (Llama 2): 2.126928, 1.313262, 0.693147, 0.313262."""
    assert mk.recipe("bt")(heads(1.0)).item() == pytest.approx(softplus(-1.0), abs=1e-12)
    assert mk.recipe("bt")(heads(1.0)).item() == pytest.approx(0.313262, abs=5e-7)
    margins = f64([3.0, 2.0, 1.0, 0.0])
    found = mk.recipe("bt_margin")(heads(1.0, 1.0, 1.0, 1.0, strength=margins)).tolist()
    assert found == pytest.approx([softplus(m - 1.0) for m in (3.0, 2.0, 1.0, 0.0)], abs=1e-12)
    assert found == pytest.approx([2.126928, 1.313262, 0.693147, 0.313262], abs=5e-7)


def test_bt_margin_scales_the_grade_gap() -> None:
    """A margin of 0.5 at d = 1 is 0.474077, from one grade at scale 0.5 or from half a grade at scale 1."""
    for scale, gap in ((0.5, 1.0), (1.0, 0.5), (0.25, 2.0)):
        found = mk.recipe("bt_margin", scale=scale)(heads(1.0, grade=f64([[gap + 3.0, 3.0]]))).item()
        assert found == pytest.approx(softplus(-0.5), abs=1e-12)
        assert found == pytest.approx(0.474077, abs=5e-7)


def test_the_logistic_scales_the_gap_and_then_takes_the_margin_off() -> None:
    """Z = scale * gap - margin, for every pair its own: beta-DPO moves the scale, gamma-PO the margin."""
    gap, scale, margin = (2.0, -1.0, 0.5), (0.5, 2.0, 3.0), (0.25, 0.0, -1.0)
    target = Target.of(f64(gap), scale=f64(scale), margin=f64(margin))
    found = logistic(Rewards(f64([[g + 1.0, 1.0] for g in gap])), target).tolist()
    wanted = [softplus(m - s * g) for g, s, m in zip(gap, scale, margin, strict=True)]
    assert found == pytest.approx(wanted, abs=1e-12)


def test_a_constant_margin_is_asked_of_every_pair_that_is_no_tie() -> None:
    """In place of bt's target: -log sigmoid(d - 0.5), 0.474077 at d = 1."""
    spec = {"target": {"name": "marginkit.core.targets:constant_margin", "margin": 0.5}}
    found = build_loss(load_recipe("bt"), spec)(heads(1.0, -2.0, 1.0, tie=torch.tensor([False, False, True]))).tolist()
    assert found == pytest.approx([softplus(-0.5), softplus(2.5), 0.0], abs=1e-12)
    assert found[0] == pytest.approx(0.474077, abs=5e-7)


def test_a_margin_of_0_and_a_rate_of_0_are_bradley_terry_and_dpo() -> None:
    """The methods meet where their own term vanishes."""
    pairs = heads(-1.5, 0.0, 2.5, strength=f64([1.0, 2.0, 3.0]))
    assert torch.equal(mk.recipe("bt_margin", scale=0.0)(pairs), mk.recipe("bt")(pairs))
    assert torch.equal(mk.recipe("cdpo", beta=0.1, eps=0.0)(golden()), mk.recipe("dpo", beta=0.1)(golden()))


def test_a_margin_only_moves_the_optimum_and_soft_labels_make_it_finite() -> None:
    """The slope of a margin loss never vanishes; that of a soft label does, at log((1 - eps) / eps)."""
    far = heads(30.0, strength=f64([3.0]))
    assert mk.recipe("bt_margin")(far).item() == pytest.approx(math.exp(-27.0), rel=1e-6)
    best = math.log(9.0)
    assert best == pytest.approx(2.197225, abs=5e-7)
    gap = f64([best]).requires_grad_(True)
    smoothed = build_loss(load_recipe("bt"), {"target": {"name": "marginkit.core.targets:constant_prob", "eps": 0.1}})
    (slope,) = torch.autograd.grad(smoothed(PairScores(head=torch.stack((gap, 0 * gap), 1))).sum(), gap)
    assert slope.item() == pytest.approx(0.0, abs=1e-12)
    assert smoothed(heads(1.0)).item() == pytest.approx(0.413262, abs=5e-7)


def test_every_policy_recipe_pays_log_2_where_it_starts() -> None:
    """Policy == reference: no gap, whatever the label says."""
    start = PairScores(logp=REFERENCE, ref_logp=REFERENCE, prob=f64([0.9, 0.5, 0.2]))
    for name in ("dpo", "cdpo", "mmpo"):
        assert mk.recipe(name)(start).tolist() == pytest.approx([LOG_2] * 3, abs=1e-12)


@pytest.mark.parametrize("name", ["dpo", "cdpo", "mmpo"])
def test_a_constant_on_both_log_probs_of_a_response_changes_nothing(name: str) -> None:
    """Only the ratio of policy and reference counts."""
    pairs = random_policy()
    assert pairs.logp is not None
    assert pairs.ref_logp is not None
    moved = draw(32, 2, seed=5, low=-40.0, high=40.0)
    prob = draw(32, seed=6, low=0.0, high=1.0)
    loss = mk.recipe(name, beta=0.1)
    before = loss(PairScores(logp=pairs.logp, ref_logp=pairs.ref_logp, prob=prob))
    after = loss(PairScores(logp=pairs.logp + moved, ref_logp=pairs.ref_logp + moved, prob=prob))
    assert torch.allclose(before, after, rtol=0, atol=1e-12)


# -------------------------------------------------------------------------------------------------- peers: TRL


def test_dpo_equals_the_loss_of_trl() -> None:
    """TRL's DPOTrainer, loss_type sigmoid: -logsigmoid(beta * (chosen log-ratio - rejected log-ratio))."""
    pairs = random_policy()
    assert pairs.logp is not None
    assert pairs.ref_logp is not None
    (chosen, rejected), (ref_chosen, ref_rejected) = pairs.logp.T, pairs.ref_logp.T
    delta_score = (chosen - ref_chosen) - (rejected - ref_rejected)
    peer = -F.logsigmoid(0.1 * delta_score)
    assert torch.allclose(mk.recipe("dpo", beta=0.1)(pairs), peer, rtol=1e-12, atol=1e-12)


def test_cdpo_equals_the_label_smoothing_of_the_reference_code() -> None:
    """Original DPO (and TRL before 1.0): the two log-sigmoids weighted by 1 - eps and eps."""
    pairs = random_policy()
    assert pairs.logp is not None
    assert pairs.ref_logp is not None
    logits = (pairs.logp[:, 0] - pairs.logp[:, 1]) - (pairs.ref_logp[:, 0] - pairs.ref_logp[:, 1])
    peer = -F.logsigmoid(0.2 * logits) * (1 - 0.25) - F.logsigmoid(-0.2 * logits) * 0.25
    assert torch.allclose(mk.recipe("cdpo", beta=0.2, eps=0.25)(pairs), peer, rtol=1e-12, atol=1e-12)


def test_bt_and_bt_margin_equal_the_losses_of_trl() -> None:
    """TRL's RewardTrainer: -logsigmoid(chosen - rejected - margin), with logits squeezed to one value a response."""
    head, margin = draw(32, 2, seed=3), draw(32, seed=4, low=0.0, high=3.0)
    rewards_chosen, rewards_rejected = head[:, :1].squeeze(-1), head[:, 1:].squeeze(-1)
    plain = -F.logsigmoid(rewards_chosen - rewards_rejected)
    with_margin = -F.logsigmoid(rewards_chosen - rewards_rejected - margin)
    assert torch.allclose(mk.recipe("bt")(PairScores(head=head)), plain, rtol=1e-12)
    assert torch.allclose(mk.recipe("bt_margin")(PairScores(head=head, strength=margin)), with_margin, rtol=1e-12)


def test_sft_equals_the_cross_entropy_of_the_tokens() -> None:
    """The nll of a response is the summed cross-entropy of its tokens; per token, what TRL's SFTTrainer minimises."""
    logits = draw(4, 7, 11, seed=7)
    tokens = torch.randint(0, 11, (4, 7), generator=torch.Generator().manual_seed(8))
    length = f64([7.0, 4.0, 5.0, 1.0])
    labels = torch.where(torch.arange(7) < length[:, None], tokens, -100)
    logp = (logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0] * (labels != -100)).sum(1)
    loss = mk.recipe("sft")
    found = loss.evaluate(SequenceScores(logp=logp)).loss
    summed = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    assert found.shape == (4,)
    assert found.sum().item() == pytest.approx(summed.item(), rel=1e-12)
    assert loss.objective.part.normaliser == "token"
    mean = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    assert (found.sum() / length.sum()).item() == pytest.approx(mean.item(), rel=1e-12)


# ---------------------------------------------------------------------------------------- a recipe as a callable


def test_sft_is_callable_on_the_scores_of_responses() -> None:
    """The K = 1 case of the public surface: no pairs, one loss a response."""
    assert mk.recipe("sft")(SequenceScores(logp=f64([-3.0, -5.0]))).tolist() == [3.0, 5.0]


@pytest.mark.parametrize("name", ["dpo", "bt"])
def test_a_loss_per_pair_refuses_scores_that_are_not_gathered(name: str) -> None:
    """The message says how to gather them."""
    scores = SequenceScores(logp=f64([-3.0]), ref_logp=f64([-3.0]), head=f64([0.0]))
    for call in (mk.recipe(name), mk.recipe(name).evaluate):
        with pytest.raises(BadInput):
            call(scores)


def test_weights_multiply_and_left_out_pairs_are_zero() -> None:
    """The callable applies weight and keep; `evaluate` returns the bare loss beside them."""
    weight, tie = f64([2.0, 0.5, 3.0]), torch.tensor([False, False, True])
    scores = heads(1.0, -1.0, 2.0, weight=weight, tie=tie)
    loss = mk.recipe("bt")
    assert loss(scores).tolist() == pytest.approx([2.0 * softplus(-1.0), 0.5 * softplus(1.0), 0.0], abs=1e-12)
    bare = loss.evaluate(scores)
    assert bare.loss[:2].tolist() == pytest.approx([softplus(-1.0), softplus(1.0)], abs=1e-12)
    assert bare.target is not None
    assert bare.target.keep.tolist() == [True, True, False]


def test_a_left_out_pair_gives_no_gradient() -> None:
    """A tie under a hard label does not move the model."""
    head = f64([[1.0, 0.0], [1.0, 0.0]]).requires_grad_(True)
    mk.recipe("bt")(PairScores(head=head, tie=torch.tensor([False, True]))).sum().backward()
    assert head.grad is not None
    assert head.grad[0].abs().min() > 0
    assert head.grad[1].tolist() == [0.0, 0.0]


def test_the_rewards_that_are_logged_are_those_that_are_optimised() -> None:
    """One record feeds the loss and the logs."""
    result = mk.recipe("dpo", beta=0.1).evaluate(golden())
    assert result.rewards.chosen.tolist() == pytest.approx([0.2, -0.3, 0.0], abs=1e-12)
    assert result.rewards.rejected.tolist() == pytest.approx([-0.6, -1.0, 0.0], abs=1e-12)
    assert result.rewards.gap.tolist() == pytest.approx([0.1 * gap for gap in LOG_RATIO_GAPS], abs=1e-12)


def test_pairs_that_take_part_are_known_before_a_forward_pass() -> None:
    """`kept` and `target_gap` need labels only; a hard label wants an infinite gap, a left-out pair none."""
    labels = Labels(tie=torch.tensor([False, True]))
    assert mk.recipe("dpo").kept(labels, 2).tolist() == [True, False]
    hard, left_out = mk.recipe("dpo").target_gap(labels, 2).tolist()
    assert hard == math.inf
    assert math.isnan(left_out)
    smooth = mk.recipe("cdpo", eps=0.1).target_gap(Labels(), 1).item()
    assert smooth == pytest.approx(math.log(9.0), abs=1e-12)
    assert mk.recipe("mmpo").kept(Labels(prob=f64([0.5, 0.7]), tie=labels.tie), 2).tolist() == [True, True]


def test_sft_has_no_pairs_to_ask_about() -> None:
    """Refused by the recipe's name."""
    for question in (mk.recipe("sft").kept, mk.recipe("sft").target_gap):
        with pytest.raises(BadInput, match="sft has no pairs"):
            question(Labels(), 2)


def test_recipes_without_state_keep_none() -> None:
    """An empty state goes in and out; another recipe's is refused."""
    loss = mk.recipe("dpo")
    assert loss.state_dict() == {}
    loss.load_state_dict({})
    with pytest.raises(BadInput, match=r"dpo keeps no state, but \['mean'\] was given"):
        loss.load_state_dict({"mean": 1.0})


@pytest.mark.parametrize(
    ("name", "scores", "message"),
    [
        ("dpo", {"logp": POLICY}, "reward implicit needs `ref_logp`, which was not given"),
        ("dpo", {"ref_logp": POLICY}, "reward implicit needs `logp`, which was not given"),
        ("bt", {"logp": POLICY}, "reward head needs `head`, which was not given"),
        (
            "bt_margin",
            {"head": POLICY},
            "a grade margin needs a strength or two grades for every pair; a pair has neither",
        ),
    ],
)
def test_a_missing_field_is_named(name: str, scores: dict[str, Tensor], message: str) -> None:
    """The recipe says what it needs and does not get."""
    with pytest.raises(BadInput) as refusal:
        mk.recipe(name)(PairScores(**scores))
    assert str(refusal.value) == message


def test_ties_need_no_grade_where_they_are_left_out() -> None:
    """bt_margin refuses a pair without a grade gap, unless it is a tie: with or without a column of grades."""
    tie = torch.tensor([True])
    assert mk.recipe("bt_margin")(heads(1.0, tie=tie, strength=f64([float("nan")]))).tolist() == [0.0]
    assert mk.recipe("bt_margin")(heads(1.0, tie=tie)).tolist() == [0.0]


def test_scores_gathered_by_pairs_keep_their_order_and_their_labels() -> None:
    """`SequenceScores.at`: column 0 is chosen; K responses give any number of pairs."""
    scores = SequenceScores(logp=f64([-1.0, -2.0, -3.0]), hidden=f64([[1.0], [2.0], [3.0]]))
    pairs = scores.at(torch.tensor([[2, 0], [0, 1]]), Labels(prob=f64([0.7, 0.6])))
    assert pairs.logp is not None
    assert pairs.logp.tolist() == [[-3.0, -1.0], [-1.0, -2.0]]
    assert pairs.hidden is not None
    assert pairs.hidden.tolist() == [[[3.0], [1.0]], [[1.0], [2.0]]]
    assert pairs.labels.prob is not None
    assert pairs.labels.prob.tolist() == [0.7, 0.6]
    assert pairs.ref_logp is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"logp": (3, 2), "ref_logp": (2, 2)}, r"PairScores\.ref_logp has shape \[2, 2\], expected \[3, 2\]"),
        ({"logp": (3,)}, r"PairScores\.logp has shape \[3\], expected \[3, 2\]; columns are chosen, rejected"),
        ({"logp": (3, 3)}, r"PairScores\.logp has shape \[3, 3\], expected \[3, 2\]"),
        ({"logp": (3, 2), "weight": (3, 2)}, r"PairScores\.weight has shape \[3, 2\], expected \[3\]"),
        ({"logp": ()}, r"PairScores\.logp has shape \[\]"),
        ({}, "PairScores is empty; give at least the scores the recipe needs"),
    ],
)
def test_scores_that_do_not_fit_together_are_refused(fields: dict[str, tuple[int, ...]], message: str) -> None:
    """The field, its shape and the shape expected, in one line."""
    with pytest.raises(BadInput, match=message):
        PairScores(**{name: torch.zeros(shape) for name, shape in fields.items()})


def test_half_precision_heads_do_not_round_the_target() -> None:
    """bf16 rewards, as autocast gives them: the loss is that of the same rewards in float32."""
    head = torch.tensor([[0.25, 0.0], [1.5, -0.5]], dtype=torch.bfloat16)
    grade = torch.tensor([[10.0, 1.0], [10.0, 1.0]])
    loss = mk.recipe("mmpo_rm", gamma=1.1)
    coarse = loss(PairScores(head=head, grade=grade))
    fine = loss(PairScores(head=head.float(), grade=grade))
    assert torch.allclose(coarse.float(), fine, rtol=1e-5)
