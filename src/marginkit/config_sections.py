"""The sections of a run's configuration: what can be set, of which kind, in which range, with which default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

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


class Section(BaseModel):
    """Frozen; an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class FreshModel(Section):
    """A small model made from nothing, for trials: random weights, a tokenizer trained on the texts of the run."""

    arch: Literal["llama", "modernbert"] = Field("llama", description="decoder (llama) or encoder (modernbert)")
    layers: int = Field(2, ge=1)
    hidden: int = Field(128, ge=8)
    heads: int = Field(4, ge=1)
    vocab: int = Field(4096, ge=300, description="size of the byte-level BPE vocabulary")
    max_length: int = Field(1024, ge=16, description="positions")


class Lora(Section):
    """LoRA through PEFT."""

    r: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | tuple[str, ...] = Field("all-linear", description="module names, or all-linear")


class Head(Section):
    """The head that is trained with `model.kind=embedding`."""

    hidden: int = Field(0, ge=0, description="width of one hidden layer; 0: linear")
    features: Literal["interaction", "response", "joined"] = Field(
        "interaction",
        description="what it reads: interaction: the response, its product with the prompt, and its length; "
        "response: without the prompt; joined: prompt and response embedded as one text",
    )


class ModelConfig(Section):
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


class DataConfig(Section):
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


class EncodingConfig(Section):
    """How text becomes tokens."""

    max_length: int | None = Field(None, ge=2, description="prompt + response tokens; default: the model's own limit")
    on_overflow: Literal["error", "drop", "cut_prompt_left"] = "error"
    overflow_limit: float = Field(0.01, ge=0, le=1, description="share of over-long groups that `error` still drops")
    boundary: Literal["prefix", "common_prefix"] = Field(
        "prefix", description="prefix: refuse where the prompt's tokens do not start the whole"
    )
    chat_template: str | None = Field(None, description="a file, or `chatml`; default: the tokenizer's own")
    separator: str = Field("\n", description="between prompt and response where both are plain text")


class StoreConfig(Section):
    """Where the scores of models that are not trained are kept between runs."""

    path: str = "store"
    use: bool = Field(True, description="false: keep them in the run directory, apart from other runs")


class TrainConfig(Section):
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
    benchmarks: _Paths = Field(
        (), description="file(s) of pairs, reward-bench or reward-bench-2, scored at every evaluation on a sample"
    )
    benchmark_sample: int = Field(
        200, ge=1, description="prompts of each benchmark, drawn by subset with the run's seed"
    )
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
