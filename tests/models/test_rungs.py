"""The ladder steps down wherever a packed row would be wrong: once by what a configuration says, once by the probe."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, GPTNeoConfig, GPTNeoForCausalLM

import marginkit.models.attention as attention
import marginkit.models.rungs as rungs
import tiny
from marginkit.errors import BadInput
from marginkit.models.attention import FLEX, SEGMENTS, Piece, Segments, attend_segments
from marginkit.models.packing import Rung, make_batch
from marginkit.models.rungs import choose_rung, unfit
from marginkit.models.scorer import score

REASONS = {
    "Qwen3Next": "it has recurrent layers, which would carry one response into the next",
    "Mamba2": "it has recurrent layers, which would carry one response into the next",
    "FalconH1": "it has recurrent layers, which would carry one response into the next",
    "RecurrentGemma": "it has recurrent layers, which would carry one response into the next",
    "Lfm2": "it has conv layers",
    "Mpt": r"its positions are biases by index \(ALiBi\)",
    "Bloom": r"its positions are biases by index \(ALiBi\)",
}
LONG = 64  # of sequences, where a window of 24 has to be gone beyond
FAR = 24


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What a user is told, and then forgotten."""
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    caplog.clear()
    return found


@pytest.fixture
def sabotage() -> Iterator[Callable[[Callable[..., Any]], None]]:
    """Put another function in the place of segment attention, for the length of a test."""
    yield lambda function: AttentionInterface.register(SEGMENTS, function)
    AttentionInterface.register(SEGMENTS, attend_segments)


def another(kind: str) -> Callable[..., Any]:
    """Segment attention with one thing wrong."""

    def pieces(of: Segments) -> Iterator[Piece]:
        for piece in of.pieces:
            if kind == "the prompt is not seen":
                yield replace(piece, shared=0)
            elif kind == "its first token is not seen":
                yield replace(piece, origin=piece.origin + 1, shared=max(0, piece.shared - 1))
            elif kind == "another response is seen":
                yield replace(piece, shared=piece.start - piece.origin)
            else:
                yield piece

    def attend(*args: Any, segments: Segments | None = None, sliding_window: int | None = None, **kwargs: Any) -> Any:
        if kind == "the window is hidden":
            sliding_window = None
        elif kind == "the window is one longer":
            sliding_window = sliding_window and sliding_window + 1
        elif kind == "the cap is left out":
            kwargs["softcap"] = None
        elif kind == "the sinks are left out":
            kwargs["s_aux"] = None
        elif kind == "the scores are 0.2 % larger":
            kwargs["scaling"] *= 1.002
        if segments is not None:
            segments = Segments(tuple(pieces(segments)))
        return attend_segments(*args, segments=segments, sliding_window=sliding_window, **kwargs)

    return attend


# ------------------------------------------------------------------------------------------- families that go wrong


