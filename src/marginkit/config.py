"""The configuration of a run: frozen, typed, unknown keys refused; no torch.

`resolve` turns a recipe name or a YAML file and `key.sub=value` overrides into a `RunConfig`; written to the run
directory as `config.yaml`, it is enough to repeat the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError

from marginkit.config_sections import DataConfig as DataConfig
from marginkit.config_sections import EncodingConfig as EncodingConfig
from marginkit.config_sections import FreshModel as FreshModel
from marginkit.config_sections import Lora as Lora
from marginkit.config_sections import ModelConfig as ModelConfig
from marginkit.config_sections import Section
from marginkit.config_sections import StoreConfig as StoreConfig
from marginkit.config_sections import TrainConfig as TrainConfig
from marginkit.errors import BadInput
from marginkit.registry import PARTS, Kind, Recipe, did_you_mean, load_recipe, read_yaml, recipe_names, resolve_options

HEAD_TRAIN: Mapping[str, Any] = {
    "learning_rate": 0.02,
    "num_train_epochs": 100,
    "load_best_model_at_end": True,
}
"""What takes the place of a recipe's own training settings with `model.kind=embedding`."""


class RunConfig(Section):
    """Everything a run is made of."""

    recipe: str
    seed: int = Field(42, ge=0)
    out: str | None = Field(None, description="run directory; default runs/RECIPE-N")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    encoding: EncodingConfig = EncodingConfig()
    reward: dict[str, Any] = Field({})
    target: dict[str, Any] = Field({})
    objective: dict[str, Any] = Field({})
    train: TrainConfig = TrainConfig()
    store: StoreConfig = StoreConfig()

    @property
    def spec(self) -> Recipe:
        """The recipe of the run."""
        return load_recipe(self.recipe)

    @property
    def kind(self) -> Kind:
        """policy, reward_model or sft."""
        return self.spec.kind

    def options(self) -> dict[str, dict[str, Any]]:
        """The recipe's options by part; one that is still to be chosen (auto) is left out."""
        return {part: {name: value for name, value in getattr(self, part).items() if value != "auto"} for part in PARTS}

    def with_(self, **changes: Any) -> RunConfig:
        """A copy with top-level fields replaced."""
        return self.model_copy(update=changes)


def to_yaml(config: RunConfig) -> str:
    """The configuration as YAML that `resolve` reads back to an equal one.

    Example:
        >>> config = resolve("bt", ["model.path=fresh"])
        >>> "path: fresh" in to_yaml(config)
        True
    """
    from omegaconf import OmegaConf

    return str(OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json"))))


def resolve(recipe: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> RunConfig:
    """Turn a recipe name or YAML file and overrides into a checked configuration.

    The recipe's own training settings come first, then the YAML file, then the overrides.

    Args:
        recipe: a name of the catalogue, or a YAML file with a key `recipe`.
        overrides: `key.sub=value` strings, or a nested mapping.

    Raises:
        BadInput: unknown recipe, key or option, or a bad value; one line, with the nearest name.

    Example:
        >>> resolve("mmpo", ["reward.beta=0.05", "target.gamma=0.3"]).target
        {'gamma': 0.3}
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    name = str(recipe)
    base: dict[str, Any] = {}
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise BadInput(f"{name}: no such file")
        base = read_yaml(Path(name))
        if "recipe" not in base:
            raise BadInput(f"{name}: key `recipe` is missing; write one of {', '.join(recipe_names())}")
        name = str(base["recipe"])
    spec = load_recipe(name)
    try:
        if isinstance(overrides, Mapping):
            given = OmegaConf.create(dict(overrides))
        else:
            for item in overrides:
                if "=" not in item:
                    raise BadInput(f"{item!r}: write overrides as key.sub=value, e.g. train.learning_rate=1e-5")
            given = OmegaConf.from_dotlist(list(overrides))
        merged = OmegaConf.merge({"train": dict(spec.train)}, base, given, {"recipe": name})
        if OmegaConf.select(merged, "model.kind") == "embedding":
            merged = OmegaConf.merge(
                {"model": {"path": "hash"}, "train": dict(HEAD_TRAIN)}, base, given, {"recipe": name}
            )
        content = OmegaConf.to_container(merged, resolve=False)
    except OmegaConfBaseException as error:
        raise BadInput(f"overrides: {str(error).splitlines()[0]}") from None
    try:
        config = RunConfig.model_validate(content)
    except ValidationError as error:
        raise BadInput(_one_line(error)) from None
    for part in PARTS:
        resolve_options(spec, part, getattr(config, part))
    _check_kind(config)
    return config


def trained_model(run: Path) -> tuple[RunConfig, ModelConfig]:
    """The configuration of a run, and how the model it trained is loaded.

    Raises:
        BadInput: the run is not finished.
    """
    config = resolve(run / "config.yaml")
    if not (run / "model").is_dir():
        raise BadInput(f"{run}: the run has no trained model yet; run marginkit train again to finish it")
    return config, config.model.model_copy(update={"path": str(run / "model"), "tokenizer": None, "lora": None})


def _check_kind(config: RunConfig) -> None:
    control, kind = config.train.control, config.kind
    if control is not None and load_recipe(control).kind != kind:
        fits = {"policy": "dpo", "reward_model": "bt"}.get(kind)
        fix = f"use train.control={fits}" if fits and fits != config.recipe else "leave it out"
        raise BadInput(f"train.control={control}: recipe {config.recipe} trains a {kind.replace('_', ' ')}; {fix}")
    replaced = any("name" in getattr(config, part) for part in PARTS)
    if control == config.recipe and not replaced:
        raise BadInput(f"train.control={control}: the recipe is its own control; leave it out")
    if config.model.quantization is not None and config.model.lora is None:
        raise BadInput("model.quantization: quantised weights are not trained; add model.lora.r=16")
    if config.model.fresh.arch == "modernbert" and config.model.path == "fresh" and kind != "reward_model":
        raise BadInput(
            "model.fresh.arch=modernbert: an encoder has no next-token probabilities; use llama for a policy"
        )


def _one_line(error: ValidationError) -> str:
    """All complaints of pydantic in one line, in our words."""
    complaints = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            *place, word = [str(part) for part in item["loc"]]
            known = _keys_at(place)
            hint = did_you_mean(word, known)
            complaints.append(f"{key}: unknown key{hint or f' (known here: {chr(44).join(known)})'}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            got = "" if item["type"] in ("value_error", "missing") else f", got {item['input']!r}"
            complaints.append(f"{key}: {message[0].lower()}{message[1:]}{got}" if key else message)
    return "; ".join(complaints)


def _keys_at(place: Iterable[str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for word in place:
        field = model.model_fields.get(word)
        if field is None:
            return []
        annotation = field.annotation
        candidates = [annotation, *get_args(annotation)]
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)
