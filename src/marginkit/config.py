"""The configuration of a run: frozen, typed, unknown keys refused; no torch.

`resolve` turns a recipe name or a YAML file and `key.sub=value` overrides into a `RunConfig`; written to the run
directory as `config.yaml`, it is enough to repeat the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from marginkit.errors import BadInput
from marginkit.registry import PARTS, Kind, Recipe, did_you_mean, load_recipe, read_yaml, recipe_names, resolve_options

_Paths = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (str(value),) if isinstance(value, (str, Path)) else value)
]

# YAML reads a bare `no` as false
_SaidNo = BeforeValidator(lambda value: "no" if value is False else value)


def _yes_no_auto(value: Any) -> Any:
    if isinstance(value, bool) or value == "auto":
        return value
    raise ValueError("auto, true or false")


_YesNoAuto = BeforeValidator(_yes_no_auto)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class FreshModel(_Section):
    """A small model made from nothing, for trials: random weights, a tokenizer trained on the texts of the run."""

    arch: Literal["llama", "modernbert"] = Field("llama", description="decoder (llama) or encoder (modernbert)")
    layers: int = Field(2, ge=1)
    hidden: int = Field(128, ge=8)
    heads: int = Field(4, ge=1)
    vocab: int = Field(4096, ge=300, description="size of the byte-level BPE vocabulary")
    max_length: int = Field(1024, ge=16, description="positions")


class Lora(_Section):
    """LoRA through PEFT."""

    r: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | tuple[str, ...] = Field("all-linear", description="module names, or all-linear")


class Head(_Section):
    """The head that is trained with `model.kind=embedding`."""

    hidden: int = Field(0, ge=0, description="width of one hidden layer; 0: linear")
    features: Literal["interaction", "response", "joined"] = Field(
        "interaction",
        description="what it reads: interaction: the response, its product with the prompt, and its length; "
        "response: without the prompt; joined: prompt and response embedded as one text",
    )


class ModelConfig(_Section):
    """Which model is trained, from what, and how it is held."""

    kind: Literal["transformers", "embedding"] = Field(
        "transformers", description="embedding: a reward model that is a small head on the frozen embeddings of `path`"
    )
    head: Head = Head()
    path: str | None = Field(
        None,
        description="a folder, a hub name, or `fresh` for a small random model; with kind=embedding an embedder: hash "
        "(default), minilm, or a model",
    )
    revision: str | None = None
    tokenizer: str | None = Field(None, description="a folder, a tokenizer.json or a hub name; default: the model's")
    reference: str | None = Field(None, description="reference policy; default: the model before training")
    reward_model: str | None = Field(
        None,
        description="a run directory of a reward model, or a saved one (folder or hub name): its scores of each "
        "response, for recipes that need them",
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="of the weights; default float32, with bfloat16 autocast on an accelerator"
    )
    attention: str | None = Field(None, description="attn_implementation of transformers")
    quantization: Literal["4bit", "8bit"] | None = Field(None, description="needs lora and the extra `qlora`")
    trust_remote_code: bool = False
    lora: Lora | None = None
    fresh: FreshModel = FreshModel()


class DataConfig(_Section):
    """Where the graded data is and how it becomes pairs."""

    train: _Paths = Field((), description="file(s), saved dataset folder(s) or hub name(s)")
    eval: _Paths = Field((), description="separate files for evaluation during training; default: a split of train")
    test: _Paths = Field((), description="separate files for the final evaluation; default: a split of train")
    labels: _Paths = Field(
        (), description="for target.gamma=auto: file(s) of pairs with human labels, of responses that train has graded"
    )
    embedder: str | None = Field(
        None,
        description="for target.gamma=auto where ratings are all there is: what the small models read; default hash, "
        "or the run's own with model.kind=embedding",
    )
    name: str | None = Field(None, description="configuration name of a hub dataset")
    columns: dict[str, str] = Field({}, description="renames, or margin: strength | logits")
    mapping: str | dict[str, Any] | None = Field(
        None, description="a YAML file, or its content, that says which field is what; or the name of a dialect"
    )
    ties: Literal["half", "label", "drop"] = "half"
    contradiction: Literal["drop", "keep", "trust_label", "trust_grade"] = "drop"
    contradiction_limit: float = Field(0.05, ge=0, le=1)
    strict: bool = Field(False, description="any bad row stops the run")
    pairs: Literal["auto", "given", "best_worst", "best_random", "best_vs_others", "adjacent", "all", "dcrm"] = Field(
        "auto", description="auto: the pairs the data gives; where it gives none, all"
    )
    pair_options: dict[str, Any] = Field({}, description="of pairs=dcrm, e.g. distance: edit; docs/selection.md")
    max_pairs: int | None = Field(None, ge=1, description="at most so many pairs a group, drawn at random")
    train_split: str = "train"
    eval_split: str | None = Field("dev", description="dev, validation, val or eval: the first that is there")
    test_split: str | None = "test"
    fractions: dict[str, float] = Field(
        {"train": 0.9, "dev": 0.05, "test": 0.05}, description="used where the data has no split, by cluster"
    )
    limit: int | None = Field(None, ge=1, description="read at most so many rows of each source")


class EncodingConfig(_Section):
    """How text becomes tokens."""

    max_length: int | None = Field(None, ge=2, description="prompt + response tokens; default: the model's own limit")
    on_overflow: Literal["error", "drop", "cut_prompt_left"] = "error"
    overflow_limit: float = Field(0.01, ge=0, le=1, description="share of over-long groups that `error` still drops")
    boundary: Literal["prefix", "common_prefix"] = Field(
        "prefix", description="prefix: refuse where the prompt's tokens do not start the whole"
    )
    chat_template: str | None = Field(None, description="a file, or `chatml`; default: the tokenizer's own")
    separator: str = Field("\n", description="between prompt and response where both are plain text")


class StoreConfig(_Section):
    """Where the scores of models that are not trained are kept between runs."""

    path: str = "store"
    use: bool = Field(True, description="false: keep them in the run directory, apart from other runs")


class TrainConfig(_Section):
    """The loop. Names are those of transformers.TrainingArguments where it has one."""

    prompts_per_step: int | None = Field(
        None,
        ge=1,
        description="groups an optimizer step, all ranks together; default 32, with model.kind=embedding 2048",
    )
    tokens_per_micro_batch: int = Field(
        8192, ge=1, description="tokens of one forward pass; a group that is larger takes several, exactly"
    )
    layout: Literal["auto", "flex", "segments", "dense", "rows"] = Field(
        "auto",
        description="auto: packed rows, each prompt once, where a probe shows that the model gives the same there; "
        "rows: a padded row a response; flex, segments, dense: packed, by that attention or not at all",
    )
    per_device_train_batch_size: int | None = Field(
        None, ge=1, description="prompts of one forward pass (with the next)"
    )
    gradient_accumulation_steps: int | None = Field(None, ge=1, description="x the above x ranks = prompts_per_step")
    per: Literal["pair", "prompt"] | None = Field(
        None, description="what counts the same; default prompt where all pairs of a group are used, else pair"
    )
    population: Literal["microbatch", "window"] | None = Field(
        None,
        description="for recipes that look at other pairs: of one pass (default, as released) or of the last steps",
    )
    population_window: int | None = Field(None, ge=1, description="pairs in the window; default 1024")
    control: str | None = Field(
        None, description="another recipe, trained on the same data from the same start, to compare with: dpo, bt ..."
    )
    disable_dropout: bool | None = Field(None, description="default: true but for sft")
    force: bool = Field(False, description="allow what is refused as harmful, e.g. bfloat16 weights with a tiny rate")
    learning_rate: float = Field(1e-5, ge=0)
    num_train_epochs: float = Field(1.0, gt=0)
    max_steps: int = Field(-1, ge=-1)
    lr_scheduler_type: str = "linear"
    warmup_steps: float = Field(0.0, ge=0, description="steps, or a share of all steps if < 1")
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = Field(1.0, ge=0)
    optim: str = "adamw_torch_fused"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="autocast; auto: bf16 if there is one"
    )
    gradient_checkpointing: Annotated[bool | str, _YesNoAuto] = Field(
        "auto", description="compute activations again in the backward pass; auto: where they do not fit in memory"
    )
    logging_steps: float = Field(10, gt=0)
    eval_strategy: Annotated[Literal["no", "steps", "epoch"], _SaidNo] = "epoch"
    eval_steps: float | None = None
    save_strategy: Annotated[Literal["no", "steps", "epoch", "best"], _SaidNo] = "epoch"
    save_steps: float = 500
    save_total_limit: int | None = 2
    load_best_model_at_end: bool = Field(False, description="keep the checkpoint that is best by metric_for_best_model")
    metric_for_best_model: str = "eval_loss"
    report_to: str | tuple[str, ...] = "none"
    run_name: str | None = None
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool | None = None
    dataloader_num_workers: int = Field(0, ge=0)
    torch_compile: bool = Field(
        False, description="seldom pays: a packed row has a length of its own, and each is compiled anew"
    )
    deepspeed: str | None = None
    fsdp: bool | str | None = None
    fsdp_config: dict[str, Any] | str | None = None
    use_cpu: bool = False
    extra: dict[str, Any] = Field({}, description="passed to TrainingArguments as they are")

    @model_validator(mode="after")
    def _check_batch(self) -> TrainConfig:
        if self.prompts_per_step is not None and self.gradient_accumulation_steps is not None:
            raise ValueError(
                "give prompts_per_step, or per_device_train_batch_size and gradient_accumulation_steps, not both"
            )
        return self


HEAD_TRAIN: Mapping[str, Any] = {
    "learning_rate": 0.02,
    "num_train_epochs": 100,
    "load_best_model_at_end": True,
}
"""What takes the place of a recipe's own training settings with `model.kind=embedding`."""


class RunConfig(_Section):
    """Everything a run is made of."""

    recipe: str
    seed: int = Field(42, ge=0)
    out: str | None = Field(None, description="run directory; default runs/RECIPE-N")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    encoding: EncodingConfig = EncodingConfig()
    reward: dict[str, Any] = {}
    target: dict[str, Any] = {}
    objective: dict[str, Any] = {}
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