@pytest.mark.parametrize("family", families.WRONG)
def test_a_family_that_packed_rows_are_not_for_is_scored_on_padded_ones(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The guard alone, without a probe: one line, an untouched model, and scores that are its own forward's."""
    model, groups = families.build(family), families.groups()
    before = model.config._attn_implementation
    with caplog.at_level(logging.INFO, "marginkit"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(rungs, "_try", lambda *_: pytest.fail("the guard should have spoken"))
        rung = choose_rung(model, "auto", longest=families.LONGEST)
    assert rung == "rows"
    (line,) = told(caplog)
    reason = REASONS[family].replace("\\", "")
    assert line == f"layout: padded rows, each response once; {type(model).__name__}: {reason}"
    assert model.config._attn_implementation == before
    with torch.no_grad():
        found = families.token_logps(model, make_batch(groups, rung=rung, pad_id=0))
        assert (found - families.plain_logps(model, groups)).abs().max() <= 1e-5


@pytest.mark.parametrize("family", families.WRONG)
def test_the_probe_alone_finds_them_too(
    family: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the guards off every rung is tried and refused; the model is as before, and there is one line still."""
    model = families.build(family)
    before = model.config._attn_implementation
    monkeypatch.setattr(rungs, "unfit", lambda *_: None)
    with caplog.at_level(logging.INFO, "marginkit"):
        assert choose_rung(model, "auto", longest=families.LONGEST) == "rows"
    (line,) = told(caplog)
    assert line.startswith(f"layout: padded rows, each response once; {type(model).__name__}: ")
    assert " on a probe" in line
    assert "\n" not in line
    for rung in ("segments", "dense", "flex"):
        assert rungs._try(model, rung, families.LONGEST) is not None
        assert model.config._attn_implementation == before
    packed = make_batch(families.groups(), rung="segments", pad_id=0)
    if family not in ("Mpt", "Bloom"):  # those do not let their attention be exchanged
        rungs._set_attention(model, SEGMENTS)
        with torch.no_grad():
            wrong = families.token_logps(model, packed) - families.plain_logps(model, families.groups())
        assert wrong.abs().max() > 0.01, "it would have gone wrong, without an exception"


@pytest.mark.parametrize("longest", [32, 200])
def test_windows_that_are_measured_along_the_row_are_not_packed(longest: int) -> None:
    """GPT-Neo's local layers: wrong beyond a window that no short probe reaches, so it is not left to the probe."""
    torch.manual_seed(0)
    sizes = {"vocab_size": tiny.VOCAB, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48}
    kinds = {"attention_types": [[["global", "local"], 1]], "window_size": 80, "max_position_embeddings": 256}
    model = GPTNeoForCausalLM(GPTNeoConfig(**sizes | kinds)).eval()  # type: ignore[arg-type]
    assert rungs._try(model, "dense", longest) is None, "the probe sees nothing"
    groups = [families.group(20, (12,) * 7)]
    with torch.no_grad():
        wrong = families.token_logps(model, make_batch(groups, rung="dense", pad_id=0))
        assert (wrong - families.plain_logps(model, groups)).abs().max() > 0.001
    assert choose_rung(model, "auto", longest=longest) == "rows"


# -------------------------------------------------------------------------------------------------- sliding windows


@pytest.mark.parametrize("kind", ["the window is hidden", "the window is one longer"])
def test_a_window_the_attention_function_does_not_know_is_found(
    kind: str, sabotage: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """Where sequences go beyond the window the next rung is taken, which has it in its mask; else it may be."""
    sabotage(another(kind))
    model = families.build("Mistral", sliding_window=FAR)
    before = model.config._attn_implementation
    assert choose_rung(model, "auto", longest=LONG) == "dense"
    assert model.config._attn_implementation == before
    with pytest.raises(BadInput, match=r"train.layout=segments: MistralForCausalLM: packed rows differ .* on a probe;"):
        choose_rung(model, "segments", longest=LONG)
    assert model.config._attn_implementation == before
    groups = [families.group(30, (12, 9)), families.group(4, (30, 3))]
    with torch.no_grad():
        wanted = families.plain_logps(model, groups)
        rungs._set_attention(model, SEGMENTS)
        wrong = families.token_logps(model, make_batch(groups, rung="segments", pad_id=0)) - wanted
        assert wrong.abs().max() > 1e-3
        rungs._set_attention(model, before)
    assert choose_rung(model, "auto", longest=FAR) == "segments"


def test_a_window_the_mask_does_not_know_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 4D mask without the window: refused where sequences go beyond it, taken where none does."""
    model = families.build("Mistral", sliding_window=FAR)
    monkeypatch.setattr(attention, "windows_of", lambda _: {"full_attention": None})
    assert "differ" in str(rungs._try(model, "dense", LONG))
    assert rungs._try(model, "dense", FAR) is None


@pytest.mark.parametrize("family", ["Mistral", "Gemma2", "Gemma3", "GptOss", "Cohere2"])
@pytest.mark.parametrize(("window", "longest"), [(8, 32), (FAR, LONG), (100, 101), (100, 128), (200, 64)])
def test_the_probe_goes_beyond_a_window_only_if_the_data_does(family: str, window: int, longest: int) -> None:
    """Its longest sequence is longer than the window, never longer than the data, and short where there is no need."""
    groups = rungs._probe_groups(families.build(family, sliding_window=window), longest)
    most = max(group.length for group in groups)
    assert most <= longest
    assert (most > window) == (longest > window)
    assert most <= window + 20 or window >= longest
    assert window < longest or most == 20


def test_a_probe_fits_into_short_sequences_and_small_vocabularies() -> None:
    """No token outside the vocabulary, none that is padding, no empty prompt or response."""
    for longest in (1, 2, 9, 12, 20, 4096):
        groups = rungs._probe_groups(families.build("Llama", vocab_size=8, pad_token_id=7), longest)
        tokens = [token for group in groups for ids in (group.prompt_ids, *group.response_ids) for token in ids]
        assert {5, 6} <= set(tokens) <= set(range(3, 7))
        assert all(group.prompt_ids and all(group.response_ids) for group in groups)
        assert max(group.length for group in groups) <= max(longest, 11)


# -------------------------------------------------------------------------------------------------------- precision

FAULTS = [
    ("Llama", "the prompt is not seen"),
    ("Llama", "its first token is not seen"),
    ("Llama", "another response is seen"),
    ("Mistral", "the window is hidden"),
    ("Gemma2", "the cap is left out"),
    ("GptOss", "the sinks are left out"),
]


@pytest.mark.parametrize(
    ("family", "kind", "dtype"),
    [
        (*fault, dtype)
        for fault in FAULTS
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
        if "first token" not in fault[1] or dtype != torch.bfloat16  # one token of many is within its rounding
    ],
)
def test_no_precision_lets_a_real_error_through(
    family: str, kind: str, dtype: torch.dtype, sabotage: Callable[..., None]
) -> None:
    """Half precision is judged by its own noise, and what is wrong is still seen; without the fault nothing is."""
    steep = {"attn_logit_softcapping": 0.3, "query_pre_attn_scalar": 4} if family == "Gemma2" else {}
    model = families.build(family, **steep).to(dtype)
    before = model.config._attn_implementation
    assert rungs._try(model, "segments", families.LONGEST) is None
    rungs._set_attention(model, before)
    sabotage(another(kind))
    assert "packed rows differ from padded ones" in str(rungs._try(model, "segments", families.LONGEST))
    assert model.config._attn_implementation == before


def test_in_full_precision_small_errors_are_seen(sabotage: Callable[..., None]) -> None:
    """Attention scores that are 0.2 % larger are far beyond rounding, though no token looks wrong."""
    sabotage(another("the scores are 0.2 % larger"))
    assert "differ from padded ones" in str(rungs._try(families.build("Llama"), "segments", families.LONGEST))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", [*families.FAMILIES, *families.BY_MASK])
def test_half_precision_weights_pass_the_probe(family: str, dtype: torch.dtype) -> None:
    """Several draws of weights, lengths on both sides of the window: rounding alone never makes a model step down."""
    wanted = "segments" if family in families.FAMILIES else "dense"
    for seed, longest in ((0, 32), (1, 8), (2, 100)):
        model = families.build(family, seed=seed).to(dtype)
        assert choose_rung(model, "auto", longest=longest) == wanted, (seed, longest)


def test_a_probe_that_is_not_finite_is_not_taken() -> None:
    """NaN is no agreement."""
    model = families.build("Llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    assert choose_rung(model, "auto", longest=32) == "rows"


# ------------------------------------------------------------------------------------------------ what is asked for


def test_a_rung_that_is_wanted_and_does_not_work_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """One line with the way out; a model that is only asked (strict off) falls back and says so."""
    model = families.build("Mamba2")
    with pytest.raises(BadInput) as refused:
        choose_rung(model, "segments", longest=32)
    reason = f"Mamba2ForCausalLM: {REASONS['Mamba2']}"
    assert str(refused.value) == f"train.layout=segments: {reason}; use train.layout=auto"
    with caplog.at_level(logging.INFO, "marginkit"):
        assert choose_rung(model, "segments", longest=32, strict=False) == "rows"
    assert told(caplog) == [f"layout: padded rows, each response once; {reason}"]


def test_an_attention_that_was_asked_for_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    """model.attention=eager under auto: padded rows, and a line that says how to share prompts; a wanted rung wins."""
    model = families.build("Llama", attn_implementation="eager")
    with caplog.at_level(logging.INFO, "marginkit"):
        assert choose_rung(model, "auto", longest=32, kernel="eager") == "rows"
    assert told(caplog) == [
        "layout: padded rows, for model.attention=eager; train.layout=segments shares prompts",
    ]
    assert model.config._attn_implementation == "eager"
    assert choose_rung(model, "dense", longest=32, kernel="eager") == "dense"
    assert model.config._attn_implementation == "eager"
    with torch.no_grad():
        wanted = families.plain_logps(model, families.groups())
        found = families.token_logps(model, make_batch(families.groups(), rung="dense", pad_id=0))
        assert (found - wanted).abs().max() <= 5e-6
    assert choose_rung(model, "segments", longest=32, kernel="eager") == "segments"
    assert model.config._attn_implementation == SEGMENTS


def test_padded_rows_are_taken_at_once_and_quietly(caplog: pytest.LogCaptureFixture) -> None:
    """train.layout=rows: no probe, no line, no change."""
    model = families.build("Llama")
    with caplog.at_level(logging.INFO, "marginkit"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(rungs, "_try", lambda *_: pytest.fail("nothing to probe"))
        assert choose_rung(model, "rows", longest=32) == "rows"
    assert told(caplog) == []
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["bert_rm", "modernbert_rm"])
def test_an_encoder_reads_padded_rows(family: str, caplog: pytest.LogCaptureFixture) -> None:
    """It looks both ways, so no response could share a prompt."""
    model = tiny.model(family)
    with caplog.at_level(logging.INFO, "marginkit"):
        assert choose_rung(model, "auto", longest=32) == "rows"
    (line,) = told(caplog)
    assert line.endswith(f"{type(model).__name__}: an encoder reads whole sequences")


@pytest.mark.parametrize("rung", ["segments", "flex"])
def test_a_saved_model_does_not_know_our_attention(rung: Rung, tmp_path: Path) -> None:
    """Its files do not name it, and it loads as any other."""
    model = families.build("Llama")
    assert choose_rung(model, rung, longest=32) == rung
    assert model.config._attn_implementation == {"segments": SEGMENTS, "flex": FLEX}[rung]
    model.save_pretrained(tmp_path)
    assert all("marginkit" not in path.read_text() for path in tmp_path.glob("*.json"))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 32}
LONGROPE |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


@pytest.mark.parametrize(("family", "rope"), [("Llama", DYNAMIC), ("Phi3", LONGROPE)])
def test_positions_scaled_by_the_longest_sequence_are_not_packed(family: str, rope: dict[str, Any]) -> None:
    """Only where data goes beyond the original length: a short response beside a long one would be scaled with it."""
    limit = "max_position_embeddings" if rope is DYNAMIC else "original_max_position_embeddings"
    model = families.build(family, rope_parameters=rope, **{limit: 32})
    assert unfit(model, 32) is None
    assert unfit(model, 33) == f"its positions are scaled by the longest sequence ({rope['rope_type']})"
    assert choose_rung(model, "auto", longest=32) == "segments"
    groups = [families.group(20, (12, 3)), families.group(3, (5, 2), seed=1)]
    with torch.no_grad():
        found = families.token_logps(model, make_batch(groups, rung="segments", pad_id=0))
        assert (found - families.plain_logps(model, groups)).abs().max() <= 5e-6
        groups[0].response_ids[0].extend([7] * 9)
        found = families.token_logps(model, make_batch(groups, rung="segments", pad_id=0))
        assert (found - families.plain_logps(model, groups)).abs().max() > 1e-3, "this is what the guard is for"


@pytest.mark.parametrize("training", [False, True])
def test_the_probe_leaves_the_model_as_it_was(training: bool) -> None:
    """Mode, weights, gradients, chance."""
    model = families.build("Gemma3").train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chance = torch.get_rng_state()
    assert choose_rung(model, "auto", longest=32) == "segments"
    assert model.training == training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(chance, torch.get_rng_state())


def test_a_reward_model_is_probed_where_rewards_are_read(sabotage: Callable[..., None]) -> None:
    """A classifier takes the same ladder, and a fault in it is found."""
    model = families.build("Qwen2", head="ForSequenceClassification", num_labels=1)
    assert choose_rung(model, "auto", longest=32) == "segments"
    rungs._set_attention(model, "sdpa")
    sabotage(another("another response is seen"))
    assert choose_rung(model, "auto", longest=32) == "dense"
    head = score(model, make_batch(families.groups(), rung="dense", pad_id=0)).head
    assert head is not None
    assert (head - families.plain_heads(model, families.groups())).abs().max() <= 5e-6
