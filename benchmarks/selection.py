"""Does selecting pairs help? Every method at 10, 20 and 40% of the built-in world and of real graded files.

A head on frozen embeddings (recipes bt and mmpo_rm, side by side) is trained on what a method keeps and judged on
held-out pairs: accuracy, and NLL at the one temperature that fits the dev pairs. Seeds draw other worlds, or other
splits of a file; differences from a random choice of the same size, and from all pairs, are paired by seed. Methods
that read a policy's log-probabilities get small models made on the spot: an SFT model trained on the responses, and its
DPO on a part of the pairs. What one seed gave lies in the folder of --work: the same command goes on where it was.

    python benchmarks/selection.py --files ../shared/data/ultrafeedback_pairs.jsonl --out docs/selection_measured.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from scipy.stats import rankdata
from selection_page import PREFACE, SHARES, page_of

import marginkit as mk
from marginkit.core.loss import Loss
from marginkit.crossfit import crossfit, temperatures
from marginkit.data.grades import suggest_gamma
from marginkit.data.pairing import make_pairs
from marginkit.data.selection import select
from marginkit.data.signals import Signals
from marginkit.embedders import Embedder, open_embedder
from marginkit.embedding_features import Examples, examples_of
from marginkit.embedding_heads import HeadSettings, train_heads
from marginkit.groups import Groups
from marginkit.policy_scores import policy_scores
from marginkit.records import Group
from marginkit.world import make_world

EDIT = {"distance": "edit"}
SETTINGS = HeadSettings(epochs=40)
FRESH = ["model.path=fresh", "model.fresh.max_length=2048", "train.save_strategy=no", "train.eval_strategy=no"]
SFT = [*FRESH, "train.learning_rate=2e-3", "train.num_train_epochs=1", "data.eval_split=null", "data.test_split=null"]
DPO = ["train.learning_rate=3e-4", "train.num_train_epochs=2", "reward.beta=0.1", *FRESH[2:], *SFT[-2:]]

# name, method, options, which rewards: the data's own grades, or cross-fitted ones
METHODS: list[tuple[str, str, dict[str, Any], str]] = [
    ("random", "random", {}, "own"),
    ("explicit, top", "explicit", {}, "own"),
    ("explicit, bottom", "explicit", {"region": "bottom"}, "own"),
    ("explicit, top (cross-fitted)", "explicit", {}, "crossfit"),
    ("explicit, bottom (cross-fitted)", "explicit", {"region": "bottom"}, "crossfit"),
    ("implicit, top (reference)", "implicit", {"form": "reference"}, "own"),
    ("implicit, smallest (per token)", "implicit", {"region": "bottom", "signed": False}, "own"),
    ("M_AP", "alignment", {"explicit": "pair"}, "own"),
    ("DM-ADD", "dual_add", {}, "own"),
    ("DM-MUL", "dual_mul", {}, "own"),
    ("DM-MUL (cross-fitted)", "dual_mul", {}, "crossfit"),
    ("DCRM, e_D + p_D", "dcrm", {"reward_scale": "std"}, "own"),
    ("DCRM, e_D alone", "dcrm", {"reward_scale": "std", **EDIT}, "own"),
    ("DCRM, units of [0, 1]", "dcrm", {"reward_scale": "std", "edit_unit": "normalised"}, "own"),
    ("IFD, top", "ifd", {"max_ratio": 2.0}, "own"),
]
# on all pairs: doubtful labels dropped, softened, turned
CLEANING: list[tuple[str, str, dict[str, Any], str]] = [
    ("drop below 0.5", "confidence", {"min_prob": 0.5}, "crossfit"),
    ("drop below 0.6", "confidence", {"min_prob": 0.6}, "crossfit"),
    ("soften below 0.5", "confidence", {"min_prob": 0.5, "action": "soften"}, "crossfit"),
    ("ensemble of 4: turn 20%, soften 20%", "ensemble", {}, "ensemble"),
]
PAIRINGS: list[tuple[str, str, dict[str, Any]]] = [
    ("best, worst", "best_worst", {}),
    ("best, random other", "best_random", {}),
    ("best of N^2 by DCRM, e_D + p_D", "dcrm", {"reward_scale": "std"}),
    ("best of N^2 by DCRM, e_D alone", "dcrm", {"reward_scale": "std", **EDIT}),
    ("best, each other", "best_vs_others", {}),
    ("neighbours", "adjacent", {}),
    ("all", "all", {}),
]


class Remembered(Embedder):
    """An embedder that embeds each text once a process."""

    def __init__(self, inner: Embedder) -> None:
        super().__init__(inner.name, inner.fingerprint, inner.embed)
        self.known: dict[str, Any] = {}

    def embed(self, texts: Sequence[str]) -> Any:
        """The vectors, [n, d]."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            self.known.update(zip(new, self._compute(new), strict=True))
        return np.stack([self.known[text] for text in texts])


