"""Clusters stay together, splits are drawn by hash, and given ones win."""

from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marginkit.data.sources import read_groups
from marginkit.data.splits import assign_clusters, assign_splits, leakage, select_split, text_digest
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group, Response

SHARED = Path(__file__).parents[3] / "shared" / "data"


def group(id, prompt="p", responses=("x", "y"), **rest):
    return Group(str(id), prompt, tuple(map(Response, responses)), **rest)


def clusters(rows):
    return assign_clusters(Groups.from_iterable(rows)).column("cluster")


def test_cluster_is_the_prompt():
    found = clusters([group(0, "a", "x"), group(1, "b", "x"), group(2, "a", "z"), group(3, "b", "x", cluster="mine")])
    assert found == [text_digest("a"), text_digest("b"), text_digest("a"), "mine"]


def test_few_prompts_cluster_by_connected_responses():
    rows = [
        group(0, "a", "xy"),
        group(1, "a", "zw"),
        group(2, "b", "yz"),
        group(3, "a", "pq"),
        group(4, "b", "qx", cluster="m"),
    ]
    found = clusters(rows)
    assert found[0] == found[1] == found[2] == found[3]  # the last row joins p, q to x
    assert found[4] == "m"
    apart = clusters(rows[:4])
    assert apart[0] == apart[1] == apart[2] != apart[3]
    assert clusters(reversed(rows[:4])) == apart[::-1]
    assert apart[0] == min(map(text_digest, "xyzw"))  # whatever the order of the rows


def test_the_reader_assigns_clusters():
    rows = [{"prompt": "p", "chosen": "x", "rejected": "y"}, {"prompt": "q", "chosen": "z", "rejected": "y"}]
    first, second = read_groups(rows)[0].column("cluster")
    assert first == second == min(map(text_digest, "xyz"))


def test_fifty_prompts_are_enough():
    rows = [group(n, f"p{n}", ("same", f"other {n}")) for n in range(50)]
    assert len(set(clusters(rows))) == 50
    assert len(set(clusters(rows[:49]))) == 1
    assert len(set(clusters([group(n, f"p{n}", ("same", "u", f"v{n}")) for n in range(9)]))) == 9  # not a pair file


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=30))
def test_components_are_those_of_the_graph(edges):
    rows = [group(n, "p", (f"r{a}", f"r{b}")) for n, (a, b) in enumerate(edges)]
    found = clusters(rows)
    reach = {node: {node} for edge in edges for node in edge}
    for _ in reach:  # the slow and simple way
        for a, b in edges:
            reach[a] = reach[b] = reach[a] | reach[b]
    for (a, _), mine in zip(edges, found, strict=True):
        for (b, _), other in zip(edges, found, strict=True):
            assert (mine == other) == (b in reach[a])


def test_splits_are_drawn_by_cluster_and_seed():
    groups = Groups.from_iterable(group(n, f"p{n // 2}") for n in range(2000))
    drawn = assign_splits(groups)
    by_cluster = defaultdict(set)
    for one in drawn:
        by_cluster[one.cluster].add(one.split)
    assert all(len(splits) == 1 for splits in by_cluster.values())
    share = drawn.column("split").count("train") / 2000
    assert 0.87 < share < 0.93
    assert set(drawn.column("split")) == {"train", "dev", "test"}
    assert assign_splits(groups, seed=1).column("split") != drawn.column("split")
    half = assign_splits(groups.filter(lambda one: int(one.id) % 3 == 0, "x"))
    place = dict(zip(drawn.column("id"), drawn.column("split"), strict=True))
    assert [place[id] for id in half.column("id")] == half.column("split")  # whatever else is in the file


def test_given_splits_win_and_take_their_cluster_along():
    rows = [group(0, "a", split="test"), group(1, "a"), *(group(n, f"p{n}") for n in range(2, 60))]
    drawn = assign_splits(Groups.from_iterable(rows), {"train": 1.0})
    assert drawn.column("split") == ["test", "test"] + ["train"] * 58
    given_all = Groups.from_iterable([group(0, split="mine")])
    assert assign_splits(given_all) is given_all


@pytest.mark.parametrize("fractions", [{}, {"train": 0.5}, {"train": 1.5, "dev": -0.5}])
def test_bad_fractions(fractions):
    with pytest.raises(BadInput, match=r"shares are >= 0 and add up to 1"):
        assign_splits(Groups.from_iterable([group(0)]), fractions)


@pytest.mark.parametrize("present", ["dev", "validation", "valid", "val", "eval"])
def test_dev_by_any_name(present):
    groups = Groups.from_iterable([group(0, split="train"), group(1, split=present), group(2)])
    found = select_split(groups, "dev")
    assert found.column("id") == ["1"]
    assert found.dropped == {"other split": 2}


def test_dev_itself_comes_first():
    groups = Groups.from_iterable([group(0, split="eval"), group(1, split="dev")])
    assert select_split(groups, "dev").column("id") == ["1"]


def test_a_split_that_is_not_there():
    groups = Groups.from_iterable([group(0, split="train"), group(1, split="test")])
    with pytest.raises(BadInput) as refused:
        select_split(groups, "dev")
    assert str(refused.value) == "no split 'dev': the data has test, train; name one of them"
    with pytest.raises(BadInput, match="the data has no splits"):
        select_split(Groups.from_iterable([group(0)]), "train")


def test_leakage():
    rows = [("a", "train"), ("a", "test"), ("a", "dev"), ("b", "train"), ("b", "train"), ("c", None), ("c", "test")]
    assert leakage(Groups.from_iterable(group(n, p, split=s) for n, (p, s) in enumerate(rows))) == 2
    apart = [group(0, cluster="k", split="train"), group(1, cluster="l", split="test")]  # one prompt, two units
    assert leakage(Groups.from_iterable(apart)) == 0


def test_real_pairs_of_one_prompt_have_clusters_inside_their_splits():
    path = SHARED / "humour_pairs.jsonl"
    if not path.is_file():
        pytest.skip("humour_pairs.jsonl is not in ../shared/data")
    groups, _ = read_groups(path)
    assert len(set(groups.column("cluster"))) > 1
    assert leakage(groups) == 0
