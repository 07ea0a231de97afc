"""Where the numbers of responses come from: tables joined by group and response, models asked through the store."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import tiny
from marginkit.data.selection import select
from marginkit.data.signals import Signals
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.policy_scores import policy_scores
from marginkit.records import Group, Pair, Response
from marginkit.signals import collect_signals, join, policy_tokenizer
from marginkit.tables import RESPONSES_SCHEMA


def groups_of(count=6, k=3):
    """Short texts of the tiny vocabulary, graded."""
    words = tiny.WORDS
    return Groups.from_iterable(
        Group(
            f"g{n}",
            f"the {words[n % 20]} {words[n % 7]}",
            tuple(
                Response(" ".join(words[(n + i + w) % 20] for w in range(2 + i)), grade=float(i * (1 + n % 3)))
                for i in range(k)
            ),
            pairs=(Pair(k - 1, 0),),
        )
        for n in range(count)
    )


def table_of(groups, **columns):
    """A score table of the groups; columns given as functions of (group index, response index)."""
    rows = []
    for n, group in enumerate(groups):
        for at, response in enumerate(group.responses):
            row = {name: None for name in RESPONSES_SCHEMA.names}
            row |= {"group": group.id, "response": at, "chars": len(response.text), "length": 5}
            rows.append(row | {name: column(n, at) for name, column in columns.items()})
    return pa.Table.from_pylist(rows, schema=RESPONSES_SCHEMA)


def test_own_grades_or_utilities():
    groups = groups_of(2)
    signals = collect_signals(groups)
    assert (signals.unit, signals.external) == ("grades", False)
    assert signals.reward.tolist() == [0, 1, 2, 0, 2, 4]
    assert signals.facts == {"reward": "grade in the data"}
    useful = Groups.from_iterable(
        [Group("a", "?", (Response("x", grade=2.0, utility=-1.0), Response("y", utility=3.0)))]
    )
    assert collect_signals(useful).reward.tolist() == [-1, 3]
    assert collect_signals(useful, rewards=["grade"]).reward.tolist()[0] == 2
    with pytest.raises(BadInput, match="no response has a utility"):
        collect_signals(groups, rewards=["utility"])


def test_nested_shapes_are_checked():
    groups = groups_of(2)
    with pytest.raises(BadInput, match=r"^logp: 1 groups for 2, the first that does not fit is number 1"):
        Signals.of(groups, logp=[[1.0, 2.0, 3.0]])
    with pytest.raises(BadInput, match="number 1"):
        Signals.of(groups, rewards=[[[1.0, 2.0, 3.0], [1.0]]])


def test_tables_are_joined_by_group_and_response(tmp_path):
    groups = groups_of(4)
    table = table_of(
        groups, reward=lambda n, at: 10.0 * n + at, logp=lambda n, at: -n - at, ref_logp=lambda n, at: -2.0 * n - at
    )
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(12)))
    (tmp_path / "scores").mkdir()
    pq.write_table(shuffled, tmp_path / "scores" / "responses.parquet")
    signals = collect_signals(groups, rewards=[str(tmp_path / "scores")], policy=str(tmp_path / "scores"))
    assert signals.reward.tolist() == [10.0 * n + at for n in range(4) for at in range(3)]
    assert signals.logp.tolist() == [-n - at for n in range(4) for at in range(3)]
    assert signals.ref_logp.tolist() == [-2.0 * n - at for n in range(4) for at in range(3)]
    assert signals.length.tolist() == [5.0] * 12
    assert signals.external
    some = Groups.from_iterable([groups[2]])  # a table may cover more than the groups
    assert collect_signals(some, rewards=[str(tmp_path / "scores" / "responses.parquet")]).reward.tolist() == [
        20,
        21,
        22,
    ]
    two = collect_signals(groups, rewards=[str(tmp_path / "scores")] * 2)
    assert two.rewards.shape == (2, 12)


def test_a_table_that_does_not_fit_is_refused_with_counts(tmp_path):
    groups = groups_of(4)
    whole = table_of(groups, reward=lambda n, at: float(n))
    with pytest.raises(BadInput, match=r"^t: has no reward of 4 of 12 responses, in 2 of 4 groups"):
        join(groups, whole.slice(0, 8), "reward", "t")
    with pytest.raises(BadInput, match=r"^t: its column logp is empty \(only a policy has it\)"):
        join(groups, whole, "logp", "t")
    with pytest.raises(BadInput, match=r"^t: 12 rows name a group and response that is there already"):
        join(groups, pa.concat_tables([whole, whole]), "reward", "t")
    with pytest.raises(BadInput, match="has no column reward"):
        join(groups, whole.drop_columns("reward"), "reward", "t")
    other = whole.set_column(whole.column_names.index("chars"), "chars", pa.array([3] * 12, pa.int32()))
    with pytest.raises(BadInput, match=r"^t: 12 of 12 responses have another length"):
        join(groups, other, "reward", "t")
    with pytest.raises(BadInput, match="no such file"):
        collect_signals(groups, rewards=[str(tmp_path / "none.parquet")])
    pq.write_table(whole, tmp_path / "responses.parquet")
    with pytest.raises(BadInput, match="score tables have no log-probabilities without the prompt"):
        collect_signals(groups, policy=str(tmp_path), bare=True)


def test_one_source_of_the_reward():
    groups = groups_of(2)
    for bad in ({"rewards": ["grade", "x"]}, {"rewards": ["x"], "crossfit": "hash"}, {"bare": True}):
        with pytest.raises(BadInput):
            collect_signals(groups, **bad)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A tiny causal model on disk."""
    return tiny.save(tmp_path_factory.mktemp("policy"), "llama")


