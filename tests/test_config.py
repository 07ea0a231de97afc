"""What a run is made of: every key checked, every complaint one line with a way out, the file enough to repeat it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from marginkit.config import RunConfig, resolve, to_yaml
from marginkit.errors import BadInput
from marginkit.registry import load_recipe, recipe_names
from marginkit.rundir import open_run


def complaint(recipe: str | Path, *overrides: str) -> str:
    """The one line a user gets."""
    with pytest.raises(BadInput) as e:
        resolve(recipe, list(overrides))
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("name", recipe_names())
def test_the_written_yaml_resolves_to_the_same_configuration(name: str, tmp_path: Path) -> None:
    """Every recipe, with overrides of every type: file == what was resolved."""
    config = resolve(
        name,
        [
            "model.path=some/where",
            "model.lora.r=4",
            "model.lora.targets=[q_proj,v_proj]",
            "data.train=[a.jsonl,b.jsonl]",
            "data.columns.score=grade",
            "data.fractions={train: 0.5, test: 0.5}",
            "encoding.separator=' '",
            "train.learning_rate=3e-7",
            "train.eval_strategy=no",
            "train.extra.label_smoothing_factor=0.0",
            "train.report_to=[tensorboard,wandb]",
            "out=runs/yes",
        ],
    )
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert resolve(path) == config
    assert resolve(path, ["out=elsewhere"]) == config.with_(out="elsewhere")


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30))
def test_any_text_survives_the_written_yaml(text: str) -> None:
    """Separators, paths and names that look like numbers, dates, booleans or interpolations come back as they were."""
    config = resolve("bt", {"model": {"path": "p"}}).with_()
    held = config.model_copy(update={"encoding": config.encoding.model_copy(update={"separator": text})})
    assert yaml.safe_load(to_yaml(held))["encoding"]["separator"] == text


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("train.learning_rat=1e-5", "train.learning_rat: unknown key; did you mean learning_rate?"),
        ("modle.path=x", "modle: unknown key; did you mean model?"),
        ("model.lora.rank=8", "model.lora.rank: unknown key"),
        ("reward.betta=0.1", "reward.betta: recipe mmpo has no such option; did you mean beta? (known: reward.beta)"),
        ("reward.beta=-1", "reward.beta: must be"),
        ("reward.beta=often", "reward.beta: must be"),
        ("train.num_train_epochs=-1", "train.num_train_epochs: input should be greater than 0, got -1"),
        ("train.save_strategy=never", "train.save_strategy: input should be 'no', 'steps', 'epoch' or 'best'"),
        ("train.learning_rate", "write overrides as key.sub=value, e.g. train.learning_rate=1e-5"),
        ("model.quantization=4bit", "model.quantization: quantised weights are not trained; add model.lora.r=16"),
        ("train.control=bt", "train.control=bt: recipe mmpo trains a policy; use train.control=dpo"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_nearest_right_one(override: str, wanted: str) -> None:
    """One line: the key, the rule, the value, the nearest name."""
    assert wanted in complaint("mmpo", override)


def test_an_unknown_recipe_is_named_with_the_nearest_one() -> None:
    """By name and in a file; a file without a recipe says so."""
    assert "recipe 'mppo' is not in the catalogue; did you mean mmpo?" in complaint("mppo")


def test_a_file_that_is_missing_or_no_yaml_is_named(tmp_path: Path) -> None:
    """Nothing there, no mapping, no recipe."""
    path = tmp_path / "run.yaml"
    assert complaint(path) == f"{path}: no such file"
    path.write_text("- a\n- b\n")
    assert "expected a mapping of keys" in complaint(path)
    path.write_text("seed: 1\n")
    assert "key `recipe` is missing; write one of" in complaint(path)
    path.write_text("recipe: [\n")
    assert "not readable YAML" in complaint(path)


def test_the_recipe_then_the_file_then_the_overrides(tmp_path: Path) -> None:
    """Later ones win."""
    path = tmp_path / "run.yaml"
    path.write_text("recipe: mmpo\nreward: {beta: 0.2}\ntarget: {gamma: 0.5}\ntrain: {warmup_steps: 0.2}\n")
    config = resolve(path, ["reward.beta=0.4"])
    assert config.train.learning_rate == load_recipe("mmpo").train["learning_rate"] == 5e-7
    assert (config.train.warmup_steps, config.reward, config.target) == (0.2, {"beta": 0.4}, {"gamma": 0.5})


@pytest.mark.parametrize("key", ["eval_strategy", "save_strategy"])
@pytest.mark.parametrize("said", ["no", "'no'", "false"])
def test_no_is_understood_where_yaml_reads_false(key: str, said: str, tmp_path: Path) -> None:
    """`train.save_strategy=no` on the command line and `save_strategy: no` in a file mean what they say."""
    assert getattr(resolve("bt", [f"train.{key}={said}"]).train, key) == "no"
    path = tmp_path / "run.yaml"
    path.write_text(f"recipe: bt\ntrain:\n  {key}: {said}\n")
    assert getattr(resolve(path).train, key) == "no"


def test_batch_settings_that_contradict_are_refused() -> None:
    """prompts_per_step and gradient_accumulation_steps both fix the step."""
    assert "not both" in complaint("dpo", "train.prompts_per_step=8", "train.gradient_accumulation_steps=2")
    assert "the recipe is its own control" in complaint("dpo", "train.control=dpo")
    assert "train.control=dpo: recipe sft trains a sft; leave it out" in complaint("sft", "train.control=dpo")
    assert "an encoder has no next-token probabilities" in complaint(
        "dpo", "model.path=fresh", "model.fresh.arch=modernbert"
    )


# ------------------------------------------------------------------------------------------------ the run directory


def held(tmp_path: Path, **changes: Any) -> RunConfig:
    """A configuration with a run directory."""
    return resolve("dpo", {"model": {"path": "p"}, "out": str(tmp_path / "run")} | changes)


def test_a_run_directory_is_entered_again_by_the_same_run_only(tmp_path: Path) -> None:
    """The same settings go on; the first setting that differs is named; foreign and finished folders are refused."""
    out = open_run(held(tmp_path))
    assert open_run(held(tmp_path)) == out
    with pytest.raises(BadInput, match=r"holds another run \(seed was 42, now 7\); choose another folder"):
        open_run(held(tmp_path, seed=7))
    with pytest.raises(BadInput, match=r"holds another run \(reward.beta was None, now 0.5\)"):
        open_run(held(tmp_path, reward={"beta": 0.5}))
    (out / "metrics.json").write_text("null")
    with pytest.raises(BadInput, match="this run is finished"):
        open_run(held(tmp_path))
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter-1.tex").write_text("x")
    with pytest.raises(BadInput, match="not empty, and not a run; choose another folder"):
        open_run(held(tmp_path, out=str(foreign)))


def test_a_run_whose_control_is_not_finished_is_not_finished(tmp_path: Path) -> None:
    """With train.control both have to be done."""
    config = resolve("mmpo", {"model": {"path": "p"}, "train": {"control": "dpo"}, "out": str(tmp_path / "run")})
    out = open_run(config)
    (out / "metrics.json").write_text("null")
    assert open_run(config) == out
    (out / "control").mkdir()
    (out / "control" / "metrics.json").write_text("null")
    with pytest.raises(BadInput, match="this run is finished"):
        open_run(config)


def test_a_run_without_a_name_takes_the_next_free_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """runs/RECIPE-1, then runs/RECIPE-2; the file says where it is."""
    monkeypatch.chdir(tmp_path)
    config = resolve("dpo", ["model.path=p"])
    assert [str(open_run(config)) for _ in range(2)] == ["runs/dpo-1", "runs/dpo-2"]
    assert resolve("runs/dpo-2/config.yaml").out == "runs/dpo-2"


def test_a_configuration_needs_no_torch() -> None:
    """Names, options and typos are handled before anything heavy is imported."""
    code = (
        "import sys; from marginkit.config import resolve, to_yaml; to_yaml(resolve('mmpo', ['target.gamma=1']));"
        "print([m for m in ('torch', 'transformers', 'peft', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
