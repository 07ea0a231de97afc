"""Sampling from a policy as it was trained: what is asked, what is kept, what is left out, and an account of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import marginkit as mk
import tiny
from marginkit import generate
from marginkit.config import EncodingConfig
from marginkit.data.encoding import CHATML, Encoder
from marginkit.data.prompts import distinct_prompts, read_prompts
from marginkit.decoding import Drawn, Draws
from marginkit.drafts import DraftedResponse
from marginkit.errors import BadInput
from marginkit.generate import draw_samples
from marginkit.groups import Groups
from marginkit.models.loading import load_tokenizer
from marginkit.policies import open_policy
from marginkit.records import Group, Pair, Response, Turn, content_text

CPU = ("train.use_cpu=true",)
ASKED = Groups.from_iterable(
    Group(
        f"g{at}",
        f"the {word} bird sings",
        (Response("over the hill", 3.0), Response("slow", 1.0)),
        pairs=(Pair(0, 1),),
        split=("train", "dev")[at % 2],
        cluster=f"c{at}",
    )
    for at, word in enumerate(tiny.WORDS[:6])
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved causal model without a chat template."""
    return tiny.save(tmp_path_factory.mktemp("policy"), "llama")


def said(groups: Groups) -> dict[str, list[str]]:
    """The responses by group."""
    return {group.id: [response.text for response in group.responses] for group in groups}


def test_responses_are_new_ungraded_and_signed(policy: str) -> None:
    """N different ones a prompt; what the data said of the prompt stays, what it said of the old responses goes."""
    groups = mk.sample(policy, ASKED, n=4, temperature=1.0, max_new_tokens=8, overrides=CPU)
    assert [group.id for group in groups] == [group.id for group in ASKED]
    for group, before in zip(groups, ASKED, strict=True):
        assert (group.prompt, group.split, group.cluster) == (before.prompt, before.split, before.cluster)
        assert (group.pairs, group.comparisons) == ((), ())
        assert len(group.responses) == 4
        assert {response.model for response in group.responses} == {policy}
        assert all(response.grade is response.utility is None for response in group.responses)
        assert not {"over the hill", "slow"} & {response.text for response in group.responses}
    again = mk.sample(policy, ASKED, n=4, temperature=1.0, max_new_tokens=8, overrides=CPU, batch_tokens=1)
    assert said(again) == said(groups)
    other = mk.sample(policy, ASKED, n=4, temperature=1.0, max_new_tokens=8, overrides=CPU, seed=1)
    assert said(other) != said(groups)
    one = mk.sample(policy, ASKED[2:3], n=2, temperature=1.0, max_new_tokens=8, overrides=CPU)
    assert said(one) == {"g2": said(groups)["g2"][:2]}


def test_given_responses_stay_in_front_where_asked_for(policy: str) -> None:
    """Ungraded: a human's grade beside a model's would be compared with it."""
    groups = mk.sample(policy, ASKED, n=2, with_given=True, max_new_tokens=8, overrides=CPU)
    for group in groups:
        assert [response.text for response in group.responses[:2]] == ["over the hill", "slow"]
        assert len(group.responses) == 4
        assert all(response.grade is None for response in group.responses)


def test_each_prompt_is_asked_once(policy: str) -> None:
    """Repeated prompts are counted; read == kept + dropped."""
    rows = [{"prompt": "the red bird", "chosen": f"a {k}", "rejected": f"b {k}"} for k in range(3)]
    rows += [{"prompt": "the old house", "chosen": "x", "rejected": "x"}]
    rows += [{"prompt": "the old tree", "chosen": "x", "rejected": "y"}]
    groups = mk.sample(policy, rows, n=2, max_new_tokens=6, overrides=CPU)
    assert [group.prompt for group in groups] == ["the red bird", "the old tree"]
    assert groups.dropped == {"identical responses": 1, "repeated prompt": 2}
    assert len(groups) + sum(groups.dropped.values()) == len(rows)


