"""marginkit pair and marginkit select, from files to a dataset and its manifest."""

import json

import pytest
from typer.testing import CliRunner

from marginkit.cli.app import app
from marginkit.cli.showing_selections import histogram
from marginkit.data.pairing import make_pairs
from marginkit.data.sources import read_groups
from marginkit.errors import BadInput
from marginkit.groups import Groups, write_groups
from marginkit.records import Group, Response


@pytest.fixture
def graded(tmp_path):
    """Twenty prompts with three graded responses, unpaired."""
    file = tmp_path / "graded.jsonl"
    write_groups(
        (
            Group(f"g{n}", f"p{n}", tuple(Response(f"a b {'c ' * (n * i)}{i}", grade=float(n * i)) for i in range(3)))
            for n in range(20)
        ),
        file,
    )
    return file


def run(*words):
    """The command line in this process; BadInput comes out as it is."""
    found = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    return found


def said(*words):
    done = run(*words, "--json")
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_pair_writes_a_dataset_with_what_was_read_kept_and_left_out(graded, tmp_path):
    out = tmp_path / "pairs.jsonl"
    told = said("pair", graded, "--how", "dcrm", "--set", "distance=edit", "--out", out, "--workers", "1")
    assert told["read"] == {"rows": 20, "kept": 20, "dropped": {}, "groups": 20}
    assert (told["kept"], told["dropped"]) == (19, {"all ties": 1})
    assert told["facts"]["set_dcrm"] > 0
    groups, _ = read_groups(str(out))
    wanted = make_pairs(read_groups(str(graded))[0], "dcrm", options={"distance": "edit"})
    assert [group.pairs for group in groups] == [group.pairs for group in wanted]
    manifest = json.loads(out.with_suffix(".manifest.json").read_text())
    assert manifest["verb"] == "pair"
    assert manifest["settings"]["how"] == "dcrm"
    assert "as recalled" in manifest["facts"]["dcrm"]["formula"]
    assert manifest["dropped"] == {"all ties": 1}


def test_pair_thins_first_where_asked(graded, tmp_path):
    told = said("pair", graded, "--how", "all", "--rso", "2", "--rso-beta", "1e-9", "--out", tmp_path / "p.jsonl")
    assert told["dropped"]["responses not sampled"] == 20
    assert all(len(group.responses) == 2 for group in read_groups(str(tmp_path / "p.jsonl"))[0])


