"""A run, the whole way: what is refused before anything is loaded, what is kept, and that it can be repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import marginkit.run
import marginkit.setup
import tiny
from marginkit.config import resolve
from marginkit.errors import BadInput
from marginkit.evaluation.compare import compare
from marginkit.groups import Groups, write_groups
from marginkit.records import Group, Pair, Response
from marginkit.run import score, train
from marginkit.tables import Scores
from marginkit.training import MarginTrainer

GROUPS = tiny.world(train=10, dev=4, test=6)
SHORT = ("train.learning_rate=0.01", "train.prompts_per_step=4", "train.logging_steps=1", "train.use_cpu=true")


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Saved models by family."""
    folder = tmp_path_factory.mktemp("starts")
    return lambda family: str(folder / family) if (folder / family).is_dir() else tiny.save(folder / family, family)


def settings(start: str, out: Path, *more: str) -> list[str]:
    """A short run with a store of its own."""
    return [f"model.path={start}", f"out={out}", "store.use=false", *SHORT, *more]


# ---------------------------------------------------------------------------------- refused before a model is loaded


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test."""
    for name in ("load_model", "load_tokenizer", "fresh_model"):
        monkeypatch.setattr(marginkit.setup, name, lambda *_, **__: pytest.fail("a model was loaded"))


def pairs_of(**evidence: Any) -> Groups:
    """Ten groups of one given pair, with this evidence."""
    return Groups.from_iterable(
        Group(f"g{n}", f"prompt {n}", (Response("a"), Response("b")), pairs=(Pair(0, 1, **evidence),), split="train")
        for n in range(10)
    )


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("recipe", "groups", "more", "wanted"),
    [
        (
            "mmpo",
            GROUPS,
            (),
            r"target.gamma is missing: \d+ of \d+ pairs have only grades, .*; target.gamma=[\d.]+ puts",
        ),
        ("mmpo_rm", pairs_of(), (), "needs to know how much better the chosen response is, but 10 of 10 pairs have no"),
        ("mmpo_rm", pairs_of(), (), "or train the hard-label recipe bt"),
        ("mmpo", pairs_of(), (), "or train the hard-label recipe dpo"),
        ("mmpo", pairs_of(votes=(3, 1, 0)), ("target.gamma=0.5",), "target.gamma=0.5: every pair already has a prob"),
        ("mmpo", pairs_of(target_gap=1.0), ("target.gamma=0.5",), "or a gap in logits, which needs no gamma"),
        ("bt_margin", pairs_of(), (), "recipe bt_margin needs a grade gap, but 10 of 10 pairs have neither"),
        ("dpo", GROUPS, ("data.train_split=training",), "no split 'training': the data has dev, test, train"),
        (
            "dpo",
            GROUPS,
            ("model.dtype=bfloat16", "train.learning_rate=5e-7"),
            "model.dtype=bfloat16 with train.learning_rate=5e-07: most updates would round away",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    recipe: str, groups: Groups, more: tuple[str, ...], wanted: str, tmp_path: Path
) -> None:
    """One line: what is missing or idle, and the way out; no run directory is left behind."""
    with pytest.raises(BadInput, match=wanted) as e:
        train(recipe, settings("nowhere", tmp_path / "out", *more), train=groups)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_model")
def test_a_run_without_model_or_data_says_which_key(tmp_path: Path) -> None:
    """model.path and data.train."""
    with pytest.raises(BadInput, match=r"model.path is missing: a folder, a hub name, or model.path=fresh"):
        train("dpo", [f"out={tmp_path}"], train=GROUPS)
    with pytest.raises(BadInput, match=r"data.train is missing: .*e.g. data.train=ratings.jsonl"):
        train("dpo", ["model.path=x", f"out={tmp_path}"])
    responses = Groups.from_iterable(Group(f"g{n}", "p", (Response("a"),), split="train") for n in range(3))
    with pytest.raises(BadInput, match=r"nothing to train on: no pairs left \(one response only: 3\)"):
        train("dpo", settings("x", tmp_path / "out"), train=responses)


def test_a_path_that_holds_no_model_is_one_line(tmp_path: Path) -> None:
    """No folder, or a folder without a model."""
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(BadInput) as e:
            train("dpo", settings(str(path), tmp_path / "out"), train=GROUPS)
        assert str(path) in str(e.value)
        assert "\n" not in str(e.value)
        (tmp_path / "out" / "config.yaml").unlink(missing_ok=True)


def test_bfloat16_weights_are_allowed_where_it_is_meant(starts: Callable[[str], str], tmp_path: Path) -> None:
    """train.force, a rate that is large enough, or LoRA."""
    check = marginkit.run.check_model
    low = ["model.path=x", "model.dtype=bfloat16", "train.learning_rate=5e-7"]
    check(resolve("dpo", [*low, "train.force=true"]))
    check(resolve("dpo", [*low, "model.lora.r=4"]))
    check(resolve("dpo", ["model.path=x", "model.dtype=bfloat16", "train.learning_rate=1e-4"]))


def test_a_length_beyond_the_model_is_refused(starts: Callable[[str], str], tmp_path: Path) -> None:
    """The model's own limit is named."""
    with pytest.raises(BadInput, match=r"encoding.max_length=400: the model ends at 256 tokens"):
        train("dpo", settings(starts("llama"), tmp_path / "out", "encoding.max_length=400"), train=GROUPS)


