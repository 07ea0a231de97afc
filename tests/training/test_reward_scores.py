"""Scores of another reward model: its own tokens, joined to the right response, computed once, refused in one line."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState

import marginkit.frozen_scores
import marginkit.models.loading
import marginkit.reward_scores
import marginkit.run
import marginkit.setup
import tiny
from marginkit.config import RunConfig, resolve
from marginkit.core.scored import madpo_weight
from marginkit.core.tensors import Labels, PairScores
from marginkit.data.encoded import EncodedGroups
from marginkit.errors import BadInput, RunFailed
from marginkit.frozen_scores import kept_scores
from marginkit.groups import Groups
from marginkit.models.loading import fresh_tokenizer, load_tokenizer
from marginkit.reward_scores import join_reward_scores
from marginkit.run import score, train
from marginkit.store import ScoreStore

GROUPS = tiny.world(train=10, dev=4, test=4)
RESPONSES = sum(len(group.responses) for group in GROUPS)
SHORT = ("train.learning_rate=0.01", "train.prompts_per_step=4", "train.save_strategy=no", "train.use_cpu=true")


def own_run(folder: Path, family: str, *more: str, recipe: str = "bt") -> Path:
    """A short run of a model; a decoder gets a tokenizer that splits otherwise than the policies' does."""
    start = tiny.save(folder / f"{family}-start", family)
    if family == "llama_rm":
        fresh_tokenizer(["rivers and birds under apples"] * 4, 280).save_pretrained(start)
    out = folder / family
    return train(recipe, [f"model.path={start}", f"out={out}", "store.use=false", *SHORT, *more], train=GROUPS).path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models of this module are."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def rm(folder: Path) -> Path:
    """A run of a reward model with a tokenizer and a separator of its own."""
    return own_run(folder, "llama_rm", "encoding.separator==>")


@pytest.fixture(scope="module")
def policy(folder: Path) -> str:
    """A policy to start from."""
    return tiny.save(folder / "policy", "llama")


def asking(model: Path | str, folder: Path, *more: str) -> RunConfig:
    """A run that names this reward model."""
    return resolve(
        "dpo", [f"model.reward_model={model}", f"store.path={folder / 'store'}", "train.use_cpu=true", *more]
    )


def joined(
    config: RunConfig, folder: Path, parts: dict[str, Groups] | None = None, **options: Any
) -> tuple[dict[str, EncodedGroups], dict[str, Any]]:
    """The scores, joined to the groups in a policy's tokens."""
    parts = parts or {"train": GROUPS}
    encoded = {name: tiny.encode(groups, **options) for name, groups in parts.items()}
    return join_reward_scores(config, parts, encoded, folder, PartialState(cpu=True))


def heads(groups: EncodedGroups) -> dict[tuple[str, int], float]:
    """The joined score of every response, by group and place."""
    return {(group.id, place): value for group in groups for place, value in enumerate(group.rm_head)}


def own_heads(model: Path) -> dict[tuple[str, int], float]:
    """What `score` says of every response."""
    rows = score(model, GROUPS).responses.to_pylist()
    return {(row["group"], row["response"]): row["head"] for row in rows}


# ------------------------------------------------------------------------------------------------- the right scores


@pytest.mark.parametrize(
    ("family", "more"),
    [("llama_rm", None), ("modernbert_rm", ()), ("qwen2_rm", ("model.lora.r=4", "encoding.chat_template=chatml"))],
)
def test_the_joined_scores_are_those_the_reward_model_gives(
    family: str, more: tuple[str, ...] | None, rm: Path, folder: Path, tmp_path: Path
) -> None:
    """`score` of the reward model's run, to 1e-6: another tokenizer, an encoder, an adapter, another template."""
    model = rm if more is None else own_run(folder, family, *more)
    found, made = joined(asking(model, tmp_path), tmp_path)
    assert heads(found["train"]) == pytest.approx(own_heads(model), abs=1e-6)
    assert made["path"] == str(model / "model")
    assert made["settings"]["quantity"] == "head"
    assert len(made["fingerprint"]) == 16


