"""From the measurements of the speed benchmark to its tables: medians, ratios, spread, what they consist of."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from speed_cases import (
    GROUPS,
    SHAPES,
    SWEEP_K,
    SWEEP_RATIOS,
    WHO,
    Case,
    data_sets,
    ideal_flops,
    law,
    pairs_of,
    token_factors,
)

Told = Mapping[str, Any]
NOISY = 1.1


# -- Numbers


@dataclass(frozen=True)
class Measured:
    """A figure by repeat."""

    by_repeat: Mapping[int, float]

    @property
    def median(self) -> float:
        """Of all repeats."""
        return median(self.by_repeat.values())

    def over(self, other: Measured) -> Measured:
        """This over another, repeat by repeat; the ratio of medians is `ratio`."""
        both = self.by_repeat.keys() & other.by_repeat.keys()
        return Measured({at: self.by_repeat[at] / other.by_repeat[at] for at in both})

    def words(self, value: float | None = None, digits: int = 3) -> str:
        """The median, or another `value`, with the smallest and largest."""
        shown = self.median if value is None else value
        low, high = min(self.by_repeat.values()), max(self.by_repeat.values())
        return f"{shown:.{digits}g} [{low:.{digits}g}, {high:.{digits}g}]"


def ratio(left: Measured, right: Measured) -> float:
    """The ratio of the medians."""
    return left.median / right.median


def ratio_words(left: Measured, right: Measured) -> str:
    """The ratio of the medians, with the smallest and largest ratio of a repeat."""
    return left.over(right).words(ratio(left, right))


def chain(seconds: Sequence[float]) -> list[float]:
    """What each step from the slowest to the quickest gains; the product is the first over the last."""
    return [slow / quick for slow, quick in itertools.pairwise(seconds)]


def counted(run: Told) -> list[Mapping[str, float]]:
    """The steps that count."""
    steps: list[Mapping[str, float]] = run["steps"][run["warm"] :]
    return steps


def per_pair(run: Told, what: str = "wall") -> float:
    """Seconds (wall or cpu) or positions for each trained pair."""
    steps = counted(run)
    return sum(step[what] for step in steps) / (len(steps) * run["pairs_a_step"])


class Found:
    """All measurements of a device, by case."""

    def __init__(self, told: Iterable[Told], device: str) -> None:
        self.device = device
        self.shape = SHAPES[device]
        self.sets = data_sets(device)
        self.by_case: dict[str, dict[int, Told]] = {}
        for one in told:
            self.by_case.setdefault(one["case"], {})[one["repeat"]] = one

    def of(self, case: str, what: Any) -> Measured:
        """A figure of a case: a key of the process, or a function of it."""
        read = what if callable(what) else lambda one: one[what]
        return Measured({repeat: read(one) for repeat, one in self.by_case[case].items()})

    def seconds(self, case: str, who: str | None = None, data: str | None = None) -> Measured:
        """Seconds a pair of a case's only training, or of that of `who` on `data`."""
        return self.of(case, lambda one: per_pair(last_run(one, who, data)))

    def goodput(self, case: str, data: str, *, head: bool, seconds: Measured) -> Measured:
        """Ideal operations over `seconds` a pair, over what a matrix product reached in the same process."""
        groups = self.sets[data]
        ideal = ideal_flops(self.shape, groups, head=head) / sum(own.pairs for own in groups)
        roof = self.of(case, "roof").by_repeat
        return Measured({at: ideal / value / roof[at] for at, value in seconds.by_repeat.items()})


def last_run(one: Told, who: str | None = None, data: str | None = None) -> Told:
    """The last training of a process, or the last of `who`, of which the pairs of `data` are."""
    return [
        run
        for run in one["runs"]
        if (who is None or run["who"] == who) and (data is None or run["data"] in (data, f"{data}-pairs"))
    ][-1]


# -- Tables


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


HEADLINE = (
    *("", "s / pair", "times marginkit", "CPU s / pair", "positions / pair", "positions / s", "of roofline"),
    *("peak MB", "before training", "process s", "reference s (responses)"),
)