def test_tables_rank_the_thinned_responses_too(graded, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from marginkit.tables import RESPONSES_SCHEMA

    rows = []
    for group in read_groups(str(graded))[0]:
        for at, response in enumerate(group.responses):
            row = dict.fromkeys(RESPONSES_SCHEMA.names) | {"group": group.id, "response": at}
            rows.append(row | {"chars": len(response.text), "reward": [1.0, -5.0, 3.0][at]})
    pq.write_table(pa.Table.from_pylist(rows, schema=RESPONSES_SCHEMA), tmp_path / "responses.parquet")
    words = ["--rso", "2", "--rso-beta", "1e-9", "--reward", tmp_path, "--out", tmp_path / "p.jsonl"]
    said("pair", graded, "--how", "best_worst", *words)
    for group in read_groups(str(tmp_path / "p.jsonl"))[0]:
        assert (group.pairs[0].chosen, group.pairs[0].rejected, group.pairs[0].target_gap) == (1, 0, 2.0)


def test_select_pairs_where_the_data_has_none_and_keeps_the_share(graded, tmp_path):
    out = tmp_path / "best.jsonl"
    told = said("select", graded, "--how", "explicit", "--top", "0.4", "--out", out)
    assert (told["candidates"], told["pairs"], told["groups"]) == (20, 8, 8)
    assert told["dropped"] == {"pairs not selected": 12, "prompts without a selected pair": 12}
    assert read_groups(str(out))[0].column("id") == [f"g{n}" for n in range(12, 20)]
    manifest = json.loads(out.with_suffix(".manifest.json").read_text())
    assert manifest["facts"]["rank_correlation_with_length"] == pytest.approx(1)
    assert manifest["settings"]["options"]["region"] == "top"
    assert manifest["facts"]["signals"] == {"reward": "grade in the data"}
    twice = said("select", out, "--how", "random", "--top", "3", "--out", tmp_path / "few.jsonl")
    assert (twice["candidates"], twice["pairs"]) == (8, 3)


def test_select_says_it_in_tables_too(graded, tmp_path):
    done = run(
        "select", graded, "--how", "dcrm", "--set", "distance=edit", "--top", "5", "--out", tmp_path / "best.jsonl"
    )
    assert done.exit_code == 0
    for words in ("candidates", "left out: pairs not selected", "rank correlation with length", "as recalled", "█"):
        assert words in done.stdout
    done = run(
        "select", graded, "--how", "explicit", "--region", "mid", "--top", "1.0", "--out", tmp_path / "best.jsonl"
    )
    assert "asked for 20 pairs, but only 1 have a score" in done.stdout


def test_confidence_options_have_names_of_their_own(tmp_path):
    file = tmp_path / "votes.jsonl"
    rows = [{"prompt": f"p{n}", "chosen": "x", "rejected": "y", "votes": [n + 1, 4, 0]} for n in range(3, 9)]
    file.write_text("\n".join(map(json.dumps, rows)))
    told = said(
        "select", file, "--how", "confidence", "--min-prob", "0.6", "--action", "soften", "--out", tmp_path / "s.jsonl"
    )
    assert told["facts"]["method"]["softened"] == 2
    assert told["pairs"] == 6
    told = said("select", file, "--how", "confidence", "--min-prob", "0.6", "--out", tmp_path / "d.jsonl")
    assert told["dropped"] == {"pairs below min_prob": 2, "prompts without a selected pair": 2}


def test_compare(graded, tmp_path):
    for how, name in (("explicit", "a"), ("random", "b")):
        said("select", graded, "--how", how, "--top", "10", "--out", tmp_path / f"{name}.jsonl")
    found = said("select", "--compare", tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    shared = len(
        set(read_groups(str(tmp_path / "a.jsonl"))[0].column("id"))
        & set(read_groups(str(tmp_path / "b.jsonl"))[0].column("id"))
    )
    assert found["shared"] == shared
    assert found["jaccard"] == shared / (20 - shared)
    assert found["first"]["mean_grade_gap"] > found["second"]["mean_grade_gap"]
    shown = run("select", "--compare", tmp_path / "a.jsonl", tmp_path / "b.jsonl").stdout
    assert "jaccard" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["select", "FILE", "--top", "0.4"], "--out is missing"),
        (["select", "FILE", "--top", "0.4", "--out", "x.json"], "name a .jsonl file"),
        (["select", "FILE", "--top", "half", "--out", "x.jsonl"], "--top half"),
        (["select", "FILE", "--how", "explict", "--top", "1", "--out", "x.jsonl"], "how='explict'"),
        (["select", "FILE", "--how", "dcrm", "--top", "0.4", "--out", "x.jsonl"], "--policy MODEL"),
        (["select", "FILE", "--set", "weight", "--top", "0.4", "--out", "x.jsonl"], "--set weight: write NAME=VALUE"),
        (["select", "FILE", "--how", "ifd", "--top", "0.4", "--out", "x.jsonl"], "need --policy"),
        (["select", "--compare", "FILE"], "--compare: name two files, got 1"),
        (["pair", "FILE", "--how", "best", "--out", "x.jsonl"], "how='best'"),
        (["pair", "FILE", "--how", "dcrm", "--set", "epsilon=2", "--out", "x.jsonl"], "did you mean eps"),
        (["pair", "FILE", "--policy", "m", "--out", "x.jsonl"], "--policy m: is not read by --how best_worst"),
        (
            ["select", "FILE", "--policy", "m", "--top", "1", "--out", "x.jsonl"],
            "--policy m: is not read by --how random",
        ),
        (["select", "FILE", "--how", "dcrm", "--set", "eps=0", "--policy", "none", "--out", "x.jsonl"], "eps=0"),
    ],
)
def test_what_is_wrong_is_one_line(graded, words, message):
    with pytest.raises(BadInput, match=message) as error:
        run(*(graded if word == "FILE" else word for word in words))
    assert "\n" not in str(error.value)


def test_pairs_of_the_data_are_not_replaced(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "p", "chosen": "x", "rejected": "y", "score_chosen": 2, "score_rejected": 1}\n')
    with pytest.raises(BadInput, match="--pairs all: the data has pairs"):
        run("select", file, "--top", "1", "--pairs", "all", "--out", tmp_path / "o.jsonl")


def test_the_help_says_that_dcrm_is_recalled():
    for verb in ("pair", "select"):
        assert "as recalled" in " ".join(run(verb, "--help").stdout.split())


