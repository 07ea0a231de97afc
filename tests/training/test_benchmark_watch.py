"""Benchmarks during training: what is drawn, what is logged, and that training does not notice."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import tiny
from marginkit.benchmark_watch import benchmark_samples, sample
from marginkit.benchmarking import judge_benchmark, read_benchmark
from marginkit.config import resolve
from marginkit.dry_run import dry_run
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group, Response
from marginkit.run import train
from marginkit.run_scores import open_scorer


def held_file(folder: Path, count: int = 15) -> Path:
    """A file of pairs without grades."""
    chance = random.Random(3)
    rows = [
        {"prompt": tiny.phrase(chance, 2, 5), "chosen": f"a {tiny.phrase(chance, 1, 6)}", "rejected": f"b {number}"}
        for number in range(count)
    ]
    path = folder / "held.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def options(folder: Path, model: str, **more: Any) -> list[str]:
    """A short run of a policy against its own start."""
    given = {
        "model.path": model,
        "out": folder,
        "store.path": folder.parent / "store",
        "train.use_cpu": "true",
        "train.max_steps": 4,
        "train.prompts_per_step": 4,
        "train.eval_strategy": "steps",
        "train.eval_steps": 2,
        "train.logging_steps": 2,
        "train.save_strategy": "no",
        "train.learning_rate": 0.01,
        "target.gamma": 0.5,
    } | more
    return [f"{name}={value}" for name, value in given.items()]


def test_a_sample_is_scored_at_every_evaluation_and_training_is_the_same(tmp_path: Path) -> None:
    """Logged at the start and at each evaluation; the last line is what evaluate says; the weights are untouched by it.

    The recipe trains on grades, which the benchmark has not: it is judged by hard labels.
    """
    model, held = tiny.save(tmp_path / "policy", "llama"), held_file(tmp_path)
    groups = tiny.world(train=12, dev=4, test=4)
    plain = train("mmpo", options(tmp_path / "plain", model), train=groups)
    watched = train("mmpo", options(tmp_path / "watched", model, **{"train.benchmarks": f"[{held}]"}), train=groups)
    assert tiny.weights_digest(plain.checkpoint) == tiny.weights_digest(watched.checkpoint)
    lines = [line for line in tiny.log_lines(watched.path) if "benchmark/held/accuracy" in line]
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert lines[0]["benchmark/held/nll"] == pytest.approx(0.693147, abs=1e-4)  # the policy is its own reference
    assert lines[0]["benchmark/held/accuracy"] < 0.5  # and equal rewards are wrong
    judged = judge_benchmark(open_scorer(watched.path), read_benchmark(held), tmp_path / "out", resamples=10)
    for name in ("accuracy", "nll"):
        assert lines[-1][f"benchmark/held/{name}"] == pytest.approx(judged.evaluation[name].value, abs=1e-4)
    assert not any("benchmark/held/accuracy" in line for line in tiny.log_lines(plain.path))


def test_what_goes_wrong_is_told_before_training(tmp_path: Path) -> None:
    """A missing file, no evaluation, sharded weights, a head on embeddings: refused, and nothing is made."""
    groups, out = tiny.world(train=6, dev=2, test=2), tmp_path / "out"
    with pytest.raises(BadInput, match=r"none\.jsonl: no such file"):
        train("mmpo", options(out, "none", **{"train.benchmarks": "[none.jsonl]"}), train=groups)
    assert not out.exists()
    data = {"data.train": held_file(tmp_path), "data.eval": held_file(tmp_path)}
    missing = options(out, "none", **{"train.benchmarks": "[none.jsonl]"} | data)
    with pytest.raises(BadInput, match=r"none\.jsonl: no such file"):
        dry_run(resolve("dpo", [word for word in missing if "gamma" not in word]))
    held = f"train.benchmarks=[{held_file(tmp_path)}]"
    with pytest.raises(BadInput, match="this run has none"):
        benchmark_samples(resolve("bt", [held, "train.eval_strategy=no"]), has_eval=True)
    with pytest.raises(BadInput, match="this run has none"):
        benchmark_samples(resolve("bt", [held]), has_eval=False)
    with pytest.raises(BadInput, match="sharded"):
        benchmark_samples(resolve("bt", [held, "train.fsdp=full_shard"]), has_eval=True)
    with pytest.raises(BadInput, match=r"train\.benchmarks: is not used with model\.kind=embedding"):
        train("bt", ["model.kind=embedding", f"out={out}", held], train=groups)


def test_a_sample_keeps_every_subset_and_is_the_same_again() -> None:
    """Proportional, at least one each, seeded, in the order of the file."""
    counts = {"a": 100, "b": 10, "c": 1}
    groups = Groups.from_iterable(
        Group(f"{name}{n}", "?", (Response("x"),), subset=name) for name, count in counts.items() for n in range(count)
    )
    drawn = sample(groups, 20, seed=1)
    subsets = drawn.column("subset")
    assert {name: subsets.count(name) for name in counts} == {"a": 19, "b": 2, "c": 1}
    assert drawn.column("id") == sample(groups, 20, seed=1).column("id") != sample(groups, 20, seed=2).column("id")
    order = {name: place for place, name in enumerate(groups.column("id"))}
    assert [order[name] for name in drawn.column("id")] == sorted(order[name] for name in drawn.column("id"))
    assert sample(groups, 200) is groups