def side_by_side(found: Found, prefix: str, present: Sequence[Case]) -> list[str]:
    """One row for each side of a case family."""
    own = found.seconds(f"{prefix}/packed")
    rows = []
    for case in present:
        seconds, who, facts = found.seconds(case.name), case.facts["who"], case.facts
        goodput = found.goodput(case.name, facts["data"], head=facts["kind"] == "policy", seconds=seconds)
        positions = found.of(case.name, lambda one: per_pair(last_run(one), "positions")).median
        noisy = any(one["noise"] > NOISY for one in found.by_case[case.name].values()) and found.device == "cpu"
        rows.append(
            [
                WHO[who] + (" (noisy)" if noisy else ""),
                seconds.words(),
                ratio_words(seconds, own) if who != "packed" else "1",
                f"{found.of(case.name, lambda one: per_pair(last_run(one), 'cpu')).median:.3g}",
                f"{positions:,.0f}",
                f"{positions / seconds.median:,.0f}",
                f"{goodput.median:.1%}",
                f"{found.of(case.name, 'peak_mb').median:,.0f}",
                f"{found.of(case.name, lambda one: last_run(one)['before_mb']).median:,.0f}",
                f"{found.of(case.name, 'wall').median:.0f}",
                reference_words(found.by_case[case.name].values()),
            ]
        )
    return table(HEADLINE, rows)


def reference_words(told: Iterable[Told]) -> str:
    """Seconds of the reference pass, of the repeats that had to compute it."""
    made = [last_run(one) for one in told if last_run(one)["reference_responses"]]
    if not made:
        return ""
    return f"{median(run['reference_seconds'] for run in made):.1f} ({made[0]['reference_responses']})"


STEPS = {
    ("trl-fly", "trl-pre"): "reference from before the training",
    ("trl-pre", "pairs"): "log-probabilities in chunks, at response tokens alone",
    ("pairs", "rows"): "each response once (dedup), and less padding",
    ("rows", "packed"): "the prompt once (sharing), and no padding",
    ("trl-pre", "packed"): "all of the changes that the table in fp32 tells apart",
    ("pairs", "packed"): "the prompt once (sharing), and no padding",
}


def decomposition(found: Found, prefix: str, data: str) -> list[str]:
    """Where the headline comes from: measured layout by layout, and in positions."""
    names = [who for who in ("trl-fly", "trl-pre", "pairs", "rows", "packed") if f"{prefix}/{who}" in found.by_case]
    seconds = [found.seconds(f"{prefix}/{who}") for who in names]
    factors = chain([own.median for own in seconds])
    rows = [
        [f"{WHO[slow]} -> {WHO[quick]}", STEPS.get((slow, quick), ""), ratio_words(left, right)]
        for slow, quick, left, right in zip(names, names[1:], seconds, seconds[1:], strict=False)
    ]
    product = " x ".join(f"{factor:.2f}" for factor in factors)
    lines = ["", f"In time: {product} = {seconds[0].median / seconds[-1].median:.2f}.", ""]
    lines += table(("from -> to", "what changes", "gain"), rows)
    groups = found.sets[data]
    parts = token_factors(groups, pairs_of(data, groups))
    lines += [
        "",
        "In positions, padded pairs over packed: dedup {dedup:.2f} x sharing {sharing:.2f} x padding {padding:.2f} = "
        "{all:.2f}.".format(**parts),
    ]
    if "pairs" in names:
        gain = ratio(found.seconds(f"{prefix}/pairs"), found.seconds(f"{prefix}/packed"))
        lines[-1] += f" Of these {gain / parts['all']:.0%} are realised as time."
    return lines


