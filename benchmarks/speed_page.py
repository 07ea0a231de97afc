"""The page of the speed benchmark: how it was measured, and its tables; nothing on it is written by hand."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speed_cases import PAIRS_A_FORWARD, WHO, Case, Lengths
from speed_report import (
    NOISY,
    Found,
    Measured,
    Told,
    counted,
    decomposition,
    groups_table,
    per_pair,
    side_by_side,
    store_table,
    sweep_table,
    targets,
)

SWEEP_NOTE = """\
Policy, fp32, without a reference; the three layouts in one process, in turn. *positions*: padded pairs over packed, for
all pairs; *without padding*: K (K - 1) (P + R) / (P + K R); *realised*: the gain in time over that in positions. K=2
takes six prompts a step (padded rows are the padded pairs there), K=3 two, else one; of the pairs one batch of six is
measured. A few long steps each: the headline is the better measured. Where *of roofline* is flat, the time per prompt
follows the operations: prompt + K responses."""


@dataclass(frozen=True)
class About:
    """How the page came about."""

    command: str
    device: str
    minutes: float
    commit: str
    with_trl: bool


def machine(device: str) -> str:
    """What it ran on."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.is_file() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    words = f"{model or platform.machine()}, {os.cpu_count()} cores, one thread a process"
    return f"{gpu_name()}; {words}" if device == "cuda" else words


def gpu_name() -> str:
    """The CUDA device, empty if there is none; asked in another process, so that this one stays without torch."""
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.strip()