def test_scores_are_joined_by_row_where_groups_were_left_out_or_put_in_another_order(rm: Path, tmp_path: Path) -> None:
    """Groups of 2, 3 and 4 responses, some too long for the policy, in two parts, read backwards."""
    parts = {"train": GROUPS[::-1], "eval": GROUPS[2:9]}
    found, _ = joined(asking(rm, tmp_path), tmp_path, parts, max_length=55, on_overflow="drop")
    expected = own_heads(rm)
    for name, groups in parts.items():
        kept = heads(found[name])
        assert 0 < len(found[name]) < len(groups)
        assert kept == pytest.approx({place: expected[place] for place in kept}, abs=1e-6)
        assert {len(group.rm_head) for group in found[name]} == {2, 3, 4}
        assert all(len(group.rm_head) == len(group.response_ids) for group in found[name])


def test_a_saved_reward_model_is_read_by_the_defaults(folder: Path, tmp_path: Path) -> None:
    """A folder that is no run: its own tokenizer, the default encoding."""
    saved = tiny.save(folder / "saved", "gpt2_rm", seed=4)
    found, made = joined(asking(saved, tmp_path), tmp_path)
    assert heads(found["train"]) == pytest.approx(own_heads(Path(saved)), abs=1e-6)
    assert made["path"] == saved


def test_two_columns_stand_side_by_side() -> None:
    """Joining one score keeps the other, and joining again replaces it."""
    encoded = tiny.encode(GROUPS[:2])
    assert encoded[0].rm_head is None
    sizes = [len(group.response_ids) for group in encoded]
    both = encoded.with_ref_logp([[-1.0] * n for n in sizes]).with_rm_head([[2.0] * n for n in sizes])
    again = both.with_rm_head([[3.0] * n for n in sizes])
    assert [(group.ref_logp, group.rm_head) for group in again] == [([-1.0] * n, [3.0] * n) for n in sizes]
    assert both[0].rm_head == [2.0] * sizes[0]


# ---------------------------------------------------------------------------------------------------- computed once


