"""Cross-fitting: no head speaks of a cluster that it has seen, whatever the folds, the recipe or the seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marginkit.assembly import recipe
from marginkit.crossfit import crossfit, crossfit_many, deal
from marginkit.data.pairing import make_pairs
from marginkit.embedders import open_embedder
from marginkit.embedding_heads import HeadSettings
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group, Pair, Response
from marginkit.world import make_world

HASH = open_embedder("hash")
QUICK = HeadSettings(epochs=20)


def world(prompts: int = 120) -> Groups:
    """Graded groups of the built-in world, all pairs, without splits."""
    graded = make_world("high", prompts=prompts, demonstrations=1, dev=1, test=1).graded
    return make_pairs(graded.map(lambda group: replace(group, split=None)), "all")


def noise(count: int = 120) -> Groups:
    """Pairs whose label is a coin: every response has words that occur nowhere else."""
    rng = np.random.default_rng(0)

    def group(n: int) -> Group:
        texts = [Response(" ".join(f"w{n}x{k}y{j}" for j in range(12))) for k in range(2)]
        pair = Pair(0, 1) if rng.random() < 0.5 else Pair(1, 0)
        return Group(str(n), f"Question {n}?", tuple(texts), pairs=(pair,))

    return Groups.from_iterable(group(n) for n in range(count))


def right(groups: Groups, rewards: list[list[float]]) -> float:
    """The share of pairs in the order of the label."""
    found = [
        rewards[row][pair.chosen] > rewards[row][pair.rejected]
        for row, group in enumerate(groups)
        for pair in group.pairs
        if not pair.tie
    ]
    return float(np.mean(found))


@given(
    st.lists(st.integers(0, 40), min_size=60, max_size=120),
    st.integers(2, 5),
    st.integers(0, 3),
)
@settings(max_examples=30)
def test_folds_share_no_cluster(numbers: list[int], folds: int, seed: int) -> None:
    """Every group is asked about once; asked, train and dev have no cluster in common, and none is empty."""
    clusters = [str(number) for number in numbers]
    if len(set(clusters)) < 4 * folds:
        with pytest.raises(BadInput, match="4 clusters"):
            deal(clusters, folds, seed)
        return
    dealt = deal(clusters, folds, seed)
    assert sorted(row for fold in dealt for row in fold.asked) == list(range(len(clusters)))
    for fold in dealt:
        parts = [{clusters[row] for row in part} for part in (fold.asked, fold.train, fold.dev)]
        assert all(parts)
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]
        assert len(fold.asked) + len(fold.train) + len(fold.dev) == len(clusters)
    sizes = [len({clusters[row] for row in fold.asked}) for fold in dealt]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("name", "options"), [("bt", {}), ("mmpo_rm", {"gamma": 0.8})])
@pytest.mark.parametrize("calibrate", [False, True])
def test_a_label_never_speaks_for_itself(name: str, options: dict[str, float], calibrate: bool) -> None:
    """Turning the labels of one cluster around changes no reward of its fold, and does change those of the other."""
    groups = world()
    one = groups[7]
    grades = [response.grade for response in one.responses]
    turned = replace(
        one,
        responses=tuple(replace(r, grade=g) for r, g in zip(one.responses, grades[::-1], strict=True)),
        pairs=tuple(replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in one.pairs),
    )
    changed = Groups.from_iterable(turned if group.id == one.id else group for group in groups)
    kwargs = {"embedder": HASH, "settings": QUICK, "calibrate": calibrate, "folds": 2, "seed": 3}
    before, after = (crossfit(data, name, options, **kwargs) for data in (groups, changed))  # type: ignore[arg-type]
    fold = next(fold for fold in deal(groups.column("cluster"), 2, 3) if 7 in fold.asked)
    for row in range(len(groups)):
        assert (before[row] == after[row]) == (row in fold.asked), row


def test_coins_cannot_be_learnt() -> None:
    """A head repeats the coins it has seen; cross-fitted, it is right half the time."""
    groups = noise()
    assert 0.3 < right(groups, crossfit(groups, embedder=HASH)) < 0.7


def test_what_is_there_is_learnt() -> None:
    """In the built-in world a cross-fitted head is well above chance, and says so of the right responses."""
    groups = world(200)
    rewards = crossfit(groups, embedder=HASH)
    assert [len(row) for row in rewards] == [len(group.responses) for group in groups]
    assert right(groups, rewards) > 0.62


def test_several_losses_at_once_are_several_alone() -> None:
    """Heads trained side by side do not know of one another."""
    groups = world()
    losses = [recipe("bt"), recipe("mmpo_rm", gamma=0.5), recipe("mmpo_rm", gamma=3.0)]
    kwargs = {"embedder": HASH, "settings": QUICK}
    together = crossfit_many(groups, losses, **kwargs)  # type: ignore[arg-type]
    for number, loss in enumerate(losses):
        alone = crossfit_many(groups, [loss], **kwargs)[0]  # type: ignore[arg-type]
        np.testing.assert_allclose(np.concatenate(together[number]), np.concatenate(alone), rtol=1e-3, atol=1e-4)


def test_the_same_call_gives_the_same_rewards() -> None:
    """Bit for bit; another seed deals otherwise."""
    groups = world()
    first, second = (crossfit(groups, embedder=HASH, settings=QUICK, seed=1) for _ in range(2))
    assert first == second
    assert first != crossfit(groups, embedder=HASH, settings=QUICK, seed=2)


def test_calibrated_rewards_fit_better() -> None:
    """A head trained far too long is overconfident; the temperature takes that back."""
    groups = world(150)
    long = HeadSettings(epochs=60, learning_rate=0.5, keep_best=False)

    def nll(rewards: list[list[float]]) -> float:
        gaps = [
            rewards[row][pair.chosen] - rewards[row][pair.rejected]
            for row, group in enumerate(groups)
            for pair in group.pairs
            if not pair.tie
        ]
        return float(np.mean(np.logaddexp(0, -np.array(gaps))))

    raw, cool = (crossfit(groups, embedder=HASH, settings=long, calibrate=c) for c in (False, True))
    assert nll(cool) < min(nll(raw), np.log(2) + 0.02)
    assert right(groups, raw) == right(groups, cool)


def test_what_cannot_be_crossfitted_is_refused() -> None:
    """No pairs, too few prompts, a policy recipe, an unknown option: one line each."""
    bare = Groups.from_iterable(Group(str(n), f"{n}?", (Response("x"), Response("y"))) for n in range(60))
    with pytest.raises(BadInput, match="no pair to learn from"):
        crossfit(bare, embedder=HASH)
    with pytest.raises(BadInput, match="4 clusters"):
        crossfit(noise(6), embedder=HASH)
    with pytest.raises(BadInput, match="trains a policy"):
        crossfit(noise(60), "dpo", embedder=HASH)
    with pytest.raises(BadInput, match="no such option"):
        crossfit(noise(60), "bt", {"gamma": 1.0}, embedder=HASH)


def test_nothing_is_learnt_from_the_splits_that_are_judged_on() -> None:
    """Other labels in dev and test change no reward; those in train do. Every group is asked about, once."""
    groups = make_pairs(make_world("high", prompts=60, demonstrations=1, dev=20, test=20).graded, "all")

    def turned(split: str) -> Groups:
        def other(group: Group) -> Group:
            return replace(group, pairs=tuple(replace(p, chosen=p.rejected, rejected=p.chosen) for p in group.pairs))

        return groups.map(lambda group: other(group) if group.split == split else group)

    def rewards(some: Groups) -> list[list[float]]:
        return crossfit(some, embedder=HASH, settings=QUICK)

    plain = rewards(groups)
    assert [len(row) for row in plain] == [len(group.responses) for group in groups]
    assert rewards(turned("test")) == plain
    assert rewards(turned("dev")) == plain
    assert rewards(turned("train")) != plain
    assert right(groups, plain) > 0.6
