"""One measurement of the speed benchmark, in a process of its own: trainings one after another, timed step by step."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import speed_cases as cases

SPECIAL = ("<pad>", "<eos>")


# -- What is measured: model, tokenizer, texts, made once for all processes


def prepare(folder: Path, device: str) -> None:
    """Save the model as a policy and as a reward model, and every data set in the form each side reads."""
    import torch
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen2ForSequenceClassification,
    )

    shape = cases.SHAPES[device]
    sizes = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 16_384,
        "tie_word_embeddings": shape.tied,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    config, policy, judge = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification),
        "llama": (LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification),
    }[shape.family]
    for name, kind, more in (("policy", policy, {}), ("reward_model", judge, {"num_labels": 1})):
        torch.manual_seed(0)
        kind(config(**sizes, **more)).save_pretrained(folder / name)
    tokenizer().save_pretrained(folder / "tokenizer")  # apart: beside a qwen2 it would be read as a Qwen2Tokenizer
    for name, groups in cases.data_sets(device).items():
        write_data(folder, name, groups)


def tokenizer() -> Any:
    """A word is a token, so that texts have exactly the wanted lengths."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: at for at, word in enumerate((*SPECIAL, *words()))}
    plain = Tokenizer(models.WordLevel(vocab, unk_token=SPECIAL[0]))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token=SPECIAL[0], eos_token=SPECIAL[1])


def words() -> list[str]:
    """All words that are not special."""
    return ["a", *(f"w{at}" for at in range(31_997))]


def write_data(folder: Path, name: str, groups: Sequence[cases.Lengths]) -> None:
    """Groups for us; their pairs as groups of two for our padded pairs, and as rows for TRL, in the same order."""
    from marginkit.groups import Groups, write_groups
    from marginkit.records import Group, Response

    chance, every = random.Random(name), words()

    def text(count: int) -> str:
        return " ".join(chance.choices(every, k=count))

    texts = [(text(own.prompt), [text(n - 1) for n in own.responses]) for own in groups]

    def group(number: str, prompt: str, answers: Sequence[str]) -> Group:
        graded = tuple(Response(answer, grade=float(-at)) for at, answer in enumerate(answers))
        return Group(id=number, prompt=prompt, responses=graded, split="train")

    whole = [group(f"{at}", *own) for at, own in enumerate(texts)]
    write_groups(Groups.from_iterable(whole), folder / f"{name}.jsonl")
    pairs = [(texts[g][0], [texts[g][1][i], texts[g][1][j]]) for g, i, j in cases.pairs_of(name, groups)]
    single = [group(f"{at}", *own) for at, own in enumerate(pairs)]
    write_groups(Groups.from_iterable(single), folder / f"{name}-pairs.jsonl")
    rows = [{"prompt": prompt, "chosen": f" {good}", "rejected": f" {bad}"} for prompt, (good, bad) in pairs]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{name}-trl.jsonl").write_text(lines, encoding="utf-8")


# -- Timing


