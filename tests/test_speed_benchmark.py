"""benchmarks/speed.py: its arithmetic, its texts and its page; what it measures takes minutes and is not run here."""

from __future__ import annotations

import importlib
import json
import math
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from marginkit.data.encoding import Encoder
from marginkit.data.pairing import make_pairs
from marginkit.data.sources import read_groups

ROOT = Path(__file__).parent.parent
SECONDS = {"packed": 0.5, "rows": 1.0, "pairs": 3.0, "trl-pre": 6.0, "trl-fly": 9.0, "trl": 2.0}


@pytest.fixture(scope="module")
def speed() -> Iterator[Any]:
    """The modules of the script."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    names = ("speed", "speed_cases", "speed_report", "speed_page", "speed_worker")
    yield SimpleNamespace(**{name.removeprefix("speed_"): importlib.import_module(name) for name in names})
    sys.path.remove(str(ROOT / "benchmarks"))


def result(case: Any, repeat: int, **changes: Any) -> dict[str, Any]:
    """What the worker would have told: the seconds of `SECONDS`, 10 % more with every repeat."""
    runs = []
    for run in case.runs:
        wall = SECONDS[run["who"]] * run["pairs_a_step"] * (1 + 0.1 * repeat)
        steps = [{"wall": 100.0, "cpu": 100.0, "positions": 0}] * run["warm"]
        steps += [{"wall": wall, "cpu": wall, "positions": 600}] * (run["steps"] - run["warm"])
        more = {"before_mb": 700.0, "reference_seconds": 2.5, "reference_responses": 8, "digest": "d", "batches": "b"}
        more |= {"weights": "float32", "attention": "sdpa", "optimizer": "adamw_torch"}
        runs.append(run | more | {"steps": steps})
    return {
        "case": case.name,
        "repeat": repeat,
        "attempt": 0,
        "runs": runs,
        "peak_mb": 1000.0 if case.facts.get("who") == "packed" else 5000.0,
        "roof": 1e11,
        "wall": 60.0,
        "noise": 1.0,
    } | changes


def page(speed: Any, cases: Sequence[Any], told: Sequence[Any], device: str = "cpu") -> str:
    """The page of these results."""
    about = speed.page.About("python benchmarks/speed.py", device, 1.0, "abc", True)
    text: str = speed.page.page(cases, told, about)
    return text


def test_ideal_operations_by_hand(speed: Any) -> None:
    """One layer, small numbers; and what the pinned model takes a pair."""
    shape = speed.cases.Shape("qwen2", layers=1, hidden=4, ffn=8, heads=2, kv_heads=1, vocab=10, tied=False)
    assert shape.body == 2 * 16 + 2 * 4 * 2 + 3 * 4 * 8 == 144
    group = speed.cases.Lengths(3, (2, 1))
    entries = (1 + 2 + 3) + (4 + 5) + 4  # keys that each query sees
    body, head = 2 * 144 * 6 + 4 * 1 * 4 * entries, 2 * 4 * 10 * 3
    assert speed.cases.ideal_flops(shape, [group], head=False) == 3 * body
    assert speed.cases.ideal_flops(shape, [group, group], head=True) == 2 * 3 * (body + head)
    pinned = speed.cases.ideal_flops(speed.cases.SHAPES["cpu"], speed.cases.K4, head=True)
    assert pinned / 12 == pytest.approx(40.9e9, rel=2e-3)
    assert "(56 M)" in speed.cases.SHAPES["cpu"].in_words
    assert "(1,236 M)" in speed.cases.SHAPES["cuda"].in_words


def test_the_pinned_lengths_have_the_stated_tokens(speed: Any) -> None:
    """Padded pairs and packed prompts at K=4 and K=2; the population has the stated mean and largest."""
    own = speed.cases
    assert [group.packed for group in own.K4] == [1206, 912]
    pairs = own.pairs_of("k4", own.K4)
    assert sorted(pairs) == own.all_pairs(own.K4)
    assert len(pairs) == 12
    halves = [own.padded_positions(own.K4, part) for part in (pairs[:6], pairs[6:])]
    assert halves == [12 * (256 + 354)] * 2 == [7320] * 2, "both forward passes of TRL are as wide"
    responses = [n for group in own.K2 for n in group.responses]
    assert len(own.K2) == 6
    assert statistics.mean(responses) == pytest.approx(own.MEAN, abs=1)
    assert max(responses) == 356
    assert own.padded_positions(own.K2, own.pairs_of("k2", own.K2)) == 12 * (256 + 356)
    assert sum(group.packed for group in own.K2) == 6 * 256 + sum(responses)
    k8 = own.data_sets("cpu")["k8-r4"]
    assert [group.prompt for group in k8] == [4 * own.MEAN]
    assert len(own.pairs_of("k8-r4", k8)) == own.PAIRS_A_FORWARD, "of the sweep one batch"


def test_the_factors_multiply_to_the_whole(speed: Any) -> None:
    """In positions dedup x sharing x padding; in time each step of the chain; the law where nothing is padded."""
    own = speed.cases
    parts = own.token_factors(own.K4, own.pairs_of("k4", own.K4))
    assert parts["all"] == pytest.approx(14640 / 2118)
    assert parts["dedup"] == pytest.approx(3)  # K - 1 pairs a response
    assert parts["sharing"] == pytest.approx((8 * 256 + 950 + 656) / 2118)
    even = [own.Lengths(100, (50, 50, 50))]
    whole, some = own.token_factors(even, own.all_pairs(even)), own.token_factors(even, own.all_pairs(even)[:2])
    for found in (parts, whole, some):
        assert math.prod(found[name] for name in ("dedup", "sharing", "padding")) == pytest.approx(found["all"])
    assert whole["all"] == some["all"] == pytest.approx(own.law(3, 2.0))
    assert whole["padding"] == 1
    assert math.prod(speed.report.chain([9.0, 6.0, 3.0, 1.0, 0.5])) == pytest.approx(18)


def test_medians_ratios_and_spread(speed: Any) -> None:
    """The ratio is that of medians, its spread that of single repeats; warm steps do not count."""
    slow = speed.report.Measured({0: 10.0, 1: 12.0, 2: 40.0})
    quick = speed.report.Measured({0: 1.0, 1: 3.0, 2: 2.0})
    assert slow.median == 12
    assert speed.report.ratio(slow, quick) == 6
    assert speed.report.ratio_words(slow, quick) == "6 [4, 20]"
    steps = [{"wall": 90.0, "cpu": 9.0}, {"wall": 6.0, "cpu": 5.0}, {"wall": 12.0, "cpu": 11.0}]
    run = {"steps": steps, "warm": 1, "pairs_a_step": 6}
    assert speed.report.per_pair(run) == 1.5
    assert speed.speed.noise({"runs": [run]}) == pytest.approx(18 / 16)
    clock = speed.worker.Clock("cpu")
    clock.stamps = [(1.0, 0.5, 0), (4.0, 2.5, 100), (5.0, 3.0, 150)]
    assert clock.steps()[1] == {"wall": 1.0, "cpu": 0.5, "positions": 50}


def test_both_sides_get_the_same_tokens(speed: Any, tmp_path: Path) -> None:
    """Texts have exactly the pinned tokens, end tokens included, in our files and in TRL's."""
    own = speed.cases
    tokenizer = speed.worker.tokenizer()
    speed.worker.write_data(tmp_path, "k4", own.K4)
    rows = [json.loads(line) for line in (tmp_path / "k4-trl.jsonl").read_text(encoding="utf-8").splitlines()]
    theirs = [
        [tokenizer(row["prompt"] + row[name] + tokenizer.eos_token)["input_ids"] for name in ("chosen", "rejected")]
        for row in rows
    ]
    for name, count in (("k4", 2), ("k4-pairs", 12)):
        groups, findings = read_groups(tmp_path / f"{name}.jsonl")
        assert findings.kept == count
        encoded, _ = Encoder(tokenizer, max_length=4096).encode(groups)
        ours = list(encoded)
        if name == "k4":
            shapes = [own.Lengths(len(g.prompt_ids), tuple(map(len, g.response_ids))) for g in ours]
            assert tuple(shapes) == own.K4
        else:
            assert [[g.prompt_ids + ids for ids in g.response_ids] for g in ours] == theirs
            assert all(pair.chosen == 0 for group in make_pairs(groups, "all") for pair in group.pairs)
    speed.worker.check_tokens("k4-pairs", "cpu", sum(len(ids) for pair in theirs for ids in pair))
    with pytest.raises(RuntimeError, match="tokens"):
        speed.worker.check_tokens("k4", "cpu", 24)


