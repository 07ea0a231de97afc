"""The head: log-probabilities in chunks, their gradients and by-products, held to a dense float64 log-softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import marginkit.models.head as head_module
import marginkit.models.logprobs as logprobs
import tiny
from marginkit.models.head import LogitTransform, TokenScores
from marginkit.models.logprobs import sum_by_owner, token_logprobs

VOCAB, DIM, TOKENS = 37, 8, 23
BOTH = ("log_collision", "entropy")
TRANSFORMS = {
    "none": LogitTransform(),
    "scale": LogitTransform(scale=0.5),
    "softcap": LogitTransform(softcap=3.0),
    "both": LogitTransform(scale=2.0, softcap=3.0),
}
# chunk, bytes kept a vocabulary entry: one chunk; all kept; all made anew; of 5 chunks the first two kept; chunks of 1
MIXES = {"whole": (100, 0), "kept": (5, 10**6), "anew": (5, 0), "mixed": (5, 13), "single": (1, 7)}


class Odd(nn.Linear):
    """A linear layer by another name: called as a module, whatever it does."""


class Case:
    """A layer, states, tokens and the gradient that comes back to each log-probability."""

    def __init__(
        self, *, kind: type[nn.Linear] = nn.Linear, bias: bool = True, frozen: bool = False, dtype: Any = torch.float32
    ) -> None:
        torch.manual_seed(0)
        self.head = kind(DIM, VOCAB, bias=bias, dtype=dtype).requires_grad_(not frozen)
        self.hidden = (2 * torch.randn(TOKENS, DIM, dtype=dtype)).requires_grad_(True)
        self.tokens = torch.randint(0, VOCAB, (TOKENS,))
        self.back = torch.randn(TOKENS)

    def run(self, **options: Any) -> TokenScores:
        return token_logprobs(self.head, self.hidden, self.tokens, **options)

    def inputs(self) -> list[Tensor]:
        """All that a gradient should reach."""
        return [self.hidden, *(own for own in self.head.parameters() if own.requires_grad)]

    def gradients(self, scores: TokenScores) -> list[Tensor]:
        return list(torch.autograd.grad((self.back * scores.logp).sum(), self.inputs()))

    def dense(self, transform: LogitTransform = TRANSFORMS["none"]) -> tuple[TokenScores, list[Tensor]]:
        """The definition in float64, softmax over all logits, and its gradients."""
        hidden, weight, *bias = (
            own.detach().double().requires_grad_() for own in (self.hidden, *self.head.parameters())
        )
        logits = nn.functional.linear(hidden, weight, *bias) * transform.scale
        if transform.softcap:
            logits = transform.softcap * torch.tanh(logits / transform.softcap)
        p = logits.softmax(-1)
        logp = p.log()[torch.arange(TOKENS), self.tokens]
        found = torch.autograd.grad((self.back * logp).sum(), [hidden, weight, *bias][: len(self.inputs())])
        p = p.detach()
        return TokenScores(logp.detach(), p.square().sum(-1).log(), -(p * p.log()).sum(-1)), list(found)

    def check(self, scores: TokenScores, transform: LogitTransform, *, value: float, gradient: float) -> None:
        """Scores within `value`, gradients within `gradient`, of the type of what they are the gradient of."""
        wanted, wanted_gradients = self.dense(transform)
        assert (scores.logp - wanted.logp).abs().max() <= value
        for name in BOTH:
            own = getattr(scores, name)
            assert not own.requires_grad
            assert (own - getattr(wanted, name)).abs().max() <= value
        for source, own, right in zip(self.inputs(), self.gradients(scores), wanted_gradients, strict=True):
            assert own.dtype == source.dtype
            assert right.abs().max() > 0.3
            assert (own - right).abs().max() <= gradient


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Rows of every chunk of logits that the linear way makes."""
    rows: list[int] = []
    product = head_module.linear
    with monkeypatch.context() as patch:
        patch.setattr(head_module, "linear", lambda h, *a: (rows.append(len(h)), product(h, *a))[1])
        yield rows


