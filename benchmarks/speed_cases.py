"""What the speed benchmark measures: the pinned model and lengths, the cases, and the arithmetic of their cost.

No torch here: the process that starts the measurements stays small, and a child's peak memory counts from its parent's.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, median_low
from typing import Any

MEAN, SD = 201, 95  # response tokens of the population that the pinned lengths were drawn to match
PROMPT = 256
PAIRS_A_FORWARD = 6  # of TRL and of our padded pairs


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder.

    Args:
        family: qwen2 or llama.
        layers: of it.
        hidden: width.
        ffn: width of the gated feed-forward layer.
        heads: query heads; `kv_heads` key and value heads.
        kv_heads: see above.
        vocab: rows of the embedding.
        tied: whether the output layer is the embedding.
    """

    family: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool

    @property
    def body(self) -> int:
        """Weights of the matrices of all layers; embedding, norms and biases cost next to nothing."""
        kv = self.hidden * self.kv_heads // self.heads
        return self.layers * (2 * self.hidden**2 + 2 * self.hidden * kv + 3 * self.hidden * self.ffn)

    @property
    def in_words(self) -> str:
        """For the page."""
        total = self.body + self.vocab * self.hidden * (1 if self.tied else 2)
        return (
            f"random {self.family}, {self.layers} layers, d={self.hidden}, ff={self.ffn}, {self.heads} heads/"
            f"{self.kv_heads} kv, vocabulary {self.vocab:,} {'tied' if self.tied else 'untied'} ({total / 1e6:,.0f} M)"
        )


SHAPES = {
    "cpu": Shape("qwen2", 8, 512, 1408, 8, 4, 32_000, tied=False),
    "cuda": Shape("llama", 16, 2048, 8192, 32, 8, 128_256, tied=True),
}


@dataclass(frozen=True)
class Lengths:
    """A prompt and its responses, in tokens, the end token of a response included."""

    prompt: int
    responses: tuple[int, ...]

    @property
    def packed(self) -> int:
        """The prompt once, each response once."""
        return self.prompt + sum(self.responses)

    @property
    def pairs(self) -> int:
        """All pairs of its responses."""
        return len(self.responses) * (len(self.responses) - 1) // 2

    def times(self, factor: int) -> Lengths:
        """All of it longer."""
        return Lengths(factor * self.prompt, tuple(factor * n for n in self.responses))


K4 = (Lengths(PROMPT, (298, 175, 354, 123)), Lengths(PROMPT, (185, 256, 32, 183)))


def population(count: int) -> list[int]:
    """What `count` responses are expected to be, shortest first: the normal order statistics (Blom's formula)."""
    spread = NormalDist(MEAN, SD)
    return [round(spread.inv_cdf((i - 0.375) / (count + 0.25))) for i in range(1, count + 1)]


def dealt(k: int, prompts: int, prompt: int = PROMPT) -> tuple[Lengths, ...]:
    """So many prompts with `k` responses of the population each, dealt out by a pinned shuffle."""
    cards = population(k * prompts)
    random.Random(0).shuffle(cards)
    return tuple(Lengths(prompt, tuple(cards[i * k : i * k + k])) for i in range(prompts))


K2 = dealt(2, 6)


def all_pairs(groups: Sequence[Lengths]) -> list[tuple[int, int, int]]:
    """(group, i, j) of all pairs."""
    return [(g, i, j) for g, own in enumerate(groups) for i, j in itertools.combinations(range(len(own.responses)), 2)]


def shuffled_pairs(groups: Sequence[Lengths], limit: int | None = None) -> list[tuple[int, int, int]]:
    """(group, i, j) of all pairs in random order: of 99 shuffles the one whose batches take the median of positions.

    With `limit` only so many, drawn in the same way.
    """
    every = all_pairs(groups)
    drawn = []
    for seed in range(99):
        order = list(every)
        random.Random(seed).shuffle(order)
        drawn.append(order[:limit])
    sizes = [padded_positions(groups, order) for order in drawn]
    return drawn[sizes.index(median_low(sizes))]


def padded_positions(groups: Sequence[Lengths], pairs: Sequence[tuple[int, int, int]]) -> int:
    """Positions of the forward passes of pairs, two padded rows each, `PAIRS_A_FORWARD` in order a pass."""
    total = 0
    for start in range(0, len(pairs), PAIRS_A_FORWARD):
        batch = pairs[start : start + PAIRS_A_FORWARD]
        total += 2 * len(batch) * max(groups[g].prompt + groups[g].responses[at] for g, *ij in batch for at in ij)
    return total


def ideal_flops(shape: Shape, groups: Sequence[Lengths], *, head: bool) -> float:
    """Floating-point operations of training on these groups that no exact method can do without.

    3 x [2 N_body (P + sum n) + 2 d V sum n + 4 L d E], E = P (P + 1) / 2 + sum(n P + n (n + 1) / 2): the prompt once,
    each response once, causal attention over the tree, nothing computed again; backward = 2 x forward.

    Args:
        shape: of the model.
        groups: lengths.
        head: count the output layer at response tokens (a policy), or not (a reward model).
    """
    total = 0.0
    for own in groups:
        answers, prompt = sum(own.responses), own.prompt
        entries = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in own.responses)
        total += 2 * shape.body * own.packed + 4 * shape.layers * shape.hidden * entries
        total += 2 * shape.hidden * shape.vocab * answers if head else 0
    return 3 * total