def test_log_probabilities_of_a_policy_with_and_without_the_prompt(policy, tmp_path, passes):
    groups = groups_of()
    found = policy_scores(policy, groups, bare=True, store=tmp_path)
    assert sum(passes) == 36
    again = policy_scores(policy, groups, bare=True, store=tmp_path)
    assert sum(passes) == 36  # all from the store
    assert again.logp == found.logp

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy).eval(), AutoTokenizer.from_pretrained(policy)

    def summed(prompt, response):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) + len(response) - 1)
        return sum(float(logits[at, token]) for at, token in zip(places, response, strict=True))

    from marginkit.data.encoding import Encoder

    encoded, _ = Encoder(tokenizer, max_length=64).encode(groups)
    start = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
    for n, one in enumerate(encoded):
        for at, response in enumerate(one.response_ids):
            assert found.length[n][at] == len(response)
            assert found.logp[n][at] == pytest.approx(summed(one.prompt_ids, response), abs=1e-3)
            assert found.bare_logp[n][at] == pytest.approx(summed(start, response), abs=1e-3)


def test_signals_of_a_policy_select(policy, tmp_path):
    groups = groups_of(20)
    signals = collect_signals(groups, policy=str(policy), bare=True, store=tmp_path)
    kept = select(groups, "alignment", top=0.5, signals=signals)
    assert len(kept) == 10
    json.dumps(kept.facts, default=str)
    assert kept.facts["signals"]["policy"]["fingerprint"]
    assert len(select(groups, "ifd", top=1, signals=signals, max_ratio=9.0)) == 1
    made = select(groups, "dcrm", top=0.5, signals=signals, tokenize=policy_tokenizer(str(policy)), reward_scale="std")
    assert made.facts["method"]["compared"] == "tokens"
    assert made.facts["method"]["mean_p_D"] > 0


def test_groups_too_long_for_the_policy_have_no_score_and_are_counted(policy, tmp_path):
    groups = groups_of(4)
    long = Group("long", "the", (Response("bird " * 5000, grade=1.0), Response("bird", grade=0.0)), pairs=(Pair(0, 1),))
    groups = Groups.from_iterable([*groups, long])
    signals = collect_signals(groups, policy=str(policy), store=tmp_path)
    assert np.isnan(signals.logp[-2:]).all()
    assert signals.facts["policy"]["groups too long"] == 1
    assert select(groups, "alignment", top=1.0, signals=signals).dropped["pairs without a score"] == 1


def test_a_tokenizer_by_name_or_of_the_policy(policy):
    assert policy_tokenizer(None) is None
    ids = policy_tokenizer(None, str(policy))(["the bird"])
    assert ids == policy_tokenizer(str(policy))(["the bird"])
    assert ids[0]