# ---------------------------------------------------------------------------------------------------- against dense


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("kind", [nn.Linear, Odd], ids=["linear", "module"])
@pytest.mark.parametrize("mix", MIXES)
def test_scores_and_gradients_are_those_of_a_dense_softmax(
    mix: str, kind: type[nn.Linear], frozen: bool, bias: bool, transform: LogitTransform
) -> None:
    """Within 2e-6 and 1e-5, by every way there is."""
    case, (chunk, kept) = Case(kind=kind, bias=bias, frozen=frozen), MIXES[mix]
    scores = case.run(transform=transform, wants=BOTH, chunk=chunk, cache=4 * VOCAB * kept)
    case.check(scores, transform, value=2e-6, gradient=1e-5)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("cache", [0, 8 * VOCAB * 13])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_the_gradient_is_that_of_the_function(transform: LogitTransform, cache: int, frozen: bool) -> None:
    """Finite differences, in float64."""
    case = Case(dtype=torch.float64, frozen=frozen)
    assert case.run().logp.dtype == torch.float64

    def logp(*_: Tensor) -> Tensor:
        return case.run(transform=transform, chunk=5, cache=cache).logp

    assert torch.autograd.gradcheck(logp, case.inputs())


@pytest.mark.parametrize("only", ["hidden", "weight", "bias"])
def test_one_gradient_may_be_wanted_without_the_others(only: str) -> None:
    """States of a frozen body, a bias alone: the gradient is the same."""
    case = Case()
    everything = dict(zip(("hidden", "weight", "bias"), case.gradients(case.run()), strict=True))
    case.hidden.requires_grad_(only == "hidden")
    case.head.weight.requires_grad_(only == "weight")
    assert case.head.bias is not None
    case.head.bias.requires_grad_(only == "bias")
    source = case.hidden if only == "hidden" else getattr(case.head, only)
    (found,) = torch.autograd.grad((case.back * case.run(chunk=5, cache=0).logp).sum(), [source])
    assert torch.allclose(found, everything[only], atol=1e-6)


@pytest.mark.parametrize("kind", [nn.Linear, Odd], ids=["linear", "module"])
def test_scores_are_bitwise_the_same_with_and_without_a_gradient(kind: type[nn.Linear]) -> None:
    """A reference scored without one is a policy scored with one; by-products or not, frozen or not, kept or not."""
    case = Case(kind=kind)
    kept = case.run(chunk=5).logp
    assert torch.equal(case.run(chunk=5, cache=0).logp, kept)
    assert torch.equal(case.run(chunk=5, wants=BOTH).logp, kept)
    with torch.no_grad():
        assert torch.equal(case.run(chunk=5).logp, kept)
        scores = case.run(chunk=5, wants=BOTH)
    case.head.requires_grad_(False)
    frozen = case.run(chunk=5, wants=BOTH)
    assert all(torch.equal(getattr(frozen, name), getattr(scores, name)) for name in ("logp", *BOTH))


