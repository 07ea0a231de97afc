"""Tiny models, tokenizers trained on the spot, graded groups, and processes: what the tests of the model side share."""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)

from marginkit.arguments import training_arguments
from marginkit.assembly import build_loss
from marginkit.batching import BatchPlan
from marginkit.config import RunConfig, resolve
from marginkit.data.encoded import EncodedGroups
from marginkit.data.encoding import Encoder
from marginkit.data.pairing import make_pairs
from marginkit.groups import Groups
from marginkit.models.loading import fresh_tokenizer
from marginkit.models.rungs import choose_rung
from marginkit.records import Group, Pair, Response
from marginkit.scoring import Precision, score_batches
from marginkit.training import MarginTrainer

VOCAB = 304
WORDS = (
    *("the", "a", "red", "green", "blue", "small", "old", "river", "stone", "bird"),
    *("sings", "over", "under", "hill", "house", "tree", "apple", "runs", "slow", "fast"),
)
CPU = Precision(torch.device("cpu"))

# ------------------------------------------------------------------------------------------------------ tokenizers


def tokenizer(*, encoder: bool = False, chat_template: str | None = None) -> Any:
    """A byte-level BPE tokenizer with a BOS, or [CLS] ... [SEP] for an encoder."""
    return fresh_tokenizer([" ".join(WORDS)] * 4, 300, encoder=encoder, chat_template=chat_template)


# ---------------------------------------------------------------------------------------------------------- models

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, _SIZES),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, _SIZES | {"num_key_value_heads": 2}),
    "gpt2": (GPT2LMHeadModel, GPT2Config, _GPT2),
    # caps so low that forgetting either would be seen
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config,
        _SIZES | {"num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 0.5, "sliding_window": 8},
    ),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig, _SIZES),
    "llama_rm": (LlamaForSequenceClassification, LlamaConfig, _SIZES | {"num_labels": 1}),
    "qwen2_rm": (
        Qwen2ForSequenceClassification,
        Qwen2Config,
        _SIZES | {"num_key_value_heads": 2, "num_labels": 1},
    ),
    "gpt2_rm": (GPT2ForSequenceClassification, GPT2Config, _GPT2 | {"num_labels": 1}),
    "bert_rm": (BertForSequenceClassification, BertConfig, _SIZES | {"num_labels": 1}),
    "modernbert_rm": (
        ModernBertForSequenceClassification,
        ModernBertConfig,
        _SIZES | {"num_labels": 1, "classifier_pooling": "mean", "cls_token_id": 1, "sep_token_id": 2},
    ),
}
POLICIES = ("llama", "qwen2", "gpt2", "gemma2", "gpt_neox")
REWARD_MODELS = ("llama_rm", "qwen2_rm", "gpt2_rm", "bert_rm", "modernbert_rm")


def model(family: str, *, seed: int = 0, spread: float = 0.1, **changes: Any) -> Any:
    """A small model of a family, its weights wide enough that logits are far from uniform."""
    made, config, sizes = _FAMILIES[family]
    torch.manual_seed(seed)
    built = made(config(**sizes | changes, attn_implementation="eager" if family == "gemma2" else None))
    with torch.no_grad():
        for name, weight in built.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, spread)
            elif "bias" in name:
                weight.normal_(0.0, 0.1)
    return built.eval()


def save_without_pad(folder: Path) -> str:
    """A causal model whose tokenizer knows no padding token, as the well-known base models are."""
    own = tokenizer(encoder=True)
    own.eos_token, own.pad_token = "[SEP]", None
    base = model("llama", vocab_size=len(own))
    base.config.pad_token_id = None
    base.save_pretrained(folder)
    own.save_pretrained(folder)
    return str(folder)


def save(folder: Path, family: str, *, seed: int = 0, chat_template: str | None = None, **changes: Any) -> str:
    """A model and its tokenizer in a folder, as a user has them."""
    encoder = family in ("bert_rm", "modernbert_rm")
    model(family, seed=seed, **changes).save_pretrained(folder)
    tokenizer(encoder=encoder, chat_template=chat_template).save_pretrained(folder)
    return str(folder)


# ---------------------------------------------------------------------------------------------------------- groups


def phrase(chance: random.Random, low: int, high: int) -> str:
    """A few words."""
    return " ".join(chance.choices(WORDS, k=chance.randint(low, high)))