def test_the_second_time_nothing_is_computed_or_loaded(
    rm: Path, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All scores once; then none; a part that is new costs only what is new."""
    config = asking(rm, tmp_path)
    joined(config, tmp_path, {"train": GROUPS[:6]})
    first = sum(passes)
    assert first == sum(len(group.responses) for group in GROUPS[:6])
    found, _ = joined(config, tmp_path)
    assert sum(passes) == RESPONSES
    monkeypatch.setattr(marginkit.reward_scores, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    again, _ = joined(config, tmp_path, {"train": GROUPS, "eval": GROUPS[:3]})
    assert sum(passes) == RESPONSES
    assert heads(again["train"]) == heads(found["train"])


def test_a_model_of_several_parts_is_loaded_once(rm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three parts, one load."""
    loads = []
    real = marginkit.models.loading.load_model
    monkeypatch.setattr(marginkit.reward_scores, "load_model", lambda *a, **k: loads.append(1) or real(*a, **k))
    joined(asking(rm, tmp_path), tmp_path, {"train": GROUPS[:5], "eval": GROUPS[5:8], "test": GROUPS[8:]})
    assert loads == [1]


def test_an_interrupted_scoring_goes_on_where_it_was(
    rm: Path, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the third batch, two batches are kept; the rest is computed the second time."""
    config = asking(rm, tmp_path, "train.tokens_per_micro_batch=300")
    counted = marginkit.frozen_scores.score_batches

    def stopped(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for number, made in enumerate(counted(*args, **kwargs)):
            if number == 2:
                raise KeyboardInterrupt
            yield made

    with monkeypatch.context() as patched:
        patched.setattr(marginkit.frozen_scores, "score_batches", stopped)
        with pytest.raises(KeyboardInterrupt):
            joined(config, tmp_path)
    assert len(passes) == 3
    kept = sum(passes[:2])
    passes.clear()
    found, _ = joined(config, tmp_path)
    assert sum(passes) == RESPONSES - kept
    assert heads(found["train"]) == pytest.approx(own_heads(rm), abs=1e-6)


def rank_joins(model: str, folder: str) -> list[list[float]]:
    """What one rank gets."""
    found, _ = joined(asking(model, Path(folder)), Path(folder))
    return [group.rm_head for group in found["train"]]


def test_two_ranks_share_the_work_and_get_the_same(rm: Path, tmp_path: Path) -> None:
    """Each rank computes a part, both have all."""
    ranks = tiny.on_ranks(rank_joins, tmp_path / "ranks", str(rm), str(tmp_path))
    values = [rank["value"] for rank in ranks]
    assert values[0] == values[1]
    expected = own_heads(rm)
    for group, found in zip(GROUPS, values[0], strict=True):
        assert found == pytest.approx([expected[group.id, k] for k in range(len(group.responses))], abs=1e-6)
    counts = [rows_in(path) for path in (tmp_path / "store").glob("*/*.sqlite")]
    assert sum(counts) == RESPONSES
    assert sum(count > 0 for count in counts) == 2


def rows_in(path: Path) -> int:
    """Scores in one file of a store."""
    with sqlite3.connect(path) as connection:
        return int(connection.execute("SELECT COUNT(*) FROM scores").fetchone()[0])


def test_a_score_that_is_not_finite_is_never_kept(tmp_path: Path) -> None:
    """It is named with its group and model."""
    broken = tiny.model("llama_rm")
    with torch.no_grad():
        broken.score.weight[0, 0] = float("nan")
    make: dict[str, Any] = {"pad_id": 0, "tokens": 300, "precision": tiny.CPU, "role": "reward model"}
    with ScoreStore(tmp_path, "m", {"quantity": "head"}) as store:
        with pytest.raises(RunFailed, match=r"group train-\d: the reward model gives it score nan"):
            kept_scores(lambda: (broken, "rows"), tiny.encode(GROUPS[:3]), store, quantity="head", **make)
        assert store.added == 0


def test_a_group_with_joined_scores_can_lack_some_of_another_kind(tmp_path: Path) -> None:
    """One response of a group is known to the store: the others are scored alone, whatever is joined to the group."""
    encoded = tiny.encode(GROUPS[:3])
    whole = encoded.with_rm_head([[1.0] * len(group.response_ids) for group in encoded])
    make: dict[str, Any] = {"quantity": "logp", "role": "reference", "pad_id": 0, "tokens": 300, "precision": tiny.CPU}
    with ScoreStore(tmp_path, "m", {}) as store:
        store.add([(store.key(encoded[0].prompt_ids, encoded[0].response_ids[0]), -7.0)])
        found = kept_scores(lambda: (tiny.model("llama"), "rows"), whole, store, **make)
    expected = tiny.logps(tiny.model("llama"), encoded)
    expected[0][0] = -7.0
    assert found == [pytest.approx(row, rel=1e-6) for row in expected]


# ---------------------------------------------------------------------------------------------------------- refused


def with_limit(rm: Path, folder: Path, limit: int, overflow: str) -> Path:
    """The run of the reward model, had it been trained with this limit."""
    folder.mkdir()
    (folder / "model").symlink_to(rm / "model")
    text = (rm / "config.yaml").read_text()
    assert "max_length: null" in text
    assert "on_overflow: error" in text
    text = text.replace("max_length: null", f"max_length: {limit}")
    (folder / "config.yaml").write_text(text.replace("on_overflow: error", f"on_overflow: {overflow}"))
    return folder


@pytest.mark.parametrize("overflow", ["error", "drop", "cut_prompt_left"])
def test_groups_too_long_for_the_reward_model_are_refused_not_dropped(
    overflow: str, rm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted over all parts, before the model is loaded, in one line that names the ways out."""
    limit = 60 if overflow == "cut_prompt_left" else 100
    theirs = with_limit(rm, tmp_path / "rm", limit, overflow)
    lengths = [
        (len(group.prompt_ids), max(map(len, group.response_ids)))
        for group in tiny.encode(GROUPS, load_tokenizer(str(rm / "model")), separator="=>", max_length=10_000)
    ]
    too_long = sum(
        (response if overflow == "cut_prompt_left" else prompt + response) > limit for prompt, response in lengths
    )
    assert 0 < too_long < len(GROUPS)
    monkeypatch.setattr(marginkit.reward_scores, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(BadInput) as e:
        joined(asking(theirs, tmp_path), tmp_path, {"train": GROUPS[:9], "eval": GROUPS[9:]})
    what, more = "are longer than", " or encoding.on_overflow=cut_prompt_left"
    if overflow == "cut_prompt_left":
        what, more = "have a response that alone fills", ""
    assert str(e.value) == (
        f"model.reward_model={theirs}: {too_long} of 18 groups {what} the {limit} tokens that it reads (the longest "
        f"has {max(map(sum, lengths))}); train it with a larger encoding.max_length{more}, or leave long groups out "
        "here with a smaller encoding.max_length and encoding.on_overflow=drop"
    )


def test_a_run_that_cuts_prompts_reads_long_groups_as_it_was_trained_to(rm: Path, tmp_path: Path) -> None:
    """Prompts are cut on the left, as in the reward model's own scores."""
    theirs = with_limit(rm, tmp_path / "rm", 90, "cut_prompt_left")
    (theirs / "manifest.json").write_text((rm / "manifest.json").read_text())
    found, _ = joined(asking(theirs, tmp_path), tmp_path)
    assert heads(found["train"]) == pytest.approx(own_heads(theirs), abs=1e-6)
    assert heads(found["train"]) != pytest.approx(own_heads(rm), abs=1e-6)


WEIGHED = ("target.tau=0.5", "target.lam=2")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading data or loading a model fails the test."""
    for module, name in ((marginkit.setup, "load_model"), (marginkit.setup, "fresh_model"), (marginkit.run, "prepare")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("data or a model was read"))


@pytest.mark.usefixtures("no_model")
def test_a_missing_or_idle_or_wrong_reward_model_is_refused_first(
    rm: Path, policy: str, folder: Path, tmp_path: Path
) -> None:
    """One line, before data or a model is read; no run directory is left behind."""
    unfinished, adapter = tmp_path / "unfinished", tmp_path / "adapter"
    for made in (unfinished, adapter):
        made.mkdir()
    (unfinished / "config.yaml").write_text((rm / "config.yaml").read_text())
    (adapter / "adapter_config.json").write_text('{"task_type": "CAUSAL_LM", "base_model_name_or_path": "x"}')
    policy_run = tmp_path / "policy-run"
    (policy_run / "model").mkdir(parents=True)
    (policy_run / "config.yaml").write_text("recipe: dpo\n")
    two = tiny.save(tmp_path / "two", "gpt2_rm", num_labels=2)
    refused = [
        (
            "madpo",
            (),
            None,
            "model.reward_model is missing: recipe madpo reads the scores of a reward model; train one with `marginkit "
            "train bt model.path=... data.train=... out=runs/rm`, then give model.reward_model=runs/rm",
        ),
        (
            "dpo",
            (),
            rm,
            f"model.reward_model={rm}: recipe dpo does not read the scores of a reward model; leave it out",
        ),
        (
            "madpo",
            (),
            policy_run,
            f"model.reward_model={policy_run}: is a run of recipe dpo, which does not train a reward model; name the "
            "run of one that does, e.g. of recipe bt",
        ),
        (
            "madpo",
            (),
            unfinished,
            f"model.reward_model: {unfinished}: the run has no trained model yet; run marginkit train again to finish "
            "it",
        ),
        (
            "madpo",
            (),
            rm / "model",
            f"model.reward_model={rm / 'model'}: is the model of a run; name the run itself, which knows how its texts "
            f"were encoded: model.reward_model={rm}",
        ),
        (
            "madpo",
            (),
            policy,
            f"model.reward_model={policy}: holds LlamaForCausalLM, which has no reward head; name a run of recipe bt, "
            "or a saved sequence classifier",
        ),
        ("madpo", (), two, f"model.reward_model={two}: has 2 outputs, a reward model has one"),
        (
            "madpo",
            (),
            adapter,
            f"model.reward_model={adapter}: is an adapter of a language model, not of a reward model",
        ),
        (
            "dpo",
            ("train.control=madpo",),
            None,
            "model.reward_model is missing: recipe madpo reads the scores of a reward model; train one with `marginkit "
            "train bt model.path=... data.train=... out=runs/rm`, then give model.reward_model=runs/rm",
        ),
        (
            "madpo",
            ("train.control=dpo",),
            two,
            f"model.reward_model={two}: has 2 outputs, a reward model has one",
        ),
    ]
    for recipe, more, model, wanted in refused:
        named = [] if model is None else [f"model.reward_model={model}"]
        with pytest.raises(BadInput) as e:
            train(recipe, ["model.path=nowhere", f"out={tmp_path / 'out'}", *named, *more], train=GROUPS)
        assert str(e.value) == wanted
        assert not (tmp_path / "out").exists()
    for nothing in (tmp_path / "nothing", tmp_path):
        named = [f"model.reward_model={nothing}"]
        with pytest.raises(BadInput) as e:
            train("madpo", ["model.path=nowhere", f"out={tmp_path / 'out'}", *named], train=GROUPS)
        assert str(e.value).startswith(f"model.reward_model={nothing}: ")
        assert "\n" not in str(e.value)


# ----------------------------------------------------------------------------------------------------- the whole way


def test_a_policy_is_trained_with_the_weights_of_a_reward_model(rm: Path, policy: str, tmp_path: Path) -> None:
    """The first loss, where every gap is 0, is log 2 times the mean weight; the manifest says which model it was."""
    run = train(
        "madpo",
        [
            f"model.path={policy}",
            f"model.reward_model={rm}",
            f"out={tmp_path / 'out'}",
            f"store.path={tmp_path / 'store'}",
            *WEIGHED,
            *SHORT,
            "train.prompts_per_step=10",
            "train.per=pair",
            "train.max_steps=1",
            "train.logging_steps=1",
            "train.warmup_steps=0",
        ],
        train=GROUPS,
    )
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["reward_model"]["path"] == str(rm / "model")
    assert manifest["reward_model"]["settings"]["quantity"] == "head"
    assert manifest["reward_model"]["fingerprint"] != manifest["reference"]["fingerprint"]
    expected = own_heads(rm)
    told = score(run, Groups.from_iterable(group for group in GROUPS if group.split == "train")).pairs.to_pylist()
    h = torch.tensor([[expected[row["group"], row[side]] for side in ("chosen", "rejected")] for row in told])
    tie, weight = torch.tensor([row["tie"] for row in told]), torch.tensor([row["weight"] for row in told])
    made = madpo_weight(
        Labels(tie=tie), torch.zeros(len(told)), None, PairScores(rm_head=h), c_max=4.0, tau=0.5, lam=2.0
    )
    assert float(made.weight.std()) > 0.01
    kept = ~tie
    wanted = float((weight * made.weight)[kept].sum() / kept.sum()) * log(2.0)
    assert tiny.training_lines(run.path)[0]["loss"] == pytest.approx(wanted, rel=1e-4)


def test_a_control_keeps_the_reward_model_only_if_it_reads_it(rm: Path, policy: str, tmp_path: Path) -> None:
    """The twin's own configuration can be run again."""
    named = [f"model.path={policy}", f"model.reward_model={rm}", "train.max_steps=1"]
    named += [f"store.path={tmp_path / 'store'}", *SHORT]
    for recipe, control, kept in (("madpo", "dpo", None), ("dpo", "madpo", str(rm))):
        run = train(recipe, [*named, f"out={tmp_path / recipe}", f"train.control={control}"], train=GROUPS)
        assert run.control is not None
        assert resolve(run.path / "config.yaml").model.reward_model == str(rm)
        own = resolve(run.control.path / "config.yaml")
        assert own.model.reward_model == kept
        marginkit.run.check_model(own)
        manifest = json.loads((run.control.path / "manifest.json").read_text())
        assert ("reward_model" in manifest) == (kept is not None)