@pytest.mark.parametrize("kind", [nn.Linear, Odd], ids=["linear", "module"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_no_positions_are_no_scores(frozen: bool, kind: type[nn.Linear]) -> None:
    """S = 0: empty scores, gradients of zeros."""
    case = Case(kind=kind, frozen=frozen)
    case.hidden = torch.zeros(0, DIM, requires_grad=True)
    case.tokens, case.back = case.tokens[:0], case.back[:0]
    scores = case.run(wants=BOTH)
    assert [len(getattr(scores, name)) for name in ("logp", *BOTH)] == [0, 0, 0]
    for source, own in zip(case.inputs(), case.gradients(scores), strict=True):
        assert torch.equal(own, torch.zeros_like(source))


# ---------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("kind", [nn.Linear, Odd], ids=["linear", "module"])
def test_half_precision_logits_are_normalised_in_float32(kind: type[nn.Linear]) -> None:
    """bfloat16 logits go through a float32 log-softmax: exactly the float32 result on the rounded logits."""
    case = Case(kind=kind, dtype=torch.bfloat16)
    logp = case.run().logp
    assert logp.dtype == torch.float32
    wanted = case.head(case.hidden).float().log_softmax(-1)[torch.arange(TOKENS), case.tokens]
    assert torch.allclose(logp, wanted, atol=1e-6)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("cache", [0, 2 * VOCAB * 13, 10**6])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_bfloat16_weights(frozen: bool, cache: int, transform: LogitTransform) -> None:
    """Scores and gradients within what bfloat16 products allow; the gradients are bfloat16."""
    case = Case(dtype=torch.bfloat16, frozen=frozen)
    scores = case.run(transform=transform, wants=BOTH, chunk=5, cache=cache)
    case.check(scores, transform, value=0.1, gradient=0.1)


def test_a_bfloat16_gradient_is_summed_over_chunks_in_float32() -> None:
    """400 chunks of one position each: within bfloat16's own rounding of the exact sum."""
    torch.manual_seed(0)
    head = nn.Linear(1, 2, bias=True, dtype=torch.bfloat16)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    hidden, tokens = torch.ones(400, 1, dtype=torch.bfloat16), torch.zeros(400).long()
    token_logprobs(head, hidden, tokens, chunk=1).logp.sum().backward()
    assert head.bias.grad is not None
    assert head.weight.grad is not None
    assert head.bias.grad.tolist() == [200.0, -200.0]
    assert head.weight.grad[:, 0].tolist() == [200.0, -200.0]
    # in bfloat16 the running sum stands still at 128, where a half is less than half a step
    assert float(sum((torch.tensor(0.5).bfloat16() for _ in range(400)), torch.tensor(0.0).bfloat16())) == 128.0


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("cache", [0, 2 * VOCAB * 13, 10**6])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("inside", [False, True], ids=["backward outside", "backward inside"])
def test_autocast(inside: bool, frozen: bool, cache: int, transform: LogitTransform) -> None:
    """bfloat16 products of float32 weights: values are those of the layer under autocast, gradients are float32."""
    case = Case(frozen=frozen)
    with torch.autocast("cpu", torch.bfloat16):
        scores = case.run(transform=transform, wants=BOTH, chunk=5, cache=cache)
        logits = case.head(case.hidden)
        if inside:
            to_hidden = case.gradients(scores)[0]
            assert torch.equal(to_hidden, to_hidden.bfloat16().float()), "products of the backward are bfloat16 too"
    assert logits.dtype == torch.bfloat16
    own = transform(logits.float()).log_softmax(-1)[torch.arange(TOKENS), case.tokens]
    assert scores.logp.dtype == torch.float32
    assert torch.allclose(scores.logp, own, atol=1e-6)
    if not inside:
        case.check(scores, transform, value=0.1, gradient=0.1)


def test_autocast_around_the_backward_alone_changes_nothing() -> None:
    """What ran in float32 in the forward is not rounded in the backward."""
    case = Case()
    wanted = case.gradients(case.run(chunk=5, cache=0))
    scores = case.run(chunk=5, cache=0)
    with torch.autocast("cpu", torch.bfloat16):
        found = case.gradients(scores)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_types_that_do_not_go_together_are_refused_by_the_layer() -> None:
    """bfloat16 states and float32 weights are an error, as for the layer itself, not a silent rounding."""
    case = Case()
    case.hidden = case.hidden.detach().bfloat16()
    with pytest.raises(RuntimeError, match="same dtype"):
        case.run()


# ------------------------------------------------------------------------------------------------------------- memory


def saved(call: Callable[[], Any]) -> list[Tensor]:
    """What autograd keeps for the backward."""
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda own: (kept.append(own), own)[1], lambda own: own):
        call()
    return kept


@pytest.mark.parametrize(
    ("kind", "frozen", "cache", "rows"),
    [
        (nn.Linear, False, 0, 0),
        (nn.Linear, False, 4 * VOCAB * 13, 10),
        (nn.Linear, False, 10**6, TOKENS),
        (nn.Linear, True, 10**6, 0),
        (Odd, False, 0, 0),
        (Odd, False, 4 * VOCAB * 13, 10),
        (Odd, True, 10**6, TOKENS),
    ],
)
def test_as_many_logits_are_kept_as_the_budget_allows(
    kind: type[nn.Linear], frozen: bool, cache: int, rows: int
) -> None:
    """Nothing of the size of the vocabulary without a budget; whole chunks within one."""
    case = Case(kind=kind, bias=False, frozen=frozen)
    kept = saved(lambda: case.run(chunk=5, cache=cache, wants=BOTH))
    logits = {own.data_ptr(): len(own) for own in kept if own.shape[1:] == (VOCAB,) and len(own) != DIM}
    assert sum(logits.values()) == rows
    if frozen and kind is nn.Linear:
        assert [own.shape for own in kept] == [(TOKENS, DIM)]


def test_logits_are_made_once_when_kept_or_frozen_and_twice_when_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of logits over forward and backward; never more than a chunk at a time."""
    for frozen, cache, rows in ((False, 0, 46), (False, 4 * VOCAB * 13, 36), (False, 10**6, 23), (True, 0, 23)):
        case = Case(frozen=frozen)
        with counted(monkeypatch) as made:
            case.gradients(case.run(chunk=5, cache=cache))
        assert sum(made) == rows
        assert max(made) == 5


def test_a_chunk_holds_256_positions_or_fewer_where_the_vocabulary_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """128 MB of float32 logits at most."""
    seen: list[int] = []
    monkeypatch.setattr(logprobs, "linear_logprobs", lambda *_, chunk, **__: seen.append(chunk))
    for vocab in (8, 2**20, 2**26):
        token_logprobs(nn.Linear(1, vocab, device="meta"), torch.zeros(3, 1), torch.zeros(3).long())
    assert seen == [256, 32, 1]


def test_a_module_is_called_with_a_chunk_at_a_time() -> None:
    """Each chunk once, and once more in the backward where nothing may be kept."""
    case, rows = Case(), []
    case.head.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    for cache, wanted in ((0, 2 * TOKENS), (10**6, TOKENS)):
        rows.clear()
        case.gradients(case.run(chunk=5, cache=cache))
        assert (sum(rows), max(rows)) == (wanted, 5)
    rows.clear()
    with torch.no_grad():
        case.run(chunk=5, cache=0)
    assert sum(rows) == TOKENS


# ------------------------------------------------------------------------------------------------------ which way, and


def hooked(head: nn.Linear) -> nn.Module:
    head.register_forward_hook(lambda _, __, logits: 2 * logits)
    return head


def prehooked(head: nn.Linear) -> nn.Module:
    head.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    return head


def back_hooked(head: nn.Linear) -> nn.Module:
    head.register_full_backward_hook(lambda _, to_input, __: (2 * to_input[0],))
    return head


def back_prehooked(head: nn.Linear) -> nn.Module:
    head.register_full_backward_pre_hook(lambda _, back: (2 * back[0],))
    return head


def replaced(head: nn.Linear) -> nn.Module:
    plain = head.forward
    head.forward = lambda states: 2 * plain(states)  # type: ignore[method-assign]
    return head


def normed(head: nn.Linear) -> nn.Module:
    normed: nn.Module = parametrizations.weight_norm(head)
    return normed


class Doubled(nn.Linear):
    def forward(self, states: Tensor) -> Tensor:
        return 2 * super().forward(states)


@pytest.mark.parametrize(
    "change", [hooked, prehooked, back_hooked, back_prehooked, replaced, normed, lambda _: Doubled(DIM, VOCAB)]
)
def test_what_is_no_plain_layer_is_called_as_a_module(change: Callable[[nn.Linear], nn.Module]) -> None:
    """Hooks, another forward, parametrized weights, another class: values and gradients are the module's own."""
    case = Case()
    head = change(case.head)
    with torch.no_grad():
        next(iter(head.parameters())).mul_(1.5)
    inputs = [case.hidden, *head.parameters()]
    scores = token_logprobs(head, case.hidden, case.tokens, chunk=5, cache=0)
    wanted = head(case.hidden).log_softmax(-1)[torch.arange(TOKENS), case.tokens]
    assert torch.allclose(scores.logp, wanted, atol=2e-6)
    for own, right in zip(
        torch.autograd.grad((case.back * scores.logp).sum(), inputs),
        torch.autograd.grad((case.back * wanted).sum(), inputs),
        strict=True,
    ):
        assert torch.allclose(own, right, atol=1e-5)


def test_a_weight_that_is_no_ordinary_tensor_is_left_to_its_module() -> None:
    """Subclasses (sharded, quantised) and whole numbers."""

    class Sharded(nn.Parameter):
        pass

    head = nn.Linear(DIM, VOCAB)
    assert logprobs._is_plain(head)
    head.weight = Sharded(head.weight.data)
    assert not logprobs._is_plain(head)
    head.weight = nn.Parameter(torch.zeros(VOCAB, DIM, dtype=torch.int8), requires_grad=False)
    assert not logprobs._is_plain(head)


def test_a_module_without_a_size_is_called() -> None:
    """Any callable module will do; its vocabulary is taken to be large."""
    case = Case()
    scores = token_logprobs(nn.Sequential(case.head), case.hidden, case.tokens, wants=BOTH)
    case.check(scores, TRANSFORMS["none"], value=2e-6, gradient=1e-5)


@pytest.mark.parametrize("bottom", [False, True], ids=["adapter on", "adapter off"])
def test_an_adapter_on_the_head_takes_part(bottom: bool) -> None:
    """LoRA on lm_head: the model's own logits, and gradients for the adapter's matrices alone."""
    model: Any = get_peft_model(tiny.model("llama"), LoraConfig(r=2, target_modules=["lm_head"]))
    head = model.get_output_embeddings()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, own in model.named_parameters():
            if "lora" in name:
                own.normal_()
    assert type(head) is not nn.Linear
    hidden, tokens = torch.randn(TOKENS, 32), torch.randint(0, tiny.VOCAB, (TOKENS,))
    with model.disable_adapter() if bottom else torch.enable_grad():
        found = token_logprobs(head, hidden, tokens, chunk=5, cache=0).logp
        wanted = head(hidden).log_softmax(-1)[torch.arange(TOKENS), tokens]
        plain = head.base_layer(hidden).log_softmax(-1)[torch.arange(TOKENS), tokens]
        assert torch.allclose(found, wanted, atol=2e-6)
        assert torch.allclose(found, plain, atol=2e-6) is bottom
        if bottom:
            return
        inputs = [own for own in head.parameters() if own.requires_grad]
        assert len(inputs) == 2
        for own, right in zip(
            torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(wanted.sum(), inputs), strict=True
        ):
            assert torch.allclose(own, right, atol=1e-4)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_activation_checkpointing_around_the_head(autocast: bool, reentrant: bool, frozen: bool) -> None:
    """The gradients are the same, bitwise."""
    case = Case(frozen=frozen)

    def gradients(call: Callable[..., Any]) -> list[Tensor]:
        case.head.zero_grad()
        case.hidden.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logp, _ = call(run, case.hidden)
        (case.back * logp).sum().backward()
        return [own.grad.clone() for own in case.inputs() if own.grad is not None]

    def run(states: Tensor) -> tuple[Tensor, Tensor | None]:
        scores = token_logprobs(case.head, states, case.tokens, chunk=5, cache=4 * VOCAB * 13, wants=BOTH)
        return scores.logp, scores.entropy

    plain = gradients(lambda call, states: call(states))
    again = gradients(lambda call, states: checkpoint(call, states, use_reentrant=reentrant))
    assert len(plain) == len(case.inputs())
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_a_graph_that_is_kept_gives_the_same_gradients_again() -> None:
    """The backward changes nothing that it was given."""
    for frozen in (False, True):
        case = Case(frozen=frozen)
        scores = case.run(chunk=5)
        first, second = (
            torch.autograd.grad((case.back * scores.logp).sum(), case.inputs(), retain_graph=True) for _ in range(2)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_gradient_of_tied_embeddings_is_the_sum_of_both() -> None:
    """One weight that reads tokens and predicts them."""
    table, head = nn.Embedding(VOCAB, DIM), nn.Linear(DIM, VOCAB, bias=False)
    head.weight = table.weight
    tokens = torch.randint(0, VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(0))
    token_logprobs(head, table(tokens), tokens.roll(-1), chunk=5, cache=0).logp.sum().backward()
    found = table.weight.grad
    table.weight.grad = None
    head(table(tokens)).log_softmax(-1)[torch.arange(TOKENS), tokens.roll(-1)].sum().backward()
    assert found is not None
    assert torch.allclose(found, table.weight.grad, atol=1e-5)


# -------------------------------------------------------------------------------------------------------- by-products


class Given(nn.Module):
    """Logits as they are."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, states: Tensor) -> Tensor:
        return self.logits[: len(states)]


def given(logits: Tensor, tokens: Tensor, *, plain: bool) -> TokenScores:
    """Scores of these logits: from a module, or from a plain layer whose bias they are."""
    if not plain:
        return token_logprobs(Given(logits), torch.zeros(len(tokens), DIM), tokens, wants=BOTH)
    rows = []
    for row, token in zip(logits, tokens, strict=True):
        head = nn.Linear(1, len(row))
        head.weight, head.bias = nn.Parameter(torch.zeros(len(row), 1)), nn.Parameter(row)
        rows.append(token_logprobs(head, torch.zeros(1, 1), token[None], wants=BOTH))
    return TokenScores.joined(rows)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("shift", [0.0, 3e3])
def test_by_products_keep_their_precision_where_the_policy_is_sure_and_its_logits_are_large(
    shift: float, plain: bool
) -> None:
    """A gap of 12 nats over one rival: log sum p^2 = -1.2e-5, entropy 8e-5, to 2e-7, with logits around 0 or 3000."""
    logits = torch.full((1, VOCAB), -1e4)
    logits[0, 3], logits[0, 5] = 0.0, -12.0
    scores = given(logits + shift, torch.tensor([3]), plain=plain)
    p = torch.tensor([0.0, -12.0], dtype=torch.float64).softmax(0)
    assert float(scores.log_collision) == pytest.approx(float((p * p).sum().log()), abs=2e-7)  # type: ignore[arg-type]
    assert float(scores.entropy) == pytest.approx(float(-(p * p.log()).sum()), abs=2e-7)  # type: ignore[arg-type]


@pytest.mark.parametrize("plain", [False, True])
def test_tokens_that_cannot_be_said_do_not_count(plain: bool) -> None:
    """Logits of -inf: the collision and the entropy of the others, and finite gradients."""
    logits = torch.randn(TOKENS, VOCAB, generator=torch.Generator().manual_seed(0))
    logits[:, 20:] = -torch.inf
    scores = given(logits.requires_grad_(), torch.zeros(TOKENS).long(), plain=plain)
    p = logits[:, :20].double().softmax(-1)
    assert scores.log_collision is not None
    assert scores.entropy is not None
    assert scores.log_collision.tolist() == pytest.approx((p * p).sum(-1).log().tolist(), abs=1e-6)
    assert scores.entropy.tolist() == pytest.approx((-p * p.log()).sum(-1).tolist(), abs=2e-6)
    assert torch.isfinite(scores.logp).all()


def test_a_uniform_policy_over_a_large_vocabulary() -> None:
    """200,000 tokens: -log V, log V, and log V, to 1e-6 relative; no drift from so many small numbers."""
    with torch.no_grad():
        scores = given(torch.zeros(1, 200_000), torch.tensor([7]), plain=True)
    wanted = pytest.approx(math.log(200_000), rel=1e-6)
    assert (-float(scores.logp), -float(scores.log_collision), float(scores.entropy)) == (wanted,) * 3  # type: ignore[arg-type]


@pytest.mark.parametrize("wants", [(), ("entropy",), ("log_collision",), BOTH])
@pytest.mark.parametrize("kind", [nn.Linear, Odd], ids=["linear", "module"])
def test_by_products_are_computed_on_request_and_once(
    kind: type[nn.Linear], wants: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wanted and no more; once a chunk, and not again when the backward makes the chunk anew."""
    calls: list[int] = []

    def count(own: Any) -> Any:
        return lambda p, names: (calls.append(len(p)) if names else None, own(p, names))[1]

    for module in (head_module, logprobs):
        monkeypatch.setattr(module, "by_products", count(module.by_products))
    case = Case(kind=kind)
    scores = case.run(wants=wants, chunk=5, cache=0)
    case.gradients(scores)
    assert tuple(name for name in BOTH if getattr(scores, name) is not None) == tuple(n for n in BOTH if n in wants)
    assert calls == ([5, 5, 5, 5, 3] if wants else [])


# --------------------------------------------------------------------------------------------------------------- sums


def test_token_values_are_summed_in_float64() -> None:
    """4,000 tokens of -0.925 nats: a float32 running sum is off by 1e-3 and more, ours is exact to 1e-9."""
    values = torch.full((4001,), -0.925, dtype=torch.float32)
    values[-1] = -1.0
    owner = torch.tensor([0] * 4000 + [1])
    summed = sum_by_owner(values, owner, 3)
    assert summed.dtype == torch.float64
    assert summed.tolist() == pytest.approx([4000 * float(values[0]), -1.0, 0.0], abs=1e-9)
