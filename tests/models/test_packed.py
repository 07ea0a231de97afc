"""Packed rows are exact: every token's log-probability and every gradient is that of its own sequence alone."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tiny
from marginkit.config import resolve
from marginkit.data.encoded import EncodedGroup
from marginkit.data.pairing import make_pairs
from marginkit.groups import Groups
from marginkit.models.attention import FLEX, FLEX_MULTIPLE, SEGMENTS, Segments, _visible
from marginkit.models.loading import add_lora, core_of, without_dropout
from marginkit.models.packing import Batch, Rung, make_batch, packed_batch, padded_batch
from marginkit.models.rungs import _set_attention, choose_rung
from marginkit.models.scorer import score
from marginkit.scoring import score_batches

VALUES = 5e-6  # nats a token, absolute
GRADIENTS = 5e-6  # relative to the largest entry of each tensor

EXACT = [(family, rung) for family in families.FAMILIES for rung in ("segments", "dense")]
EXACT += [(family, "dense") for family in families.BY_MASK]


def adapted(model: Any) -> Any:
    """The model with an adapter that does something."""
    model = add_lora(model, resolve("dpo", ["model.path=x", "model.lora.r=4"]).model, "policy")
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def compare(model: Any, rung: Rung, *, checkpointing: bool = False) -> None:
    """Values and gradients of packed groups against one plain forward a sequence, before the model is set to a rung."""
    groups = families.groups()
    wanted = families.plain_logps(model, groups)
    slopes = families.gradients(model, wanted)
    assert wanted.std() > 0.3, "the model tells tokens apart"
    assert choose_rung(model, rung, longest=families.LONGEST) == rung
    if checkpointing:
        core_of(model).gradient_checkpointing_enable()
        without_dropout(model).train()
    found = families.token_logps(model, make_batch(groups, rung=rung, pad_id=0))
    assert (found - wanted).abs().max() <= VALUES
    assert tiny.worst_gradient(slopes, families.gradients(model, found)) <= GRADIENTS


@pytest.mark.parametrize(("family", "rung"), EXACT)
def test_log_probabilities_and_gradients_are_those_of_each_sequence_alone(family: str, rung: Rung) -> None:
    """5e-6 a token, and 5e-6 relative for all parameters; windows of 8 tokens in sequences of up to 32."""
    model = families.build(family)
    compare(model, rung)
    assert (core_of(model).config._attn_implementation == SEGMENTS) == (rung == "segments")


@pytest.mark.parametrize("family", [*families.FAMILIES, "GPTJ"])
def test_they_are_with_an_adapter(family: str) -> None:
    """The same bounds for the gradients of a LoRA adapter, which is not idle."""
    model = adapted(families.build(family))
    groups = families.groups()
    with torch.no_grad():
        own = families.plain_logps(model, groups)
        with model.disable_adapter():
            assert (families.plain_logps(model, groups) - own).abs().max() > 0.01
    compare(model, "segments" if family in families.FAMILIES else "dense")


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Gemma3", "GPT2", "Mixtral", "GptOss"])
def test_they_are_with_checkpointing(family: str, lora: bool) -> None:
    """Layers that are computed again see the same segments."""
    model = families.build(family)
    compare(adapted(model) if lora else model, "segments", checkpointing=True)


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Gemma2", "Gemma3", "Starcoder2", "GPT2"])
def test_flex_attention_gives_the_same_log_probabilities(family: str) -> None:
    """Without gradients, which it does not have on a CPU."""
    model, groups = families.build(family), families.groups()
    with torch.no_grad():
        wanted = families.plain_logps(model, groups)
        assert choose_rung(model, "flex", longest=families.LONGEST) == "flex"
        assert core_of(model).config._attn_implementation == FLEX
        found = families.token_logps(model, make_batch(groups, rung="flex", pad_id=0))
    assert (found - wanted).abs().max() <= VALUES


@pytest.mark.parametrize("rung", ["segments", "dense"])
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Mistral", "Gemma2", "Gemma3", "GPT2"])
def test_rewards_are_those_of_each_sequence_alone(family: str, rung: Rung) -> None:
    """5e-6 and 5e-6 relative, also where the end token is the padding token and is read past."""
    model = families.build(family, head="ForSequenceClassification", num_labels=1, pad_token_id=2)
    groups = families.groups()
    groups[0].response_ids[0][-2:] = [2, 2]
    groups[1].response_ids[1][:] = [2]
    wanted = families.plain_heads(model, groups)
    slopes = families.gradients(model, wanted)
    assert wanted.std() > 0.3
    assert choose_rung(model, rung, longest=families.LONGEST) == rung
    head = score(model, make_batch(groups, rung=rung, pad_id=2)).head
    assert head is not None
    assert (head - wanted).abs().max() <= VALUES
    assert tiny.worst_gradient(slopes, families.gradients(model, head)) <= GRADIENTS


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("name", [SEGMENTS, FLEX])
@pytest.mark.parametrize("family", ["Llama", "Gemma2", "GptOss", "Mistral"])
def test_ordinary_calls_are_what_they_were(family: str, name: str, cache: dict[str, str]) -> None:
    """Padded rows in one call and in two, and generation with a cache: as with the original attention."""
    plain, model = families.build(family), families.build(family)
    _set_attention(model, name)
    ids = torch.randint(3, tiny.VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
    padded = torch.ones_like(ids)
    padded[0, :5] = 0

    def logits(own: Any) -> list[Tensor]:
        made = [own(input_ids=ids, attention_mask=padded).logits[padded.bool()], own(input_ids=ids).logits]
        held = own(input_ids=ids[:, :6], use_cache=True).past_key_values
        return [*made, own(input_ids=ids[:, 6:], past_key_values=held).logits]

    def continued(own: Any, mask: Tensor | None) -> Any:
        asked = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        return own.generate(ids, attention_mask=mask, disable_compile=True, **asked, **cache).logits

    with torch.no_grad():
        pairs = [*zip(logits(plain), logits(model), strict=True)]
        for mask in (None, padded):
            pairs += zip(continued(plain, mask), continued(model, mask), strict=True)
    assert all((left - right).abs().max() <= 1e-5 for left, right in pairs)


# ------------------------------------------------------------------------------------------------------- DPO starts


@pytest.mark.parametrize("budget", [24, 70, 300, 10_000])
@pytest.mark.parametrize("layout", ["segments", "dense", "rows"])
def test_the_first_dpo_loss_is_ln_2_under_any_packing(layout: Rung, budget: int, tmp_path: Path) -> None:
    """The reference is the policy itself, scored on its rung in one budget and trained, at rate 0, in another."""
    model = families.build("Gemma3", vocab_size=tiny.VOCAB)
    unweighed = Groups.from_iterable(map(tiny.replace_pairs, tiny.graded_groups(8)))
    groups = tiny.encode(make_pairs(unweighed, "all"))
    longest = max(shape.longest for shape in groups.shapes())
    rung = choose_rung(model, layout, longest=longest)
    found: dict[int, list[float]] = {}
    for indices, scores in score_batches(model, groups, pad_id=0, tokens=60, precision=tiny.CPU, rung=rung):
        values = iter(scores.logp.tolist())
        found |= {index: [next(values) for _ in groups[index].response_ids] for index in indices}
    groups = groups.with_ref_logp([found[index] for index in range(len(groups))])
    config = tiny.configured(
        "dpo", f"train.layout={layout}", f"train.tokens_per_micro_batch={budget}", "train.prompts_per_step=4",
        "train.learning_rate=0", "train.num_train_epochs=1", "reward.beta=1",
    )  # fmt: skip
    trainer = tiny.trainer(model, config, groups, tmp_path)
    passes = [micro.passes for step in trainer.plan.steps(0) for micro in step[0]]
    assert {24: max(passes) > 1, 10_000: passes == [1, 1]}.get(budget, True)
    trainer.train()
    assert trainer.losses == pytest.approx([math.log(2)] * 2, abs=2e-6)
    gaps = [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry]
    assert gaps == pytest.approx([0.0, 0.0], abs=5e-6)


# ---------------------------------------------------------------------------------------------------------- packing

IDS = st.lists(st.integers(0, 4), min_size=1, max_size=6)
GROUPS = st.lists(st.tuples(IDS, st.lists(IDS, min_size=1, max_size=4)), min_size=1, max_size=5)


def bare(row: int, prompt: list[int], responses: list[list[int]]) -> EncodedGroup:
    """A group of these tokens."""
    made = families.group(1, [1] * len(responses), seed=row)
    made.prompt_ids[:], made.response_ids[:] = prompt, responses
    return made


def seen_by(batch: Batch, at: int) -> list[int]:
    """Flat positions that a token of a packed batch sees, as each rung is told."""
    if batch["rung"] == "segments":
        (piece,) = [piece for piece in batch["segments"].pieces if piece.start <= at < piece.stop]
        return [*range(piece.origin, piece.origin + piece.shared), *range(piece.start, at + 1)]
    row, column = divmod(at, batch["input_ids"].shape[1])
    where = tuple(batch[name][row] for name in ("group_ids", "segment_ids", "position_ids"))
    own = tuple(part[column] for part in where)
    return (_visible(own, where, None).nonzero()[:, 0] + row * batch["input_ids"].shape[1]).tolist()


@pytest.mark.parametrize("rung", ["segments", "dense", "flex"])
@given(drawn=GROUPS, pad=st.sampled_from([0, 2, 9]))
def test_every_token_sees_its_own_past_and_nothing_else(
    rung: Rung, drawn: list[tuple[list[int], list[list[int]]]], pad: int
) -> None:
    """What predicts a token sees prompt and response up to there, at their positions; a reward is read as in rows."""
    groups = [bare(number, *one) for number, one in enumerate(drawn)]
    batch, rows = packed_batch(groups, rung=rung, pad_id=pad), padded_batch(groups, pad_id=pad)
    ids, positions = batch["input_ids"].flatten().tolist(), batch["position_ids"].flatten().tolist()
    predict, predict_at = iter(batch["predict"].tolist()), iter(batch["predict_at"].tolist())
    width = rows["input_ids"].shape[1]
    owner: list[int] = []
    for number, (prompt, response) in enumerate(families.sequences(groups)):
        whole = prompt + response
        read = int(rows["read_at"][number]) - number * width
        at = [next(predict_at) for _ in response]
        pasts = [*range(len(prompt), len(whole)), read + 1]
        for place, past in zip([*at, int(batch["read_at"][number])], pasts, strict=True):
            seen = seen_by(batch, place)
            assert [ids[one] for one in seen] == whole[:past]
            assert [positions[one] for one in seen] == list(range(past))
            assert seen[-1] == place
        assert [next(predict) for _ in response] == response
        owner += [number] * len(response)
    assert batch["owner"].tolist() == owner
    assert batch["length"].tolist() == [len(response) for _, response in families.sequences(groups)]
    assert next(predict_at, None) is next(predict, None) is None


@pytest.mark.parametrize("rung", ["segments", "dense", "flex"])
@given(drawn=GROUPS)
def test_a_packed_row_holds_each_token_once(rung: Rung, drawn: list[tuple[list[int], list[list[int]]]]) -> None:
    """Pieces cover the one row exactly; 4D masks get rows no longer than the longest group; blocks are filled up."""
    groups = [bare(number, *one) for number, one in enumerate(drawn)]
    batch = packed_batch(groups, rung=rung, pad_id=9)
    sizes = [group.shape.packed for group in groups]
    assert int((batch["input_ids"] != 9).sum()) == sum(sizes)
    count, width = batch["input_ids"].shape
    if rung == "segments":
        assert (count, width) == (1, sum(sizes))
        covered = [at for piece in batch["segments"].pieces for at in range(piece.start, piece.stop)]
        assert sorted(covered) == list(range(width))
        assert len(batch["segments"].pieces) == sum(len(group.response_ids) for group in groups)
    elif rung == "dense":
        assert width == max(sizes)
        assert count <= 2 * math.ceil(sum(sizes) / width), "first fit"
    else:
        assert count == 1
        assert width == math.ceil(sum(sizes) / FLEX_MULTIPLE) * FLEX_MULTIPLE


def test_what_the_data_says_is_the_same_in_every_layout() -> None:
    """Pairs, grades, lengths, joined scores: equal columns of packed and padded batches."""
    groups = tiny.encode(tiny.graded_groups(6))
    chance = random.Random(0)
    groups = groups.with_ref_logp([[chance.random() for _ in group.response_ids] for group in groups])
    batches = [make_batch(list(groups), rung=rung, pad_id=0) for rung in ("rows", "segments", "dense", "flex")]
    layout = {"input_ids", "attention_mask", "position_ids", "segments", "group_ids", "segment_ids", "rung"}
    named = [{name for name in batch if name not in layout | {"predict_at", "read_at"}} for batch in batches]
    assert named[0] == named[1] == named[2] == named[3] >= {"pairs", "weight", "ref_logp", "predict", "owner", "sizes"}
    for batch in batches[1:]:
        for name in named[0]:
            left, right = batches[0][name], batch[name]
            same = torch.allclose(left, right, 0, 0, equal_nan=True) if isinstance(left, Tensor) else left == right
            assert same, name


def test_layers_share_one_mask_of_a_piece() -> None:
    """The same tensor for the same shape, window and type; nothing where attention is plainly causal."""
    segments, like = Segments(()), torch.zeros(1)
    first = segments.mask(3, 5, None, like)
    assert first is not None
    assert first is segments.mask(3, 5, None, like)
    assert first is segments.mask(3, 5, 5, like), "a window as long as the keys hides nothing"
    assert first.tolist() == [[0, 0, 0, -math.inf, -math.inf], [0, 0, 0, 0, -math.inf], [0] * 5]
    hidden = segments.mask(3, 5, 2, like)
    assert hidden is not None
    assert (hidden == 0).tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    assert segments.mask(5, 5, None, like) is None
    assert segments.mask(5, 5, 9, like) is None
    halved = segments.mask(3, 5, None, like.bfloat16())
    assert halved is not None
    assert halved.dtype == torch.bfloat16


def test_all_layers_ask_the_batch_for_their_masks() -> None:
    """A model with two kinds of layers makes one mask a shape and kind, however many layers it has."""
    model, groups = families.build("Gemma3", num_hidden_layers=6, layer_types=None), families.groups()
    kinds = set(model.config.layer_types)
    assert kinds == {"sliding_attention", "full_attention"}
    _set_attention(model, SEGMENTS)
    batch = make_batch(groups, rung="segments", pad_id=0)
    families.token_logps(model, batch)
    shapes = {(piece.stop - piece.start, piece.shared) for piece in batch["segments"].pieces}
    assert 0 < len(batch["segments"]._masks) <= 2 * len(shapes)
