"""`marginkit grade` as its user meets it: the file, its manifest, what is printed, exit codes."""

import json
from pathlib import Path

import pytest

from commands import call
from marginkit.data.sources import read_groups


@pytest.fixture
def ratings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rated answers, one of them without a grade, and one row that is broken."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "prompt": f"question {n}",
            "responses": [
                {"text": f"a long and full answer {n} " * (1 + n % 3), "score": 4 + n % 2},
                {"text": f"short {n}", "score": 2},
                {"text": f"no grade {n}"} if n == 3 else {"text": f"other {n}", "score": 1 + n % 3},
            ],
        }
        for n in range(12)
    ]
    rows.append({"prompt": "", "responses": [{"text": "x", "score": 1}]})
    path = tmp_path / "ratings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_file_its_manifest_and_what_is_said(ratings, monkeypatch, capsys):
    words = ["grade", str(ratings), "--how", "ratings", "--gamma", "0.5", "--debias", "length", "--out", "graded.jsonl"]
    code, out, err = call(monkeypatch, capsys, *words)
    assert (code, err) == (0, "")
    assert "responses with a utility" in out
    assert "taken off: length" in out
    assert "no grade" in out
    assert "a gap of 2.2 grades means that the better answer is picked three times in four" in out
    assert out.endswith("12 prompts, 0 pairs -> graded.jsonl\n")
    groups, findings = read_groups("graded.jsonl")
    assert (findings.dialect, findings.read, findings.kept) == ("native", 12, 12)
    assert sum(response.utility is None for group in groups for response in group.responses) == 1
    manifest = json.loads(Path("graded.manifest.json").read_text(encoding="utf-8"))
    assert manifest["verb"] == "grade"
    assert manifest["settings"]["how"] == "ratings"
    assert manifest["settings"]["options"] == {"gamma": 0.5}
    assert manifest["settings"]["debias"] == ["length"]
    assert manifest["dropped"] == {"empty prompt": 1}
    assert manifest["facts"]["read"] == {"rows": 13, "kept": 12}
    assert manifest["facts"]["not graded"] == {"no grade": 1}
    assert manifest["facts"]["fitted"]["just noticeable difference"] == pytest.approx(2.197, abs=0.001)
    assert manifest["sources"][0]["sha256"]
    [taken] = manifest["facts"]["debias"]
    assert abs(taken["correlation with log length"]["after"]) < abs(taken["correlation with log length"]["before"])


def test_json_is_one_object(ratings, monkeypatch, capsys):
    words = ["grade", str(ratings), "--how", "ranks", "--option", "l2=0.5", "--out", "graded.jsonl", "--json"]
    code, out, _ = call(monkeypatch, capsys, *words)
    assert code == 0
    said = json.loads(out)
    assert said["out"] == "graded.jsonl"
    assert said["settings"]["options"] == {"l2": 0.5}
    assert said["facts"]["fitted"]["prompts by evidence"] == {"grades": 12}


def test_what_could_not_be_graded_can_be_dropped_and_is_counted(ratings, monkeypatch, capsys):
    rows = [json.loads(line) for line in ratings.read_text(encoding="utf-8").splitlines()]
    for response in rows[5]["responses"]:
        del response["score"]
    ratings.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["grade", str(ratings), "--how", "ratings", "--gamma", "1", "--ungraded", "drop", "--out", "graded.jsonl"]
    code, out, _ = call(monkeypatch, capsys, *words)
    assert code == 0
    manifest = json.loads(Path("graded.manifest.json").read_text(encoding="utf-8"))
    assert manifest["groups"] == 11
    assert manifest["dropped"] == {"empty prompt": 1, "not graded": 1}
    assert manifest["groups"] + sum(manifest["dropped"].values()) == manifest["facts"]["read"]["rows"]
    assert "left out" in out


def test_votes_give_way_to_grades_and_it_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}", "votes": [4, 1, 0]} for n in range(3)]
    Path("votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    code, out, _ = call(monkeypatch, capsys, "grade", "votes.jsonl", "--how", "votes", "--out", "graded.jsonl")
    assert code == 0
    assert "superseded, so that training uses the grades: 3 votes; the source file still has them" in out
    pair = read_groups("graded.jsonl")[0][0].pairs[0]
    assert (pair.votes, pair.prob) == (None, None)
    assert pair.target_gap == pytest.approx(1.0986, abs=1e-3)  # log(4.5 / 1.5)


def test_columns_are_renamed_as_everywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"q": f"q{n}", "chosen": "good", "rejected": "bad", "p_chosen": 0.8} for n in range(3)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["grade", "pairs.jsonl", "--how", "pairwise", "-c", "q=prompt", "--out", "graded.jsonl"]
    assert call(monkeypatch, capsys, *words)[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--how", "ratings"], "needs gamma, logits per unit of the linear map; gamma="),
        (["--how", "rating"], "how='rating': the ways to grade are votes"),
        (["--how", "votes", "--gamma", "1"], "how=votes: unknown option gamma; its options are prior_for"),
        (["--how", "ratings", "--option", "gamma"], "--option gamma: write KEY=VALUE"),
        (["--how", "ratings", "--option", "gamma=1", "--gamma", "1"], "give one of the two"),
        (["--how", "ratings", "--gamma", "1", "--debias", "lenght"], "the adjustments are length"),
        (["--how", "ratings", "--gamma", "1", "--disagreement", "swap"], "keep, drop, trust_label, trust_grade"),
        (["--how", "similarity"], "has no pair: label pairs first"),
    ],
)
def test_bad_input_is_one_line_and_code_2_and_writes_nothing(ratings, monkeypatch, capsys, words, said):
    code, out, err = call(monkeypatch, capsys, "grade", str(ratings), *words, "--out", "graded.jsonl")
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not Path("graded.jsonl").exists()


def test_a_file_is_never_replaced_by_what_is_made_from_it(ratings, monkeypatch, capsys):
    before = ratings.read_text(encoding="utf-8")
    for target, said in ((str(ratings), "would replace what it is made from"), ("graded.csv", "name a .jsonl file")):
        code, _, err = call(monkeypatch, capsys, "grade", str(ratings), "--how", "crossfit", "--out", target)
        assert code == 2
        assert said in err
    assert ratings.read_text(encoding="utf-8") == before


def test_help_has_examples(monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, "grade", "--help")
    assert code == 0
    assert "marginkit grade ratings.jsonl --how ratings" in " ".join(out.split())
