"""gamma by evidence: against the known truth of the built-in world, worked examples, and the order of the sources."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import marginkit as mk
from marginkit.config import resolve
from marginkit.data.pairing import make_pairs
from marginkit.dry_run import dry_run
from marginkit.embedders import open_embedder
from marginkit.embedding_heads import HeadSettings
from marginkit.errors import BadInput
from marginkit.gamma import Gamma, from_labels, from_order, from_raters, from_votes
from marginkit.gamma_fits import fit_slope, fit_with_ties
from marginkit.gamma_run import choose_gamma
from marginkit.gamma_trained import GRID, from_training
from marginkit.groups import Groups, write_groups
from marginkit.records import Group, Pair, Rating, Response
from marginkit.world import (
    QUALITIES,
    Quality,
    graded_group,
    make_world,
    true_gamma,
    write_prompt,
)

QUICK = HeadSettings(epochs=15)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def world(quality: Quality, count: int, seed: int = 0) -> Groups:
    """Graded groups of the built-in world, all pairs by grade, without what only the world knows."""
    rng = np.random.default_rng([seed, 99])
    groups = (graded_group(rng, write_prompt(rng), quality, 4, name=str(n), split="train") for n in range(count))
    return make_pairs(Groups.from_iterable(groups), "all")


def rated(count: int, gamma: float, *, seed: int = 0, **columns: Any) -> Groups:
    """Pairs with grades 1 to 5 and votes of ten raters who prefer the first with sigmoid(gamma * gap)."""
    rng = np.random.default_rng(seed)

    def group(n: int) -> Group:
        grades = rng.integers(1, 6, 2).astype(float)
        wins = float(rng.binomial(10, sigmoid(gamma * (grades[0] - grades[1]))))
        texts = [Response(f"answer {n} {k}", grade=grades[k]) for k in range(2)]
        return Group(str(n), f"Question {n}?", tuple(texts), pairs=(Pair(0, 1, votes=(wins, 10 - wins, 0.0)),))

    return Groups.from_iterable(group(n) for n in range(count))


# -- fits


def test_a_slope_by_hand() -> None:
    """One gap of 2 with a share of 0.9: log(9) / 2; with its mirror image the same; weights count."""
    two = np.array([2.0])
    assert fit_slope(two, np.array([0.9]), np.ones(1)) == pytest.approx(math.log(9) / 2)
    both = fit_slope(np.array([2.0, -2.0]), np.array([0.9, 0.1]), np.ones(2))
    assert both == pytest.approx(math.log(9) / 2)
    weighed = fit_slope(np.array([1.0, 1.0]), np.array([1.0, 0.0]), np.array([3.0, 1.0]))
    assert weighed == pytest.approx(math.log(3))
    assert fit_slope(two, np.array([1.0]), np.ones(1)) == math.inf
    assert fit_slope(two, np.array([0.0]), np.ones(1)) == -math.inf
    assert math.isnan(fit_slope(np.zeros(1), np.ones(1), np.ones(1)))


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(0.05, 0.95), st.floats(0.1, 5)), min_size=1, max_size=12))
def test_a_slope_is_the_minimum(rows: list[tuple[float, float, float]]) -> None:
    """No other slope has a lower likelihood loss: a fine grid against Newton."""
    gap, share, weight = (np.array(column) for column in zip(*rows, strict=True))
    if np.abs(gap).max() < 0.05:
        return
    slope = fit_slope(gap, share, weight)

    def loss(g: float) -> float:
        return float((weight * (np.logaddexp(0, -g * gap) + (1 - share) * g * gap)).sum())

    assert all(loss(slope) <= loss(slope + step) + 1e-9 for step in (-1.0, -0.1, -1e-3, 1e-3, 0.1, 1.0))


def test_ties_are_modelled_not_counted() -> None:
    """Answers drawn with a threshold give slope and threshold back; leaving ties out or halving them does not."""
    rng = np.random.default_rng(0)
    gap = rng.normal(size=60_000)
    latent = 0.8 * gap + rng.logistic(size=gap.shape)
    answer = np.where(latent > 0.7, 1.0, np.where(latent < -0.7, -1.0, 0.0))
    slope, threshold = fit_with_ties(gap, answer, np.ones_like(gap))
    assert slope == pytest.approx(0.8, abs=0.03)
    assert threshold == pytest.approx(0.7, abs=0.03)
    halved = fit_slope(gap, (answer + 1) / 2, np.ones_like(gap))
    without = fit_slope(gap[answer != 0], (answer[answer != 0] + 1) / 2, np.ones((answer != 0).sum()))
    assert halved < 0.75 < 0.85 < without
    clear = np.sign(latent)
    assert fit_with_ties(gap, clear, np.ones_like(gap)) == (pytest.approx(0.8, abs=0.03), 0.0)
    scaled, _ = fit_with_ties(gap * 100, answer, np.ones_like(gap))
    assert scaled == pytest.approx(slope / 100, rel=1e-3)


# -- sources


@pytest.mark.parametrize("raters", [2, 3, 4, 8])
def test_raters_know_the_gamma_of_the_world(raters: int) -> None:
    """Attentive raters: within 8% of the slope that fits the world's own preferences, for any number of raters."""
    quality = replace(QUALITIES["high"], raters=raters)
    rng = np.random.default_rng([5, raters])
    gaps, probs = [], []
    for n in range(1500):
        group = graded_group(rng, write_prompt(rng), quality, 4, name=str(n), split="test")
        for pair in group.pairs:
            grades = [group.responses[at].grade for at in (pair.chosen, pair.rejected)]
            gaps.append(grades[0] - grades[1])  # type: ignore[operator]
            probs.append(pair.prob)
    truth = fit_slope(np.array(gaps), np.array(probs, dtype=float), np.ones(len(gaps)))
    found = from_raters(world(quality, 1500))
    assert found is not None
    assert found.value == pytest.approx(truth, rel=0.08), (found.value, truth)
    assert found.low < found.value < found.high
    assert (found.details["raters"], found.details["grades_a_rating"]) == (raters, pytest.approx(1.0))
    if raters == 4:
        assert truth == pytest.approx(true_gamma("high"), rel=0.05)
        assert abs(found.details["held_out"] / truth - 1) > 0.05  # fewer raters alone would not do


