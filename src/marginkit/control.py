"""The control of a run: another recipe, usually the hard label, on the same data, from the same start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from marginkit.assembly import build_loss
from marginkit.config import RunConfig
from marginkit.registry import SFT_OPTIONS, arguments, load_recipe


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
        objective={name: value for name, value in config.objective.items() if name in SFT_OPTIONS},
        train=config.train.model_copy(update={"control": None}),
        out=str(out),
    )
    loss = build_loss(twin.spec, twin.options())
    if "rm_head" not in loss.needs:
        twin = twin.with_(model=twin.model.model_copy(update={"reward_model": None}))
    if "ref_logp" not in loss.needs:
        twin = twin.with_(model=twin.model.model_copy(update={"reference": None}))
    if not loss.coupled:
        idle = {"population": None, "population_window": None}
        twin = twin.with_(train=twin.train.model_copy(update=idle))
    return twin


def _reward_of_control(config: RunConfig, control: str) -> dict[str, Any]:
    """The run's own reward options for its twin, its recipe's defaults included: another beta is another comparison.

    Where the control has another reward, on another scale, it keeps its own defaults.
    """
    function, values = arguments(config.spec, config.options())["reward"]
    other = load_recipe(control).reward
    if other.function == function:
        return {name: values[other.parameter(name)] for name in other.options if other.parameter(name) in values}
    return {"name": function, **values} if "name" in config.reward else {}
