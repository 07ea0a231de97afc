"""Files of every kind and layout become the same groups, and every row is accounted for."""

import csv
import gzip
import itertools
import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marginkit.data import files
from marginkit.data.sources import read_groups
from marginkit.errors import BadInput
from marginkit.groups import Groups, write_groups
from marginkit.records import Comparison, Group, Pair, Rating, Response, Turn

FIXTURES = Path(__file__).parent / "schema_rows"
SHARED = Path(__file__).parents[3] / "shared" / "data"
GOOD = {"prompt": "p", "chosen": "good", "rejected": "bad"}


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refusal(*args, **options):
    with pytest.raises(BadInput) as refused:
        read_groups(*args, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# ---------------------------------------------------------------------------------------------------------------------
# Layouts


def test_pair_row_keeps_all_evidence():
    row = GOOD | {
        "id": 7, "votes": [4, 1, 1], "p_chosen": 0.8, "margin": 2, "score_chosen": 9, "score_rejected": 7,
        "weight": 0.5, "category": "c", "origin": "o", "split": "train", "chosen_source": "m", "cluster": "k",
    }  # fmt: skip
    groups, findings = read_groups([row])
    assert groups[0] == Group(
        id="7",
        prompt="p",
        responses=(Response("good", grade=9.0, model="m"), Response("bad", grade=7.0)),
        pairs=(Pair(0, 1, strength=2.0, votes=(4.0, 1.0, 1.0), prob=0.8, weight=0.5),),
        source="o",
        subset="c",
        split="train",
        cluster="k",
    )
    assert findings.dialect == "pair"
    assert findings.notes == ["margin read as strength (dataset units); columns.margin=logits reads it as a target gap"]


def test_margin_as_logits():
    rows = [GOOD | {"margin": 1.5, "margin_scale": "log-odds of the judge"}]
    groups, findings = read_groups(rows)
    assert findings.notes[0].endswith("its margin_scale says log-odds, so that is recommended")
    groups, findings = read_groups(rows, columns={"margin": "logits"})
    assert groups[0].pairs == (Pair(0, 1, target_gap=1.5),)
    assert findings.notes == ["margin read as target gap (logits)"]


@pytest.mark.parametrize("side", ["{}_rating", "{}_avg_rating", "{}_score", "{}_reward", "score_{}"])
def test_score_columns_of_the_wild(side):
    groups, _ = read_groups([GOOD | {side.format("chosen"): 3, side.format("rejected"): 1}])
    assert [response.grade for response in groups[0].responses] == [3.0, 1.0]


def test_prompt_inside_the_chats_is_their_common_beginning():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    history = [user("q"), call, {"role": "tool", "content": "5", "name": "f"}]
    row = {"chosen": [*history, assistant("x")], "rejected": [*history, assistant("y")], "tools": '[{"name": "f"}]'}
    groups, _ = read_groups([row])
    assert groups[0].prompt == (Turn("user", "q"), Turn("assistant", "", ({"name": "f"},)), Turn("tool", "5", name="f"))
    assert [response.turns for response in groups[0].responses] == [
        (Turn("assistant", "x"),),
        (Turn("assistant", "y"),),
    ]
    assert groups[0].tools == ({"name": "f"},)


def test_responses_may_differ_in_their_tool_turns():
    row = {
        "chosen": [user("q"), assistant("looking"), {"role": "tool", "content": "5"}, assistant("x")],
        "rejected": [user("q"), assistant("y")],
    }
    groups, _ = read_groups([row])
    assert groups[0].prompt == (Turn("user", "q"),)
    assert [turn.role for turn in groups[0].responses[0].turns] == ["assistant", "tool", "assistant"]


def test_prompt_column_beside_full_chats_is_not_repeated():
    chats = {"chosen": [user("q"), assistant("x")], "rejected": [user("q"), assistant("y")]}
    expected = read_groups([chats])[0][0]
    for prompt in ("q", [user("q")]):
        assert read_groups([chats | {"prompt": prompt}])[0][0] == expected


def test_a_group_is_all_text_or_all_turns():
    groups, _ = read_groups([GOOD | {"prompt": [user("p")]}, GOOD | {"system": "s"}])
    assert groups[0].responses[0].turns == (Turn("assistant", "good"),)
    assert groups[1].prompt == (Turn("system", "s"), Turn("user", "p"))
    assert groups[1].responses[1].turns == (Turn("assistant", "bad"),)


def test_content_in_text_parts_is_joined():
    parts = [{"type": "text", "text": "a", "image": None}, {"type": "text", "text": "b"}]
    groups, _ = read_groups([GOOD | {"prompt": [user(parts)], "chosen": parts}])
    assert groups[0].prompt == (Turn("user", "ab"),)
    assert groups[0].responses[0].text == "ab"


def test_multi_response_row():
    row = {
        "prompt": "p",
        "responses": [
            {"text": "x", "ratings": [1, {"rater": "r", "value": 4, "aspect": "help"}], "source": "m"},
            {"content": "y", "score": None, "grade": 2, "utility": -0.5, "aspects": {"help": 3, "none": None}},
            {"turns": "z", "score": None},
        ],
        "comparisons": [[0, 1, 3, 1, 2], {"i": 1, "j": 2, "wins_i": 1, "wins_j": 0, "rater": "r", "order": "ab"}],
    }
    groups, findings = read_groups([row])
    assert findings.dialect == "multi-response"
    assert groups[0].responses == (
        Response("x", grade=2.5, ratings=(Rating(None, 1.0), Rating("r", 4.0, "help")), model="m"),
        Response("y", grade=2.0, utility=-0.5, aspects={"help": 3.0}),
        Response("z"),
    )
    assert groups[0].comparisons == (Comparison(0, 1, 3.0, 1.0, 2.0), Comparison(1, 2, 1.0, 0.0, 0.0, "r", "ab"))
    assert groups[0].pairs == ()


def test_response_fields_can_be_renamed():
    row = {"prompt": "p", "responses": [{"text": "x", "logit": 1.5, "rank": 2}]}
    groups, findings = read_groups([row])
    assert groups[0].responses[0].utility is None
    assert findings.notes == [
        "response fields not read: logit, rank",
        "columns.logit=utility reads the responses' logit as their value in logits",
    ]
    groups, findings = read_groups([row], columns={"logit": "utility", "rank": "ignore"})
    assert groups[0].responses[0].utility == 1.5
    assert findings.notes == []


def test_sft_layouts():
    rows = [
        ({"messages": [user("a"), assistant("b"), user("c"), assistant("d")]},
         (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")), (Turn("assistant", "d"),)),
        ({"instruction": "a", "input": "b", "output": "c"}, "a\n\nb", "c"),
        ({"instruction": "a", "input": "", "output": "c"}, "a", "c"),
        ({"prompt": "a", "completion": "b"}, "a", "b"),
    ]  # fmt: skip
    for row, prompt, response in rows:
        groups, findings = read_groups([row])
        assert findings.dialect == "sft"
        assert (groups[0].prompt, groups[0].responses, groups[0].pairs) == (prompt, (Response(response),), ())


def test_labels_of_single_completions_can_be_left_out():
    groups, findings = read_groups([{"prompt": "p", "completion": "x", "label": True}], columns={"label": "ignore"})
    assert (findings.dialect, groups[0].responses) == ("sft", (Response("x"),))


# ---------------------------------------------------------------------------------------------------------------------
# Ties and contradictions


@pytest.mark.parametrize(
    ("evidence", "pair"),
    [
        ({"tie": True}, Pair(0, 1, tie=True)),
        ({"margin": 0}, Pair(0, 1, strength=0.0, tie=True)),
        ({"score_chosen": 3, "score_rejected": 3}, Pair(0, 1, tie=True)),
        ({"votes": [2, 2, 1]}, Pair(0, 1, votes=(2.0, 2.0, 1.0), tie=True)),
        ({"p_chosen": 0.5}, Pair(0, 1, prob=0.5, tie=True)),
        ({"votes": [3, 2], "margin": 0}, Pair(0, 1, votes=(3.0, 2.0, 0.0), strength=0.0)),  # votes speak first
        ({"votes": [2, 2], "p_chosen": 0.9}, Pair(0, 1, votes=(2.0, 2.0, 0.0), prob=0.9, tie=True)),
        ({"p_chosen": 0.6, "score_chosen": 3, "score_rejected": 3}, Pair(0, 1, prob=0.6)),
    ],
    ids=str,
)
def test_equal_evidence_is_a_tie(evidence, pair):
    row = GOOD | evidence
    assert read_groups([row])[0][0].pairs == (pair,)
    labelled = read_groups([row], ties="label")[0][0].pairs[0]
    assert not labelled.tie
    assert labelled.prob == pair.prob
    kept, findings = read_groups([row], ties="drop")
    assert (len(kept), findings.dropped) == ((0, {"tie": 1}) if pair.tie else (1, {}))


def test_contradiction_policies():
    row = GOOD | {
        "votes": [1, 4, 0],
        "p_chosen": 0.2,
        "margin": -1,
        "score_chosen": 1,
        "score_rejected": 3,
        "weight": 2,
    }

    def read(policy):
        groups, findings = read_groups([row], contradiction=policy)
        assert findings.warned == {"contradiction": 1}
        assert str(findings.items[0]).endswith(f"; kept by contradiction={policy}")
        return groups[0].responses, groups[0].pairs[0]

    responses, pair = read("keep")
    assert pair == Pair(0, 1, strength=-1.0, votes=(1.0, 4.0, 0.0), prob=0.2, weight=2.0)
    responses, pair = read("trust_label")
    assert pair == Pair(0, 1, prob=1.0, weight=2.0)
    assert responses == (Response("good"), Response("bad"))
    responses, pair = read("trust_grade")
    assert pair == Pair(0, 1, strength=1.0, votes=(4.0, 1.0, 0.0), prob=0.8, weight=2.0)
    assert responses == (Response("bad", grade=3.0), Response("good", grade=1.0))


def test_trust_grade_follows_the_strongest_evidence():
    row = GOOD | {"votes": [4, 1], "margin": -1, "score_chosen": 1, "score_rejected": 3}
    groups, _ = read_groups([row], contradiction="trust_grade")
    assert groups[0].pairs == (Pair(0, 1, votes=(4.0, 1.0, 0.0)),)
    assert groups[0].responses == (Response("good"), Response("bad"))


# ---------------------------------------------------------------------------------------------------------------------
# Columns


def test_unread_columns_are_named():
    _, findings = read_groups([GOOD | {"lang": "en"}, GOOD | {"prompt": "q", "extra": 1}])
    assert findings.notes == ["columns not read: extra, lang"]


def test_a_misspelt_column_stops_the_reading():
    row = GOOD | {"score_choosen": 1}
    assert refusal([row]) == (
        "rows in memory: column 'score_choosen' is not known; did you mean 'score_chosen'? Rename it, or set "
        'columns={"score_choosen": "score_chosen"} or {"score_choosen": "ignore"}'
    )
    assert read_groups([row], columns={"score_choosen": "ignore"})[0][0].responses[0].grade is None
    assert read_groups([row], columns={"score_choosen": "score_chosen"})[0][0].responses[0].grade == 1.0
    assert "did you mean 'margin'" in refusal([GOOD] * 200 + [GOOD | {"magrin": 1}])  # past the first rows too


def test_unknown_layout_names_the_columns_and_the_near_misses():
    assert refusal([{"prompt": "p", "choosen": "x", "rejected": "y"}]) == (
        "rows in memory: no known layout has the columns prompt, choosen, rejected; 'choosen': did you mean 'chosen'? "
        "A layout needs chosen and rejected, or prompt and responses, or messages, or instruction and output, or "
        'prompt and completion; rename with columns={"<column>": "<known name>"}, or give a mapping'
    )


def test_columns_rename_and_win_over_other_columns():
    groups, _ = read_groups([GOOD | {"ask": "better"}], columns={"ask": "prompt"})
    assert groups[0].prompt == "better"


def test_columns_the_wrong_way_round():
    row = {"prompt": "p", "chosen": "x", "rejected": "y", "better": "z"}
    assert refusal([row], columns={"chosen": "better"}).endswith("; the file's name comes first: better=chosen")


def test_bad_columns_option():
    assert refusal([GOOD], columns={"promt": "prompt"}) == (
        "columns.promt: rows in memory has no such column; did you mean 'prompt'?"
    )
    assert refusal([GOOD | {"m": 1}], columns={"m": "margn"}) == (
        "columns.m=margn: the pair layout has no column 'margn'; did you mean 'margin'?"
    )


@pytest.mark.parametrize("options", [{"ties": "x"}, {"contradiction": "x"}, {"limit": 0}])
def test_unknown_options_are_refused(options):
    assert refusal([GOOD], **options).startswith(f"{next(iter(options))}=")


# ---------------------------------------------------------------------------------------------------------------------
# Files

SAMPLE = [
    {"id": f"r{n}", "prompt": f"p{n}", "chosen": f"good, {n}\n\"q\"", "rejected": "bad 1.5", "margin": n + 0.5,
     "votes": [3, n, 1], "tie": False, "split": "train"}
    for n in range(3)
]  # fmt: skip


def as_csv(path, rows, delimiter=","):
    with path.open("w", newline="") as sink:
        writer = csv.writer(sink, delimiter=delimiter)
        writer.writerow(rows[0])
        writer.writerows([json.dumps(v) if isinstance(v, list) else v for v in row.values()] for row in rows)


def as_folder(path, rows):
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(str(path))


WRITERS = {
    "a.ndjson": write_jsonl,
    "a.json": lambda path, rows: path.write_text(json.dumps(rows)),
    "wrapped/a.json": lambda path, rows: path.write_text(json.dumps({"version": 1, "data": rows})),
    "a.parquet": lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path),
    "a.csv": as_csv,
    "a.tsv": lambda path, rows: as_csv(path, rows, "\t"),
    "folder/a": as_folder,
    "a.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(write_jsonl(path, rows).read_bytes())),
    "a.CSV.GZ": lambda path, rows: (as_csv(path, rows), path.write_bytes(gzip.compress(path.read_bytes()))),
    "packed/a.json.gz": lambda path, rows: path.write_bytes(gzip.compress(json.dumps(rows).encode())),
    "semicolons/a.csv": lambda path, rows: as_csv(path, rows, ";"),
    "tabs/a.csv": lambda path, rows: as_csv(path, rows, "\t"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_groups(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    WRITERS[name](path, SAMPLE)
    (tmp_path / "lines").mkdir()
    expected, _ = read_groups(write_jsonl(tmp_path / "lines" / "a.jsonl", SAMPLE))
    groups, findings = read_groups(path)
    assert list(groups) == list(expected)
    assert [group.pairs[0].votes for group in groups] == [(3.0, float(n), 1.0) for n in range(3)]
    assert (findings.read, findings.kept, findings.dialect) == (3, 3, "pair")


def test_chats_through_parquet_lose_their_null_keys(tmp_path):
    rows = [
        {"chosen": [user("q"), assistant("x")], "rejected": [user("q"), assistant("y")], "margin": None},
        {
            "chosen": [user("r"), assistant("x") | {"tool_calls": [{"name": "f"}, {"id": "1"}]}],
            "rejected": [user("r"), assistant("y")],
        },
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    groups, _ = read_groups(tmp_path / "a.parquet")
    assert list(groups) == list(read_groups(write_jsonl(tmp_path / "a.jsonl", rows))[0])


def test_chats_in_table_cells(tmp_path):
    rows = [{"chosen": [user("q"), assistant("x")], "rejected": [user("q"), assistant("y")]}]
    as_csv(tmp_path / "a.csv", rows)
    assert read_groups(tmp_path / "a.csv")[0][0].prompt == (Turn("user", "q"),)


def test_table_cells_are_typed_by_what_the_column_is_read_as(tmp_path):
    (tmp_path / "a.csv").write_text(
        "prompt,chosen,rejected,gap,tie\np,1.5,2,0.5,FALSE\nq,x,y,N/A,\nr,x,y,nan,\ns,x,y,1_0,\nt,x,y,,true\n"
    )
    groups, findings = read_groups(tmp_path / "a.csv", columns={"gap": "margin"})
    assert [response.text for response in groups[0].responses] == ["1.5", "2"]
    assert groups[0].pairs == (Pair(0, 1, strength=0.5),)
    assert groups[1].pairs == (Pair(0, 1, tie=True),)
    assert findings.dropped == {"wrongly typed evidence": 2, "non-finite evidence": 1}
    assert findings.items[0].place == "a.csv:3"


def test_table_rows_of_the_wrong_width(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,chosen,rejected\n"p\nq",x,y\np,x\n\np,x,y,z\n')
    groups, findings = read_groups(tmp_path / "a.csv")
    assert [group.id for group in groups] == ["a:2"]
    fix = "quote cells that hold the delimiter or line breaks"
    assert [str(finding) for finding in findings.items] == [
        f"a.csv:4: 2 cells, but the header names 3 columns; {fix}",
        f"a.csv:6: 4 cells, but the header names 3 columns; {fix}",
    ]
    (tmp_path / "b.csv").write_text("prompt,chosen,chosen\np,x,y\n")
    assert refusal(tmp_path / "b.csv") == "b.csv:1: column 'chosen' is there twice; rename one of them"


def test_broken_lines_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(GOOD).encode(), b'{"prompt": ', b"", b"[1]", b'{"prompt": "\xff"}', b"[" * 100_000, b"9" * 5000]
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    groups, findings = read_groups(path)
    assert (findings.read, len(groups)) == (6, 1)
    assert findings.dropped == {"broken JSON": 3, "not an object": 1, "not UTF-8": 1}
    first, second, third = (str(finding) for finding in findings.items[:3])
    assert first == (
        "a.jsonl:2: the JSON is broken at column 11 (Expecting value): "
        '"{\\"prompt\\":"; one JSON object a line; correct the line'
    )
    assert second == "a.jsonl:4: the row is [1]; a row is one JSON object"
    assert third.startswith("a.jsonl:5: the line is not UTF-8")


def test_a_file_of_no_objects_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("prompt\tchosen\n")
    assert refusal(path).startswith("a.jsonl:1: the JSON is broken at column 1 (Expecting value)")


def test_an_array_in_lines_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("[1, 2]\n")
    fix = "a row is one object; an array of rows belongs in a .json file"
    assert refusal(path) == f"a.jsonl:1: the row is [1, 2]; {fix}; none of the first rows can be read"
    path.write_text("[\n")
    assert refusal(path).endswith(f'(Expecting value): "["; {fix}; none of the first rows can be read')
    path.write_bytes(b"\xff\n")
    assert refusal(path).endswith("; save the file as UTF-8; none of the first rows can be read")


def test_broken_gzip_files_are_refused(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress("\n".join(json.dumps({**GOOD, "prompt": f"{n}?"}) for n in range(50)).encode())
    for content, rule in (
        (whole[:-20], "broken gzip (Compressed file ended before the end"),
        (b"hi", "broken gzip (Not a gzipped file"),
        (whole[:20] + b"\xff" * 40 + whole[60:], "broken gzip ("),
        (gzip.compress(b""), "is empty"),
    ):
        path.write_bytes(content)
        said = refusal(path)
        assert said.startswith("a.jsonl.gz")
        assert rule in said
    (tmp_path / "a.parquet.gz").write_bytes(whole)
    assert "cannot read .gz" in refusal(tmp_path / "a.parquet.gz")


def test_a_packed_file_keeps_the_limit_of_json(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "JSON_LIMIT", 100)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b"[" + b" " * 200 + b"]"))
    assert refusal(tmp_path / "a.json.gz").startswith("a.json.gz: a .json file is read whole, and this one has more")


def test_a_stray_row_of_another_layout_does_not_decide(tmp_path):
    """Most rows say what the layout of a file is; the others are refused by name."""
    other = [{"prompt": "p", "responses": [{"text": "x", "score": 1}]}, {"instruction": "i", "output": "o"}]
    rows = [*other, *({**GOOD, "prompt": f"{n}?"} for n in range(3))]
    _, findings = read_groups(write_jsonl(tmp_path / "a.jsonl", rows))
    assert (findings.dialect, findings.read, findings.kept) == ("pair", 5, 3)
    assert findings.dropped == {"missing text": 2}


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_is_refused(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(text)
    assert " is empty; give " in refusal(tmp_path / "a.jsonl")
    assert refusal([]) == "rows in memory is empty; give at least one row"


def test_a_misnamed_file_is_refused_with_the_nearest_names(tmp_path):
    write_jsonl(tmp_path / "ratings.jsonl", [GOOD])
    wrong = tmp_path / "ratigns.jsonl"
    assert refusal(wrong) == f"{wrong}: no such file; did you mean ratings.jsonl?"
    other = tmp_path / "zzz"
    assert refusal(other) == f"{other}: no such file; {tmp_path} holds ratings.jsonl"
    nowhere = tmp_path / "no" / "a.jsonl"
    assert refusal(nowhere) == f"{nowhere}: no such file; there is no folder {nowhere.parent} either"


def test_what_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    kinds = ".jsonl, .ndjson, .json, .parquet, .csv, .tsv, and text files as .gz"
    assert refusal(tmp_path / "a.txt") == f"{tmp_path / 'a.txt'}: cannot read .txt; marginkit reads {kinds}"
    (tmp_path / "a.parquet").write_text("x")
    assert refusal(tmp_path / "a.parquet").startswith("a.parquet: not a Parquet file (")
    broken = {
        "3": "holds 3; give an array of rows",
        '{"a": 1}': "the object holds no list; give",
        '{"a": [], "b": []}': "the object holds 2 lists (a, b); give",
        "{": "the JSON is broken at column 2",
    }
    for text, rule in broken.items():
        (tmp_path / "a.json").write_text(text)
        assert refusal(tmp_path / "a.json").startswith(f"a.json: {rule}")
    write_jsonl(tmp_path / "a.jsonl", [GOOD])
    assert refusal(tmp_path).startswith(
        f"{tmp_path}: a folder, but not one that datasets.save_to_disk wrote; name a file"
    )
    assert refusal({"prompt": "p"}).startswith('source is {"prompt": "p"}: give a path')
    assert refusal(3).startswith("source is 3: give a path")
    (tmp_path / "a.csv").write_bytes(b"prompt,chosen,rejected\np,x,\xff\n")
    assert refusal(tmp_path / "a.csv").startswith("a.csv: not UTF-8, at line 1 or soon after; save")


def test_several_sources(tmp_path):
    first = write_jsonl(tmp_path / "a.jsonl", [GOOD, {"prompt": "p"}])
    second = write_jsonl(tmp_path / "b.jsonl", [{"instruction": "i", "output": "o"}])
    groups, findings = read_groups([first, str(second)])
    assert [(group.id, group.source) for group in groups] == [("a:1", "a"), ("b:1", "b")]
    assert (findings.file, findings.dialect, findings.read) == ("a.jsonl, b.jsonl", "pair, sft", 3)


# ---------------------------------------------------------------------------------------------------------------------
# Datasets and splits


def test_splits_of_a_dataset_folder(tmp_path):
    import datasets

    parts = {"train": [GOOD], "validation": [GOOD | {"prompt": "q"}, GOOD | {"prompt": "r", "split": "mine"}]}
    held = datasets.DatasetDict({name: datasets.Dataset.from_list([{"split": None} | row for row in rows])
                                 for name, rows in parts.items()})  # fmt: skip
    held.save_to_disk(str(tmp_path / "d"))
    for source in (tmp_path / "d", held):
        groups, findings = read_groups(source)
        assert groups.column("split") == ["train", "validation", "mine"]
        assert (findings.read, findings.kept) == (3, 3)
        assert read_groups(source, split="dev")[0].column("split") == ["validation", "mine"]
    assert refusal(tmp_path / "d", split="test") == (
        "no split 'test': the data has train, validation; name one of them"
    )


def test_split_of_a_file_reads_its_rows_only():
    splits = ["test", "train", "train", "train"]
    rows = [GOOD | {"prompt": str(n), "split": split, "chosen": "x" * (n != 1)} for n, split in enumerate(splits)]
    groups, findings = read_groups(rows, split="train")
    assert (len(groups), findings.read, findings.dropped) == (2, 3, {"empty response": 1})
    assert refusal(rows, split="dev") == "rows in memory: no row has split 'dev'; the data has test, train"
    assert refusal([GOOD], split="dev") == "rows in memory: no row has split 'dev'; the data has no splits"


def test_hub_dataset_is_streamed_without_remote_code(monkeypatch):
    import datasets

    asked = {}

    def load_dataset(name, config=None, **options):
        asked.update(options, name=name, config=config)
        held = datasets.Dataset.from_list(SAMPLE).remove_columns(["split", "id"])
        return datasets.IterableDatasetDict({"train": held.to_iterable_dataset()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    groups, findings = read_groups("someone/feedback", config_name="c")
    assert asked == {"name": "someone/feedback", "config": "c", "streaming": True}
    assert (findings.read, findings.kept) == (3, 3)
    assert (groups[0].id, groups[0].split, groups[0].source) == ("feedback/train:1", "train", "someone/feedback")


def test_hub_trouble_is_one_line(monkeypatch):
    import datasets

    def load_dataset(*args, **options):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert refusal("someone/feedback") == (
        "someone/feedback: no such file, and not to be had from the hub (ConnectionError: no network); "
        "check the name and the network"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Accounting


def test_limit_and_progress():
    seen = []
    rows = (GOOD | {"prompt": str(n)} for n in range(10_000))
    groups, findings = read_groups(rows, limit=450, progress=lambda done, total: seen.append((done, total)))
    assert (len(groups), findings.read) == (450, 450)
    assert findings.notes == ["stopped after 450 rows (limit)"]
    assert seen == [(200, None), (400, None), (450, None)]
    assert sum(1 for _ in rows) >= 9_500  # what was not needed was not read
    assert read_groups([GOOD], limit=1)[1].notes == []


def test_rows_are_not_held():
    class Row(dict):
        alive = most = 0

        def __init__(self, *args):
            super().__init__(*args)
            Row.alive += 1
            Row.most = max(Row.most, Row.alive)

        def __del__(self):
            Row.alive -= 1

    groups, _ = read_groups(Row(GOOD | {"prompt": str(n)}) for n in range(5_000))
    assert len(groups) == 5_000
    assert Row.most < 200


texts = st.text(max_size=8)
turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "gpt"]), "content": texts}), max_size=3
)
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
evidence = st.floats() | st.floats(-1, 1) | st.sampled_from([0, 1, 0.5, "4", "N/A", None, True])
votes = st.lists(st.integers(-1, 3) | st.none(), max_size=4)
shared = {"id": junk, "system": junk, "tools": junk, "split": junk, "cluster": junk, "tie": junk, "margin": evidence}
pair_rows = st.fixed_dictionaries(
    {"prompt": texts | turns, "chosen": texts | turns | junk, "rejected": texts | turns},
    optional=shared | {"votes": votes, "p_chosen": evidence, "score_chosen": evidence, "score_rejected": evidence},
)
response = st.fixed_dictionaries(
    {"text": texts | turns}, optional={"score": evidence, "ratings": votes, "aspects": junk}
)
multi_rows = st.fixed_dictionaries(
    {"prompt": texts, "responses": st.lists(response | junk, max_size=3)},
    optional=shared | {"comparisons": st.lists(votes | junk, max_size=2)},
)
pair_fields = st.sampled_from(["chosen", "rejected", "prob", "votes"])
native_rows = st.fixed_dictionaries(
    {"format": st.just("marginkit/1"), "id": texts | junk, "prompt": texts | turns | junk,
     "responses": st.lists(st.fixed_dictionaries({"turns": texts | turns}, optional={"grade": evidence}) | junk)},
    optional={"pairs": st.lists(st.dictionaries(pair_fields, evidence | votes))},
)  # fmt: skip


lines_of_one_layout = st.sampled_from([pair_rows, multi_rows, native_rows]).flatmap(
    lambda rows: st.lists(
        st.one_of(rows, rows, junk).map(lambda row: json.dumps(row).encode())
        | st.binary(max_size=20).filter(lambda line: b"\n" not in line),
        max_size=8,
    )
)


@given(
    lines=lines_of_one_layout,
    contradiction=st.sampled_from(["drop", "keep", "trust_label", "trust_grade"]),
    ties=st.sampled_from(["half", "label", "drop"]),
)
def test_kept_and_dropped_add_up_to_read(tmp_path_factory, lines, contradiction, ties):
    path = tmp_path_factory.getbasetemp() / "junk.jsonl"
    path.write_bytes(b"\n".join(lines))
    try:
        groups, findings = read_groups(path, contradiction=contradiction, ties=ties, contradiction_limit=1)
    except BadInput:
        return
    rows = sum(1 for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip())
    assert findings.read == rows
    assert findings.read == findings.kept + sum(findings.dropped.values())
    assert findings.kept == len(groups)
    assert len(set(groups.column("id"))) == len(groups)
    json.dumps(findings.to_json(), allow_nan=False)
    assert all("\n" not in str(finding) for finding in findings.items)


# ---------------------------------------------------------------------------------------------------------------------
# The native form

FULL = [
    Group(
        id="a",
        prompt=(Turn("system", "s"), Turn("user", "q")),
        responses=(
            Response((Turn("assistant", "x", ({"name": "f"},)), Turn("tool", "5", name="f"), Turn("assistant", "y")),
                     grade=1.0, ratings=(Rating("r", 1.0, "help"), Rating(None, 2.0)), aspects={"help": 1.0},
                     utility=-0.5, model="m"),
            Response("plain"),
        ),
        tools=({"name": "f", "default": None},),
        comparisons=(Comparison(0, 1, 3.0, 1.0, 0.0, "r", "ab"),),
        pairs=(Pair(1, 0, strength=-1.0, votes=(1.0, 0.0, 2.0), prob=0.5, target_gap=0.25, weight=0.0, tie=True),),
        source="s", subset="t", split="train", cluster="c",
    ),
    Group(id="b", prompt="", responses=(Response("x"),)),
    Group(id="c", prompt="", responses=(Response("x"),)),
]  # fmt: skip


def test_native_form_is_read_without_loss(tmp_path):
    write_groups(FULL, tmp_path / "a.jsonl")
    groups, findings = read_groups(tmp_path / "a.jsonl")
    assert list(groups) == FULL
    assert (findings.dialect, findings.kept, findings.notes) == ("native", 3, [])
    Groups.from_iterable(FULL).to_parquet(tmp_path / "b.parquet")
    assert list(read_groups(tmp_path / "b.parquet")[0]) == FULL


def test_every_layout_survives_the_native_form(tmp_path):
    rows = {
        "pair": SAMPLE,
        "multi": [
            {"prompt": "p", "responses": [{"text": "x", "score": 1}, {"text": "y"}], "comparisons": [[0, 1, 1, 0]]}
        ],
        "sft": [{"messages": [user("a"), assistant("b")]}],
    }
    for name, listed in rows.items():
        groups, _ = read_groups(listed)
        assert list(read_groups(write_groups(groups, tmp_path / f"{name}.jsonl"))[0]) == list(groups)


def test_a_newer_native_form_is_refused():
    assert refusal([{"format": "marginkit/2", "responses": []}]) == (
        'rows in memory: format "marginkit/2", but this version reads "marginkit/1"'
    )


# ---------------------------------------------------------------------------------------------------------------------
# Well-known layouts and real files


@pytest.mark.parametrize(
    ("name", "columns", "prompt", "texts"),
    [
        ("hh_rlhf", None, "Hi\nHello! What can I do?\nName a fruit.", ["Apple.", "No."]),
        ("reward_bench", None, "Name a fruit.", ["Apple.", "Carrot."]),
        ("orca_dpo_pairs_argilla", {"input": "prompt"}, "You are helpful.\nName a fruit.", ["Apple.", "Carrot."]),
        ("skywork_reward_preference", None, "Name a fruit.", ["Apple.", "Carrot."]),
        ("trl_preference", None, "Name a fruit.", ["Apple.", "Carrot."]),
        ("trl_ultrafeedback_binarized", None, "Give one tip for sleeping better.", ["Keep a fixed bedtime.", "Sleep."]),
        ("ultrafeedback_binarized", None, "Give one tip for sleeping better.", ["Keep a fixed bedtime.", "Sleep."]),
    ],
)
def test_pair_datasets_of_the_hub(name, columns, prompt, texts):
    from marginkit.records import content_text

    groups, findings = read_groups(FIXTURES / f"{name}.jsonl", columns=columns)
    assert findings.dropped == {}
    assert content_text(groups[0].prompt) == prompt
    assert [response.text for response in groups[0].responses] == texts


def test_scores_of_ultrafeedback_binarized():
    groups, _ = read_groups(FIXTURES / "ultrafeedback_binarized.jsonl")
    assert [response.grade for response in groups[0].responses] == [8.5, 4.0]
    assert [group.pairs[0].tie for group in groups] == [False, True]


# What the page beside the files says of each: layout, rows, prompts, responses (or None: two a row), tied pairs.
REAL = {
    "alpacaeval_graded": ("multi-response", 452, 452, 4925, 21),
    "tulu2_bon_graded": ("multi-response", 452, 452, 2700, 53),
    "alpacaeval_pairprob": ("pair", 1356, 452, None, 0),
    "arenabench_graded": ("multi-response", 288, 288, 2251, 1681),
    "ultrafeedback_pairs": ("pair", 1086, 1086, None, 115),
    "feedbackqa_human_graded": ("multi-response", 1212, 1212, 3346, 525),
    "fgrlhf_human_graded": ("multi-response", 500, 500, 2000, 330),
    "mqm_ted_zhen_graded": ("multi-response", 518, 516, 5390, 6733),
    "summeval_human_graded": ("multi-response", 100, 100, 1546, 602),
    "gsm8k_solutions_graded": ("multi-response", 1317, 1317, 6571, 7425),
    "ukpconvarg_votes": ("multi-response", 32, 32, 1052, None),
    "ukpconvarg_pairs": ("pair", 2000, 32, None, 198),
    "humour_pairs": ("pair", 6500, 1, None, 767),
    "polite_pairs_demo": ("pair", 1094, 1069, None, 0),  # the page says 1,063
    "oasst_ranked_demo": ("multi-response", 99, 99, 330, 0),
    "eval_llmbar": ("pair", 418, 417, None, 0),
    "eval_biasbench": ("pair", 80, 79, None, 0),
    "eval_mtbench_llmeval2_human": ("pair", 394, 271, None, 0),
    "eval_hhh": ("pair", 221, 102, None, 0),
    "eval_hh_harmless": ("pair", 600, 599, None, 0),
    "sft_permissive": ("sft", 4074, 4049, 4074, None),
    "sft_alpaca4k_nc": ("sft", 4200, 4200, 4200, None),
}
# Rows that say again what an earlier one said, and what they take with them: (rows, responses, tied pairs).
REPEATED = {
    "alpacaeval_pairprob": (4, None, 0),
    "eval_mtbench_llmeval2_human": (5, None, 0),
    "mqm_ted_zhen_graded": (2, 6, 6),
    "ukpconvarg_pairs": (3, None, 1),
}
EQUAL_RESPONSES = {"ukpconvarg_votes": 14}  # merged into one
EVEN_ODDS = {"alpacaeval_pairprob": 3}  # p_chosen is 0.5, but the page counts only rows that are flagged


@pytest.mark.parametrize("name", REAL)
def test_real_files(name):
    path = SHARED / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{name}.jsonl is not in ../shared/data")
    groups, findings = read_groups(path)
    dialect, rows, prompts, responses, ties = REAL[name]
    repeated, lost_responses, lost_ties = REPEATED.get(name, (0, 0, 0))
    assert (findings.dialect, findings.read) == (dialect, rows)
    assert findings.dropped == ({"duplicate row": repeated} if repeated else {})
    assert findings.kept == len(groups) == rows - repeated
    assert len({group.prompt for group in groups}) == prompts
    if responses is not None:
        kept = responses - (lost_responses or 0) - EQUAL_RESPONSES.get(name, 0)
        assert sum(len(group.responses) for group in groups) == kept
    if ties is not None:
        equal = 0
        for group in groups:
            graded = [response.grade for response in group.responses]
            pairs = itertools.combinations(graded, 2)
            equal += group.pairs[0].tie if dialect == "pair" else sum(one == other for one, other in pairs)
        assert equal == ties - lost_ties + EVEN_ODDS.get(name, 0)
    assert None not in groups.column("cluster")


def test_aspects_and_logits_of_real_files_through_columns_and_a_mapping():
    path = SHARED / "summeval_human_graded.jsonl"
    if not path.is_file():
        pytest.skip("the files of ../shared/data are not here")
    aspects = ("coherence", "consistency", "fluency", "relevance")
    fields = {"from": "responses", "text": "text", "score": "score", "aspects": {name: name for name in aspects}}
    groups, _ = read_groups(path, mapping={"prompt": "prompt", "responses": fields})
    for response in groups[0].responses:
        assert response.grade == pytest.approx(sum(response.aspects.values()) / 4, abs=1e-3)
    groups, _ = read_groups(SHARED / "tulu2_bon_graded.jsonl", columns={"logit": "utility"}, limit=5)
    for response in groups[0].responses:  # the score is the probability that the logit says
        assert 1 / (1 + math.exp(-response.utility)) == pytest.approx(response.grade, abs=1e-3)
    fields = {"from": "responses", "text": "text", "score": "-rank"}
    groups, _ = read_groups(SHARED / "oasst_ranked_demo.jsonl", mapping={"prompt": "prompt", "responses": fields})
    assert groups[0].responses[1].grade == groups[0].responses[0].grade - 1
    scores = {f"score_{side}": f"item_score_{side}" for side in ("chosen", "rejected")}
    pair = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "votes": "votes"}
    groups, _ = read_groups(SHARED / "humour_pairs.jsonl", mapping=pair | scores, contradiction="keep", limit=5)
    assert [response.grade for response in groups[0].responses] == [0.292, -0.667]


def test_the_order_shown_moves_with_the_responses() -> None:
    """Where equal responses are merged, the later ones get other numbers, in `order` as in i and j."""
    said = [{"text": "x"}, {"text": "x"}, {"text": "y"}]
    votes = [
        {"i": 1, "j": 2, "wins_i": 1, "wins_j": 0, "order": "2,1"},
        {"i": 2, "j": 0, "wins_i": 1, "wins_j": 0, "order": "ab"},
    ]
    groups, _ = read_groups([{"prompt": "p", "responses": said, "comparisons": votes}])
    assert [(c.i, c.j, c.order) for c in groups[0].comparisons] == [(0, 1, "1,0"), (1, 0, "ab")]