def test_the_interval_covers() -> None:
    """Over small worlds, the truth is inside the interval about as often as it says."""
    inside = [
        found.low <= true_gamma("high") <= found.high
        for seed in range(12)
        if (found := from_raters(world(QUALITIES["high"], 60, seed))) is not None
    ]
    assert len(inside) == 12
    assert sum(inside) >= 9


def test_votes_know_their_gamma() -> None:
    """Ten votes a pair, drawn with gamma 0.7; strengths serve as grades do; other units give other gammas."""
    groups = rated(800, 0.7)
    found = from_votes(groups)
    assert found is not None
    assert (found.source, found.value) == ("votes", pytest.approx(0.7, rel=0.05))
    assert found.low < 0.7 < found.high
    doubled = groups.map(
        lambda g: replace(g, responses=tuple(replace(r, grade=10 * (r.grade or 0)) for r in g.responses))
    )
    other = from_votes(doubled)
    assert other is not None
    assert other.value == pytest.approx(found.value / 10)
    assert other.noticeable == pytest.approx(10 * math.log(3) / found.value)


def test_labels_are_joined_by_their_words() -> None:
    """From a file of its own, in any order of rows and responses; what is not found is counted, too little refused."""
    groups = rated(400, 0.7)
    rng = np.random.default_rng(1)

    def labelled(group: Group) -> Group:
        first, second = group.responses
        gap = (first.grade or 0) - (second.grade or 0)
        responses = (Response(second.text), Response(first.text))
        pair = Pair(1, 0) if rng.random() < sigmoid(0.9 * gap) else Pair(0, 1)
        return Group(f"label {group.id}", group.prompt, responses, pairs=(pair,))

    labels = [labelled(group) for group in reversed(list(groups))]
    strangers = [replace(label, prompt="another prompt") for label in labels[:30]]
    found = from_labels(groups, labels + strangers)
    assert found is not None
    assert (found.source, found.pairs, found.value) == ("labels", 400, pytest.approx(0.9, rel=0.2))
    assert "400 of 430 found" in found.how
    with pytest.raises(BadInput, match="20 of 50 labelled pairs"):
        from_labels(groups, labels[:20] + strangers)


