"""What a run saves is what transformers and PEFT load, in a process that has never heard of marginkit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import tiny
from marginkit.data.encoding import Encoder
from marginkit.data.pairing import make_pairs
from marginkit.errors import BadInput
from marginkit.models.loading import load_tokenizer
from marginkit.run import Run, score, train

GROUPS = tiny.world(train=8, dev=0, test=5)

# kind of run -> recipe, family of the start, options
RUNS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "policy": ("mmpo", "llama", ("target.gamma=0.5", "reward.beta=0.2")),
    "tied policy": ("dpo", "gpt2", ()),
    "reward model": ("mmpo_rm", "llama_rm", ("target.gamma=0.5",)),
    "reward model from a policy": ("bt", "llama", ()),
    "encoder reward model": ("bt", "modernbert_rm", ()),
    "LoRA policy": ("dpo", "llama", ("model.lora.r=4",)),
    "LoRA reward model": ("bt", "llama", ("model.lora.r=4",)),
    "reward model, pad token added": ("bt", "no pad", ()),
    "LoRA reward model, pad token added": ("bt", "no pad", ("model.lora.r=4",)),
    "sft": ("sft", "llama", ()),
}

# A reader of saved models that knows transformers and PEFT only: one row at a time, so that nothing is padded.
READER = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
torch.set_num_threads(1)
jobs = json.load(sys.stdin)
found = {}
for name, job in jobs.items():
    reward_model, lora = "reward model" in name, "LoRA" in name
    if lora:
        kind = AutoPeftModelForSequenceClassification if reward_model else AutoPeftModelForCausalLM
    else:
        kind = AutoModelForSequenceClassification if reward_model else AutoModelForCausalLM
    extra = {"num_labels": 1} if lora and reward_model else {}
    model = kind.from_pretrained(job["model"], **extra).eval()
    AutoTokenizer.from_pretrained(job["model"])
    values = []
    with torch.no_grad():
        for prompt, response in job["rows"]:
            ids = torch.tensor([prompt + response])
            logits = model(input_ids=ids).logits
            if reward_model:
                assert logits.shape == (1, 1), logits.shape
                values.append(float(logits[0, 0]))
            else:
                logp = logits[0].double().log_softmax(-1)
                at = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
                values.append(float(logp[at, ids[0, len(prompt):]].sum()))
    found[name] = values
assert not any(word.split(".")[0] == "marginkit" for word in sys.modules)
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One short run of every kind."""
    folder = tmp_path_factory.mktemp("runs")
    families = {family for _, family, _ in RUNS.values()} - {"no pad"}
    starts = {family: tiny.save(folder / family, family) for family in families}
    starts["no pad"] = tiny.save_without_pad(folder / "no pad")
    return {
        name: train(
            recipe,
            [
                f"model.path={starts[family]}",
                "train.learning_rate=0.01",
                "train.prompts_per_step=4",
                "train.save_strategy=no",
                "train.use_cpu=true",
                "store.use=false",
                f"out={folder / name}",
                *options,
            ],
            train=GROUPS,
        )
        for name, (recipe, family, options) in RUNS.items()
    }