def test_the_page(speed: Any) -> None:
    """All cases, three repeats: every table, the promises judged, the chain's product the headline."""
    cases = speed.cases.cases("cpu", quick=False, with_trl=True, long=True)
    assert len({case.name for case in cases}) == len(cases)
    told = [result(case, repeat) for repeat, case in speed.speed.interleaved(cases, 3)]
    text = page(speed, cases, told)
    assert "nan" not in text
    for heading in ("promised", "Policy, K=4, fp32", "Policy, K=2, bf16", "Reward model, K=4, fp32", "prompt", "once"):
        assert re.search(rf"## .*{re.escape(heading)}", text), heading
    assert "| TRL, reference precomputed | 6.6 [6, 7.2] | 12 [12, 12] |" in text
    assert "In time: 1.50 x 2.00 x 3.00 x 2.00 = 18.00." in text
    assert "dedup 3.00 x sharing 1.73 x padding 1.34 = 6.91. Of these 87% are realised" in text
    promises = {line.split("|")[1].strip(): line for line in text.splitlines() if re.search(r"\| [<>]= ", line)}
    assert len(promises) == 6
    kept = {what: line.rstrip("| ").endswith("yes") for what, line in promises.items()}
    assert kept["policy, K=4 all pairs: TRL precomputed / marginkit, time"]  # 12
    assert kept["policy, K=4: peak memory / TRL's"]  # 0.2
    assert not kept["policy, K=4: of roofline"]  # 40.9e9 / 0.55 / 1e11
    assert "0.744 [0.682, 0.818]" in promises["policy, K=4: of roofline"]
    assert len(re.findall(r"^\| \d \| (?:0\.25|1|4) \|", text, flags=re.M)) == 15
    assert "at 8 over that at 2 prompts: 1.00" in text