def test_an_order_counts_only_if_it_contradicts() -> None:
    """Where nothing goes against the grades the order was read off them, and says nothing."""
    rng = np.random.default_rng(2)

    def ordered(group: Group, honest: bool) -> Group:
        gap = (group.responses[0].grade or 0) - (group.responses[1].grade or 0)
        first = rng.random() < sigmoid(0.6 * gap) if honest else gap >= 0
        return replace(group, pairs=(Pair(0, 1, tie=gap == 0) if first else Pair(1, 0, tie=gap == 0),))

    groups = rated(800, 0.7)
    found = from_order(groups.map(lambda group: ordered(group, True)))
    assert found is not None
    assert found.value == pytest.approx(0.6, rel=0.15)
    assert from_order(groups.map(lambda group: ordered(group, False))) is None


def test_training_chooses_from_its_grid() -> None:
    """Seven candidates over the spread of the gaps, the one of lowest NLL, never the smallest loss; said at an edge."""
    groups = world(QUALITIES["mixed"], 120)
    found = from_training(groups, open_embedder("hash"), QUICK)
    grid, nll = found.details["grid"], found.details["nll"]
    gaps = [
        (group.responses[pair.chosen].grade or 0) - (group.responses[pair.rejected].grade or 0)
        for group in groups
        for pair in group.pairs
    ]
    untied = np.array([gap for gap in gaps if gap])
    unit = np.sqrt((untied**2).mean())
    np.testing.assert_allclose(grid, np.geomspace(0.1, 3, GRID) / unit)
    assert found.value == grid[int(np.argmin(nll))]
    assert found.low <= found.value <= found.high
    assert found.pairs == len(untied)
    assert nll[0] > min(nll)  # a gamma near 0 teaches nothing
    assert found.details["edge"] == (found.value in (grid[0], grid[-1])) == ("edge of the grid" in found.sentence)
    assert "stopped early" in found.sentence
    assert "to the end" in from_training(groups, open_embedder("hash"), replace(QUICK, keep_best=False)).sentence


def test_utilities_of_the_data_do_not_choose() -> None:
    """A gap in logits would take the place of gamma * grade gap: the training sees grades alone."""
    groups = world(QUALITIES["mixed"], 60)
    known = groups.map(
        lambda g: replace(g, responses=tuple(replace(r, utility=float(n)) for n, r in enumerate(g.responses)))
    )
    one, other = (from_training(data, open_embedder("hash"), QUICK) for data in (groups, known))
    assert one == other


def test_the_order_of_the_sources() -> None:
    """Raters, then votes, then labels, then an order that contradicts, then training."""
    graded = rated(200, 0.7)
    votes = choose_gamma(graded)
    assert votes.source == "votes"
    rng = np.random.default_rng(3)
    with_raters = graded.map(
        lambda g: replace(
            g,
            responses=tuple(
                replace(r, ratings=tuple(Rating(f"r{k}", (r.grade or 0) + rng.normal()) for k in range(3)))
                for r in g.responses
            ),
        )
    )
    assert choose_gamma(with_raters).source == "raters"

    def ordered(group: Group) -> Group:
        wins, losses, _ = group.pairs[0].votes or (0, 0, 0)
        return replace(group, pairs=(Pair(0, 1) if wins > losses else Pair(1, 0),))

    hard = graded.map(ordered)
    bare = make_pairs(hard.map(lambda g: replace(g, pairs=())), "all")
    assert choose_gamma(bare, labels=graded).source == "labels"
    assert choose_gamma(hard, independent_order=True).source == "order"
    assert choose_gamma(bare, settings=QUICK).source == "training"


def test_an_endless_interval_is_written_and_read() -> None:
    """Where hardly any answer goes against the grades, some resamples have none: no upper end, and JSON without one."""
    gap, share = np.ones(60), np.append(np.ones(59), 0.0)
    rows = [
        Group(
            str(n),
            f"{n}?",
            (Response(f"x{n}", grade=2.0), Response(f"y{n}", grade=1.0)),
            pairs=(Pair(0, 1, votes=(float(one), 1.0 - float(one), 0.0)),),
        )
        for n, one in enumerate(share)
    ]
    found = from_votes(rows)
    assert found is not None
    assert found.value == pytest.approx(fit_slope(gap, share, gap))
    assert found.high == math.inf
    text = json.dumps(found.to_json(), allow_nan=False)
    assert Gamma.from_json(json.loads(text)) == found