class Clock:
    """What a training took: wall and CPU seconds of its steps, positions of its forward passes, its reference."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.stamps: list[tuple[float, float, int]] = []
        self.positions = 0
        self.before = 0.0
        self.seconds = {"reference": 0.0}
        self.responses = 0
        self.losses: list[float] = []
        self.facts: dict[str, Any] = {}

    def stamp(self) -> None:
        """The end of a step, or the beginning of the first one."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        self.stamps.append((time.perf_counter(), time.process_time(), self.positions))

    def saw(self, _: Any, given: tuple[Any, ...], __: Any) -> None:
        """A hook of the embedding: every position that the model computes passes there, in whatever layout."""
        self.positions += given[0].numel()

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Time what is done within."""
        began = time.perf_counter()
        yield
        self.seconds["reference"] += time.perf_counter() - began

    def steps(self) -> list[dict[str, float]]:
        """Wall and CPU seconds and positions of each step."""
        names = ("wall", "cpu", "positions")
        both = zip(self.stamps, self.stamps[1:], strict=False)
        return [dict(zip(names, (b - a for a, b in zip(*pair, strict=True)), strict=True)) for pair in both]


def timed(trainer: Any, clock: Clock) -> Any:
    """The trainer class with the clock in it: nothing that it does is changed."""
    from transformers import TrainerCallback

    class Stamps(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.before = memory(clock.device)
            clock.stamp()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.stamp()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                clock.losses.append(float(logs["loss"]))

    class Timed(trainer):  # type: ignore[misc]
        def __init__(self, *args: Any, **given: Any) -> None:
            super().__init__(*args, **given)
            self.model.get_input_embeddings().register_forward_hook(clock.saw)
            self.add_callback(Stamps())
            pairs = pairs_in(self.train_dataset, policy="CausalLM" in type(self.model).__name__)
            clock.facts = {
                "digest": digest(pairs),
                "tokens": sum(map(len, (ids for _, *both in pairs for ids in both))),
                "optimizer": str(getattr(self.args.optim, "value", self.args.optim)),
                "weights": str(next(self.model.parameters()).dtype).removeprefix("torch."),
                "attention": str(self.model.config._attn_implementation),
            }

    return Timed


def memory(device: str) -> float:
    """MB held now: resident, or allocated on the GPU."""
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if not status.is_file():
        return peak_memory(device)
    line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmRSS"))
    return float(line.split()[1]) * 1024 / 1e6


def peak_memory(device: str) -> float:
    """MB held at most so far."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def pairs_in(dataset: Any, *, policy: bool) -> list[tuple[int, list[int], list[int]]]:
    """Token ids of all pairs, chosen and rejected with their prompt; of a policy with where responses begin.

    TRL's reward model does not know where they do.
    """
    found: list[tuple[int, list[int], list[int]]] = []
    if hasattr(dataset, "groups"):  # ours
        for group in dataset.groups:
            for pair in zip(group.chosen, group.rejected, strict=True):
                chosen, rejected = ([*group.prompt_ids, *group.response_ids[at]] for at in pair)
                found.append((len(group.prompt_ids) if policy else 0, chosen, rejected))
    else:
        for row in dataset:
            prompt = row.get("prompt_ids", [])
            found.append((len(prompt), [*prompt, *row["chosen_ids"]], [*prompt, *row["rejected_ids"]]))
    return found


def digest(pairs: Sequence[Any]) -> str:
    """A hash of pairs in any order."""
    return hashlib.sha256(json.dumps(sorted(pairs)).encode()).hexdigest()[:16]


def check_tokens(data: str, device: str, got: int) -> None:
    """All pairs together have as many tokens as the pinned lengths say, end tokens included."""
    name = data.removesuffix("-pairs")
    groups = cases.data_sets(device)[name]
    pairs = cases.pairs_of(name, groups) if data != name else cases.all_pairs(groups)
    wanted = sum(2 * groups[g].prompt + groups[g].responses[i] + groups[g].responses[j] for g, i, j in pairs)
    if got != wanted:
        raise RuntimeError(f"{data}: {got} tokens in its pairs, the lengths make it {wanted}")


# -- The two sides


def train_ours(run: dict[str, Any], folder: Path, work: Path, clock: Clock, device: str) -> dict[str, Any]:
    """A training as a user has it: `marginkit.train` on a file, with the store, logging and saving."""
    import marginkit as mk
    import marginkit.run
    import marginkit.store
    import marginkit.training
    from marginkit.config import TrainConfig

    out = work / f"run-{os.getpid()}-{time.monotonic_ns()}"
    padded = run["who"] in ("rows", "pairs")
    overrides = [
        f"model.path={folder / run['kind']}",
        f"model.tokenizer={folder / 'tokenizer'}",
        f"data.train={folder / run['data']}.jsonl",
        f"store.path={work / 'stores' / run['store']}",
        f"out={out}",
        f"train.prompts_per_step={run['prompts_a_step']}",
        f"train.max_steps={run['steps']}",
        f"train.precision={run['precision']}",
        f"train.use_cpu={str(device == 'cpu').lower()}",
        "train.gradient_checkpointing=false",
        "train.logging_steps=1",
        "train.save_strategy=no",
        *(["train.tokens_per_micro_batch=1000000"] if run["who"] == "pairs" else []),  # six pairs are one pass
        *(["train.layout=rows"] if padded and "layout" in TrainConfig.model_fields else []),
        *run.get("overrides", []),
    ]
    join, add, usual = marginkit.run.join_reference, marginkit.store.ScoreStore.add, marginkit.training.MarginTrainer

    def timed_join(*args: Any, **given: Any) -> Any:
        with clock.reference():
            return join(*args, **given)

    def counted(store: Any, rows: Any) -> None:
        kept = list(rows)
        clock.responses += len(kept)
        add(store, kept)

    marginkit.run.join_reference = timed_join
    marginkit.store.ScoreStore.add = counted  # type: ignore[method-assign]
    marginkit.training.MarginTrainer = timed(usual, clock)
    try:
        mk.train(run["recipe"], overrides)
    finally:
        marginkit.run.join_reference = join
        marginkit.store.ScoreStore.add = add  # type: ignore[method-assign]
        marginkit.training.MarginTrainer = usual
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    shutil.rmtree(out)
    return {name: manifest[name] for name in ("layout", "batches") if name in manifest}