def test_the_page_of_a_part(speed: Any) -> None:
    """What was not measured has no table; noise is marked; sides with different tokens are no comparison."""
    cases = [case for case in speed.cases.cases("cpu", quick=True, with_trl=True) if "headline/k4" in case.name]
    told = [result(case, 0, noise=1.5 if case.facts["who"] == "rows" else 1.0) for case in cases]
    text = page(speed, cases, told)
    assert "Reward" not in text
    assert text.count("(noisy)") == 1
    assert "1 of 4 measurements stayed noisy" in text
    told[0]["runs"][0]["digest"] = "other"
    with pytest.raises(RuntimeError, match="different tokens"):
        page(speed, cases, told)
    assert page(speed, cases, []) == "nothing was measured\n"


def test_repeats_are_interleaved(speed: Any) -> None:
    """Every second repeat in reverse; the sweep's layouts take turns behind the warm-up; the store is counted once."""
    cases = speed.cases.cases("cpu", quick=False, with_trl=True)
    order = [(repeat, case.name) for repeat, case in speed.speed.interleaved(cases, 3)]
    names = [[name for at, name in order if at == repeat] for repeat in range(3)]
    assert names[0][:-1] == names[1][::-1] == names[2]
    assert names[0][-1] == "store"
    cell = next(case for case in cases if case.section == "sweep")
    turns = [speed.speed.ordered(cell, repeat) for repeat in range(3)]
    assert all(turn[0] == cell.runs[0] and turn[0]["warm"] == turn[0]["steps"] for turn in turns)
    orders = [[cell.runs.index(run) for run in turn] for turn in turns]
    assert all(sorted(order) == list(range(len(cell.runs))) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert not any("trl" in case.name for case in speed.cases.cases("cuda", quick=False, with_trl=False))