def test_what_cannot_be_chosen_is_refused() -> None:
    """All grades tie, too few pairs, votes that go against the grades: what it is, and the way out."""
    alike = Groups.from_iterable(
        Group(
            str(n), f"{n}?", (Response(f"x{n}", grade=3.0), Response(f"y{n}", grade=3.0)), pairs=(Pair(0, 1, tie=True),)
        )
        for n in range(60)
    )
    with pytest.raises(BadInput, match=r"0 pairs have different grades \(60 pairs are ties\).*data.labels"):
        choose_gamma(alike)
    with pytest.raises(BadInput, match="50 are needed"):
        choose_gamma(world(QUALITIES["mixed"], 5))
    with pytest.raises(BadInput, match="goes against the grades"):
        choose_gamma(rated(400, -0.7))


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_gamma_has_the_unit_of_the_grades(scale: float) -> None:
    """Grades in hundredths give a gamma a hundred times as large, whatever the source."""
    groups = world(QUALITIES["high"], 150)

    def scaled(group: Group) -> Group:
        return replace(
            group,
            responses=tuple(
                replace(
                    r, grade=scale * (r.grade or 0), ratings=tuple(replace(x, value=scale * x.value) for x in r.ratings)
                )
                for r in group.responses
            ),
        )

    one, other = from_raters(groups), from_raters(groups.map(scaled))
    assert one is not None
    assert other is not None
    assert other.value * scale == pytest.approx(one.value, rel=1e-3)


# -- a run


def test_a_run_chooses_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number is in the configuration, the manifest and a file; resuming keeps it; the twin has none."""
    groups = make_world("high", prompts=60, demonstrations=1, dev=10, test=20).graded
    write_groups(groups, tmp_path / "graded.jsonl")
    base = ["data.pairs=all", f"data.train={tmp_path / 'graded.jsonl'}", f"store.path={tmp_path / 'store'}"]
    base += ["target.gamma=auto", "train.control=bt", "model.kind=embedding", "train.num_train_epochs=5"]
    out = f"out={tmp_path / 'run'}"
    with monkeypatch.context() as patch:
        patch.setattr("marginkit.embedding_run.train_heads", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            mk.train("mmpo_rm", [*base, out])
    kept = Gamma.from_json(json.loads((tmp_path / "run" / "gamma.json").read_text()))
    assert kept.source == "raters"
    with monkeypatch.context() as patch:
        patch.setattr("marginkit.gamma_run.choose_gamma", lambda *_, **__: pytest.fail("chosen again"))
        run = mk.train("mmpo_rm", [*base, out])
    assert resolve(tmp_path / "run" / "config.yaml").target == {"gamma": kept.value}
    assert run.config.target["gamma"] == kept.value
    assert run.control is not None
    assert run.control.config.target == {}
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["gamma"] == kept.to_json()
    assert manifest["parts"]["target"]["options"]["gamma"] == kept.value
    assert "just noticeable difference" in manifest["gamma"]["sentence"]
    assert "gamma" not in json.loads((tmp_path / "run" / "control" / "manifest.json").read_text())
    given = [word for word in base if word != "target.gamma=auto"]
    by_hand = mk.train("mmpo_rm", [*given, f"target.gamma={kept.value}", f"out={tmp_path / 'by_hand'}"])
    names = [one.checkpoint / "head.safetensors" for one in (run, by_hand)]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_a_policy_has_its_gamma_chosen_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By raters here; the run trains with that number."""
    groups = make_world("high", prompts=20, demonstrations=1, dev=4, test=4).graded
    write_groups(groups, tmp_path / "graded.jsonl")
    small = ["model.path=fresh", "model.fresh.layers=1", "model.fresh.hidden=16", "model.fresh.vocab=300"]
    data = ["data.pairs=all", f"data.train={tmp_path / 'graded.jsonl'}", "store.use=false", "data.test_split=null"]
    run = mk.train("mmpo", [*small, *data, "target.gamma=auto", "train.max_steps=2", f"out={tmp_path / 'run'}"])
    assert 0.3 < run.config.target["gamma"] < 3
    with caplog.at_level("INFO", "marginkit"):
        forecast = dry_run(resolve("mmpo", [*small, *data, "target.gamma=auto"]))
    assert "chosen when the run starts" in caplog.text
    assert forecast.pairs == 120  # type: ignore[union-attr]