def graded_groups(
    count: int, *, seed: int = 0, split: str | None = "train", responses: Sequence[int] = (2, 3, 4), long: int = 14
) -> Groups:
    """Groups of K graded responses of mixed lengths; some grades are equal, some pairs weigh more than others."""
    chance = random.Random(seed)

    def made(number: int) -> Group:
        answers = tuple(
            Response(phrase(chance, 1, long), grade=float(chance.randint(1, 4)))
            for _ in range(responses[number % len(responses)])
        )
        return Group(f"{split}-{number}", f"{number} " + phrase(chance, 1, long), answers, split=split)

    paired = make_pairs(Groups.from_iterable(map(made, range(count))), "all")

    def weighted(group: Group) -> Group:
        pairs = tuple(
            Pair(pair.chosen, pair.rejected, tie=pair.tie, weight=1.0 if number % 2 else 0.5 + number)
            for number, pair in enumerate(group.pairs)
        )
        return Group(**{name: getattr(group, name) for name in Group.__slots__} | {"pairs": pairs})

    return paired.map(weighted)


def world(train: int = 12, dev: int = 4, test: int = 6, **changes: Any) -> Groups:
    """Groups with the three splits of a run; pairs are left to the run."""
    parts = [
        replace_pairs(group)
        for seed, (split, count) in enumerate({"train": train, "dev": dev, "test": test}.items())
        for group in graded_groups(count, seed=seed, split=split, **changes)
    ]
    return Groups.from_iterable(parts)


def replace_pairs(group: Group, pairs: tuple[Pair, ...] = ()) -> Group:
    """The group with these pairs."""
    return Group(**{name: getattr(group, name) for name in Group.__slots__} | {"pairs": pairs})


def encode(groups: Groups, own: Any = None, **options: Any) -> EncodedGroups:
    """Groups in tokens."""
    encoded, _ = Encoder(own or tokenizer(), **{"max_length": 256} | options).encode(groups)
    return encoded


def logps(own: Any, encoded: Sequence[Any], tokens: int = 100_000) -> list[list[float]]:
    """Log-probabilities under a model, group by group."""
    found: dict[int, list[float]] = {}
    for indices, scores in score_batches(own, list(encoded), pad_id=0, tokens=tokens, precision=CPU):
        values = iter((scores.logp if scores.logp is not None else scores.head).tolist())
        for index in indices:
            found[index] = [next(values) for _ in encoded[index].response_ids]
    return [found[index] for index in range(len(encoded))]


# ------------------------------------------------------------------------------------------ beside TRL's own trainers

TRL_STEPS, TRL_PAIRS = 3, 12


def preference_rows(form: str, *, even: bool = False) -> list[dict[str, Any]]:
    """Pairs of mixed lengths as a file has them: chat turns, or plain text whose boundary no tokenizer merges.

    Args:
        form: chat or plain.
        even: all chosen responses have as many tokens.
    """
    chance = random.Random(5)
    found = []
    for number in range(TRL_PAIRS):
        prompt = f"{number} " + phrase(chance, 1, 12)
        chosen, rejected = phrase(chance, 1, 16), phrase(chance, 1, 16)
        if even:
            chosen = " ".join(chance.sample(WORDS[:8], k=8))
        margin = round(chance.uniform(0.1, 3.0), 2)
        if form == "chat":
            found.append(
                {
                    "prompt": [{"role": "user", "content": prompt}],
                    "chosen": [{"role": "assistant", "content": chosen}],
                    "rejected": [{"role": "assistant", "content": rejected}],
                    "margin": margin,
                }
            )
        else:
            found.append({"prompt": prompt, "chosen": " " + chosen, "rejected": " " + rejected, "margin": margin})
    return found


def trl_arguments(folder: Path) -> dict[str, Any]:
    """Plain SGD for any trainer of TRL; a whole epoch is one batch, so that the order of the data does not matter."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": TRL_PAIRS,
        "max_steps": TRL_STEPS,
        "num_train_epochs": TRL_STEPS,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "max_length": None,
    }


def logged(trainer: Any) -> list[dict[str, float]]:
    """Train, and what was logged of every step."""
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# -------------------------------------------------------------------------------------------------------- training


class Recording(MarginTrainer):
    """Keeps the gradients of every optimizer step, and what was logged."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        super().__init__(*args, **kwargs)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        own = getattr(model, "module", model)
        self.gradients.append({n: p.grad.clone() for n, p in own.named_parameters() if p.grad is not None})
        return super()._get_grad_norm(model, grad_norm)

    @property
    def losses(self) -> list[float]:
        """The loss of every optimizer step."""
        return [entry["loss"] for entry in self.state.log_history if "loss" in entry]


