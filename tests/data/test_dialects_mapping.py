"""Any other file through a short mapping: three forms, and every mistake in a mapping named by its key."""

import json

import pytest

from marginkit.data.sources import read_groups
from marginkit.errors import BadInput
from marginkit.records import Pair

ROW = {
    "q": {"text": "Name a fruit."},
    "left": {"answer": "Apple.", "stars": 5},
    "right": {"answer": "Carrot.", "stars": "2"},
    "verdict": "L",
}
PAIR = {"prompt": "q.text", "response_a": "left.answer", "response_b": "right.answer"}
CODES = {"from": "verdict", "a": ["L", "left"], "b": "R", "tie": ["=", None]}


def read(rows, mapping, **options):
    groups, findings = read_groups(rows, mapping=mapping, **options)
    assert findings.read == findings.kept + sum(findings.dropped.values())
    return list(groups), findings


def texts(group):
    return [response.text for response in group.responses]


def refusal(mapping, rows=(ROW,)):
    with pytest.raises(BadInput) as refused:
        read_groups(list(rows), mapping=mapping)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_file_in_yaml(tmp_path):
    (tmp_path / "map.yaml").write_text(
        "# where the columns are\nprompt: q.text\nchosen: left.answer\nrejected: right.answer\n"
        "score_chosen: left.stars\nscore_rejected: right.stars\nsubset: verdict\n"
    )
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW) + "\n")
    groups, findings = read_groups(tmp_path / "a.jsonl", mapping=tmp_path / "map.yaml")
    assert (groups[0].prompt, texts(groups[0])) == ("Name a fruit.", ["Apple.", "Carrot."])
    assert [response.grade for response in groups[0].responses] == [5.0, 2.0]
    assert (groups[0].subset, findings.dialect, findings.notes) == ("L", "mapping", [])
    assert findings.recognised == f"mapping: as {tmp_path / 'map.yaml'} says"


@pytest.mark.parametrize(
    ("verdict", "first", "tie"),
    [("L", "Apple.", False), ("left", "Apple.", False), ("R", "Carrot.", False), ("=", "Apple.", True)],
)
def test_a_winner_by_code(verdict, first, tie):
    groups, _ = read([ROW | {"verdict": verdict}], PAIR | {"winner": CODES, "score_a": "left.stars"})
    assert (texts(groups[0])[0], groups[0].pairs[0].tie) == (first, tie)
    assert [response.grade for response in groups[0].responses if response.text == "Apple."] == [5.0]
    _, findings = read([ROW | {"verdict": "X"}], PAIR | {"winner": CODES})
    assert str(findings.items[0]) == 'row 1: verdict is "X"; the codes are "L", "left", "R", "=", null'


def test_a_winner_by_probability_preference_or_scores():
    for number, first in ((0.25, "Carrot."), (0.75, "Apple.")):
        pair = read([ROW | {"p": number}], PAIR | {"p_a": "p"})[0][0]
        assert (texts(pair)[0], pair.pairs[0].prob) == (first, 0.75)
    for number, first, strength in ((-2, "Apple.", 2.0), (3, "Carrot.", 3.0), (0, "Apple.", 0.0)):
        pair = read([ROW | {"s": number}], PAIR | {"preference": "-s"})[0][0]
        assert (texts(pair)[0], pair.pairs[0].strength, pair.pairs[0].tie) == (first, strength, number == 0)
    scores = {"score_a": "-left.stars", "score_b": "-right.stars"}
    assert texts(read([ROW], PAIR | scores)[0][0])[0] == "Carrot."
    lost = ROW | {"left": {"answer": "Apple.", "stars": None}}
    assert read([ROW, lost], PAIR | scores)[1].dropped == {"missing evidence": 1}


def test_a_winner_against_its_scores_is_a_contradiction():
    given = PAIR | {"winner": CODES, "score_a": "left.stars", "score_b": "right.stars"}
    _, findings = read([ROW | {"verdict": "R"}], given, contradiction_limit=1.0)
    assert findings.dropped == {"contradiction": 1}


