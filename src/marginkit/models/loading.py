"""Policies, reward models and tokenizers: from a folder, a hub name, or made small and fresh for a trial."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from marginkit.config import FreshModel, ModelConfig
from marginkit.errors import BadInput
from marginkit.registry import Kind

log = logging.getLogger("marginkit")

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


def load_tokenizer(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """A tokenizer from a folder, a hub name, or a bare `tokenizer.json`.

    Raises:
        BadInput: nothing there that can be read as a tokenizer.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if path.endswith(".json") or (
        (Path(path) / "tokenizer.json").is_file() and not (Path(path) / "config.json").is_file()
    ):
        file = Path(path) if path.endswith(".json") else Path(path) / "tokenizer.json"
        if not file.is_file():
            raise BadInput(f"model.tokenizer: no file {file}")
        if not (file.parent / "tokenizer_config.json").is_file():
            return _bare_tokenizer(PreTrainedTokenizerFast, file)
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise BadInput(f"tokenizer {path}: {_first_line(error)}; give model.tokenizer=FOLDER") from None


def _bare_tokenizer(kind: Any, file: Path) -> Any:
    """A tokenizer.json alone does not say which token ends a text; the well-known names do."""
    tokenizer = kind(tokenizer_file=str(file))
    known = {added["content"] for added in json.loads(file.read_text(encoding="utf-8")).get("added_tokens", [])}
    for word in ("<|endoftext|>", "</s>", EOS):
        if word in known:
            tokenizer.eos_token = word
            break
    if "<|padding|>" in known:
        tokenizer.pad_token = "<|padding|>"
    return tokenizer


def fresh_tokenizer(
    texts: Iterable[str], vocab: int, *, encoder: bool = False, chat_template: str | None = None
) -> Any:
    """A byte-level BPE tokenizer trained on the spot.

    Args:
        texts: what to learn the merges from.
        vocab: size of the vocabulary, special tokens included.
        encoder: frame texts as [CLS] ... [SEP] instead of starting them with BOS.
        chat_template: the template it carries; none by default.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"] if encoder else [PAD, BOS, EOS, *_CHATML_TOKENS]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    first = specials[1]
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{first} $A [SEP]" if encoder else f"{first} $A",
        special_tokens=[(token, bpe.token_to_id(token)) for token in (specials[1:3] if encoder else [first])],
    )
    names = (
        {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        if encoder
        else {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS, "additional_special_tokens": list(_CHATML_TOKENS)}
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **names)
    tokenizer.chat_template = chat_template
    return tokenizer


def ensure_pad(tokenizer: Any) -> bool:
    """Give the tokenizer a pad token that is not its end token; true if one had to be added.

    transformers reads a reward at the last token that is not padding: with pad == EOS it would skip the EOS itself.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return False
    tokenizer.add_special_tokens({"pad_token": PAD})
    return True


