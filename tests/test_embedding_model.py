"""A reward model on frozen embeddings: any recipe, the main trainer's own loss, an ordinary run directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import marginkit as mk
from marginkit.assembly import recipe
from marginkit.config import resolve
from marginkit.data.pairing import make_pairs
from marginkit.dry_run import dry_run
from marginkit.embedders import open_embedder
from marginkit.embedding_features import examples_of
from marginkit.embedding_heads import Heads, HeadSettings, metrics_of, train_heads
from marginkit.embedding_model import EmbeddingModel, is_embedding_model
from marginkit.embedding_run import HeadForecast, check_head
from marginkit.errors import BadInput
from marginkit.groups import Groups, write_groups
from marginkit.records import Group, Pair, Response
from marginkit.registry import load_recipe, recipe_names
from marginkit.world import make_world

HASH = open_embedder("hash")
REWARD_MODELS = [name for name in recipe_names() if load_recipe(name).kind == "reward_model"]
NEEDED: dict[str, dict[str, Any]] = {"mmpo_rm": {"gamma": 0.8}}


@pytest.fixture(scope="module")
def graded() -> Groups:
    """The built-in world with all pairs."""
    return make_pairs(make_world("high", prompts=80, demonstrations=1, dev=20, test=40).graded, "all")


def split(groups: Groups, name: str) -> Groups:
    """The groups of a split."""
    return Groups.from_iterable(group for group in groups if group.split == name)


# -- the loss


def test_the_gradient_is_the_formulas(graded: Groups) -> None:
    """One step of plain AdamW on sum(weight * loss over kept pairs) / kept pairs, worked out in numpy."""
    rng = np.random.default_rng(0)
    groups = split(graded, "train").map(
        lambda group: replace(
            group, pairs=tuple(replace(pair, weight=float(rng.uniform(0.2, 2.0))) for pair in group.pairs)
        )
    )
    data = examples_of(groups, HASH)
    heads = train_heads(data, [recipe("bt")], HeadSettings(epochs=1, learning_rate=1e-3), dev=None)
    x = data.values.numpy().astype(np.float64)
    centred = x - x.mean(0)
    scale, start = np.empty(x.shape[1]), 0
    for size in data.blocks:
        scale[start : start + size] = np.sqrt(centred[:, start : start + size].var(0).sum())
        start += size
    z = centred / scale
    slope, kept = np.zeros(x.shape[1]), 0
    first = 0
    for group in groups:
        for pair in group.pairs:
            if not pair.tie:
                kept += 1
                slope -= pair.weight * 0.5 * (z[first + pair.chosen] - z[first + pair.rejected])
        first += len(group.responses)
    slope /= kept
    clear = np.abs(slope) > 1e-6  # the first step of Adam is lr * sign
    np.testing.assert_allclose(heads.outer.detach()[0].numpy()[clear], -1e-3 * np.sign(slope)[clear], rtol=1e-2)
    assert clear.sum() > 200


def test_the_loss_is_that_of_the_callable(graded: Groups) -> None:
    """For every reward-model recipe: eval_loss == mean of the recipe's own callable over the pairs that take part."""
    data = examples_of(split(graded, "train"), HASH)
    torch.manual_seed(0)
    heads = Heads(data.values.shape[1])
    heads.normalise(data.values, data.blocks)
    heads.outer.data = 3 * torch.randn_like(heads.outer)
    rewards = heads.rewards(data.values)[0]
    for name in REWARD_MODELS:
        loss = recipe(name, **NEEDED.get(name, {}))
        found = metrics_of(heads, data, [loss], "pair")[0]["eval_loss"]
        if loss.per == "response":
            want = ((rewards - data.columns["response_grade"]) ** 2).mean()
        else:
            columns = {name: data.columns[name] for name in ("grade", "utility", "prob", "strength", "tie", "weight")}
            hidden = heads(heads.normalised(data.values))[1][0][data.columns["pairs"]]
            pairs = mk.PairScores(head=rewards[data.columns["pairs"]], hidden=hidden, **columns)
            with torch.no_grad():
                each = loss.evaluate(pairs, training=False)
            want = each.total[each.target.keep].mean() if each.target is not None else each.total.mean()
        assert found == pytest.approx(float(want), rel=1e-5), name


