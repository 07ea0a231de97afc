"""The control of a run: another recipe, usually the hard label, on the same data, from the same start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from marginkit.assembly import build_loss
from marginkit.config import RunConfig
from marginkit.registry import load_recipe, resolve_options


def twin_of(config: RunConfig, control: str, out: Path) -> RunConfig:
    """The configuration of the control: the same run with another recipe, without the keys that it does not use.

    Args:
        config: the run.
        control: another recipe of the same kind.
        out: the control's own run directory.
    """
    twin = config.with_(
        recipe=control,
        reward=_reward_of_control(config, control),
        target={},
        objective={},
        train=config.train.model_copy(update={"control": None}),
        out=str(out),
    )
    loss = build_loss(twin.spec, twin.options())
    if "rm_head" not in loss.needs:
        twin = twin.with_(model=twin.model.model_copy(update={"reward_model": None}))
    if not loss.coupled:
        idle = {"population": None, "population_window": None}
        twin = twin.with_(train=twin.train.model_copy(update=idle))
    return twin


def _reward_of_control(config: RunConfig, control: str) -> dict[str, Any]:
    """The run's own reward options for its twin, its recipe's defaults included: another beta is another comparison.

    Where the control has another reward, on another scale, it keeps its own defaults.
    """
    if "name" in config.reward:
        return config.reward
    own, options = resolve_options(config.spec, "reward", config.reward)
    other = load_recipe(control).reward
    if other.function != own:
        return {}
    return {name: value for name, value in options.items() if name in other.options}