def train_trl(run: dict[str, Any], folder: Path, work: Path, clock: Clock, device: str) -> dict[str, Any]:
    """The same with TRL's trainer and its defaults, but for what both sides share; the order of pairs is the file's."""
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    policy = run["kind"] == "policy"
    out = work / f"trl-{os.getpid()}"
    given: dict[str, Any] = {
        "output_dir": str(out),
        "per_device_train_batch_size": cases.PAIRS_A_FORWARD,
        "max_steps": run["steps"],
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        "bf16": run["precision"] == "bf16",
        "gradient_checkpointing": False,
        "max_length": None,
        "dataloader_pin_memory": device == "cuda",
    }
    trainer, config = (DPOTrainer, DPOConfig) if policy else (RewardTrainer, RewardConfig)
    if policy:
        given["precompute_ref_log_probs"] = run["who"] == "trl-pre"

    class Watched(timed(trainer, clock)):  # type: ignore[misc]
        def _precompute_ref_logps(self, *args: Any, **more: Any) -> Any:
            with clock.reference():
                return super()._precompute_ref_logps(*args, **more)

        def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
            if not clock.stamps:  # before training: precomputed
                clock.responses += len(inputs["input_ids"])
            return super().compute_ref_log_probs(model, inputs)

    file = folder / f"{run['data'].removesuffix('-pairs')}-trl.jsonl"
    peer = Watched(
        model=str(folder / run["kind"]),
        args=config(**given),
        train_dataset=load_dataset("json", data_files=str(file), split="train"),
        processing_class=AutoTokenizer.from_pretrained(folder / "tokenizer"),
    )
    peer.train()
    peer.save_model(str(out / "model"))
    shutil.rmtree(out)
    return {"batches": f"{cases.PAIRS_A_FORWARD} pairs a forward pass"}


def matmul_peak(device: str, precision: str) -> float:
    """Operations a second of a large square matrix product, the best of several: the roof of this process."""
    import torch

    size = 8192 if device == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(30):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def work_off(job: dict[str, Any]) -> dict[str, Any]:
    """All trainings of a process, then its peak memory and the roof."""
    import torch

    torch.set_num_threads(1)
    device, folder, work = job["device"], Path(job["data"]), Path(job["work"])
    runs = []
    for run in job["runs"]:
        clock = Clock(device)
        side = train_trl if "trl" in run["who"] else train_ours
        began = time.perf_counter()
        told = side(run, folder, work, clock, device)
        check_tokens(run["data"], device, int(clock.facts["tokens"]))
        told |= {"seconds": time.perf_counter() - began, "steps": clock.steps(), "before_mb": clock.before}
        told |= {"reference_seconds": clock.seconds["reference"], "reference_responses": clock.responses}
        runs.append(run | told | clock.facts | {"losses": clock.losses})
    peak = peak_memory(device)
    roof = matmul_peak(device, job["runs"][-1]["precision"])
    return {"runs": runs, "peak_mb": peak, "roof": roof, "cpu": time.process_time()}


def main(job_file: str) -> None:
    """Read a job, write its result beside it."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    if job.get("prepare"):
        prepare(Path(job["data"]), job["device"])
        result: dict[str, Any] = {}
    else:
        result = work_off(job)
    Path(job["out"]).write_text(json.dumps(result), encoding="utf-8")