@pytest.mark.parametrize("name", REWARD_MODELS)
@pytest.mark.parametrize("hidden", [0, 8])
def test_every_reward_model_recipe_trains(name: str, hidden: int, graded: Groups) -> None:
    """Its own loss falls on the data it is trained on, linear or with a hidden layer."""
    data = examples_of(split(graded, "train"), HASH)
    loss = recipe(name, **NEEDED.get(name, {}))
    step, epochs = (8, 5) if name == "aplot" else (2048, 30)  # its margin compares all pairs of a step
    settings = HeadSettings(epochs=epochs, hidden=hidden, keep_best=False, learning_rate=0.05, prompts_per_step=step)
    before = metrics_of(train_heads(data, [loss], replace(settings, learning_rate=0.0)), data, [loss], "pair")[0]
    after = metrics_of(train_heads(data, [loss], settings), data, [loss], "pair")[0]
    assert after["eval_loss"] < before["eval_loss"] - 0.02
    assert after["eval_rewards/accuracies"] > 0.6


def test_minibatches_and_pairs_of_a_prompt(graded: Groups) -> None:
    """Small steps learn too and are repeatable; with per=prompt a group with many pairs counts as one with few."""
    data = examples_of(split(graded, "train"), HASH)
    settings = HeadSettings(epochs=10, prompts_per_step=16, seed=3)
    first, second = (train_heads(data, [recipe("bt")], settings) for _ in range(2))
    assert torch.equal(first.outer, second.outer)
    assert metrics_of(first, data, [recipe("bt")], "pair")[0]["eval_rewards/accuracies"] > 0.7
    group = next(group for group in graded if len([p for p in group.pairs if not p.tie]) == 6)
    doubled = Groups.from_iterable([group, replace(group, id="b", pairs=group.pairs * 3)])
    both = examples_of(doubled, HASH)
    heads = Heads(both.values.shape[1])
    heads.normalise(both.values, both.blocks)
    heads.outer.data.normal_()
    single = metrics_of(heads, both.take([0]), [recipe("bt")], "prompt")[0]["eval_loss"]
    assert metrics_of(heads, both, [recipe("bt")], "prompt")[0]["eval_loss"] == pytest.approx(single)


def test_the_best_epoch_is_kept(graded: Groups) -> None:
    """By dev loss; without dev data, or told so, the last."""
    train, dev = (examples_of(split(graded, name), HASH) for name in ("train", "dev"))
    curve: list[float] = []
    settings = HeadSettings(epochs=60, learning_rate=0.3)
    best = train_heads(train, [recipe("bt")], settings, dev=dev, log=lambda _, line: curve.append(line["eval_loss"]))
    assert min(curve) < curve[-1] - 0.05
    assert metrics_of(best, dev, [recipe("bt")], "pair")[0]["eval_loss"] == pytest.approx(min(curve))
    last = train_heads(train, [recipe("bt")], replace(settings, keep_best=False), dev=dev)
    assert metrics_of(last, dev, [recipe("bt")], "pair")[0]["eval_loss"] == pytest.approx(curve[-1])
    alone = train_heads(train, [recipe("bt")], settings)
    assert torch.equal(alone.outer, last.outer)


@pytest.mark.parametrize("features", ["interaction", "response", "joined"])
def test_features_by_hand(features: Any) -> None:
    """What is read of a prompt and a response, block by block."""
    groups = [Group("a", "red bird", (Response("a red bird"), Response("tree")), pairs=(Pair(0, 1),))]
    data = examples_of(groups, HASH, features)
    x, y, joined = HASH.embed(["red bird", "a red bird", "red bird\na red bird"])
    want = {"interaction": [y, x * y, [x @ y]], "response": [y], "joined": [joined]}[features]
    np.testing.assert_allclose(data.values[0], np.concatenate([*want, [np.log1p(10)]]), atol=1e-6)
    assert sum(data.blocks) == data.values.shape[1]


# -- a run