@dataclass(frozen=True, slots=True)
class Data:
    """One draw: graded groups to train on with their signals, and held-out pairs as a head reads them."""

    train: Groups
    dev: Examples
    test: Examples
    gamma: float
    signals: dict[str, Any]
    embedder: Embedder


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training on a set of pairs led to, a value a recipe."""

    accuracy: tuple[float, ...]
    nll: tuple[float, ...]
    raw_nll: tuple[float, ...]


def losses(gamma: float) -> list[Loss]:
    """The recipes bt and mmpo_rm."""
    return [mk.recipe("bt"), mk.recipe("mmpo_rm", gamma=gamma)]


def outcome(groups: Groups, data: Data) -> Outcome:
    """Train on the pairs of the groups, judge on the test pairs."""
    heads = train_heads(examples_of(groups, data.embedder), losses(data.gamma), SETTINGS, dev=data.dev)
    test = data.test
    rewards, heat = heads.rewards(test.values), temperatures(heads, data.dev)
    prob, tie = test.columns["prob"], test.columns["tie"]
    label = torch.where(torch.isnan(prob), torch.ones_like(prob), prob)
    found: list[list[float]] = [[], [], []]
    for row, temperature in zip(rewards, heat, strict=True):
        both = row[test.columns["pairs"]]
        gap = both[:, 0] - both[:, 1]
        found[0].append(float((gap[~tie] > 0).double().mean()))
        for place, scaled in ((1, gap / temperature), (2, gap)):
            log = torch.nn.functional.logsigmoid
            found[place].append(float(-(label * log(scaled) + (1 - label) * log(-scaled)).mean()))
    return Outcome(*map(tuple, found))


# -- data


def policies(work: Path, demonstrations: Groups, tuned_on: Groups) -> tuple[Path, Path]:
    """An SFT model of the responses, and its DPO on some pairs; what is finished is not trained again."""
    sft, dpo = work / "sft", work / "dpo"
    if not (sft / "metrics.json").is_file():
        mk.train("sft", [*SFT, f"out={sft}"], train=demonstrations)
    if not (dpo / "metrics.json").is_file():
        mk.train("dpo", [*DPO, f"model.path={sft / 'model'}", f"out={dpo}"], train=tuned_on)
    return sft, dpo


def one_each(groups: Groups) -> Groups:
    """Every response as a demonstration of its own."""
    return Groups.from_iterable(
        Group(
            f"{group.id}/{at}", group.prompt, (replace(response, grade=None, utility=None, ratings=()),), split="train"
        )
        for group in groups
        for at, response in enumerate(group.responses)
    )


def log_probabilities(groups: Groups, before: Path, after: Path, store: Path) -> dict[str, Any]:
    """Signals of the two policies: log-probabilities of the tuned one, of its reference, and without the prompt."""
    tuned = policy_scores(after, groups, bare=True, store=store)
    return {
        "logp": tuned.logp,
        "ref_logp": policy_scores(before, groups, store=store).logp,
        "bare_logp": tuned.bare_logp,
        "length": tuned.length,
    }


def world_data(quality: str, seeds: int, prompts: int, work: Path, first: int) -> Iterator[Data]:
    """Another world a seed; the policies are trained once, on a world that no seed draws."""
    other = make_world(quality, prompts=prompts // 4, demonstrations=1500, dev=0, test=0, seed=999)
    before, after = policies(work, other.demonstrations, make_pairs(other.graded, "best_worst", ties="drop"))
    embedder = Remembered(open_embedder("hash"))
    for seed in range(first, seeds):
        world = make_world(quality, prompts=prompts, demonstrations=1, dev=100, test=300, seed=seed)
        parts = {name: world.graded.filter(lambda g, n=name: g.split == n, name) for name in ("train", "dev", "test")}
        numbers = log_probabilities(parts["train"], before, after, work / "store")
        dev = examples_of(make_pairs(parts["dev"], "all", ties="drop"), embedder)
        yield Data(parts["train"], dev, examples_of(parts["test"], embedder), world.gamma, numbers, embedder)


def file_data(path: Path, seeds: int, embeddings: Path, work: Path, first: int) -> Iterator[Data]:
    """Another split of a file a seed. DPO is trained on a quarter of the prompts, which are in no dev or test part."""
    read, _ = mk.read_groups(str(path), contradiction="keep")
    groups = read.map(lambda group: replace(group, split=None))  # each seed splits anew
    clusters = sorted({str(group.cluster or group.id) for group in groups})
    random.Random(0).shuffle(clusters)
    pool = set(clusters[: len(clusters) // 4])
    tuned_on = make_pairs(groups.filter(lambda g: str(g.cluster or g.id) in pool, "not tuned on"), "all", ties="drop")
    before, after = policies(work, one_each(groups), replace_splits(tuned_on))
    numbers = log_probabilities(groups, before, after, work / "store")
    embedder = Remembered(open_embedder("minilm", store=embeddings))
    rest = clusters[len(pool) :]
    for seed in range(first, seeds):
        order = random.Random(seed).sample(rest, len(rest))
        cut = len(clusters) // 10
        dev, test = set(order[:cut]), set(order[cut : 3 * cut])
        at = {name: [] for name in ("train", "dev", "test")}
        for row, group in enumerate(groups):
            name = str(group.cluster or group.id)
            at["dev" if name in dev else "test" if name in test else "train"].append(row)
        parts = {name: Groups.from_iterable(groups[row] for row in rows) for name, rows in at.items()}
        own = {name: [column[row] for row in at["train"]] for name, column in numbers.items()}
        paired = {name: make_pairs(part, ways(part), ties="drop") for name, part in parts.items()}
        held = {name: examples_of(paired[name], embedder) for name in ("dev", "test")}
        gamma = suggest_gamma(paired["train"])
        assert gamma is not None
        yield Data(parts["train"], held["dev"], held["test"], gamma, own, embedder)


def ways(groups: Groups) -> Any:
    """Given where the data has pairs, else all."""
    return "given" if any(group.pairs for group in groups) else "all"


def replace_splits(groups: Groups) -> Groups:
    """All of it to train on."""
    return groups.map(lambda group: replace(group, split="train"))


# -- one draw


def measure(data: Data, seed: int) -> tuple[dict[str, Outcome], list[dict[str, float]], dict[str, float]]:
    """Outcomes by name, rows for the correlation, and lengths of what was kept."""
    given = any(group.pairs for group in data.train)
    how = "given" if given else "best_worst"
    found: dict[str, Outcome] = {}
    kept_length: dict[str, float] = {}
    whole = Signals.of(data.train, **data.signals)
    if not given:
        for name, way, options in PAIRINGS:
            made = make_pairs(data.train, way, ties="drop", signals=whole, options=options, seed=seed)  # type: ignore[arg-type]
            found[f"pairing: {name}"] = outcome(made, data)
    base = make_pairs(data.train, how, ties="drop")  # type: ignore[arg-type]
    rows = {group.id: row for row, group in enumerate(data.train)}
    places = [rows[group.id] for group in base]
    own = {name: [column[row] for row in places] for name, column in data.signals.items()}
    fits = dict(embedder=data.embedder, settings=SETTINGS)
    judges = [crossfit(base, "bt", seed=seed + 100 * n, folds=2 + n % 2, **fits) for n in range(4)]  # type: ignore[arg-type]
    signals = {
        "own": Signals.of(base, **own),
        "crossfit": Signals.of(base, rewards=judges[:1], **own),
        "ensemble": Signals.of(base, rewards=judges, **own),
    }
    found["all pairs"] = outcome(base, data)
    for name, method, options, rewards in METHODS:
        for share in SHARES:
            try:
                made = select(base, method, top=share, seed=seed, signals=signals[rewards], **options)
            except mk.BadInput as refused:  # a rule that does not fit this data; the page says so
                print(f"seed {seed}, {name}: {refused}", flush=True)
                break
            found[f"{name} @ {share:g}"] = outcome(made, data)
            kept_length[f"{name} @ {share:g}"] = (
                made.facts["kept"]["mean_chars"] / made.facts["candidates"]["mean_chars"]
            )
    for name, method, options, rewards in CLEANING:
        made = select(base, method, seed=seed, signals=signals[rewards], **options)
        if len(made) >= len(base) // 20:
            found[f"cleaning: {name}"] = outcome(made, data)
    return found, tilted_sets(base, signals["own"], data, seed), kept_length


def tilted_sets(base: Groups, signals: Signals, data: Data, seed: int, sets: int = 18) -> list[dict[str, float]]:
    """Random fifths of the pairs, tilted by DCRM, margin or distance: what each is like, what it led to."""
    every = {"top": 1.0, "signals": signals}
    score = select(base, "dcrm", reward_scale="std", **every).scores  # type: ignore[arg-type]
    score = np.where(np.isnan(score), np.nanmedian(score), score)  # too long for the policy
    edit = 1 / np.abs(select(base, "dcrm", reward_scale=1e-9, **EDIT, **every).scores)  # type: ignore[arg-type] # 2 (e_D + 1)
    margin = select(base, "explicit", **every).scores  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(sets):
        tilt = (score, margin, -edit)[number % 3]
        ranks = (rankdata(tilt) - 0.5) / len(tilt) - 0.5
        keys = rng.gumbel(size=len(tilt)) + rng.uniform(-6, 6) * ranks
        chosen = set(np.argsort(-keys)[: len(tilt) // 5].tolist())
        subset = Groups.from_iterable(group for row, group in enumerate(base) if row in chosen)
        led_to = outcome(subset, data)
        at = sorted(chosen)
        rows.append(
            {
                "DCRM": float(score[at].mean()),
                "margin": float(margin[at].mean()),
                "edits": float(edit[at].mean()),
                "accuracy": statistics.fmean(led_to.accuracy),
                "nll": statistics.fmean(led_to.nll),
            }
        )
    return rows


def draws_of(
    title: str, seeds: int, work: Path, source: Callable[[Path, int], Iterator[Data]]
) -> tuple[list[dict[str, Any]], str]:
    """What every seed gave, from the folder where it is there."""
    folder = work / "".join(letter if letter.isalnum() else "-" for letter in title).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{seed}.json" for seed in range(seeds)]
    missing = next((seed for seed, file in enumerate(files) if not file.is_file()), seeds)
    if missing < seeds:
        for seed, data in enumerate(source(folder, missing), missing):
            began = time.process_time()
            found, rows, kept_length = measure(data, seed)
            pairs = [len(part.columns["pairs"]) for part in (data.dev, data.test)]
            sizes = f"{len(data.train)} prompts to train on, {pairs[0]} dev pairs, {pairs[1]} test pairs"
            told = {"found": {name: asdict(one) for name, one in found.items()}, "tilted": rows}
            files[seed].write_text(json.dumps(told | {"length": kept_length, "sizes": sizes}))
            print(f"{title}, seed {seed}: {time.process_time() - began:.0f} s of one core", flush=True)
    draws = [json.loads(file.read_text()) for file in files]
    return draws, f"{seeds} seeds; {draws[0]['sizes']}."


def main() -> None:
    """Measure what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, nargs="*", default=[], help="real graded files")
    parser.add_argument("--qualities", nargs="*", default=["mixed", "low"], help="worlds")
    parser.add_argument("--prompts", type=int, default=300, help="graded prompts of a world")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--work", type=Path, default=Path("runs/selection"), help="folder for what each seed gave")
    parser.add_argument("--embeddings", type=Path, help="store that may hold the files' embeddings; default: in --work")
    parser.add_argument("--out", type=Path, help="the page; default: print it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    sources: dict[str, Callable[[Path, int], Iterator[Data]]] = {}
    for name in options.qualities:
        title = f"The built-in world, {name} feedback"
        sources[title] = partial(world_data, name, options.seeds, options.prompts)
    for path in options.files:
        sources[f"`{path.name}`"] = partial(
            file_data, path, options.seeds, options.embeddings or options.work / "embeddings"
        )
    machine = f"{platform.machine()}, one thread, torch {torch.__version__}."
    lines = [PREFACE[0], "", machine, *PREFACE[1:]]
    for title, source in sources.items():
        lines += page_of(title, [name for name, *_ in METHODS], *draws_of(title, options.seeds, options.work, source))
    text = "\n".join(lines) + "\n"
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