def test_a_list_of_responses():
    answers = [
        {"body": "x", "rank": 1, "by": {"name": "m"}, "marks": {"flow": 3}},
        {"body": "y", "rank": 4, "by": {"name": "n"}, "marks": {"flow": None}},
    ]
    rows = [{"q": "?", "answers": answers}]
    given = {"prompt": "q", "responses": {"from": "answers", "text": "body", "score": "-rank", "model": "by.name",
                                          "aspects": {"fluency": "marks.flow"}}}  # fmt: skip
    group = read(rows, given)[0][0]
    assert [(r.text, r.grade, r.model, r.aspects) for r in group.responses] == [
        ("x", -1.0, "m", {"fluency": 3.0}),
        ("y", -4.0, "n", {}),
    ]


def test_parallel_lists_and_separate_columns():
    lists = [{"q": "?", "texts": ["x", "y"], "scores": [1, "2"]}, {"q": "!", "texts": ["x", "y"], "scores": [1]}]
    given = {"prompt": "q", "responses": {"text": "texts", "score": "-scores"}}
    groups, findings = read(lists, given)
    assert [response.grade for response in groups[0].responses] == [-1.0, -2.0]
    assert findings.dropped == {"malformed row": 1}
    columns = [{"q": "?", "a": "x", "ra": 4, "b": "y", "rb": 2, "c": None, "rc": None}]
    given = {"prompt": "q", "responses": [{"text": letter, "score": f"r{letter}"} for letter in "abc"]}
    assert [response.grade for response in read(columns, given)[0][0].responses] == [4.0, 2.0]


def test_columns_that_a_mapping_leaves_are_named():
    row = {"q": {"text": "?", "lang": "en"}, "as": [{"body": "x"}], "by.name": "m", "by": 1, "when": 2}
    given = {"prompt": "q.text", "source": "by.name", "responses": {"from": "as", "text": "body"}}
    assert read([row], given)[1].notes == ["columns not read: when"]


def test_the_command_and_the_configuration_take_a_mapping(tmp_path):
    from typer.testing import CliRunner

    from marginkit.cli import app
    from marginkit.config import resolve
    from marginkit.preparing import read_source

    (tmp_path / "map.yaml").write_text(
        "prompt: q.text\nresponse_a: left.answer\nresponse_b: right.answer\nwinner: {from: verdict, a: L, b: R}\n"
    )
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW) + "\n")
    said = CliRunner().invoke(
        app, ["check", str(tmp_path / "a.jsonl"), "--mapping", str(tmp_path / "map.yaml"), "--json"]
    )
    told = json.loads(said.stdout)
    assert (told["dialect"], told["kept"]) == ("mapping", 1)
    assert told["recognised"] == f"mapping: as {tmp_path / 'map.yaml'} says"
    config = resolve("bt", ["model.path=fresh", f"data.mapping={tmp_path / 'map.yaml'}"])
    groups, _ = read_source(config, [str(tmp_path / "a.jsonl")])
    assert texts(groups[0]) == ["Apple.", "Carrot."]


def test_one_response_a_row_is_gathered():
    rows = [{"q": "?", "a": text, "r": grade} for text, grade in [("x", 1), ("y", 2)]] + [{"q": "!", "a": "x", "r": 1}]
    given = {"prompt": "q", "responses": {"text": "a", "score": "r"}, "gather": "q"}
    groups, findings = read(rows, given)
    assert [texts(group) for group in groups] == [["x", "y"], ["x"]]
    assert (findings.read, findings.kept) == (3, 3)


def test_a_table_through_a_mapping(tmp_path):
    (tmp_path / "a.csv").write_text('ask,good,bad,gap\n"p, q",x,[1],0.5\nr,x,y,n/a\n')
    given = {"prompt": "ask", "chosen": "good", "rejected": "bad", "margin": "gap"}
    groups, findings = read_groups(tmp_path / "a.csv", mapping=given)
    assert (texts(groups[0]), groups[0].pairs) == (["x", "[1]"], (Pair(0, 1, strength=0.5),))
    assert findings.dropped == {"wrongly typed evidence": 1}


def test_lists_in_table_cells(tmp_path):
    """A cell holds the JSON of a list; what holds none in any row is named."""
    lines = ["q,answers", '1?,"[{""t"": ""x"", ""s"": 2}, {""t"": ""y"", ""s"": 1}]"', "2?,none"]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    mapping = {"prompt": "q", "responses": {"from": "answers", "text": "t", "score": "s"}}
    groups, findings = read(tmp_path / "a.csv", mapping)
    assert [(r.text, r.grade) for r in groups[0].responses] == [("x", 2.0), ("y", 1.0)]
    assert findings.dropped == {"malformed row": 1}
    told = "mapping: responses.from: verdict is a list with entries in none of the first rows"
    assert refusal({"prompt": "q.text", "responses": {"from": "verdict", "text": "."}}) == told