def test_labels_of_a_run(tmp_path: Path) -> None:
    """`data.labels` is read where gamma is auto, and refused where it is idle."""
    graded = rated(300, 0.7)
    bare = graded.map(lambda g: replace(g, pairs=()))
    write_groups(bare, tmp_path / "graded.jsonl")
    write_groups(
        graded.map(lambda g: replace(g, responses=tuple(replace(r, grade=None) for r in g.responses))),
        tmp_path / "labels.jsonl",
    )
    base = ["model.kind=embedding", "store.use=false", f"data.train={tmp_path / 'graded.jsonl'}"]
    base += [f"data.labels={tmp_path / 'labels.jsonl'}", "train.num_train_epochs=2"]
    run = mk.train("mmpo_rm", [*base, "target.gamma=auto", f"out={tmp_path / 'run'}"])
    found = json.loads((run.path / "gamma.json").read_text())
    assert found["source"] == "labels"
    assert found["value"] == pytest.approx(0.7, rel=0.15)
    with pytest.raises(BadInput, match="alone; add that"):
        mk.train("mmpo_rm", [*base, "target.gamma=0.5", f"out={tmp_path / 'idle'}"])


@pytest.mark.parametrize(("name", "words"), [("simpo", "target.gamma"), ("bt", "target.gamma")])
def test_auto_is_only_for_grades(name: str, words: str) -> None:
    """Another option that is called gamma stays a number, and a loss alone has no data to choose by."""
    with pytest.raises(BadInput, match=words):
        resolve(name, ["target.gamma=auto"])
    with pytest.raises(BadInput, match="gamma"):
        mk.recipe("mmpo", gamma="auto")


def test_raters_who_left_ratings_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With four in ten ratings missing the gamma is still that of the grades there are, the means of those given."""
    monkeypatch.setattr("marginkit.gamma._REPEATS", 2)  # the interval is not looked at
    rng = np.random.default_rng(8)
    groups, gaps, probs = [], [], []
    for n in range(2500):
        quality = rng.normal(0, 1.5, 4)
        given = [[Rating(f"r{k}", float(q + rng.gumbel())) for k in range(6) if rng.random() > 0.4] for q in quality]
        grades = [float(np.mean([one.value for one in each])) if each else None for each in given]
        texts = [Response(f"{n} {k}", grade=grades[k], ratings=tuple(given[k])) for k in range(4)]
        group = make_pairs(Groups.from_iterable([Group(str(n), f"Why {n}?", tuple(texts))]), "all")[0]
        groups.append(group)
        for pair in group.pairs:
            one, other = ({rating.rater for rating in given[at]} for at in (pair.chosen, pair.rejected))
            if len(one & other) >= 2:
                gaps.append(grades[pair.chosen] - grades[pair.rejected])  # type: ignore[operator]
                probs.append(float(sigmoid(quality[pair.chosen] - quality[pair.rejected])))
    truth = fit_slope(np.array(gaps), np.array(probs), np.ones(len(gaps)))
    found = from_raters(Groups.from_iterable(groups))
    assert found is not None
    assert found.value == pytest.approx(truth, rel=0.05), (found.value, truth)


def test_an_interval_of_one_cluster_is_over_pairs() -> None:
    """One prompt says nothing of other prompts, and an interval without width would say that it says all."""
    one = [replace(group, cluster="the only one") for group in rated(200, 0.5)]
    found = from_votes(Groups.from_iterable(one))
    assert found is not None
    assert found.clusters == 0
    assert found.low < 0.95 * found.value < 1.05 * found.value < found.high


def test_labels_that_are_not_read_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """A file that the user named is used, or it is said why not."""
    graded = world(QUALITIES["high"], 60)
    with caplog.at_level("INFO", "marginkit"):
        assert choose_gamma(graded, labels=graded).source == "raters"
    assert "labels are not used, as the agreement of raters" in caplog.text


def test_one_prompt_is_named_for_what_it_is() -> None:
    """Its pairs have grades enough, but no part of it can be judged by a model that did not see it."""
    responses = tuple(Response(f"answer {n}", grade=float(n % 5)) for n in range(40))
    one = make_pairs(Groups.from_iterable([Group("a", "Why?", responses)]), "all")
    with pytest.raises(BadInput, match=r"hangs together .* 0 of 640 pairs with different grades"):
        from_training(one, open_embedder("hash"), QUICK)
