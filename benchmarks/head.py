"""What the output layer costs: log-probabilities of tokens from hidden states and back, one way against the others.

    python benchmarks/head.py            # a minute or two
    python benchmarks/head.py --quick    # seconds; small sizes, says nothing about speed

Prints a table per case: a trained layer in fp32 and in bf16, and a frozen one (as under LoRA). Times are CPU
seconds of forward and backward on one thread, so that other load matters little; all ways run once in every repeat, in
turn forwards and backwards, and the first repeat is not counted.
Peak memory is that of a fresh process over its inputs, error that of the gradients against dense float64. The ways are:

full: all logits, log-softmax, gather.
checkpoint: the same in chunks under torch.utils.checkpoint, which is how modules that are no plain layer go.
recompute, cached: `marginkit.models.head`, with nothing and with as much as it likes kept for the backward; a frozen
    layer has one form.
torch: F.linear_cross_entropy with chunks of the same size (torch >= 2.13).
TRL: its ChunkedLogProbFunction, where TRL is installed.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from torch import Tensor, nn
from torch.nn import functional

from marginkit.models.logprobs import token_logprobs

CHUNK = 256


@dataclass(frozen=True)
class Case:
    """A layer and its inputs."""

    name: str
    tokens: int
    dim: int
    vocab: int
    dtype: torch.dtype = torch.float32
    frozen: bool = False

    def inputs(self) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
        """The layer, hidden states, tokens, and the gradient that comes back to each log-probability."""
        torch.manual_seed(0)
        head = nn.Linear(self.dim, self.vocab, bias=False, dtype=self.dtype)
        nn.init.normal_(head.weight, std=0.1)
        head.requires_grad_(not self.frozen)
        hidden = torch.randn(self.tokens, self.dim, dtype=self.dtype, requires_grad=True)
        return head, hidden, torch.randint(0, self.vocab, (self.tokens,)), torch.randn(self.tokens)


Way = Callable[[nn.Linear, Tensor, Tensor], Tensor]


class NotPlain(nn.Linear):
    """The same layer by another name, so that it is called as a module."""


def full(head: nn.Linear, hidden: Tensor, tokens: Tensor) -> Tensor:
    """The definition."""
    return head(hidden).float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


def checkpointed(head: nn.Linear, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Chunk by chunk, nothing kept."""
    other = NotPlain(head.in_features, head.out_features, bias=False, device="meta")
    other.weight = head.weight
    return token_logprobs(other, hidden, tokens, chunk=CHUNK, cache=0).logp


def recomputing(head: nn.Linear, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Ours, no budget."""
    return token_logprobs(head, hidden, tokens, chunk=CHUNK, cache=0).logp


def ours(head: nn.Linear, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Ours as it comes."""
    return token_logprobs(head, hidden, tokens).logp


def core(head: nn.Linear, hidden: Tensor, tokens: Tensor) -> Tensor:
    """The function of torch itself."""
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK, chunking_method=None)
    return -functional.linear_cross_entropy(hidden, head.weight, tokens, reduction="none", options=options)


def trl(head: nn.Linear, hidden: Tensor, tokens: Tensor) -> Tensor:
    """TRL's, without its metrics, in tiles of its own size."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    found = ChunkedLogProbFunction.apply(
        hidden, head.weight, None, tokens, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ()
    )
    logp: Tensor = found[0]
    return logp


def ways(case: Case) -> dict[str, Way]:
    """Those that this installation has."""
    found: dict[str, Way] = {"full": full, "checkpoint": checkpointed}
    found |= {"frozen (ours)": ours} if case.frozen else {"recompute (ours)": recomputing, "cached (ours)": ours}
    if hasattr(functional, "linear_cross_entropy"):
        found["torch"] = core
    try:
        from trl.kernels import ChunkedLogProbFunction  # noqa: F401
    except ImportError:
        return found
    return found | {"TRL": trl}


def run(way: Way, head: nn.Linear, hidden: Tensor, tokens: Tensor, grad: Tensor) -> float:
    """CPU seconds of forward and backward."""
    head.weight.grad = hidden.grad = None
    start = time.process_time()
    way(head, hidden, tokens).backward(grad)
    return time.process_time() - start


def gradients(head: nn.Linear, hidden: Tensor) -> list[Tensor]:
    """Those there are."""
    return [own.grad.double() for own in (hidden, head.weight) if own.grad is not None]


def alone(case: Case, name: str) -> tuple[float, float]:
    """Peak memory in MB over the inputs, and the largest error of a gradient relative to its largest entry."""
    torch.set_num_threads(1)
    head, hidden, tokens, grad = case.inputs()
    small = Case("warm", 4, 8, 16, case.dtype, case.frozen).inputs()
    way = ways(case)[name]
    run(way, *small)
    before = _peak_mb()
    run(way, head, hidden, tokens, grad)
    peak = _peak_mb() - before
    exact = nn.Linear(case.dim, case.vocab, bias=False, dtype=torch.float64)
    exact.load_state_dict(head.state_dict())
    exact.requires_grad_(not case.frozen)
    states = hidden.detach().double().requires_grad_()
    exact(states).log_softmax(-1).gather(-1, tokens[:, None])[:, 0].backward(grad.double())
    pairs = zip(gradients(head, hidden), gradients(exact, states), strict=True)
    return peak, max(float((found - right).abs().max() / right.abs().max()) for found, right in pairs)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def peaks(case: Case) -> dict[str, tuple[float, float]]:
    """`alone` for every way; to be called while this process is small, for a new one inherits its peak."""
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return {name: pool.apply(alone, (case, name)) for name in ways(case)}


def table(case: Case, repeats: int, measured: dict[str, tuple[float, float]]) -> list[str]:
    """A row a way."""
    inputs = case.inputs()
    found = ways(case)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for repeat in range(repeats + 1):
        for name in list(found) if repeat % 2 else reversed(found):
            taken = run(found[name], *inputs)
            if repeat:
                seconds[name].append(taken)
    rows = ["| way | CPU s, median | range | over full | peak MB | error of gradients |", "|---|---|---|---|---|---|"]
    base = statistics.median(seconds["full"])
    for name, values in seconds.items():
        peak, error = measured[name]
        middle = statistics.median(values)
        rows.append(
            f"| {name} | {middle:.3f} | {min(values):.3f}-{max(values):.3f} | {middle / base:.2f} | {peak:.0f} "
            f"| {error:.1g} |"
        )
    return rows


def main() -> None:
    """The tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run?")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = (40, 16, 500) if options.quick else (800, 512, 32000)
    cases = (
        Case("trained, fp32", *sizes),
        Case("trained, bf16", *sizes, dtype=torch.bfloat16),
        Case("frozen, fp32", *sizes, frozen=True),
    )
    print(f"{platform.processor() or platform.machine()}, {platform.system()}, torch {torch.__version__}, 1 thread")
    measured = [peaks(case) for case in cases]
    for case, own in zip(cases, measured, strict=True):
        print(f"\n{case.name}: {case.tokens} tokens, d = {case.dim}, vocabulary {case.vocab}, n = {options.repeats}\n")
        print("\n".join(table(case, options.repeats, own)))


if __name__ == "__main__":
    main()