def token_factors(groups: Sequence[Lengths], pairs: Sequence[tuple[int, int, int]]) -> dict[str, float]:
    """What padded pairs cost over the packed layout in positions, as a product.

    padding: padded rows of pairs / their tokens. dedup: tokens of pairs / each response once with its own prompt.
    sharing: that / the prompt once. all: the product, padded positions / packed tokens.
    """
    padded = padded_positions(groups, pairs)
    rows = sum(2 * groups[g].prompt + groups[g].responses[i] + groups[g].responses[j] for g, i, j in pairs)
    once = sum(len(own.responses) * own.prompt + sum(own.responses) for own in groups)
    whole = sum(own.pairs for own in groups) / len(pairs)  # where only some of the pairs were drawn
    packed = sum(own.packed for own in groups)
    return {
        "padding": padded / rows,
        "dedup": rows * whole / once,
        "sharing": once / packed,
        "all": padded * whole / packed,
    }


def law(k: int, ratio: float) -> float:
    """Positions of all pairs over those of the packed layout, without padding: K (K - 1) (P + L) / (P + K L)."""
    return k * (k - 1) * (ratio + 1) / (ratio + k)


# -- Cases


@dataclass(frozen=True)
class Case:
    """One process, measured as a whole.

    Args:
        name: unique; section/K/who, with the precision where it is bf16.
        section: headline, reward, sweep, groups or store.
        runs: trainings of the process, see `speed_worker.train`; the measured steps of each are those after `warm`.
        about: seconds a process takes, roughly, for the first estimate of what is left.
        facts: what the report has to know.
    """

    name: str
    section: str
    runs: tuple[dict[str, Any], ...]
    about: float
    facts: dict[str, Any]


WHO = {
    "packed": "marginkit",
    "rows": "marginkit, each response once in padded rows",
    "pairs": "marginkit, padded pairs (chunked head)",
    "trl-pre": "TRL, reference precomputed",
    "trl-fly": "TRL, reference on the fly",
    "trl": "TRL",
}


def training(who: str, data: str, *, k: int, prompts: int, steps: int, warm: int, **more: Any) -> dict[str, Any]:
    """A training as the worker takes it.

    Args:
        who: a key of `WHO`.
        data: name of the groups or pairs.
        k: responses a prompt.
        prompts: prompts a step of the packed layout and of rows.
        steps: optimizer steps in all.
        warm: of which so many first ones are not counted.
        more: kind (policy or reward_model), precision, recipe, and overrides of the product's configuration.
    """
    in_pairs = who not in ("packed", "rows")
    return {
        "who": who,
        "data": f"{data}-pairs" if in_pairs else data,
        "pairs_a_step": PAIRS_A_FORWARD if in_pairs else prompts * k * (k - 1) // 2,
        "prompts_a_step": PAIRS_A_FORWARD if in_pairs else prompts,
        "steps": steps,
        "warm": warm,
        "kind": "policy",
        "precision": "fp32",
        "recipe": "bt" if more.get("kind") == "reward_model" else "dpo",
        "store": who,
    } | more


SWEEP_K, SWEEP_RATIOS = (2, 3, 4, 6, 8), (0.25, 1.0, 4.0)
SWEEP_PROMPTS = {2: 6, 3: 2, 4: 1, 6: 1, 8: 1}
GROUPS = (2, 4, 8)  # of the pinned K=4 lengths