@pytest.fixture(scope="module")
def read_elsewhere(runs: dict[str, Run]) -> dict[str, list[float]]:
    """The scores that a fresh process gives the test responses with nothing but transformers and PEFT."""
    jobs: dict[str, Any] = {}
    for name, run in runs.items():
        rows = pq.read_table(run.path / "tables" / "responses.parquet").to_pylist() if name != "sft" else None
        held = make_pairs(
            GROUPS.filter(lambda group: group.split == "test", reason="other split"),
            "all",
        )
        if rows is None:
            rows = score(run, held).responses.to_pylist()
        encoded, _ = Encoder(load_tokenizer(str(run.checkpoint)), max_length=256).encode(held)
        ids = {
            (group.id, number): (group.prompt_ids, response)
            for group in encoded
            for number, response in enumerate(group.response_ids)
        }
        jobs[name] = {"model": str(run.checkpoint), "rows": [ids[row["group"], row["response"]] for row in rows]}
    done = subprocess.run(
        [sys.executable, "-c", READER],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", [name for name in RUNS if "reward model" in name])
def test_a_fresh_process_gives_the_stored_rewards(
    name: str, runs: dict[str, Run], read_elsewhere: dict[str, list[float]]
) -> None:
    """The head's output == the `reward` and `head` columns of the table, within 1e-5."""
    table = pq.read_table(runs[name].path / "tables" / "responses.parquet")
    assert len(set(table["reward"].to_pylist())) > 10
    assert table["head"].to_pylist() == table["reward"].to_pylist()
    assert table["head"].to_pylist() == pytest.approx(read_elsewhere[name], abs=1e-5)


@pytest.mark.parametrize("name", ["policy", "tied policy", "LoRA policy"])
def test_a_fresh_process_gives_the_stored_log_probabilities(
    name: str, runs: dict[str, Run], read_elsewhere: dict[str, list[float]]
) -> None:
    """The summed log-probability == the `logp` column, within 1e-5 relative; the reward is beta * log-ratio."""
    table = pq.read_table(runs[name].path / "tables" / "responses.parquet")
    logp, ref = (table[column].to_pylist() for column in ("logp", "ref_logp"))
    assert logp == pytest.approx(read_elsewhere[name], rel=1e-5)
    assert max(abs(a - b) for a, b in zip(logp, ref, strict=True)) > 0.01, "the policy has moved"
    beta = 0.2 if name == "policy" else 0.1
    assert table["reward"].to_pylist() == pytest.approx([beta * (a - b) for a, b in zip(logp, ref, strict=True)])


def test_an_sft_model_loads_as_a_causal_model(runs: dict[str, Run], read_elsewhere: dict[str, list[float]]) -> None:
    """The reward of SFT is the log-probability itself."""
    held = make_pairs(GROUPS.filter(lambda group: group.split == "test", reason="other split"), "all")
    table = score(runs["sft"], held).responses
    assert table["reward"].to_pylist() == pytest.approx(read_elsewhere["sft"], rel=1e-5)


@pytest.mark.parametrize("name", ["LoRA policy", "LoRA reward model"])
def test_a_lora_run_saves_an_adapter(name: str, runs: dict[str, Run]) -> None:
    """The folder holds PEFT's two files and no copy of the base model."""
    held = {path.name for path in runs[name].checkpoint.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= held
    assert "model.safetensors" not in held


def test_a_saved_reward_model_is_scored_without_its_run(runs: dict[str, Run]) -> None:
    """`score` of the bare folder == the run's own table."""
    run = runs["reward model"]
    held = GROUPS.filter(lambda group: group.split == "test", reason="other split")
    alone = score(run.checkpoint, held)
    table = pq.read_table(run.path / "tables" / "responses.parquet")
    assert alone.responses["reward"].to_pylist() == pytest.approx(table["reward"].to_pylist(), abs=1e-6)


def test_a_saved_policy_is_scored_against_a_reference_that_is_named(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its run a policy needs a recipe and a reference; with both it gives the run's rewards."""
    monkeypatch.chdir(tmp_path)  # the score store goes to the working directory
    run = runs["tied policy"]
    held = GROUPS.filter(lambda group: group.split == "test", reason="other split")
    with pytest.raises(BadInput, match=r"not a run, and not a saved reward model; say how to read it, e.g. --recipe"):
        score(run.checkpoint, held)
    with pytest.raises(BadInput, match="the reward of recipe dpo is relative to a reference; name it with --reference"):
        score(run.checkpoint, held, recipe="dpo")
    alone = score(run.checkpoint, held, recipe="dpo", reference=str(run.config.model.path))
    table = pq.read_table(run.path / "tables" / "responses.parquet")
    assert alone.responses["reward"].to_pylist() == pytest.approx(table["reward"].to_pylist(), abs=1e-5)


def test_an_adapter_of_virtual_tokens_is_refused(tmp_path: Path) -> None:
    """Its tokens exist in the wrapper's forward alone: scored here they would silently be left out."""
    from peft import PromptTuningConfig, TaskType, get_peft_model

    from marginkit.config import ModelConfig
    from marginkit.models.loading import load_model

    base = tiny.save(tmp_path / "base", "llama")
    own = tiny.model("llama")
    own.name_or_path = base
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2, base_model_name_or_path=base)
    get_peft_model(own, config).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(BadInput, match="PROMPT_TUNING adapter puts virtual tokens before a prompt; use LoRA"):
        load_model(ModelConfig(path=str(tmp_path / "adapter")), "policy", load_tokenizer(base))