# --------------------------------------------------------------------------------------------------- what a run keeps


def test_at_step_0_the_gap_is_0(starts: Callable[[str], str], tmp_path: Path) -> None:
    """The first logged gap / beta is within 1e-3 nat, with reference scores from padded batches of another shape."""
    start = starts("llama")
    more = ("reward.beta=0.1", "train.tokens_per_micro_batch=900")
    run = train("dpo", settings(start, tmp_path / "a", *more), train=GROUPS)
    for name, out, options in (
        ("full", run.path, ()),
        ("lora", tmp_path / "b", ("model.lora.r=4",)),
        ("other batches", tmp_path / "c", ("train.per_device_train_batch_size=1",)),
        ("checkpointing", tmp_path / "d", ("train.gradient_checkpointing=true",)),
    ):
        if name != "full":
            train("dpo", settings(start, out, *more, *options), train=GROUPS)
        first = tiny.training_lines(out)[0]
        assert first["step"] == 1
        assert abs(first["rewards/margins"]) / 0.1 < 1e-3, name
        assert first["loss"] == pytest.approx(0.693147, abs=1e-4), name
        assert tiny.log_lines(out)[-1]["step"] == 3


def test_bfloat16_autocast_trains_on_a_cpu(starts: Callable[[str], str], tmp_path: Path) -> None:
    """train.precision=bf16: the first gap is within 0.1 nat, the weights stay float32, the settings say so."""
    run = train("dpo", settings(starts("llama"), tmp_path / "out", "train.precision=bf16"), train=GROUPS)
    assert abs(tiny.training_lines(run.path)[0]["rewards/margins"]) / 0.1 < 0.1
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["reference"]["settings"]["autocast"] == "bfloat16"
    from safetensors.torch import load_file

    assert {str(value.dtype) for value in load_file(run.checkpoint / "model.safetensors").values()} == {"torch.float32"}


def test_the_run_directory_says_what_the_run_was_made_of(starts: Callable[[str], str], tmp_path: Path) -> None:
    """Manifest: recipe, parts, data by split with fingerprints, encoding, seed, versions, start, batches."""
    run = train("mmpo", settings(starts("llama"), tmp_path / "out", "target.gamma=0.5"), train=GROUPS)
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["recipe"]["name"] == "mmpo"
    assert manifest["parts"]["target"]["options"] == {"gamma": 0.5}
    sizes = {name: part["groups"] for name, part in manifest["data"]["splits"].items()}
    assert sizes == {"train": 10, "eval": 4, "test": 6}
    for part in manifest["data"]["encoding"].values():
        assert part["kept"] + sum(part["dropped"].values()) == part["groups"]
    assert {"torch", "transformers", "marginkit"} <= set(manifest["versions"])
    assert manifest["per"] == "prompt", "all pairs of a group are used, so each prompt counts the same"
    assert manifest["start"] == starts("llama")
    tables = Scores.load(run.path / "tables")
    assert tables.responses.num_rows == sum(len(g.responses) for g in GROUPS if g.split == "test")
    assert json.loads((run.path / "metrics.json").read_text()) == run.metrics.to_json()