def test_fields_with_odd_names():
    row = {"a.b": "?", "fine-grained_score": 3, "x": [["deep"], "low"]}
    given = {"prompt": "a.b", "chosen": "x.0.0", "rejected": "x.1", "margin": "fine-grained_score"}
    group = read([row], given)[0][0]
    assert (group.prompt, texts(group), group.pairs[0].strength) == ("?", ["deep", "low"], 3.0)


MISTAKES = [
    ({"prompt": "q.text"}, "mapping: chosen is missing; a mapping names responses, or chosen and rejected, or "
     "response_a and response_b"),
    ({"prompt": "q.text", "choosen": "left.answer"}, "mapping: choosen is no key of this form; did you mean chosen?"),
    ({"prompt": "q.txt", "chosen": "left.answer", "rejected": "right.answer"},
     "mapping: prompt: no row has a field q.txt; did you mean q.text?"),
    ({"prompt": "q.text", "chosen": "left.answer", "rejected": "right.answer", "margin": "-gap"},
     "mapping: margin: no row has a field gap; there are left, left.answer, left.stars, q, q.text, right, "
     "right.answer, right.stars, verdict"),
    (PAIR, "mapping: nothing says which response is better; give winner, p_a, preference, or two scores"),
    ({"response_a": "left.answer", "response_b": "right.answer", "p_a": "left.stars"},
     "mapping: prompt is missing; name its field"),
    (PAIR | {"winner": "verdict"},
     'mapping: winner is "verdict"; give {from: path, a: [codes], b: [codes], tie: [codes]}'),
    (PAIR | {"winner": {"from": "verdict", "a": "L"}},
     "mapping: winner: say which codes mean a and which mean b, e.g. a: [A], b: [B], tie: [tie, null]"),
    (PAIR | {"winner": {"from": "verdict", "a": "L", "b": ["R", "L"]}},
     'mapping: winner: code "L" is there twice, or no string or number'),
    (PAIR | {"winner": CODES | {"ties": []}}, "mapping: winner: ties is no key of this form; did you mean tie?"),
    (PAIR | {"winner": CODES | {"from": "verdct"}},
     "mapping: winner.from: no row has a field verdct; did you mean verdict?"),
    (PAIR | {"winner": CODES, "model_a": "-left.stars"},
     "mapping: model_a: -left.stars: only score_chosen, score_rejected, score_a, score_b, score, utility, margin, "
     "target_gap, preference can be turned round by -"),
    ({"prompt": "q.text", "responses": {"from": "left"}},
     "mapping: responses: text is missing; name its field, or . for the entry itself"),
    ({"prompt": "q.text", "responses": [{"txt": "left"}]},
     "mapping: responses: txt is no key of this form; did you mean text?"),
    ({"prompt": "q.text", "responses": []},
     "mapping: responses is []; give {from, text, score} or a list of {text, score}"),
    ({"prompt": "q.text", "responses": [{"from": "q", "text": "left"}]},
     "mapping: responses: from is for one list of responses; leave it out of a list of columns"),
    ({"prompt": 3, "chosen": "left.answer", "rejected": "right.answer"},
     "mapping: prompt is 3; give the path of a field"),
    ({"prompt": "q.text", "chosen": "left.answer", "rejected": "right.answer", "aspects_chosen": "left.stars"},
     'mapping: aspects_chosen is "left.stars"; give {aspect: path}'),
]  # fmt: skip


@pytest.mark.parametrize(("mapping", "line"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_is_named_by_its_key(mapping, line):
    assert refusal(mapping) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("prompt: [", "not readable YAML"),
        ("- prompt", "holds "),
        ("", "holds null"),
        ("prompt: !!python/object:os.system x", "not readable YAML"),
    ],
)
def test_a_file_that_is_no_mapping(tmp_path, text, line):
    (tmp_path / "map.yaml").write_text(text)
    assert line in refusal(tmp_path / "map.yaml")
    assert "cannot be read" in refusal(tmp_path / "none.yaml")