def versions() -> str:
    """Of what decides the figures."""
    found = []
    for name in ("marginkit", "torch", "transformers", "trl", "accelerate"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join([f"python {platform.python_version()}", *found])


def commit(root: Path) -> str:
    """The commit, and whether the tree differs from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "--short", "HEAD")
    changed = git("status", "--porcelain", "--", "src", "benchmarks")
    return (head + (" with changes" if changed else "")) or "unknown"


def lengths_words(groups: Sequence[Lengths]) -> str:
    """Each prompt with its responses, once."""
    return "; ".join(dict.fromkeys(f"{own.prompt}: {'/'.join(map(str, own.responses))}" for own in groups))


def same_tokens(cases: Sequence[Case], found: Found) -> int:
    """How many data sets several sides trained on; all must have seen the same token ids.

    Raises:
        RuntimeError: they have not.
    """
    seen: dict[tuple[str, str], set[str]] = {}
    for case in cases:
        for told in found.by_case.get(case.name, {}).values():
            if case.section in ("headline", "reward"):
                run = told["runs"][-1]
                seen.setdefault((case.facts["data"], run["kind"]), set()).add(run["digest"])
    for (data, kind), digests in seen.items():
        if len(digests) > 1:
            raise RuntimeError(f"{data}, {kind}: the sides trained on different tokens: {', '.join(sorted(digests))}")
    return len(seen)


def introduction(found: Found, about: About, cases: Sequence[Case]) -> list[str]:
    """What was measured and how."""
    told = [one for own in found.by_case.values() for one in own.values()]
    roofs = Measured({at: one["roof"] / 1e9 for at, one in enumerate(told)})
    repeats = max(len(own) for own in found.by_case.values())
    settings = sorted({_setting(run) for one in told for run in one["runs"]})
    k4, k2 = (lengths_words(found.sets[name]) for name in ("k4", "k2"))
    noisy = sum(one["noise"] > NOISY for one in told) if about.device == "cpu" else 0
    kind = "allocated on the GPU" if about.device == "cuda" else "resident"
    absent = "" if about.with_trl else "\nTRL is not installed here: our padded pairs stand in for it.\n"
    return f"""\
Written by `{about.command}` in {about.minutes:.0f} minutes, at commit {about.commit}.
{absent}
- Machine: {machine(about.device)}; {versions()}.
- Model: {found.shape.in_words}. Words drawn at random, a word a token. On each of {same_tokens(cases, found)} data sets
  all sides were checked to have trained on the same token ids, end tokens included.
- K=4, prompt: responses in tokens: {k4}; all 6 pairs of a prompt. K=2: {k2}.
- TRL and our padded pairs: {PAIRS_A_FORWARD} pairs a forward pass, in random order, an optimizer step each.
  marginkit: its defaults, one prompt a step at K=4 (6 pairs), six at K=2 (6 pairs).
  Everything else is each side's default, without activation checkpointing, logging every step, and TRL with
  `max_length=None`; that is:
{chr(10).join(f"  - {line}" for line in settings)}
- Seconds are those of `Trainer.train()` between the ends of optimizer steps: loading, forward, backward, clip,
  optimizer, logging. The first epoch of marginkit and the first step of the others are left out, because a cold
  process is slower. *process s*: everything, imports and saving included.
- {repeats} repeats, interleaved, each a process of its own that finds nothing cached; a figure is the median, in
  brackets the smallest and largest; a ratio is that of medians, in brackets the smallest and largest of one repeat.
  {noisy} of {len(told)} measurements stayed noisy (wall > {NOISY} x CPU seconds).
- *of roofline*: the operations no exact method can do without (the prompt once, each response once, causal attention,
  nothing computed again) over time, over the best square matrix product in the same process:
  {roofs.words()} GFLOP/s over all processes.
- Memory: {kind}, of the whole process, at most and when training begins.
- *reference s*: TRL's pass over the pairs, ours over the responses through the store; neither is in the seconds a pair.
  On the fly has no counterpart in marginkit, which always computes the reference once and keeps it.""".splitlines()


def _setting(run: Told) -> str:
    words = "; ".join(f"{name} {run[name]}" for name in ("layout", "batches") if name in run)
    facts = ", ".join(f"{name} {run[name]}" for name in ("precision", "weights", "attention", "optimizer"))
    return f"{WHO[run['who']]} ({run['kind'].replace('_', ' ')}): {facts}{'; ' + words if words else ''}"


def page(cases: Sequence[Case], told: Sequence[Told], about: About) -> str:
    """The whole page, of the cases that were measured."""
    found = Found(told, about.device)
    cases = [case for case in cases if case.name in found.by_case]
    if not cases:
        return "nothing was measured\n"
    lines = ["# What a training step costs", "", *introduction(found, about, cases)]
    if about.device == "cpu" and (rows := targets(found)):
        lines += ["", "## What was promised", "", *rows]
    prefixes = dict.fromkeys(case.name.rpartition("/")[0] for case in cases if case.section in ("headline", "reward"))
    for prefix in prefixes:
        present = [case for case in cases if case.name.rpartition("/")[0] == prefix]
        facts = present[0].facts
        kind = facts["kind"].replace("_", " ").capitalize()
        lines += ["", f"## {kind}, K={facts['k']}, {facts['precision']}", ""]
        if f"{prefix}/packed" not in found.by_case:
            lines += [f"{case.name}: {found.seconds(case.name).words()} s / pair" for case in present]
            continue
        lines += side_by_side(found, prefix, present)
        if len(present) > 1 and facts["kind"] == "policy":
            lines += decomposition(found, prefix, facts["data"])
    if any(case.section == "sweep" for case in cases):
        lines += ["", "## K and the length of the prompt", "", SWEEP_NOTE, "", *sweep_table(found)]
    if "groups" in found.by_case:
        lines += ["", "## How cost grows with the number of prompts", "", *groups_table(found)]
    if "store" in found.by_case:
        lines += ["", "## The reference, computed once", "", *store_table(found)]
    return "\n".join(lines) + "\n"


def in_a_line(case: Case, told: Told) -> str:
    """A measurement, for whoever waits."""
    parts = [f"{run['who']} {per_pair(run):.3g} s/pair" for run in told["runs"] if counted(run)]
    return f"{', '.join(parts) or 'done'}; peak {told['peak_mb']:,.0f} MB, {told['wall']:.0f} s ({case.section})"
