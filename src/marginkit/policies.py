"""Policies to draw from: a run, or any saved causal model, and how its prompts are put."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from marginkit.config import ModelConfig, RunConfig, resolve, trained_model
from marginkit.errors import BadInput
from marginkit.store import folder_fingerprint

if TYPE_CHECKING:
    from marginkit.run import Run


@dataclass(frozen=True, slots=True)
class Policy:
    """Who answers, and how prompts are put.

    Args:
        name: what responses are signed with.
        config: how the policy was trained: its encoding and precision.
        held: how it is loaded.
        fingerprint: of its weights; of a model that has not been fetched yet, its name and revision.
    """

    name: str
    config: RunConfig
    held: ModelConfig
    fingerprint: str


def open_policy(policy: Run | str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Policy:
    """Find a policy and how it was trained; nothing is loaded yet.

    Args:
        policy: a run, its directory, or any saved causal model (a folder or hub name).
        overrides: `key.sub=value` strings or a nested mapping, e.g. `encoding.chat_template=chatml`.

    Raises:
        BadInput: no such run, a run that is not finished, or one of a reward model.
    """
    folder = Path(policy) if isinstance(policy, str | Path) else policy.path
    if folder.name == "model" and (folder.parent / "config.yaml").is_file():
        folder = folder.parent  # the run knows how its texts were encoded
    if not (folder / "config.yaml").is_file():
        refuse_missing(str(policy))
        config = resolve("sft", overrides)
        held = config.model.model_copy(update={"path": str(policy)})
        known = folder.is_dir()
        return Policy(str(policy), config, held, folder_fingerprint(folder) if known else f"{policy}@{held.revision}")
    _, trained = trained_model(folder)
    config = resolve(folder / "config.yaml", overrides)
    if config.kind == "reward_model":
        raise BadInput(f"{folder}: recipe {config.recipe} trained a reward model, which writes nothing; name a policy")
    kept = {"path": trained.path, "tokenizer": None, "lora": None}
    held = config.model.model_copy(update=kept)
    return Policy(str(folder), config, held, folder_fingerprint(str(trained.path)))


def refuse_missing(name: str) -> None:
    """Refuse a name that can only mean a folder, where there is none.

    Raises:
        BadInput: it does not look like a hub name (`model`, `owner/model`), or its parent folder is here.

    Example:
        >>> refuse_missing("no/such/run")
        Traceback (most recent call last):
        marginkit.errors.BadInput: no/such/run: no such run or model
    """
    path = Path(name)
    hub = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) is not None and ("/" not in name or not path.parent.is_dir())
    if not path.is_dir() and not hub:
        raise BadInput(f"{name}: no such run or model")


def settings_of(held: ModelConfig) -> Any:
    """`config` and `generation_config` of a model that another engine loads."""
    from transformers import AutoConfig, GenerationConfig

    path = str(held.path)
    adapter = Path(path) / "adapter_config.json"
    base = str(json.loads(adapter.read_text())["base_model_name_or_path"]) if adapter.is_file() else path
    config = AutoConfig.from_pretrained(base, revision=held.revision, trust_remote_code=held.trust_remote_code)
    try:
        settings = GenerationConfig.from_pretrained(base, revision=held.revision or "main")
    except OSError:  # a model without any
        settings = GenerationConfig()
    return SimpleNamespace(config=config, generation_config=settings)
