"""The table of digests is a dict in less memory; digests tell groups apart by what they say."""

import random
from dataclasses import replace

import pytest

from marginkit.data.checks import RowRefused
from marginkit.data.seen import DigestMap, evidence_digest, texts_digest, whole_digest
from marginkit.records import Comparison, Group, Pair, Rating, Response, Turn


def test_it_is_a_dict():
    draw = random.Random(0)
    seen, plain = DigestMap(), {}
    for _ in range(20_000):
        key = draw.choice([draw.randrange(1 << 64), draw.randrange(3_000), draw.randrange(8) << 40])
        value = draw.randrange(1 << 64)
        known = plain.get(key or 1)
        assert seen.get(key) == known
        if known is None or draw.random() < 0.3:
            plain[key or 1] = value  # a free place holds 0, so digest 0 goes by 1
            seen.put(key, value)
    assert len(seen) == len(plain) > 5_000
    assert all(seen.get(key) == value for key, value in plain.items())


GROUP = Group("a", "p", (Response("x", grade=1.0), Response("y")), pairs=(Pair(0, 1, strength=1.0),))
CHAT = (Turn("user", "p"), Turn("assistant", "q"), Turn("user", "r"))


@pytest.mark.parametrize(
    "other",
    [
        replace(GROUP, prompt="p "),
        replace(GROUP, prompt="px", responses=(Response(""), Response("y"))),  # the same words, cut elsewhere
        replace(GROUP, responses=GROUP.responses[::-1]),
        replace(GROUP, responses=GROUP.responses[:1]),
        replace(GROUP, prompt=(Turn("user", "p"),)),
    ],
)
def test_texts_are_told_apart(other):
    assert texts_digest(GROUP) == texts_digest(replace(GROUP, id="b", pairs=()))
    assert texts_digest(GROUP) != texts_digest(other)


def test_turns_are_told_apart():
    chats = [CHAT, CHAT[:1], (Turn("system", "p"), *CHAT[1:]), (*CHAT[:2], Turn("user", "r", name="n")),
             (Turn("user", "p"), Turn("assistant", "q", ({"f": 1},)), Turn("user", "r"))]  # fmt: skip
    assert len({texts_digest(replace(GROUP, prompt=chat)) for chat in chats}) == len(chats)


@pytest.mark.parametrize(
    "other",
    [
        replace(GROUP, pairs=(Pair(1, 0, strength=1.0),)),
        replace(GROUP, comparisons=(Comparison(0, 1, 1.0, 0.0),)),
        replace(GROUP, responses=(Response("x", grade=2.0), Response("y"))),
        replace(GROUP, responses=(Response("x", grade=1.0, aspects={"a": 1.0}), Response("y"))),
        replace(GROUP, responses=(Response("x", grade=1.0, ratings=(Rating("r", 1.0),)), Response("y"))),
    ],
)
def test_evidence_is_told_apart(other):
    assert texts_digest(other) == texts_digest(GROUP)
    assert evidence_digest(other) != evidence_digest(GROUP)
    assert evidence_digest(replace(GROUP, subset="s")) == evidence_digest(GROUP)


def test_all_of_a_group_is_told_apart():
    others = [replace(GROUP, **{name: "s"}) for name in ("id", "source", "subset", "split", "cluster")]
    others += [
        replace(GROUP, tools=({"f": 1},)),
        replace(GROUP, responses=(Response("x", grade=1.0, model="m"), Response("y"))),
    ]
    digests = {whole_digest(group, texts_digest(group), evidence_digest(group)) for group in [GROUP, *others]}
    assert len(digests) == 1 + len(others)


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        (replace(GROUP, prompt="\ud800"), "not Unicode"),
        (replace(GROUP, subset="\ud800"), "not Unicode"),
        (replace(GROUP, responses=(Response("x", model="\udfff"),)), "not Unicode"),
        (replace(GROUP, responses=(Response("x", aspects={"\ud800": 1.0}),)), "not Unicode"),
        (replace(GROUP, responses=(Response("x", ratings=(Rating("\ud800", 1.0),)),)), "not Unicode"),
        (replace(GROUP, comparisons=(Comparison(0, 1, 1, 0, rater="\ud800"),)), "not Unicode"),
        (replace(GROUP, tools=({"f": "\ud800"},)), "not Unicode"),
        (replace(GROUP, tools=({"f": {1, 2}},)), "not JSON"),
        (replace(GROUP, tools=({"f": float("nan")},)), "not JSON"),
    ],
)
def test_what_cannot_be_written_is_refused(group, reason):
    with pytest.raises(RowRefused) as refused:
        texts_digest(group)
    assert refused.value.reason == reason