@contextmanager
def folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Relative paths of a run are under `path`."""
    with monkeypatch.context() as patch:
        patch.chdir(path)
        yield


RUN = ["model.kind=embedding", "data.pairs=all", "train.num_train_epochs=20"]


def test_a_run_is_an_ordinary_run(graded: Groups, tmp_path: Path) -> None:
    """Directory, twin, scores, evaluation; the saved model alone scores the same; a second run is the same."""
    write_groups(graded, tmp_path / "graded.jsonl")
    store = f"store.path={tmp_path / 'store'}"
    data = [*RUN, store, f"data.train={tmp_path / 'graded.jsonl'}", "target.gamma=0.8", "train.control=bt"]
    run = mk.train("mmpo_rm", [*data, f"out={tmp_path / 'a'}"])
    names = {"config.yaml", "manifest.json", "log.jsonl", "model", "tables", "metrics.json", "control"}
    names |= {"report.html", "report.md"}
    assert {path.name for path in run.path.iterdir()} == names
    assert {path.name for path in run.checkpoint.iterdir()} == {"README.md", "config.json", "head.safetensors"}
    assert run.control is not None
    assert run.metrics is not None
    assert run.metrics["accuracy"].value > 0.6
    assert "nll" in run.differences
    lines = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 21))
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["embedder"] == {"name": "hash", "fingerprint": HASH.fingerprint}
    assert manifest["data"]["splits"]["train"]["groups"] == 80
    held = split(graded, "test")
    scores, alone = mk.score(run, held), mk.score(run.checkpoint, held)
    assert scores.pairs["gap"].to_pylist() == alone.pairs["gap"].to_pylist()
    assert mk.evaluate(scores)["accuracy"].value == run.metrics["accuracy"].value
    assert set(scores.responses["length"].to_pylist()) == {None}
    assert run.metrics.verdict["length_unit"] == "chars"
    assert run.metrics["length_baseline"].value > 0.5
    again = mk.train("mmpo_rm", [*data, f"out={tmp_path / 'b'}"])
    weights = [load_file(one.checkpoint / "head.safetensors") for one in (run, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with pytest.raises(BadInput, match="finished"):
        mk.train("mmpo_rm", [*data, f"out={tmp_path / 'a'}"])


def test_an_interrupted_run_goes_on(graded: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command finishes it, and the model is that of a run that nobody interrupted."""
    write_groups(graded, tmp_path / "graded.jsonl")
    data = [*RUN, "store.use=false", f"data.train={tmp_path / 'graded.jsonl'}"]
    with monkeypatch.context() as patch:
        patch.setattr("marginkit.embedding_run.train_heads", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            mk.train("bt", [*data, f"out={tmp_path / 'a'}"])
    run, whole = (mk.train("bt", [*data, f"out={tmp_path / name}"]) for name in "ab")
    assert torch.equal(*(load_file(one.checkpoint / "head.safetensors")["outer"] for one in (run, whole)))


def test_the_saved_form_is_what_the_page_says(graded: Groups, tmp_path: Path) -> None:
    """Two lines of numpy give the rewards, with and without a hidden layer."""
    data = examples_of(split(graded, "train"), HASH)
    for hidden in (0, 5):
        heads = train_heads(data, [recipe("bt")], HeadSettings(epochs=5, hidden=hidden))
        model = EmbeddingModel(HASH, heads, "interaction", data.blocks)
        model.save(tmp_path / str(hidden))
        content = json.loads((tmp_path / str(hidden) / "config.json").read_text())
        assert content["features"] == "interaction"
        held = {n: v.numpy() for n, v in load_file(tmp_path / str(hidden) / "head.safetensors").items()}
        z = (data.values.numpy() - held["mean"]) / held["scale"]
        s = z if not hidden else np.tanh(z @ held["inner"][0].T + held["inner_bias"][0])
        by_hand = s @ held["outer"][0] + held["bias"][0]
        back = EmbeddingModel.load(tmp_path / str(hidden))
        np.testing.assert_allclose(np.concatenate(back.rewards(split(graded, "train"))), by_hand, atol=1e-4)


def test_another_embedder_is_refused(graded: Groups, tmp_path: Path) -> None:
    """Its vectors mean something else; a file cut short is refused too, and a folder of something else."""
    data = examples_of(split(graded, "dev"), HASH)
    heads = train_heads(data, [recipe("bt")], HeadSettings(epochs=1))
    EmbeddingModel(HASH, heads, "interaction", data.blocks).save(tmp_path / "m")
    assert is_embedding_model(tmp_path / "m")
    held = (tmp_path / "m" / "config.json").read_text()
    (tmp_path / "m" / "config.json").write_text(held.replace(HASH.fingerprint, "0123456789abcdef"))
    with pytest.raises(BadInput, match="fingerprint 0123456789abcdef"):
        EmbeddingModel.load(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(held)
    weights = tmp_path / "m" / "head.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BadInput, match="not a whole model"):
        EmbeddingModel.load(tmp_path / "m")
    with pytest.raises(BadInput, match="holds no reward model on embeddings"):
        EmbeddingModel.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("features", "joined"), ("features", "words"), ("embedder", {"name": 3, "fingerprint": "x"}), ("hidden", "five")],
)
def test_an_altered_model_is_refused(name: str, value: Any, graded: Groups, tmp_path: Path) -> None:
    """In one line that names the folder, not by what torch says of it later."""
    data = examples_of(split(graded, "dev"), HASH)
    EmbeddingModel(HASH, train_heads(data, [recipe("bt")], HeadSettings(epochs=1)), "interaction", data.blocks).save(
        tmp_path
    )
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(BadInput, match="not a whole model"):
        EmbeddingModel.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "override", "says"),
    [
        ("bt", "encoding.max_length=64", "encoding.max_length: is not used"),
        ("bt", "model.lora.r=4", "model.lora: is not used"),
        ("bt", "train.max_grad_norm=0.5", "train.max_grad_norm: is not used"),
        ("bt", "train.num_train_epochs=1.5", "whole number"),
        ("bt", "train.metric_for_best_model=eval_ece", "must be one of"),
        ("bt", "model.path=fresh", "use hash, minilm"),
        ("dpo", "model.path=hash", "trains a policy"),
        ("bt", "model.head.features=prompt", "features"),
    ],
)
def test_what_a_head_does_not_use_is_refused(name: str, override: str, says: str, tmp_path: Path) -> None:
    """By its key, before data are read."""
    with pytest.raises(BadInput, match=says):
        mk.train(name, ["model.kind=embedding", "data.train=missing.jsonl", override])