def configured(recipe: str, *overrides: str) -> RunConfig:
    """A configuration for short trials: plain SGD, every step logged, nothing saved."""
    plain = [
        "model.path=none",
        "train.optim=sgd",
        "train.learning_rate=0.01",
        "train.lr_scheduler_type=constant",
        "train.warmup_steps=0",
        "train.max_grad_norm=0",
        "train.logging_steps=1",
        "train.save_strategy=no",
        "train.use_cpu=true",
        "data.eval_split=null",
    ]
    return resolve(recipe, [*plain, *overrides])


def trainer(
    own: Any,
    config: RunConfig,
    train: EncodedGroups,
    folder: Path,
    *,
    held: EncodedGroups | None = None,
    per: str = "pair",
    kind: type[MarginTrainer] = Recording,
    **plan: Any,
) -> Any:
    """A trainer of the production kind on encoded groups."""
    from marginkit.arguments import batch_plan

    arguments = training_arguments(config, folder, precision="fp32", has_eval=held is not None)
    longest = max(shape.longest for part in (train, held) if part is not None for shape in part.shapes())
    rung = choose_rung(own, config.train.layout, longest=longest)
    made, _ = batch_plan(config.train, train, world_size=arguments.world_size, seed=config.seed, packed=rung != "rows")
    return kind(
        own,
        build_loss(config.spec, config.options(), seed=config.seed),
        arguments,
        BatchPlan(**{name: getattr(made, name) for name in BatchPlan.__slots__} | plan),
        train,
        held,
        tokenizer(),
        per=per,
        population=config.train.population or "microbatch",
        population_window=config.train.population_window or 1024,
        log_file=folder / "log.jsonl",
        rung=rung,
    )


def worst_gradient(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """The largest difference of two sets of gradients, relative to the largest entry of its tensor.

    A tensor whose true gradient is 0 (the bias of a reward head: only gaps count) holds nothing but rounding; it has to
    be that small on both sides and is measured against the largest entry of all.
    """
    assert left.keys() == right.keys()
    whole = max(float(value.abs().max()) for value in left.values())
    assert whole > 0
    worst = 0.0
    for name in left:
        own = float(left[name].abs().max())
        worst = max(worst, float((left[name] - right[name]).abs().max()) / (own if own > 1e-4 * whole else whole))
    return worst


def weights_digest(folder: Path) -> str:
    """A hash of all weight files of a folder."""
    digest = hashlib.sha256()
    files = sorted(Path(folder).glob("*.safetensors"))
    assert files
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def log_lines(out: Path) -> list[dict[str, Any]]:
    """What a run logged."""
    return [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]


def training_lines(out: Path) -> list[dict[str, Any]]:
    """What a run logged of its training steps."""
    return [line for line in log_lines(out) if "loss" in line]


# ------------------------------------------------------------------------------------------------------- processes

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tiny", "marginkit.run", "peft"])


def start(job: Callable[..., None], *args: Any) -> Any:
    """Run a module-level function in a process of its own, forked from one that has the libraries loaded."""
    process = _SERVER.Process(target=_child, args=(job, args), daemon=True)
    process.start()
    return process


def _child(job: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    job(*args)


def kill(process: Any) -> None:
    """Kill -9."""
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)


def on_ranks(job: Callable[..., Any], folder: Path, *args: Any, ranks: int = 2, timeout: float = 120) -> list[Any]:
    """Run `job(*args)` on gloo ranks and return what each rank returned (or the error it raised, as text)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    processes = [start(_rank, job, args, rank, ranks, port, folder) for rank in range(ranks)]
    end = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.1, end - time.monotonic()))
    stuck = [process for process in processes if process.is_alive()]
    for process in stuck:
        kill(process)
    assert not stuck, f"{len(stuck)} of {ranks} ranks did not come back within {timeout:g} s"
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(ranks)]


def _rank(job: Callable[..., Any], args: tuple[Any, ...], rank: int, ranks: int, port: int, folder: Path) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
        GLOO_SOCKET_IFNAME="lo",
        OMP_NUM_THREADS="1",
    )
    import torch.distributed as dist

    try:
        result: Any = {"value": job(*args)}
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    torch.save(result, folder / f"rank-{rank}.pt")
    if dist.is_initialized() and "error" not in result:
        dist.barrier()
        dist.destroy_process_group()


# accelerate collects garbage at the start of every training; over all that transformers loads this takes half a second
gc.freeze()
