"""The dry run: what it tells is what the run then does, and it leaves nothing behind. Memory, and when it is short."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import marginkit.dry_run
import marginkit.memory
import tiny
from marginkit.cli import main
from marginkit.config import resolve
from marginkit.cost import pair_tokens
from marginkit.dry_run import dry_run
from marginkit.errors import BadInput
from marginkit.groups import write_groups
from marginkit.memory import Memory, estimate, saved_bytes, wants_checkpointing
from marginkit.models.packing import make_batch
from marginkit.run import train
from marginkit.scoring import Precision

GROUPS = tiny.world(train=10, dev=4, test=6)
MEMORY = Memory(weights=100, gradients=100, optimizer=200, activations=500, free=1000)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A short run on a file, in an empty folder."""
    start = tiny.save(tmp_path / "start", "llama")
    write_groups(GROUPS, tmp_path / "data.jsonl")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return [
        f"model.path={start}", f"data.train={tmp_path / 'data.jsonl'}", "train.use_cpu=true", "target.gamma=0.5",
        "train.prompts_per_step=4", "train.num_train_epochs=1", "train.logging_steps=1",
    ]  # fmt: skip


@pytest.mark.parametrize("more", [(), ("train.layout=rows",), ("train.tokens_per_micro_batch=30",)])
def test_what_it_foretells_is_what_the_run_does(more: tuple[str, ...], settings: list[str]) -> None:
    """Steps, tokens computed, of the data and of padded pairs are those of the run's manifest; nothing is left."""
    config = resolve("mmpo", [*settings, *more])
    found = dry_run(config)
    assert list(Path().iterdir()) == []
    run = train(config)
    cost = json.loads((run.path / "manifest.json").read_text())["cost"]
    assert found.steps == cost["steps"] == 3
    assert (found.tokens, found.seen, found.pair_tokens) == (
        cost["tokens"], cost["seen"], cost["pair_tokens"],
    )  # fmt: skip
    encoded = tiny.encode(run_groups())
    assert found.seen == sum(group.shape.packed for group in encoded)
    pairs = sum(len(group.chosen) for group in encoded)
    assert found.pair_tokens == pair_tokens(encoded, [1.0] * pairs)
    assert found.pairs == pairs
    assert found.reference_responses == sum(len(group.responses) for group in GROUPS)
    assert (found.tokens > found.seen) == bool(more)
    assert found.layout == ("rows" if "train.layout=rows" in more else "segments")
    assert 0 < found.goodput < 1.5
    assert found.seconds_a_step > 0


def run_groups() -> Any:
    """The training groups with the pairs that a run makes."""
    return tiny.graded_groups(10, seed=0, split="train")


