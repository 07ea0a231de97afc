"""Two processes (gloo) give what one gives; no rank is left waiting."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_invariance
import torch

import tiny
from marginkit.groups import Groups
from marginkit.run import score, train

GROUPS = tiny.world(train=10, dev=5, test=6)
LAYOUT = ("train.prompts_per_step=3", "train.tokens_per_micro_batch=60", "train.num_train_epochs=1")


def gradients(recipe: str, per: str, folder: str) -> dict[str, Any]:
    """What a rank saw of three steps of 3 prompts: gradients, losses, eval metrics, fillers of its own."""
    family, options = test_invariance.RECIPES[recipe]
    groups = test_invariance.groups_for(recipe, 9)
    config = tiny.configured(recipe, *options, *LAYOUT)
    trainer = tiny.trainer(tiny.model(family), config, groups, Path(folder), held=groups, per=per)
    before = trainer.evaluate()
    trainer.train()
    rank, ranks = trainer.args.process_index, trainer.args.world_size
    steps = list(trainer.plan.steps(0))
    return {
        "gradients": trainer.gradients,
        "losses": trainer.losses,
        "log": [
            {name: value for name, value in entry.items() if isinstance(value, float)}
            for entry in trainer.state.log_history
        ],
        "eval": {name: value for name, value in before.items() if "second" not in name and "time" not in name},
        "ranks": ranks,
        "real": [[micro.real for micro in step[rank]] for step in steps],
    }


@pytest.mark.parametrize(
    ("recipe", "per"),
    [("mmpo", "pair"), ("bt", "prompt"), pytest.param("sft", "pair", marks=pytest.mark.slow)],
)
def test_two_ranks_give_the_gradients_and_losses_of_one(recipe: str, per: str, tmp_path: Path) -> None:
    """DDP on 2 ranks == 1 process: gradients, losses, logged and eval metrics, with fillers in some steps."""
    alone = gradients(recipe, per, str(tmp_path / "one"))
    ranks = tiny.on_ranks(gradients, tmp_path / "ranks", recipe, per, str(tmp_path / "two"))
    for rank in ranks:
        assert "error" not in rank, rank
    values = [rank["value"] for rank in ranks]
    assert [value["ranks"] for value in values] == [2, 2]
    assert [len(step) for step in values[0]["real"]] == [len(step) for step in values[1]["real"]]
    fillers = sum(not real for value in values for step in value["real"] for real in step)
    assert fillers > 0, "a rank had a filler beside two prompts or three of its own"
    tolerance = test_invariance.GRADIENTS["reward_model" if recipe == "bt" else "policy"]
    for value in values:
        assert value["losses"] == pytest.approx(alone["losses"], abs=1e-6)
        assert value["eval"] == pytest.approx(alone["eval"], abs=1e-6, rel=1e-6)
        for left, right in zip(alone["gradients"], value["gradients"], strict=True):
            assert tiny.worst_gradient(left, right) <= tolerance
        assert len(value["losses"]) == 3
    shared = {"rewards/margins", "rewards/accuracies", "target/gap", "logps/chosen", "nll/token"}
    for one, two in zip(alone["log"], values[0]["log"], strict=True):
        assert one.keys() == two.keys()
        for name in shared & one.keys():
            assert two[name] == pytest.approx(one[name], abs=1e-5, rel=1e-6), name


def whole_run(recipe: str, overrides: list[str]) -> dict[str, Any]:
    """A run from groups to metrics, on this rank."""
    run = train(recipe, overrides, train=GROUPS)
    return {"metrics": None if run.metrics is None else json.dumps(run.metrics.to_json()), "run": str(run.path)}


def test_a_whole_run_on_two_ranks_gives_what_one_gives(tmp_path: Path) -> None:
    """Shared reference scoring, training, saving and judging: 2 ranks end, with the weights and metrics of 1."""
    start = tiny.save(tmp_path / "start", "llama")
    settings = [
        f"model.path={start}",
        f"store.path={tmp_path / 'store'}",
        "target.gamma=0.5",
        "reward.beta=0.2",
        "train.learning_rate=0.01",
        "train.optim=sgd",
        "train.prompts_per_step=4",
        "train.tokens_per_micro_batch=250",
        "train.use_cpu=true",
        "train.control=dpo",
    ]
    ranks = tiny.on_ranks(whole_run, tmp_path / "ranks", "mmpo", [*settings, f"out={tmp_path / 'two'}"])
    for rank in ranks:
        assert "error" not in rank, rank
    # each of the two wrote its part of the reference scores into a file of its own
    files = sorted((tmp_path / "store").glob("*/*.sqlite"))
    counts = [rows_in(path) for path in files]
    responses = sum(len(group.responses) for group in GROUPS)
    assert sum(counts) == responses
    assert sum(count > 0 for count in counts) == 2
    alone = train("mmpo", [*settings, "store.use=false", f"out={tmp_path / 'one'}"], train=GROUPS)
    one = torch_weights(tmp_path / "one")
    two = torch_weights(tmp_path / "two")
    worst = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert worst <= 2e-6, worst
    theirs = json.loads(ranks[0]["value"]["metrics"])
    ours = alone.metrics.to_json()
    for name in ("accuracy", "nll", "brier"):
        assert theirs[name]["value"] == pytest.approx(ours[name]["value"], abs=1e-6)
    assert ranks[1]["value"]["metrics"] is None, "one rank judges"
    assert (tmp_path / "two" / "control" / "metrics.json").is_file()


def rows_in(path: Path) -> int:
    """Scores in one file of a store."""
    import sqlite3

    with sqlite3.connect(path) as connection:
        return int(connection.execute("SELECT COUNT(*) FROM scores").fetchone()[0])


def test_benchmarks_in_training_are_shared_and_counted_once(tmp_path: Path) -> None:
    """Each of 2 ranks scores its part of a sample: what is logged is what 1 rank logs."""
    start = tiny.save(tmp_path / "start", "llama")
    rows = [{"prompt": f"Ask {n}?", "chosen": f"good {n} " * (1 + n % 3), "rejected": f"bad {n}"} for n in range(31)]
    bench = tmp_path / "bench.jsonl"
    bench.write_text("\n".join(map(json.dumps, rows)) + "\n")
    settings = [f"model.path={start}", f"train.benchmarks={bench}", "store.use=false", "train.use_cpu=true"]
    settings += ["train.prompts_per_step=4", "train.max_steps=2", "train.eval_strategy=steps", "train.eval_steps=2"]
    settings += ["train.learning_rate=0.01", "train.save_strategy=no"]
    for rank in tiny.on_ranks(whole_run, tmp_path / "ranks", "bt", [*settings, f"out={tmp_path / 'two'}"]):
        assert "error" not in rank, rank
    train("bt", [*settings, f"out={tmp_path / 'one'}"], train=GROUPS)
    logged = [
        [{name: value for name, value in line.items() if name.startswith("benchmark/")} for line in tiny.log_lines(out)]
        for out in (tmp_path / "one", tmp_path / "two")
    ]
    one, two = ([line for line in lines if line] for lines in logged)
    assert len(one) == len(two) == 2
    for ours, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-5)


def torch_weights(out: Path) -> dict[str, torch.Tensor]:
    """The weights of a trained model."""
    from safetensors.torch import load_file

    return load_file(out / "model" / "model.safetensors")


def not_finite(folder: str) -> None:
    """A step in which one pair of one rank has a NaN reference score."""
    groups = test_invariance.groups_for("dpo", 8)
    values = [list(group.ref_logp or ()) for group in groups]
    values[3][0] = float("nan")
    config = tiny.configured("dpo", "train.prompts_per_step=8", "train.tokens_per_micro_batch=250")
    tiny.trainer(tiny.model("llama"), config, groups.with_ref_logp(values), Path(folder)).train()


def test_a_non_finite_loss_stops_both_ranks_with_one_message(tmp_path: Path) -> None:
    """No rank hangs: each raises RunFailed and names the same group."""
    ranks = tiny.on_ranks(not_finite, tmp_path / "ranks", str(tmp_path / "out"), timeout=60)
    errors = [rank["error"] for rank in ranks]
    assert errors[0] == errors[1]
    assert "RunFailed: step 1: a loss is not finite" in errors[0]
    assert "train-3 (loss nan)" in errors[0]


def scored(run: str) -> dict[str, Any]:
    """The tables of a run on some groups, as a rank gets them."""
    made = score(run, GROUPS)
    return {"responses": made.responses.to_pylist(), "pairs": made.pairs.to_pylist()}


def scored_one_long(run: str) -> dict[str, Any]:
    """The same where all groups of one rank are too long for the model."""
    long = [replace(group, prompt="word " * 3000) for group in GROUPS[: len(GROUPS) // 2]]
    made = score(run, Groups.from_iterable([*long, *GROUPS[len(GROUPS) // 2 :]]))
    return {"responses": made.responses.num_rows}


@pytest.mark.parametrize("recipe", ["bt", "mmpo"])
def test_scoring_on_two_ranks_gives_the_tables_of_one(recipe: str, tmp_path: Path) -> None:
    """Each rank scores a part, all get the whole, in the order of the groups; a refusal reaches all of them."""
    start = tiny.save(tmp_path / "start", "llama")
    settings = [f"model.path={start}", f"store.path={tmp_path / 'store'}", f"out={tmp_path / 'run'}"]
    settings += ["train.use_cpu=true", "train.max_steps=1", *(["target.gamma=0.5"] if recipe == "mmpo" else [])]
    run = train(recipe, settings, train=GROUPS)
    alone = scored(str(run.path))
    for rank in tiny.on_ranks(scored, tmp_path / "ranks", str(run.path)):
        assert "error" not in rank, rank
        for name, rows in rank["value"].items():
            assert len(rows) == len(alone[name]) > 0
            for one, two in zip(alone[name], rows, strict=True):
                assert [one[key] for key in ("group", "tie") if key in one] == [
                    two[key] for key in ("group", "tie") if key in two
                ]
                for key in ("reward", "gap", "logp"):
                    if one.get(key) is not None:
                        assert two[key] == pytest.approx(one[key], abs=1e-5)
    refused = tiny.on_ranks(scored_one_long, tmp_path / "long", str(run.path))
    assert all("longer than max_length" in str(rank.get("error")) for rank in refused), refused