def data_sets(device: str) -> dict[str, tuple[Lengths, ...]]:
    """All groups by name; for a GPU four times as long and many, to be past what starting its kernels costs."""
    if device == "cuda":
        return {"k4": tuple(own.times(4) for own in K4 * 4), "k2": tuple(own.times(4) for own in K2 * 2)}
    sets = {"k4": K4, "k2": K2}
    for k, ratio in itertools.product(SWEEP_K, SWEEP_RATIOS):
        sets[f"k{k}-r{ratio:g}"] = dealt(k, SWEEP_PROMPTS[k], round(ratio * MEAN))
    return sets | {f"groups-{n}": K4 * (n // 2) for n in GROUPS}


def pairs_of(name: str, groups: Sequence[Lengths]) -> list[tuple[int, int, int]]:
    """The pairs that TRL and our padded pairs get: all of them, in the sweep one batch."""
    return shuffled_pairs(groups, PAIRS_A_FORWARD if "-r" in name else None)


def headline(quick: bool, precision: str = "fp32") -> list[Case]:
    """The policy and the reward model against TRL, and in fp32 the policy's decomposition, at K=4 and K=2."""
    cases = []
    known = (("policy", ("packed", "rows", "pairs", "trl-pre", "trl-fly")), ("reward_model", ("packed", "trl")))
    for (kind, everyone), k in itertools.product(known, (4, 2)):
        for who in everyone:
            if who == "rows" and k == 2:
                continue  # six prompts of two responses in padded rows are the six padded pairs
            if (precision == "bf16" and who in ("rows", "pairs")) or (quick and (who == "trl-fly" or k == 2)):
                continue
            ours = who in ("packed", "rows")
            per_step, epoch = (1, 2) if k == 4 else (6, 1)
            trial = {"k": k, "prompts": per_step, "kind": kind, "precision": precision}
            if ours:
                trial |= {"warm": epoch, "steps": epoch + (2 if k == 2 or who == "rows" else 4)}
            else:  # a step of theirs is long: the first one is left out, not the first epoch
                trial |= {"warm": 1, "steps": 2}
            if who == "pairs":
                trial["overrides"] = [
                    "seed=1"
                ]  # an order in which every pass is as wide as TRL's, see `shuffled_pairs`
            short = "" if precision == "fp32" else "-bf16"
            section = "headline" if kind == "policy" else "reward"
            about = {"packed": 30, "rows": 38, "pairs": 60, "trl-pre": 100, "trl-fly": 105, "trl": 35}[who]
            facts = {"k": k, "who": who, "kind": kind, "precision": precision, "data": f"k{k}"}
            run = training(who, f"k{k}", **trial)
            cases.append(Case(f"{section}{short}/k{k}/{who}", section, (run,), about, facts))
    return cases


def sweep() -> list[Case]:
    """Our three layouts over K and the length of the prompt: one process a K, warmed up by a packed step.

    By a recipe without a reference, whose pass would take as long as what is measured.
    """
    cases = []
    for k in SWEEP_K:
        names = {f"k{k}-r{ratio:g}": ratio for ratio in SWEEP_RATIOS}
        trial = {"k": k, "prompts": SWEEP_PROMPTS[k], "steps": 1, "recipe": "simpo"}
        runs = [training("packed", next(iter(names)), warm=1, **trial)]
        for name, who in itertools.product(names, ("pairs", "rows", "packed")):
            if who == "rows" and k == 2:
                continue  # see `headline`
            runs.append(training(who, name, warm=0, **trial))
        facts = {"k": k, "kind": "policy", "precision": "fp32"}
        cases.append(Case(f"sweep/k{k}", "sweep", tuple(runs), 130, facts))
    return cases


def growth() -> list[Case]:
    """An epoch of more and more groups; and the store: what a second run and another beta have to compute."""
    first = training("packed", "k4", k=4, prompts=1, steps=2, warm=2)
    runs = [training("packed", f"groups-{n}", k=4, prompts=1, steps=n, warm=0) for n in GROUPS]
    again = {"k": 4, "prompts": 1, "steps": 1, "warm": 1, "store": "kept"}
    kept = [training("packed", "k4", **again), training("packed", "k4", **again)]
    kept.append(training("packed", "k4", **again, overrides=["reward.beta=0.3"]))
    facts = {"data": "k4", "kind": "policy", "precision": "fp32"}
    return [Case("groups", "groups", (first, *runs), 70, facts), Case("store", "store", tuple(kept), 35, facts)]


def gpu(with_trl: bool) -> list[Case]:
    """The headline on a GPU: bf16, long prompts; where there is no TRL, our padded pairs stand in for it."""
    cases = []
    known = (
        ("policy", ("packed", "rows", "pairs", "trl-pre", "trl-fly")),
        ("reward_model", ("packed", "pairs", "trl")),
    )
    for (kind, everyone), k in itertools.product(known, (4, 2)):
        for who in everyone:
            if ("trl" in who and not with_trl) or (who == "rows" and k == 2):
                continue
            ours = who in ("packed", "rows")
            per_step, epoch = (1, 8) if k == 4 else (6, 2)
            steps = {"warm": epoch, "steps": 3 * epoch} if ours else {"warm": 2, "steps": 6}
            run = training(who, f"k{k}", k=k, prompts=per_step, kind=kind, precision="bf16", **steps)
            section = "headline" if kind == "policy" else "reward"
            facts = {"k": k, "who": who, "kind": kind, "precision": "bf16", "data": f"k{k}"}
            cases.append(Case(f"{section}-bf16/k{k}/{who}", section, (run,), 60, facts))
    return cases


def cases(device: str, *, quick: bool, with_trl: bool, long: bool = False) -> list[Case]:
    """Everything that one repeat measures; `long` with what takes long and says little new."""
    if device == "cuda":
        return gpu(with_trl)
    found = headline(quick)
    if not quick:
        half = headline(quick, "bf16")  # on a CPU without bf16 units slower than fp32, on both sides
        found += [case for case in half if long or (case.facts["k"] == 4 and case.facts["who"] != "trl-fly")]
        found += sweep() + growth()
    return [case for case in found if with_trl or "trl" not in str(case.facts.get("who"))]