def test_a_run_pairs_by_dcrm(graded):
    from marginkit.config import resolve
    from marginkit.preparing import ready

    words = ["data.pairs=dcrm", "data.pair_options.distance=edit", "target.gamma=1.0"]
    groups = read_groups(str(graded))[0]
    made = ready(groups, resolve("mmpo_rm", words))
    assert [g.pairs for g in made] == [g.pairs for g in make_pairs(groups, "dcrm", options={"distance": "edit"})]
    with pytest.raises(BadInput, match="distance=edit"):
        ready(groups, resolve("mmpo_rm", words[:1] + words[2:]))


def test_the_python_of_the_page_runs(capsys):
    import re
    from pathlib import Path

    page = Path(__file__).parents[2] / "docs" / "selection.md"
    [block] = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile(block, page.name, "exec"), {})
    assert "pairs not selected': 6" in capsys.readouterr().out


def test_a_histogram_of_equal_scores_is_empty():
    import numpy as np

    assert histogram(np.ones(3), np.ones(3, dtype=bool)) == []
    rows = histogram(np.array([0.0, 1.0, np.nan, 2.0]), np.array([True, False, False, True]), bins=2, width=4)
    assert [(row[1], row[2]) for row in rows] == [("1", "██"), ("2", "██░░")]
    assert isinstance(Groups.from_iterable([]), Groups)


@pytest.mark.parametrize(
    "words", [("select", "--how", "threshold", "--set", "min_gap=1000"), ("pair", "--how", "given")]
)
def test_a_dataset_without_pairs_is_not_written(graded, tmp_path, words):
    out = tmp_path / "none.jsonl"
    with pytest.raises(BadInput, match=r"no pair is left \(.*: 20.*is not written"):
        run(words[0], graded, *words[1:], "--out", out)
    assert not out.exists()


def test_a_source_is_not_replaced_and_no_work_is_done_first(graded, monkeypatch):
    monkeypatch.setattr("marginkit.cli.selecting._read", None)
    with pytest.raises(BadInput, match="would replace what it is made from"):
        run("pair", graded, "--out", graded)


def with_splits(tmp_path, paired):
    """Ten prompts, the even ones to train on, the others in dev and test."""
    file = tmp_path / "split.jsonl"
    groups = Groups.from_iterable(
        Group(
            f"g{n}",
            f"p{n}",
            tuple(Response(f"r{i}", grade=float((n + 1) * i)) for i in range(3)),
            split="train" if n % 2 == 0 else ("dev", "test")[n // 2 % 2],
        )
        for n in range(10)
    )
    write_groups(make_pairs(groups, "best_worst") if paired else groups, file)
    return file


@pytest.mark.parametrize("paired", [True, False])
def test_what_is_judged_on_is_not_selected(tmp_path, paired):
    """Forty percent of the five train pairs; dev and test as they were, with all pairs where there were none."""
    file, out = with_splits(tmp_path, paired), tmp_path / "kept.jsonl"
    told = said("select", file, "--how", "explicit", "--top", "0.4", "--out", out)
    assert (told["candidates"], told["pairs"], told["groups"]) == (5, 2, 2)
    assert told["dropped"] == {"pairs not selected": 3, "prompts without a selected pair": 3}
    assert told["facts"]["splits"] == "selected in split train; 5 prompts of dev, test are written as they were"
    groups, _ = read_groups(str(out))
    assert [group.id for group in groups if group.split == "train"] == ["g6", "g8"]
    held = [group for group in groups if group.split != "train"]
    assert [group.id for group in held] == ["g1", "g3", "g5", "g7", "g9"]
    assert {len(group.pairs) for group in held} == ({1} if paired else {3})


def test_a_split_can_be_named_or_all_of_them(tmp_path):
    file, out = with_splits(tmp_path, True), tmp_path / "kept.jsonl"
    everything = said("select", file, "--how", "explicit", "--top", "0.4", "--split", "all", "--out", out)
    assert (everything["candidates"], everything["pairs"]) == (10, 4)
    assert "will judge on selected pairs" in everything["facts"]["splits"]
    assert len(read_groups(str(out))[0]) == 4
    dev = said("select", file, "--how", "explicit", "--top", "1", "--split", "dev", "--out", out)
    assert dev["pairs"] == 1
    assert len(read_groups(str(out))[0]) == 8
    with pytest.raises(BadInput, match="no split 'trian': the data has dev, test, train"):
        run("select", file, "--how", "explicit", "--top", "1", "--split", "trian", "--out", out)


def test_data_without_splits_says_what_a_run_would_judge_on(graded, tmp_path):
    shown = run("select", graded, "--how", "explicit", "--top", "0.4", "--out", tmp_path / "kept.jsonl").stdout
    assert "the data names no split" in shown