def targets(found: Found) -> list[str]:
    """The promises for a CPU, one thread, fp32, and what was measured."""
    rows: list[list[str]] = []

    def add(what: str, wanted: float, value: Measured, shown: float, *, most: bool = False) -> None:
        kept = shown <= wanted if most else shown >= wanted
        sign = "<=" if most else ">="
        rows.append([what, f"{sign} {wanted:g}", value.words(shown), "yes" if kept else "**no**"])

    def gain(what: str, wanted: float, slow: str, quick: str) -> None:
        if slow in found.by_case and quick in found.by_case:
            left, right = found.seconds(slow), found.seconds(quick)
            add(what, wanted, left.over(right), ratio(left, right))

    k4, k2 = "headline/k4/", "headline/k2/"
    gain("policy, K=4 all pairs: TRL precomputed / marginkit, time", 11, f"{k4}trl-pre", f"{k4}packed")
    gain("policy, K=2: TRL precomputed / marginkit, time", 3, f"{k2}trl-pre", f"{k2}packed")
    gain("policy, K=2: our padded pairs / marginkit, time", 1.6, f"{k2}pairs", f"{k2}packed")
    gain("reward model, K=4 all pairs: TRL / marginkit, time", 3, "reward/k4/trl", "reward/k4/packed")
    if f"{k4}packed" in found.by_case:
        goodput = found.goodput(f"{k4}packed", "k4", head=True, seconds=found.seconds(f"{k4}packed"))
        add("policy, K=4: of roofline", 0.75, goodput, goodput.median)
        if f"{k4}trl-pre" in found.by_case:
            own, peer = found.of(f"{k4}packed", "peak_mb"), found.of(f"{k4}trl-pre", "peak_mb")
            add("policy, K=4: peak memory / TRL's", 0.25, own.over(peer), ratio(own, peer), most=True)
    return table(("promise", "wanted", "measured", "kept"), rows) if rows else []


def sweep_table(found: Found) -> list[str]:
    """Our layouts over K and prompt : response."""
    header = ("K", "P : R", "s / pair, packed", "rows / packed", "padded pairs / packed")
    header += ("positions", "without padding", "realised", "s / prompt", "of roofline")
    rows = []
    for k in SWEEP_K:
        case = f"sweep/k{k}"
        if case not in found.by_case:
            continue
        for wanted in SWEEP_RATIOS:
            name = f"k{k}-r{wanted:g}"
            packed, pairs = (found.seconds(case, who, name) for who in ("packed", "pairs"))
            padded = found.seconds(case, "rows", name) if k > 2 else pairs
            groups = found.sets[name]
            tokens = token_factors(groups, pairs_of(name, groups))["all"]
            goodput = found.goodput(case, name, head=True, seconds=packed)
            rows.append(
                [
                    *(f"{k}", f"{wanted:g}", packed.words(), ratio_words(padded, packed), ratio_words(pairs, packed)),
                    *(f"{tokens:.2f}", f"{law(k, wanted):.2f}", f"{ratio(pairs, packed) / tokens:.0%}"),
                    *(f"{packed.median * k * (k - 1) / 2:.2f}", f"{goodput.median:.1%}"),
                ]
            )
    return table(header, rows)


def groups_table(found: Found) -> list[str]:
    """An epoch of more and more groups."""
    rows, each = [], []
    for count in GROUPS:

        def seconds(one: Told, count: int = count) -> float:
            run = next(run for run in one["runs"] if run["data"] == f"groups-{count}")
            return float(sum(step["wall"] for step in run["steps"]))

        epoch = found.of("groups", seconds)
        each.append(epoch.median / count)
        rows.append([f"{count}", epoch.words(), f"{each[-1]:.3g}"])
    lines = table(("prompts", "s / epoch", "s / prompt"), rows)
    return [*lines, "", f"Time per prompt at {GROUPS[-1]} over that at {GROUPS[0]} prompts: {each[-1] / each[0]:.2f}."]


def store_table(found: Found) -> list[str]:
    """What was computed by runs that share a store."""
    told = next(iter(found.by_case["store"].values()))
    names = ("first run", "second run", "another beta")
    rows = [
        [name, f"{run['reference_responses']}", f"{run['reference_seconds']:.2f}"]
        for name, run in zip(names, told["runs"], strict=True)
    ]
    return table(("runs that share a store", "reference scores computed", "s"), rows)