def test_a_head_has_one_process() -> None:
    """Several would write the same files."""
    with pytest.raises(BadInput, match="without a launcher"):
        check_head(resolve("bt", ["model.kind=embedding"]), ranks=2)


def test_settings_of_heads_come_before_those_of_the_recipe(tmp_path: Path) -> None:
    """A learning rate for transformers is none for a head; the user's own wins, and the file says all of it."""
    config = resolve("bt", ["model.kind=embedding"])
    assert (config.train.learning_rate, config.train.num_train_epochs, config.model.path) == (0.02, 100, "hash")
    assert config.train.load_best_model_at_end
    assert resolve("bt", ["model.kind=embedding", "train.learning_rate=0.5"]).train.learning_rate == 0.5
    assert resolve("bt", ["model.path=x"]).train.learning_rate == 1e-5
    path = tmp_path / "config.yaml"
    path.write_text("recipe: bt\nmodel: {kind: embedding, path: minilm}\ntrain: {num_train_epochs: 7}\n")
    assert (resolve(path).train.num_train_epochs, resolve(path).model.path) == (7, "minilm")


def test_a_dry_run_writes_nothing(graded: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts texts and steps."""
    write_groups(graded, tmp_path / "graded.jsonl")
    with folder(tmp_path, monkeypatch):
        found = dry_run(resolve("bt", [*RUN, "data.train=graded.jsonl"]))
    assert isinstance(found, HeadForecast)
    assert (found.groups, found.responses, found.pairs, found.steps) == (80, 320, 480, 20)
    texts = {group.prompt for group in graded} | {r.text for group in graded for r in group.responses}
    assert found.texts == len(texts)
    assert found.bytes == 4 * 320 * (1024 + 1024 + 1 + 1)
    assert [path.name for path in tmp_path.iterdir()] == ["graded.jsonl"]
    assert all(len(row) == 2 for row in found.in_words())


def test_a_policy_reads_the_scores_of_a_head(graded: Groups, tmp_path: Path) -> None:
    """`model.reward_model` may name a run with a head; its rewards are joined as they are."""
    write_groups(graded, tmp_path / "graded.jsonl")
    where = ["store.use=false", f"data.train={tmp_path / 'graded.jsonl'}", "data.pairs=all"]
    head = mk.train("bt", [*where, "model.kind=embedding", "train.num_train_epochs=5", f"out={tmp_path / 'rm'}"])
    small = ["model.path=fresh", "model.fresh.layers=1", "model.fresh.hidden=16", "model.fresh.vocab=300"]
    policy = [*small, f"model.reward_model={head.path}", "train.max_steps=2", "data.test_split=null"]
    run = mk.train("madpo", [*where, *policy, "data.limit=12", f"out={tmp_path / 'madpo'}"])
    made = json.loads((run.path / "manifest.json").read_text())["reward_model"]
    assert made["fingerprint"] == HASH.fingerprint