def test_prompts_alone_are_read(policy: str, tmp_path: Path) -> None:
    """Rows of prompt, text or chat, with the columns every row may have; what breaks a rule is counted."""
    rows: list[Any] = [
        {"prompt": "the red bird", "id": "a", "split": "train"},
        {"prompt": "  ", "split": "train"},
        {"prompt": "the slow stone", "id": "a", "split": "dev", "cluster": "given"},
        {"prompt": [{"role": "user", "content": "under the tree"}], "split": "train"},
        {"prompt": None, "split": "train"},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    groups = read_prompts(str(path))
    assert [group.id for group in groups] == ["a", "a#3", "prompts:4"]
    assert [len(group.responses) for group in groups] == [0, 0, 0]
    assert groups[2].prompt == (Turn("user", "under the tree"),)
    assert groups[1].cluster == "given"
    assert groups[0].cluster is not None
    assert groups.dropped == {"empty prompt": 1, "missing text": 1, "broken JSON": 1}
    assert len(read_prompts(str(path), split="dev")) == 1
    assert len(read_prompts(str(path), limit=2)) == 1
    drawn = mk.sample(policy, str(path), n=2, max_new_tokens=6, overrides=CPU)
    assert [type(group.responses[0].turns) for group in drawn] == [str, str, tuple]
    with pytest.raises(BadInput, match="no prompt is left"):
        read_prompts([{"prompt": ""}])


def test_what_is_written_is_read_back(policy: str, tmp_path: Path) -> None:
    """The native form, chat turns too."""
    asked = [*ASKED, Group("chat", (Turn("user", "a small hill"),), (Response((Turn("assistant", "x"),)),))]
    groups = mk.sample(policy, Groups.from_iterable(asked), n=3, max_new_tokens=8, overrides=CPU)
    mk.write_groups(groups, tmp_path / "samples.jsonl")
    back, _ = mk.read_groups(str(tmp_path / "samples.jsonl"))
    assert list(back) == list(groups)
    assert isinstance(groups[6].responses[0].turns, tuple)


def test_what_cannot_be_used_is_counted() -> None:
    """Empty, cut, alike and missing: every drawn response and every prompt has its place in the account."""

    def drafted(*texts: str, cut: Sequence[int] = ()) -> list[DraftedResponse]:
        return [DraftedResponse(text, k not in cut, 5) for k, text in enumerate(texts)]

    found = {
        0: drafted("a", "b", "a ", "c", cut=[1]),
        1: drafted("a", "a", " a", "a"),
        2: drafted("", " ", "", ""),
        3: drafted("a", "", "b", "", cut=[0, 2]),
        4: drafted("", "", "x", ""),
    }
    asked = distinct_prompts(ASKED)
    groups, facts = generate._grouped(asked, found, "me", drop_cut=False)
    assert said(groups) == {"g0": ["a", "b", "c"], "g3": ["a", "b"]}
    assert groups.dropped == {
        "fewer than two different responses": 2,
        "no usable response": 1,
        "prompt leaves no room for max_new_tokens": 1,
    }
    assert facts["cut_responses"] == {"g0": [1], "g3": [0, 1]}
    assert (facts["drawn"], facts["cut"], facts["empty"], facts["merged"], facts["tokens"]) == (20, 3, 9, 4, 100)
    groups, facts = generate._grouped(asked, found, "me", drop_cut=True)
    assert said(groups) == {"g0": ["a", "c"]}
    assert groups.dropped["no usable response"] == 2
    assert facts["cut_responses"] == {}
    assert facts["cut"] == 3  # counted where they are left out as well
    one, _ = generate._grouped(asked[:1], {0: drafted("a")}, "me", drop_cut=False)
    assert said(one) == {"g0": ["a"]}  # one response was asked for: it is no duplicate
    given = distinct_prompts(ASKED[:1], with_given=True)
    both, _ = generate._grouped(given, {0: drafted("slow", "slow ")}, "me", drop_cut=False)
    assert said(both) == {"g0": ["over the hill", "slow"]}


def test_prompts_of_one_answer_are_left_out(policy: str) -> None:
    """At a temperature near 0 all say the same; where no prompt is left, that is said."""
    with pytest.raises(BadInput, match=r"no prompt has a usable answer \(fewer than two different responses: 6\)"):
        mk.sample(policy, ASKED, n=3, temperature=1e-4, max_new_tokens=6, overrides=CPU)
    greedy = mk.sample(policy, ASKED, n=1, temperature=0.0, max_new_tokens=6, overrides=CPU)
    assert len(greedy) == 6
    with pytest.raises(BadInput, match="would all be the same"):
        mk.sample(policy, ASKED, n=3, temperature=0.0)


def test_prompts_too_long_are_counted_or_cut(policy: str) -> None:
    """Prompt + max_new_tokens stay within what the policy was trained on; on_overflow decides, as in training."""
    long = Group("long", "the red bird " * 60, (Response("x"),))
    asked = Groups.from_iterable([*ASKED, long])
    groups = mk.sample(policy, asked, n=2, max_new_tokens=8, overrides=(*CPU, "encoding.max_length=40"))
    assert groups.dropped == {"prompt leaves no room for max_new_tokens": 1}
    cut = (*CPU, "encoding.max_length=40", "encoding.on_overflow=cut_prompt_left")
    assert len(mk.sample(policy, asked, n=2, max_new_tokens=8, overrides=cut)) == 7
    with pytest.raises(BadInput, match="max_new_tokens=39: prompt and response have 40 tokens together"):
        mk.sample(policy, asked, n=2, max_new_tokens=39, overrides=(*CPU, "encoding.max_length=40"))
    short = draw_samples(open_policy(policy, (*CPU, "encoding.max_length=40")), ASKED, Draws(n=2))
    assert short.facts["max_new_tokens"] == 20  # half of what there is


@pytest.mark.parametrize("template", [None, CHATML])
def test_prompts_are_put_as_training_puts_them(
    template: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine sees the encoder's own prompt tokens, and stops at what closes a response in training."""
    path = tiny.save(tmp_path, "llama", chat_template=template)
    seen: dict[str, Any] = {}

    def fake(model: Any, prompts: list[list[int]], draws: Draws, **more: Any) -> Iterator[Any]:
        seen.update(prompts=prompts, **more)
        yield list(range(len(prompts))), [[Drawn([20 + k], True) for k in range(draws.n)] for _ in prompts]

    monkeypatch.setattr(generate, "draw", fake)
    overrides = {"train": {"use_cpu": True}, "encoding": {"separator": " | "}}
    mk.sample(path, ASKED, n=2, max_new_tokens=8, overrides=overrides)
    tokenizer = load_tokenizer(path)
    encoder = Encoder(tokenizer, **EncodingConfig(separator=" | ").model_dump() | {"max_length": 256})
    trained = list(encoder.encode(ASKED)[0])
    assert seen["prompts"] == [list(group.prompt_ids) for group in trained]
    ends = {next(t for t in reversed(ids) if t in tokenizer.all_special_ids) for g in trained for ids in g.response_ids}
    assert ends <= seen["stop"]
    assert tokenizer.eos_token_id in seen["stop"]


def test_a_run_is_asked_as_it_was_trained(policy: str, tmp_path: Path) -> None:
    """Its encoding and model are found by its folder, also by that of the model in it; a reward model is refused."""
    common = {"model": {"path": policy}, "train": {"use_cpu": True, "save_strategy": "no", "max_steps": 1}}
    own = common | {
        "encoding": {"separator": " => ", "max_length": 60},
        "data": {"eval_split": None, "test_split": None},
    }
    run = mk.train("sft", own | {"out": str(tmp_path / "sft")}, train=ASKED)
    found = open_policy(run)
    assert found.config.encoding.separator == " => "
    assert found == open_policy(run.path / "model") == open_policy(str(run.path))
    assert str(found.held.path) == str(run.path / "model")
    groups = mk.sample(run, ASKED, n=2, max_new_tokens=6)
    assert {response.model for group in groups for response in group.responses} == {str(run.path)}
    judge = mk.train("bt", own | {"out": str(tmp_path / "bt")}, train=ASKED)
    with pytest.raises(BadInput, match="recipe bt trained a reward model, which writes nothing"):
        mk.sample(judge, ASKED)
    for name in (str(tmp_path / "nothing"), "no/such/run", "./nothing"):
        with pytest.raises(BadInput, match="no such run or model"):
            mk.sample(name, ASKED)
    with pytest.raises(BadInput, match=r"engine='vlm': the engines are transformers, vllm"):
        mk.sample(run, ASKED, engine="vlm")


def test_an_adapter_is_sampled_with_its_base(policy: str, tmp_path: Path) -> None:
    """A LoRA checkpoint: its draws are those of the merged model, and not those of the base."""
    from peft import LoraConfig, get_peft_model
    from torch import nn

    model = get_peft_model(tiny.model("llama"), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    model.peft_config["default"].base_model_name_or_path = policy
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.2)
    model.save_pretrained(str(tmp_path / "adapter"))
    tiny.tokenizer().save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(  # type: ignore[operator]
        str(tmp_path / "merged")
    )
    tiny.tokenizer().save_pretrained(tmp_path / "merged")
    adapted, merged, base = (
        said(mk.sample(path, ASKED, n=3, temperature=1.0, max_new_tokens=8, overrides=CPU))
        for path in (str(tmp_path / "adapter"), str(tmp_path / "merged"), policy)
    )
    assert adapted == merged
    assert adapted != base


def test_distinct_prompts_merge_what_was_given() -> None:
    """The responses of all rows of a prompt, those that say the same once; tools make another prompt."""
    rows = [
        Group("a", "p", (Response("x"), Response("y"))),
        Group("b", "p", (Response("y "), Response("z"))),
        Group("c", "p", (Response("x"),), tools=({"name": "f"},)),
    ]
    merged = distinct_prompts(Groups.from_iterable(rows), with_given=True)
    assert [[content_text(r.turns) for r in group.responses] for group in merged] == [["x", "y", "z"], ["x"]]
    assert merged.dropped == {"repeated prompt": 1}
    bare = distinct_prompts(Groups.from_iterable(replace(row, pairs=()) for row in rows))
    assert [group.responses for group in bare] == [(), ()]