def test_scores_of_a_run_are_those_it_was_judged_by(starts: Callable[[str], str], tmp_path: Path) -> None:
    """`score(run, test groups)` == its tables; from the object and from the folder."""
    run = train("mmpo", settings(starts("llama"), tmp_path / "out", "target.gamma=0.5"), train=GROUPS)
    held = GROUPS.filter(lambda group: group.split == "test", reason="other split")
    for given in (run, run.path, str(run.path)):
        again = score(given, held)
        kept = Scores.load(run.path / "tables")
        assert again.pairs["gap"].to_pylist() == pytest.approx(kept.pairs["gap"].to_pylist(), abs=1e-6)
        assert again.responses["reward"].to_pylist() == pytest.approx(kept.responses["reward"].to_pylist(), abs=1e-6)
    grade = {(row["group"], row["response"]): row["grade"] for row in kept.responses.to_pylist()}
    for row in kept.pairs.to_pylist():
        assert row["grade_gap"] == grade[row["group"], row["chosen"]] - grade[row["group"], row["rejected"]]


# ------------------------------------------------------------------------------------------------------- repeating it


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("mmpo", ("model.path=fresh", "target.gamma=0.4")),
        ("bt", ("model.path=fresh", "model.fresh.arch=modernbert")),
        ("bt", ("LLAMA", "model.lora.r=4", "model.lora.dropout=0.1", "train.disable_dropout=false")),
    ],
)
def test_the_written_configuration_repeats_the_run(
    recipe: str, more: tuple[str, ...], starts: Callable[[str], str], tmp_path: Path
) -> None:
    """config.yaml with another `out` gives the same weights, bit for bit: fresh models, new heads and adapters too."""
    fresh = ("model.fresh.layers=1", "model.fresh.hidden=16", "model.fresh.heads=2", "model.fresh.vocab=300")
    more = tuple(f"model.path={starts('llama')}" if word == "LLAMA" else word for word in more)
    data = write_groups(GROUPS, tmp_path / "groups.jsonl")
    one = [f"data.train={data}", f"out={tmp_path / 'one'}", "store.use=false", *SHORT, *fresh, *more]
    first = train(recipe, one)
    second = train(first.path / "config.yaml", [f"out={tmp_path / 'two'}"])
    other = train(first.path / "config.yaml", [f"out={tmp_path / 'three'}", "seed=1"])
    digests = [tiny.weights_digest(run.checkpoint) for run in (first, second, other)]
    assert digests[0] == digests[1] != digests[2]
    assert (first.path / "metrics.json").read_text() == (second.path / "metrics.json").read_text()


def test_groups_at_hand_are_kept_so_that_the_run_can_be_repeated(starts: Callable[[str], str], tmp_path: Path) -> None:
    """Groups handed over as objects are written beside the configuration, which then is enough."""
    first = train("dpo", settings(starts("llama"), tmp_path / "one"), train=GROUPS)
    second = train(first.path / "config.yaml", [f"out={tmp_path / 'two'}"])
    assert tiny.weights_digest(first.checkpoint) == tiny.weights_digest(second.checkpoint)


