"""The vLLM engine against a stand-in of its documented interface: what it is asked, and how its answers are read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

import marginkit as mk
import tiny
from marginkit import vllm_engine
from marginkit.config import ModelConfig
from marginkit.decoding import Draws
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group, Response
from marginkit.vllm_engine import draw_with_vllm

ASKED = Groups.from_iterable(Group(f"g{at}", f"the {word}", (Response("x"),)) for at, word in enumerate(tiny.WORDS[:5]))


@dataclass
class SamplingParams:
    """As vLLM has it: unknown names are refused."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = 16
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    detokenize: bool = True


@dataclass
class Completion:
    """One output of a request."""

    index: int
    token_ids: Sequence[int]
    finish_reason: str | None


@dataclass
class Request:
    """A finished request."""

    prompt_token_ids: list[int]
    outputs: list[Completion] = field(default_factory=list)


class LLM:
    """Answers a prompt with its own length, every second response cut."""

    made: ClassVar[list[dict[str, Any]]] = []
    asked: ClassVar[list[tuple[list[int], SamplingParams, Any]]] = []

    def __init__(self, **options: Any) -> None:
        self.made.append(options)

    def generate(
        self, prompts: list[dict[str, list[int]]], params: list[SamplingParams], *, use_tqdm: bool, lora_request: Any
    ) -> list[Request]:
        """In the order of the prompts."""
        assert not use_tqdm
        answers = []
        for prompt, own in zip(prompts, params, strict=True):
            ids = prompt["prompt_token_ids"]
            self.asked.append((ids, own, lora_request))
            assert own.stop_token_ids
            end = own.stop_token_ids[:1]
            words = [[50 + len(ids), 60 + k] for k in range(own.n)]
            whole = [
                Completion(k, said, "length") if k % 2 else Completion(k, said + end, "stop")
                for k, said in enumerate(words)
            ]
            answers.append(Request(ids, whole))
        return answers


class LoRARequest:
    """A named adapter."""

    def __init__(self, lora_name: str, lora_int_id: int, lora_path: str) -> None:
        self.name, self.id, self.path = lora_name, lora_int_id, lora_path


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    """A module named vllm."""
    module, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    module.LLM, module.SamplingParams, request.LoRARequest = LLM, SamplingParams, LoRARequest  # type: ignore[attr-defined]
    for name, one in (("vllm", module), ("vllm.lora", lora), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, one)
    monkeypatch.setattr(LLM, "made", [])
    monkeypatch.setattr(LLM, "asked", [])
    return LLM


def test_without_vllm_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, before a model is looked at."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    path = tiny.save(tmp_path, "llama")
    with pytest.raises(BadInput, match=r"--engine vllm: vLLM is not installed; pip install marginkit\[vllm\]"):
        mk.sample(path, ASKED, engine="vllm")


def test_prompts_settings_and_answers(vllm: type[LLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token prompts as training puts them, one seed a prompt, chunk by chunk; ends taken off, cut ones known."""
    monkeypatch.setattr(vllm_engine, "PROMPTS_PER_CHUNK", 2)
    path = tiny.save(tmp_path, "llama")
    seen: list[Any] = []

    def nothing(model: Any, prompts: list[list[int]], *_: Any, **__: Any) -> Iterator[Any]:
        seen.append(prompts)
        return iter(())

    monkeypatch.setattr("marginkit.generate.draw", nothing)
    with pytest.raises(BadInput):
        mk.sample(path, ASKED, n=3, overrides=["train.use_cpu=true"])
    groups = mk.sample(path, ASKED, n=3, temperature=0.7, top_p=0.9, max_new_tokens=9, engine="vllm", seed=4)
    assert [ids for ids, _, _ in vllm.asked] == seen[0]
    assert len({own.seed for _, own, _ in vllm.asked}) == len(ASKED)
    assert all(0 <= own.seed < 2**31 for _, own, _ in vllm.asked if own.seed is not None)
    own = vllm.asked[0][1]
    assert (own.n, own.temperature, own.top_p, own.max_tokens, own.detokenize) == (3, 0.7, 0.9, 9, False)
    made = vllm.made[0]
    assert (made["model"], made["max_model_len"], made["generation_config"]) == (path, 256, "vllm")
    assert made["dtype"] == "bfloat16"
    assert not made["trust_remote_code"]
    assert len(vllm.made) == 1
    decode = tiny.tokenizer().decode
    for group, (ids, _, _) in zip(groups, vllm.asked, strict=True):
        assert [r.text for r in group.responses] == [decode([50 + len(ids), 60 + k]) for k in range(3)]


def test_ends_and_cuts_are_told_apart(vllm: type[LLM]) -> None:
    """finish_reason says which; the end token is no part of the response."""
    found = list(draw_with_vllm(ModelConfig(path="m"), [[1, 2], [1]], Draws(n=2, max_new_tokens=4), stop={9}, limit=64))
    assert [members for members, _ in found] == [[0, 1]]
    assert [[(one.ids, one.ended) for one in row] for row in found[0][1]] == [
        [([52, 60], True), ([52, 61], False)],
        [([51, 60], True), ([51, 61], False)],
    ]
    assert vllm.asked[0][2] is None


def test_an_adapter_is_served_from_its_base(vllm: type[LLM], tmp_path: Path) -> None:
    """As a LoRA request of the right rank, with the tokenizer that lies beside it."""
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "base/model", "r": 24}')
    held = ModelConfig(path=str(tmp_path), dtype="bfloat16")
    list(draw_with_vllm(held, [[1, 2]], Draws(n=1), stop={9}, limit=64))
    made = vllm.made[0]
    assert (made["model"], made["tokenizer"], made["dtype"]) == ("base/model", str(tmp_path), "bfloat16")
    assert (made["enable_lora"], made["max_lora_rank"]) == (True, 24)
    assert vllm.asked[0][2].path == str(tmp_path)
