"""docs/distributed.md: its keys exist, and its DeepSpeed files are filled as it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from accelerate.utils import deepspeed as accelerate_deepspeed
from transformers import TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig, is_deepspeed_available

import tiny
from marginkit.arguments import training_arguments
from marginkit.config import RunConfig, resolve
from marginkit.errors import BadInput

PAGE = Path(__file__).parent.parent / "docs" / "distributed.md"
TEXT = PAGE.read_text(encoding="utf-8")
KEYS = r"(?:train|data|model(?!\.safe)|store)\.[a-z_]+(?:\.[a-z_]+)?"
SETTINGS = sorted(set(re.findall(rf"({KEYS}=[^\s`]+)", TEXT)))


def arguments_of(folder: Path, *overrides: str, precision: str = "fp32") -> TrainingArguments:
    """What transformers makes of a run's settings."""
    config = resolve("mmpo", ["model.path=none", "train.use_cpu=true", "target.gamma=1", *overrides])
    return training_arguments(config, folder, precision=precision, has_eval=False)


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_of_the_page_is_one(setting: str) -> None:
    """With the value that stands there, and it changes something."""
    assert at(resolve("mmpo", [setting]), setting) != at(RunConfig(recipe="mmpo"), setting)


def at(config: RunConfig, setting: str) -> Any:
    """The value of a setting's key; None where there is none."""
    value: Any = config.model_dump()
    for word in setting.split("=")[0].split("."):
        value = (value or {}).get(word)
    return value


def test_every_key_of_the_page_is_one() -> None:
    """Those without a value, too."""
    assert len(SETTINGS) >= 10
    known = RunConfig(recipe="mmpo").model_dump()
    for key in re.findall(rf"`({KEYS})`", TEXT):
        section, name = key.split(".")[:2]
        assert name in known[section], key


def test_what_the_page_says_of_fsdp_reaches_accelerate(tmp_path: Path) -> None:
    """FSDP2; each option under the name that transformers knows; checkpoints with whole weights."""
    options = [setting for setting in SETTINGS if setting.startswith("train.fsdp")]
    made = arguments_of(tmp_path, *options).fsdp_plugin_args
    assert made["fsdp_version"] == 2
    assert made["reshard_after_forward"] is False
    assert made["activation_checkpointing"] is made["cpu_offload"] is True
    assert made["transformer_cls_names_to_wrap"] == "ModernBertEncoderLayer"
    plain = arguments_of(tmp_path, "train.fsdp=true").fsdp_plugin_args
    assert plain["reshard_after_forward"] is True
    assert plain["state_dict_type"] == "FULL_STATE_DICT"


class Filled(HfTrainerDeepSpeedConfig, accelerate_deepspeed.HfDeepSpeedConfig):
    """What transformers makes of a DeepSpeed file, without asking for DeepSpeed."""

    def __init__(self, path: Path) -> None:
        accelerate_deepspeed.HfDeepSpeedConfig.__init__(self, str(path))
        self._dtype, self.mismatches = None, []


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """The values of nested mappings by dotted name."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        inner: leaf for key, part in value.items() for inner, leaf in leaves(part, f"{name}.{key}".strip(".")).items()
    }


@pytest.mark.parametrize("stage", [2, 3])
def test_the_deepspeed_files_are_filled_from_the_run(stage: int, tmp_path: Path) -> None:
    """Every "auto" gets a value, the one the page names; nothing contradicts the run."""
    path = PAGE.parent / "deepspeed" / f"zero{stage}.json"
    assert f"(deepspeed/{path.name})" in TEXT
    autos = {name for name, value in leaves(json.loads(path.read_text(encoding="utf-8"))).items() if value == "auto"}
    own = tiny.model("llama")
    for precision in ("fp32", "bf16", "fp16"):
        filled = Filled(path)
        arguments = arguments_of(tmp_path, "train.max_grad_norm=0.7", "train.gradient_checkpointing=false")
        arguments.bf16, arguments.fp16 = precision == "bf16", precision == "fp16"
        filled.trainer_config_process(arguments)
        filled.trainer_config_finalize(arguments, own, 10)
        values = leaves(filled.config)
        assert "auto" not in values.values()
        assert (values["bf16.enabled"], values["fp16.enabled"]) == (precision == "bf16", precision == "fp16")
        assert values["gradient_clipping"] == 0.7
        names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
        assert [values[name] for name in names] == [1, 1, 1]
        assert values["zero_optimization.stage"] == stage
        assert values["zero_optimization.reduce_bucket_size"] == 32 * 32
        assert (filled.is_zero2(), filled.is_zero3()) == (stage == 2, stage == 3)
        assert not filled.is_offload()
    named = set(re.findall(r"`([a-z0-9_.]+)`", TEXT))
    assert {name.removeprefix("zero_optimization.") for name in autos} <= named
    assert "optimizer" not in filled.config
    assert "scheduler" not in filled.config


@pytest.mark.skipif(is_deepspeed_available(), reason="says what happens without DeepSpeed")
def test_without_deepspeed_it_is_asked_for_in_one_line(tmp_path: Path) -> None:
    """Not a traceback."""
    with pytest.raises(BadInput, match=r"^train: .*deepspeed"):
        arguments_of(tmp_path, f"train.deepspeed={PAGE.parent / 'deepspeed' / 'zero2.json'}")