def prepare_padding(tokenizer: Any, kind: Kind) -> None:
    """A pad token: for a reward model one that is not the end token, for a policy any."""
    if kind == "reward_model":
        if ensure_pad(tokenizer):
            log.info("added a pad token, so that the reward is read at the end token itself")
    elif tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def fresh_model(fresh: FreshModel, kind: Kind, tokenizer: Any, *, seed: int) -> nn.Module:
    """A small model with random weights for this tokenizer: a llama decoder or a modernbert encoder."""
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        ModernBertConfig,
        ModernBertForSequenceClassification,
    )

    torch.manual_seed(seed)
    # a little room so that rows stay a multiple of 8
    size = (len(tokenizer) + 7) // 8 * 8
    common = {
        "vocab_size": size,
        "hidden_size": fresh.hidden,
        "num_hidden_layers": fresh.layers,
        "num_attention_heads": fresh.heads,
        "max_position_embeddings": fresh.max_length,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model: nn.Module
    if fresh.arch == "modernbert":
        model = ModernBertForSequenceClassification(
            ModernBertConfig(  # type: ignore[call-arg]
                **common,
                intermediate_size=2 * fresh.hidden,
                num_labels=1,
                classifier_pooling="mean",
                cls_token_id=tokenizer.cls_token_id,
                sep_token_id=tokenizer.sep_token_id,
                bos_token_id=tokenizer.cls_token_id,
                eos_token_id=tokenizer.sep_token_id,
            )
        )
        return model
    config = LlamaConfig(  # type: ignore[call-arg]
        **common,
        intermediate_size=4 * fresh.hidden,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=kind != "reward_model",
        num_labels=1,
    )
    model = LlamaForSequenceClassification(config) if kind == "reward_model" else LlamaForCausalLM(config)
    return model


def load_model(config: ModelConfig, kind: Kind, tokenizer: Any, *, trainable: bool = True) -> nn.Module:
    """A policy (AutoModelForCausalLM) or reward model (AutoModelForSequenceClassification, one label) with its adapter.

    Args:
        config: where it is and how it is held; `path` may be a folder with a PEFT adapter.
        kind: policy and sft load a causal model, reward_model a classifier.
        tokenizer: its pad token is made the model's.
        trainable: put the configured LoRA adapter on it.

    Raises:
        BadInput: the path is missing or holds no such model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if config.path is None:
        raise BadInput("model.path is missing: a folder, a hub name, or `fresh` for a small random model")
    path = config.path
    adapter = Path(path) / "adapter_config.json"
    base = json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.is_file() else path
    auto: Any = AutoModelForSequenceClassification if kind == "reward_model" else AutoModelForCausalLM
    kwargs: dict[str, Any] = {
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
        "dtype": getattr(torch, config.dtype or "float32"),
        "quantization_config": _quantization(config.quantization),
    }
    if config.attention is not None:
        kwargs["attn_implementation"] = config.attention
    if kind == "reward_model":
        kwargs["num_labels"] = 1
    try:
        model = auto.from_pretrained(base, **kwargs)
    except (OSError, ValueError) as error:
        if "attn_implementation" in str(error):
            raise BadInput(f"model.attention={config.attention}: {_first_line(error)}") from None
        raise BadInput(f"model.path={path}: {_first_line(error)}") from None
    except SafetensorError as error:
        raise BadInput(f"model.path={path}: its weights are cut or damaged ({_first_line(error)})") from None
    fit_embeddings(model, tokenizer)
    if adapter.is_file():
        from peft import PeftConfig, PeftModel

        adapted = PeftConfig.from_pretrained(path)
        if adapted.is_prompt_learning:  # its virtual tokens exist in the wrapper's forward alone
            kind_of = getattr(adapted.peft_type, "value", adapted.peft_type)
            raise BadInput(f"model.path={path}: a {kind_of} adapter puts virtual tokens before a prompt; use LoRA")
        model = PeftModel.from_pretrained(model, path, is_trainable=trainable)
    elif config.lora is not None and trainable:
        model = add_lora(model, config, kind)
    return keep_head_precise(model)


def add_lora(model: nn.Module, config: ModelConfig, kind: Kind) -> nn.Module:
    """Put a fresh LoRA adapter on the model; a reward head is trained beside it."""
    from peft import LoraConfig, TaskType, get_peft_model

    lora = config.lora
    assert lora is not None
    adapted: nn.Module = get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.SEQ_CLS if kind == "reward_model" else TaskType.CAUSAL_LM,
            r=lora.r,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]
            lora_dropout=lora.dropout,
            target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        ),
    )
    return adapted


def fit_embeddings(model: Any, tokenizer: Any) -> None:
    """Make room for added tokens and tell the model its pad token."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        # exactly so many rows: PEFT saves resized embeddings with the adapter and loads them by the tokenizer's length
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def keep_head_precise(model: nn.Module) -> nn.Module:
    """Hold a reward head in float32: a bfloat16 logit near 2 resolves 1/64."""
    for name, module in model.named_modules():
        if "score" in name.split(".") and isinstance(module, nn.Linear):
            module.float()
    return model


def without_dropout(model: nn.Module) -> nn.Module:
    """Set the model's own dropout to zero, the float attributes of attention modules too (nn.Dropout misses those).

    An adapter's dropout stays: it is there because the user asked for it (`model.lora.dropout`).
    """
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            continue
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for attribute in ("attention_dropout", "attn_dropout", "hidden_dropout", "dropout"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    return model


def core_of(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_reward_model(core: Any) -> bool:
    """Whether a transformers model is a sequence classifier."""
    return "ForSequenceClassification" in type(core).__name__


def model_folder(path: str, revision: str | None = None) -> Path:
    """The local folder of a model: the path itself, or the hub's snapshot once it has been fetched."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, revision=revision, local_files_only=True))


def model_limit(model: Any, tokenizer: Any) -> int:
    """The longest sequence the model and its tokenizer admit, in tokens."""
    config = model.config.get_text_config()
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
    known = [limit for limit in (*limits, tokenizer.model_max_length) if limit and limit < 10**8]
    return min(known) if known else 4096


def _quantization(kind: str | None) -> Any:
    if kind is None:
        return None
    from transformers import BitsAndBytesConfig

    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