def test_data_that_changed_since_the_interruption_is_refused(
    starts: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same settings with other groups would go on from a checkpoint of another run."""

    class Stops(MarginTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 2:
                raise KeyboardInterrupt
            return super().training_step(*args, **kwargs)

    own = settings(starts("llama"), tmp_path / "out", "train.save_strategy=steps", "train.save_steps=1")
    with monkeypatch.context() as patched:
        patched.setattr("marginkit.training.MarginTrainer", Stops)
        with pytest.raises(KeyboardInterrupt):
            train("dpo", own, train=GROUPS)
    with pytest.raises(BadInput, match=r"holds another run \(.*data"):
        train("dpo", own, train=tiny.world(train=9, dev=4, test=6))
    assert train("dpo", own, train=GROUPS).metrics is not None


# ------------------------------------------------------------------------------------------------------------ control


def test_the_control_differs_in_its_labels_alone(starts: Callable[[str], str], tmp_path: Path) -> None:
    """Same start, data, order, steps, rate and beta; the twin equals a plain run of the hard-label recipe."""
    start = starts("llama")
    more = ("target.gamma=0.5", "train.num_train_epochs=2")
    run = train("mmpo", settings(start, tmp_path / "out", *more, "train.control=dpo"), train=GROUPS)
    assert run.control is not None
    lines = [tiny.log_lines(path) for path in (run.path, run.control.path)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    rates = [[line["learning_rate"] for line in log if "learning_rate" in line] for log in lines]
    assert rates[0] == rates[1]
    plain = train(
        "dpo",
        settings(start, tmp_path / "plain", *schedule("mmpo"), "train.num_train_epochs=2", "reward.beta=0.01"),
        train=GROUPS,
    )
    assert tiny.weights_digest(plain.checkpoint) == tiny.weights_digest(run.control.checkpoint)
    assert tiny.weights_digest(run.checkpoint) != tiny.weights_digest(run.control.checkpoint)
    manifests = [json.loads((path / "manifest.json").read_text()) for path in (run.path, run.control.path)]
    assert manifests[0]["start"] == manifests[1]["start"]
    assert [m["data"]["splits"]["train"]["fingerprint"] for m in manifests] == [
        manifests[0]["data"]["splits"]["train"]["fingerprint"]
    ] * 2
    assert [m["parts"]["reward"]["options"] for m in manifests] == [{"beta": 0.01}] * 2
    differences = compare(run.path / "tables", run.control.path / "tables")
    assert {name: value.value for name, value in run.differences.items()} == {
        name: value.value for name, value in differences.items()
    }
    told = run.to_json()
    assert "istinguishable" in told["verdict"] or "first model has" in told["verdict"]
    assert told["differences"]["nll"]["value"] == pytest.approx(
        told["metrics"]["nll"]["value"] - told["control"]["metrics"]["nll"]["value"], abs=1e-9
    )


def schedule(recipe: str) -> list[str]:
    """The training settings a recipe brings along, as overrides for another."""
    return [f"train.{name}={value}" for name, value in resolve(recipe).spec.train.items() if name != "learning_rate"]


def test_an_interrupted_control_is_finished_by_the_same_command(
    starts: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run itself is not trained again; the twin goes on; the result is that of an uninterrupted one."""
    own = ("target.gamma=0.5", "train.control=bt")
    whole = train("mmpo_rm", settings(starts("llama_rm"), tmp_path / "whole", *own), train=GROUPS)

    class Stops(MarginTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            if self.recipe.name == "bt" and self.state.global_step == 1:
                raise KeyboardInterrupt
            return super().training_step(*args, **kwargs)

    cut = settings(starts("llama_rm"), tmp_path / "cut", *own)
    with monkeypatch.context() as patched:
        patched.setattr("marginkit.training.MarginTrainer", Stops)
        with pytest.raises(KeyboardInterrupt):
            train("mmpo_rm", cut, train=GROUPS)
    again = train("mmpo_rm", cut, train=GROUPS)
    assert again.control is not None
    assert whole.control is not None
    assert tiny.weights_digest(again.control.checkpoint) == tiny.weights_digest(whole.control.checkpoint)
    assert again.to_json()["differences"] == whole.to_json()["differences"]
    assert len({json.dumps(line) for line in tiny.log_lines(again.path)}) == len(tiny.log_lines(whole.path))


# ---------------------------------------------------------------------------------------------------------------- SFT


def test_sft_trains_the_best_response_of_each_group(tmp_path: Path) -> None:
    """The chosen one of a given pair, else the highest grade, else the first."""
    from marginkit.preparing import prepare

    answers = (Response("bad", grade=1.0), Response("good", grade=5.0), Response("fair", grade=3.0))
    groups = Groups.from_iterable(
        [
            Group("graded", "p1", answers, split="train"),
            Group("paired", "p2", answers, pairs=(Pair(2, 1),), split="train"),
            Group("bare", "p3", (Response("first"), Response("second")), split="train"),
        ]
    )
    ready = prepare(resolve("sft", ["model.path=x"]), groups).train
    assert [[response.text for response in group.responses] for group in ready] == [["good"], ["fair"], ["first"]]