def test_on_the_command_line(
    settings: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table for people, JSON for programs; what the run would refuse is refused."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["marginkit", "train", "mmpo", *words, "--dry-run"])
        code = 0
        try:
            main()
        except SystemExit as leave:
            code = int(leave.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    code, shown, _ = call(*settings)
    assert code == 0
    assert "nothing was trained" in shown
    assert "times as many" in shown
    code, shown, _ = call(*settings, "--json")
    found = json.loads(shown)
    assert code == 0
    assert found["layout"] == "segments"
    assert found["memory"]["free"] > 0
    assert found["fits"] is True
    code, shown, told = call(*settings[1:])
    assert (code, shown) == (2, "")
    assert "model.path is missing" in told
    assert list(Path().iterdir()) == []


def test_several_processes_are_refused(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One process tells what a rank will do."""

    class Two:
        num_processes = 2

    monkeypatch.setattr(marginkit.dry_run, "ranks", lambda _: Two())
    with pytest.raises(BadInput, match="--dry-run: is for one process"):
        dry_run(resolve("mmpo", settings))


# ----------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("family", ["llama", "gpt2", "llama_rm"])
def test_saved_bytes_are_those_of_the_autograd_graph(family: str) -> None:
    """They grow with the tokens; with activations computed again they are fewer."""
    own = tiny.model(family)
    groups = list(tiny.encode(tiny.graded_groups(12)))
    small, large = (
        saved_bytes(own, make_batch(part, rung="rows", pad_id=0), tiny.CPU) for part in (groups[:3], groups[:12])
    )
    tokens = [make_batch(part, rung="rows", pad_id=0)["input_ids"].numel() for part in (groups[:3], groups[:12])]
    assert large / small == pytest.approx(tokens[1] / tokens[0], rel=0.25)
    own.gradient_checkpointing_enable()
    less = saved_bytes(own, make_batch(groups, rung="rows", pad_id=0), tiny.CPU)
    assert less < 0.6 * large
    assert not own.training, "left as it was"


def test_a_saved_tensor_counts_once_and_weights_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """One linear layer and two uses of its output: input (4 x 3) and output (4 x 5) in float32, no weight."""

    class One(torch.nn.Linear):
        pass

    layer = One(3, 5, bias=False)
    made = torch.randn(4, 3)

    def forward(core: Any, batch: Any) -> Any:
        out = core(made)
        return out * out, out**2

    monkeypatch.setattr(marginkit.memory, "score", forward)
    assert saved_bytes(layer, {}, Precision(torch.device("cpu"))) == (4 * 3 + 4 * 5) * 4


def test_an_estimate_adds_up() -> None:
    """Adam keeps two numbers a trained weight, SGD none; shards share all but activations; the largest pass counts."""
    own = tiny.model("llama")
    encoded = tiny.encode(tiny.graded_groups(12))
    size = sum(weight.numel() for weight in own.parameters()) * 4
    found = {}
    for name, more in {
        "adam": (), "sgd": ("train.optim=sgd",), "large": ("train.tokens_per_micro_batch=100000",),
        "small": ("train.tokens_per_micro_batch=64",),
    }.items():  # fmt: skip
        config = tiny.configured("dpo", "train.optim=adamw_torch", *more).train
        plan, _ = plan_of(config, encoded)
        found[name] = estimate(own, encoded, plan, config, tiny.CPU, "rows", pad_id=0, shards=1)
    assert found["adam"].weights == found["adam"].gradients == size
    assert found["adam"].optimizer == 2 * size
    assert found["sgd"].optimizer == 0
    assert found["large"].activations > 5 * found["small"].activations
    config = tiny.configured("dpo", "train.optim=adamw_torch").train
    halved = estimate(own, encoded, plan_of(config, encoded)[0], config, tiny.CPU, "rows", pad_id=0, shards=2)
    assert (halved.weights, halved.optimizer) == (size // 2, size)
    assert halved.activations == found["adam"].activations


def plan_of(config: Any, encoded: Any) -> Any:
    """The plan of a run on one rank."""
    from marginkit.arguments import batch_plan

    return batch_plan(config, encoded, world_size=1, seed=0)


@pytest.mark.parametrize(
    ("free", "wanted", "supported", "expected"),
    [(1000, "auto", True, False), (880, "auto", True, True), (880, "auto", False, False), (1000, True, True, True),
     (10, False, True, False)],
)  # fmt: skip
def test_checkpointing_is_on_where_it_is_needed(
    free: int, wanted: bool | str, supported: bool, expected: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """auto: 800 bytes needed fit in 90% of 1000, not of 880; a model that cannot is told; a plain word is obeyed."""
    own = tiny.model("llama")
    own.supports_gradient_checkpointing = supported
    with caplog.at_level(logging.WARNING, logger="marginkit"):
        assert wants_checkpointing(own, replace(MEMORY, free=free), wanted) is expected
    told = [record.message for record in caplog.records]
    if wanted == "auto" and free == 880:
        word = "turned on" if supported else "cannot checkpoint"
        assert len(told) == 1
        assert word in told[0]
        assert "\n" not in told[0]
    else:
        assert told == []


def test_a_run_that_does_not_fit_recomputes_and_changes_no_number(
    settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With next to no memory free, checkpointing goes on by itself; losses stay."""
    seen: list[bool] = []

    def losses(out: str) -> list[float]:
        from marginkit import arguments

        made = arguments.training_arguments

        def noted(config: Any, *args: Any, **kwargs: Any) -> Any:
            found = made(config, *args, **kwargs)
            seen.append(bool(found.activation_checkpointing))
            return found

        with monkeypatch.context() as patched:
            patched.setattr(arguments, "training_arguments", noted)
            train(resolve("mmpo", [*settings, f"out={out}"]))
        return [line["loss"] for line in tiny.training_lines(Path(out))]

    plain = losses("a")
    monkeypatch.setattr(marginkit.memory, "free_bytes", lambda device: 1)
    assert losses("b") == pytest.approx(plain, rel=1e-6)
    assert seen == [False, True]


def test_flex_is_refused_before_it_cannot_go_backward(settings: list[str]) -> None:
    """Its forward runs on a CPU, its backward does not."""
    with pytest.raises(BadInput, match=r"train\.layout=flex: .* trains on CUDA alone, this is cpu; use train"):
        dry_run(resolve("mmpo", [*settings, "train.layout=flex"]))


def test_data_without_one_good_row_is_refused_by_that_reason(settings: list[str]) -> None:
    """Not by a split that it then does not have."""
    Path("bad.jsonl").write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": NaN, "score_rejected": 1}\n', encoding="utf-8"
    )
    with pytest.raises(BadInput, match=r"bad\.jsonl: no row is left \(.+: 1\); marginkit check names each"):
        dry_run(resolve("mmpo", [*settings, "data.train=bad.jsonl"]))
