"""Every bad row is refused with one line that names the place, the rule and the way out."""

import json
import math

import pytest

from marginkit.data.checks import FINDINGS_PER_REASON, Finding, Findings, shown, votes
from marginkit.data.sources import read_groups
from marginkit.errors import BadInput

GOOD = {"prompt": "p", "chosen": "good", "rejected": "bad"}
FIRST = {
    "pair": {"prompt": "other", "chosen": "a", "rejected": "b"},
    "multi": {"prompt": "other", "responses": [{"text": "a"}]},
    "sft": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "native": {"format": "marginkit/1", "id": "a", "prompt": "p", "responses": [{"turns": "x"}, {"turns": "y"}]},
}


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def two(**rest):
    return {"prompt": "p", "responses": [{"text": "x"}, {"text": "y"}], **rest}


def one(**response):
    return {"prompt": "p", "responses": [{"text": "x"} | response]}


def native(**rest):
    return FIRST["native"] | {"id": "b"} | rest


TO_NUMBER = "convert it to a number, or use null where there is none"
CORRECT = "correct it, or use null where there is none"
POLICY = 'correct it, or set contradiction to "keep", "trust_label" or "trust_grade"'
INDICES = "but the group has 2 responses; indices run from 0 to 1"
END = "does not end with an assistant turn; add the assistant's answer or remove the row"
TEXT_ONLY = 'holds a part of type "image", but marginkit reads text only; remove the row, or its images'

BAD_ROWS = [
    # evidence
    ("pair", GOOD | {"margin": math.nan}, "non-finite evidence", f"margin is nan; {CORRECT}"),
    ("pair", GOOD | {"margin": -math.inf}, "non-finite evidence", f"margin is -inf; {CORRECT}"),
    ("pair", GOOD | {"margin": 10**400}, "non-finite evidence", f"margin is inf; {CORRECT}"),
    ("pair", GOOD | {"p_chosen": math.nan}, "non-finite evidence", f"p_chosen is nan; {CORRECT}"),
    ("pair", GOOD | {"score_rejected": math.nan}, "non-finite evidence", f"score_rejected is nan; {CORRECT}"),
    ("pair", GOOD | {"weight": math.inf}, "non-finite evidence", f"weight is inf; {CORRECT}"),
    ("pair", GOOD | {"votes": [3, math.nan]}, "non-finite evidence", f"votes is nan; {CORRECT}"),
    ("pair", GOOD | {"margin": "4"}, "wrongly typed evidence", f'margin is "4", not a number; {TO_NUMBER}'),
    ("pair", GOOD | {"margin": "N/A"}, "wrongly typed evidence", f'margin is "N/A", not a number; {TO_NUMBER}'),
    ("pair", GOOD | {"margin": True}, "wrongly typed evidence", f"margin is true, not a number; {TO_NUMBER}"),
    ("pair", GOOD | {"margin": [1]}, "wrongly typed evidence", f"margin is [1], not a number; {TO_NUMBER}"),
    ("pair", GOOD | {"votes": "3:1"}, "wrongly typed evidence",
     'votes is "3:1", not two or three counts; give [for, against] or [for, against, ties]'),
    ("pair", GOOD | {"votes": [1]}, "wrongly typed evidence",
     "votes is [1], not two or three counts; give [for, against] or [for, against, ties]"),
    ("pair", GOOD | {"votes": [1, None]}, "wrongly typed evidence",
     "votes is [1, null], with a null count; use 0 for no votes"),
    ("pair", GOOD | {"tie": "yes"}, "wrongly typed evidence",
     'tie is "yes", not true or false; use true, false or null'),
    ("pair", GOOD | {"weight": -1}, "negative weight", "weight is -1; give a weight >= 0 (0 leaves the pair out)"),
    ("pair", GOOD | {"p_chosen": 80}, "probability outside [0, 1]",
     "p_chosen is 80, outside [0, 1]; give P(chosen is better); is p_chosen in percent?"),
    ("pair", GOOD | {"votes": [-1, 2]}, "negative votes", "votes is [-1, 2]; counts are >= 0; correct them"),
    ("pair", GOOD | {"votes": [0, 0, 0]}, "all-zero votes",
     "votes is [0, 0, 0]: nobody voted; use null where nobody voted"),
    # evidence against the label
    ("pair", GOOD | {"margin": -1.0}, "contradiction",
     f"the evidence contradicts the label (margin -1 < 0); {POLICY}"),
    ("pair", GOOD | {"score_chosen": 1, "score_rejected": 2.5}, "contradiction",
     f"the evidence contradicts the label (score_chosen 1 < score_rejected 2.5); {POLICY}"),
    ("pair", GOOD | {"votes": [1, 4]}, "contradiction",
     f"the evidence contradicts the label (votes 1 for, 4 against); {POLICY}"),
    ("pair", GOOD | {"p_chosen": 0.2}, "contradiction",
     f"the evidence contradicts the label (p_chosen 0.2 < 0.5); {POLICY}"),
    ("pair", GOOD | {"votes": [4, 1], "margin": -2}, "contradiction",
     f"the evidence contradicts the label (margin -2 < 0); {POLICY}"),
    # texts
    ("pair", GOOD | {"chosen": ""}, "empty response", "chosen is empty; remove the row"),
    ("pair", GOOD | {"rejected": " \n"}, "empty response", "rejected is empty; remove the row"),
    ("pair", GOOD | {"chosen": None}, "missing text", "chosen is null or missing; fill it in or remove the row"),
    ("pair", {"prompt": "p", "chosen": "good"}, "missing text",
     "rejected is null or missing; fill it in or remove the row"),
    ("pair", GOOD | {"rejected": "good "}, "identical responses",
     "chosen and rejected are the same; remove the row"),
    ("pair", GOOD | {"prompt": None}, "missing prompt",
     'prompt is missing, and chosen and rejected hold none; name its column: columns={"<column>": "prompt"}'),
    ("pair", GOOD | {"prompt": " "}, "empty prompt", "prompt is empty; fill it in or remove the row"),
    ("pair", GOOD | {"chosen": 5}, "not text", "chosen is 5, not text; give a string or chat turns"),
    ("pair", GOOD | {"chosen": ["a"]}, "not text", 'chosen is a list with "a" in it; give one string or chat turns'),
    ("pair", GOOD | {"chosen": "\ud800"}, "not Unicode",
     "a text holds half of a surrogate pair, which is no character; correct its \\ud800 to \\udfff escapes"),
    ("pair", "text", "not an object", 'the row is "text"; a row is one JSON object'),
    ("pair", {1: "x"} | GOOD, "not an object", "a column is named 1; name columns by strings"),
    # chats
    ("pair", {"chosen": [user("q"), assistant("x")], "rejected": [user("r"), assistant("y")]}, "different prompts",
     "chosen and rejected answer different prompts; make the turns before the answer equal, or remove the row"),
    ("pair", {"chosen": [user("q"), assistant("m"), user("1"), assistant("x")],
              "rejected": [user("q"), assistant("n"), user("1"), assistant("y")]}, "different prompts",
     "chosen and rejected answer different prompts; make the turns before the answer equal, or remove the row"),
    ("pair", {"prompt": "z", "chosen": [user("q"), assistant("x")], "rejected": [user("q"), assistant("y")]},
     "different prompts",
     "the prompt column is not among the turns of chosen and rejected; correct it or remove the row"),
    ("pair", {"chosen": [user("q")], "rejected": [user("q"), assistant("y")]}, "no assistant turn at the end",
     f"chosen {END}"),
    ("pair", {"chosen": [user("q"), assistant("y")], "rejected": [user("q"), assistant("y")]}, "identical responses",
     "chosen and rejected are the same; remove the row"),
    ("pair", GOOD | {"prompt": [{"role": "gpt", "content": "x"}]}, "unknown role",
     'prompt[0].role is "gpt"; the roles are system, user, assistant, tool'),
    ("pair", GOOD | {"prompt": [user([{"type": "image", "image": "x"}])]}, "non-text content",
     f"prompt[0].content {TEXT_ONLY}"),
    ("pair", GOOD | {"prompt": [user([{"type": "text", "text": "x", "image": "b"}])]}, "non-text content",
     f"prompt[0].content {TEXT_ONLY}"),
    ("pair", GOOD | {"prompt": [user("q"), "x"]}, "malformed turn",
     'prompt[1] is "x", not a turn; a turn is {role, content}'),
    ("pair", GOOD | {"prompt": [user(None)]}, "missing text",
     "prompt[0].content is null or missing; fill it in or remove the row"),
    ("pair", GOOD | {"prompt": [user("q") | {"tool_calls": "x"}]}, "malformed turn",
     'prompt[0].tool_calls is "x"; give a list of objects, or null'),
    ("pair", GOOD | {"system": "a", "prompt": [{"role": "system", "content": "b"}, user("q")]}, "two system turns",
     'system is "a", but the prompt has another system turn; keep one of them'),
    ("pair", GOOD | {"tools": "no"}, "unreadable tools", 'tools is "no"; give a JSON list of objects'),
    ("pair", GOOD | {"tools": [1]}, "unreadable tools", "tools is [1]; give a list of objects, or null"),
    ("pair", GOOD | {"tools": [{"a": math.nan}]}, "not JSON",
     "tools or tool_calls hold a value that JSON has no form for; use plain numbers, strings, lists and objects"),
    # repeated rows
    ("pair", FIRST["pair"] | {"id": "b"}, "duplicate row",
     "the same prompt and responses were read before; remove the row, or merge the evidence of both"),
    ("pair", FIRST["pair"] | {"margin": 1}, "duplicate row",
     "the same prompt and responses were read before, with other evidence; remove the row, or merge the evidence of "
     "both"),
    ("native", FIRST["native"], "duplicate row",
     "the same prompt and responses were read before; remove the row, or merge the evidence of both"),
    # several responses
    ("multi", two(responses=[]), "missing text", "responses is []; give a list of at least one response"),
    ("multi", two(responses=None), "missing text", "responses is null; give a list of at least one response"),
    ("multi", two(responses=["x"]), "malformed response",
     'responses[0] is "x"; a response is {text, score, ...}'),
    ("multi", one(text=" "), "empty response", "responses[0] is empty; remove the row"),
    ("multi", one(score=math.nan), "non-finite evidence", f"responses[0].score is nan; {CORRECT}"),
    ("multi", one(utility="a"), "wrongly typed evidence",
     f'responses[0].utility is "a", not a number; {TO_NUMBER}'),
    ("multi", one(ratings=[1, "2"]), "wrongly typed evidence",
     f'responses[0].ratings[1] is "2", not a number; {TO_NUMBER}'),
    ("multi", one(ratings=[1, None]), "wrongly typed evidence",
     "responses[0].ratings[1] is null; leave out ratings that were not given"),
    ("multi", one(ratings=[{"rater": "r", "value": math.inf}]), "non-finite evidence",
     f"responses[0].ratings[0] is inf; {CORRECT}"),
    ("multi", one(ratings=3), "wrongly typed evidence",
     "responses[0].ratings is 3, not a list; give a list of numbers"),
    ("multi", one(aspects=[1]), "wrongly typed evidence", "responses[0].aspects is [1]; give {aspect: number}"),
    ("multi", one(text=None, turns=[assistant("y"), user("x"), assistant("z")]), "malformed response",
     "responses[0] holds a user or system turn; a response is what the assistant (and its tools) said to the prompt"),
    ("multi", two(comparisons=[[0, 2, 1, 0, 0]]), "index out of range", f"comparisons[0].j is 2, {INDICES}"),
    ("multi", two(comparisons=[[-1, 0, 1, 0]]), "index out of range", f"comparisons[0].i is -1, {INDICES}"),
    ("multi", two(comparisons=[[0, 0, 1, 0, 0]]), "malformed comparison",
     "comparisons[0] compares response 0 with itself; remove it"),
    ("multi", two(comparisons=[[0, 1]]), "malformed comparison",
     "comparisons[0] is [0, 1]; give [i, j, wins_i, wins_j, ties]"),
    ("multi", two(comparisons=[[0, 1, 0, 0, 0]]), "all-zero votes",
     "comparisons[0] is [0, 0, 0]: nobody voted; use null where nobody voted"),
    ("multi", two(comparisons=3), "malformed comparison", "comparisons is 3; give a list"),
    # demonstrations
    ("sft", {"messages": [assistant("x")]}, "missing prompt",
     "messages hold no user or system turn; add the prompt"),
    ("sft", {"messages": [user("x")]}, "no assistant turn at the end", f"messages {END}"),
    ("sft", {"messages": []}, "missing text", "messages is []; give a list of chat turns"),
    ("sft", {"messages": None}, "missing text", "messages is null or missing; fill it in or remove the row"),
    ("sft", {"messages": [user("x"), assistant(" ")]}, "empty response", "messages is empty; remove the row"),
    # the native form
    ("native", native(pairs=[{"chosen": 0, "rejected": 2}]), "index out of range",
     f"pairs[0].rejected is 2, {INDICES}"),
    ("native", native(pairs=[{"chosen": 1, "rejected": 1}]), "identical responses",
     "pairs[0] pairs response 1 with itself; remove it"),
    ("native", native(pairs=[{"chosen": 0, "rejected": 1, "prob": 1.5}]), "probability outside [0, 1]",
     "pairs[0].prob is 1.5, outside [0, 1]; give P(chosen is better); is pairs[0].prob in percent?"),
    ("native", native(pairs=[{"chosen": 0, "rejected": 1, "weight": None}]), "not the native form",
     "malformed: pairs[0].weight is null; write it with write_groups"),
    ("native", native(pairs=[{"chosen": 0, "rejected": 1, "votes": [1, 0]}]), "not the native form",
     "malformed: pairs[0].votes are three counts: for, against, ties; write it with write_groups"),
    ("native", native(comparisons=[{"i": 0, "j": 5, "wins_i": 1, "wins_j": 0}]), "index out of range",
     f"comparisons[0].j is 5, {INDICES}"),
    ("native", native(comparisons=[{"i": 0, "j": 1, "wins_i": 1, "wins_j": 0, "rater": 3}]), "not the native form",
     "malformed: comparisons[0] holds values of the wrong type; write it with write_groups"),
    ("native", native(id=3), "not the native form",
     "malformed: id, source, subset, split and cluster are strings; write it with write_groups"),
    ("native", {k: v for k, v in native().items() if k != "prompt"}, "not the native form",
     "malformed: 'prompt' is missing; write it with write_groups"),
    ("native", native(responses=[{"turns": "x", "grade": "4"}]), "wrongly typed evidence",
     f'responses[0].grade is "4", not a number; {TO_NUMBER}'),
    ("native", native(responses=[{"turns": ""}]), "empty response", "responses[0] is empty; remove the row"),
    ("native", native(format="x"), "not the native form",
     'format is "x", not "marginkit/1"; write it with write_groups'),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "row", "reason", "line"), BAD_ROWS, ids=lambda value: str(value)[:40])
def test_bad_row_is_dropped_with_one_line(kind, row, reason, line):
    groups, findings = read_groups([FIRST[kind], row], contradiction_limit=1)
    assert [str(finding) for finding in findings.items] == [f"row 2: {line}"]
    assert findings.dropped == {reason: 1}
    assert "\n" not in str(findings.items[0])
    assert (findings.read, findings.kept, len(groups)) == (2, 1, 1)


@pytest.mark.parametrize("key", ["margin", "p_chosen", "votes", "tie", "weight", "score_chosen", "score_rejected"])
def test_null_is_absent_evidence(key):
    groups, findings = read_groups([GOOD | {key: None}])
    assert findings.dropped == {}
    assert groups[0].pairs == read_groups([GOOD])[0][0].pairs


def test_equal_responses_of_a_group_become_one_with_the_mean_grade():
    row = {
        "prompt": "p",
        "responses": [
            {"text": "x", "score": 1.0, "ratings": [1]},
            {"text": "y", "score": 5.0},
            {"text": "x ", "score": 2.0, "ratings": [2]},
            {"text": "y", "score": 5.0},
        ],
        "comparisons": [[0, 2, 1, 0, 0], [3, 2, 4, 1, 0]],
    }
    groups, findings = read_groups([row])
    x, y = groups[0].responses
    assert (x.text, x.grade, [rating.value for rating in x.ratings]) == ("x", 1.5, [1.0, 2.0])
    assert (y.text, y.grade) == ("y", 5.0)
    assert [(c.i, c.j, c.wins_i, c.wins_j) for c in groups[0].comparisons] == [(1, 0, 4.0, 1.0)]
    assert findings.kept == 1
    assert findings.warned == {
        "identical responses with different grades": 1,
        "identical responses": 1,
        "comparison of equal responses": 1,
    }


def test_remarks_on_a_row_that_is_dropped_do_not_count():
    row = {"prompt": "p", "responses": [{"text": "x"}, {"text": "x"}]}
    _, findings = read_groups([row, row])
    assert findings.warned == {"identical responses": 1}
    assert findings.dropped == {"duplicate row": 1}


def test_the_same_pair_the_other_way_round_is_no_duplicate():
    _, findings = read_groups([GOOD, GOOD | {"chosen": "bad", "rejected": "good"}])
    assert (findings.kept, findings.dropped) == (2, {})


def test_duplicate_ids_are_made_unique():
    rows = [{"id": "a"}, {"id": "a#2"}, {"id": "a"}, {"id": "a"}]
    groups, findings = read_groups([GOOD | row | {"chosen": f"good {n}"} for n, row in enumerate(rows)])
    assert groups.column("id") == ["a", "a#2", "a#3", "a#4"]
    assert findings.warned == {"duplicate id": 2}
    assert str(findings.items[0]) == 'row 3: id "a" was read before; renamed to "a#3"'


def test_contradictions_above_the_limit_refuse_the_file():
    rows = [GOOD | {"prompt": str(n), "margin": -1.0 if n < 6 else 1.0} for n in range(100)]
    with pytest.raises(BadInput) as refused:
        read_groups(rows)
    assert str(refused.value) == (
        "rows in memory: 6 of 100 rows (6.0%) contradict their label, above contradiction_limit=0.05; the first: row "
        "1: the evidence contradicts the label (margin -1 < 0); check which column is which, or set contradiction to "
        '"keep", "trust_label" or "trust_grade"'
    )
    assert read_groups(rows, contradiction_limit=0.06)[1].dropped == {"contradiction": 6}
    at_the_limit = [*rows[1:], GOOD | {"prompt": "100", "margin": 1.0}]
    assert read_groups(at_the_limit)[1].dropped == {"contradiction": 5}


def test_strict_names_the_first_row_and_the_count():
    rows = [GOOD, GOOD | {"chosen": ""}, GOOD | {"margin": math.nan}]
    with pytest.raises(BadInput) as refused:
        read_groups(rows, strict=True)
    assert str(refused.value) == "2 of 3 rows break a rule (strict), the first: row 2: chosen is empty; remove the row"
    tied = GOOD | {"prompt": "q", "tie": True}
    assert read_groups([GOOD, tied], strict=True, ties="drop")[1].dropped == {"tie": 1}  # asked for, no rule broken


def test_ledger_counts_exactly_and_keeps_the_first_findings():
    rows = [GOOD] + [GOOD | {"chosen": ""}] * 50
    _, findings = read_groups(rows)
    assert findings.dropped == {"empty response": 50}
    assert [finding.place for finding in findings.items] == [f"row {n}" for n in range(2, 2 + FINDINGS_PER_REASON)]
    assert findings.table() == [("read", 51), ("kept", 1), ("dropped: empty response", 50)]
    assert findings.first("empty response") is findings.items[0]


def test_ledger_as_json():
    findings = Findings("a.jsonl", "pair", read=2, kept=1, notes=["n"], recognised="pair: has prompt")
    findings.add(Finding("a.jsonl:1", "r", "rule", "fix"))
    findings.add(Finding("a.jsonl:2", "w", "rule", "fix", "warn"))
    assert json.loads(json.dumps(findings.to_json())) == {
        "file": "a.jsonl",
        "dialect": "pair",
        "recognised": "pair: has prompt",
        "read": 2,
        "kept": 1,
        "dropped": {"r": 1},
        "warned": {"w": 1},
        "findings": [
            {"place": "a.jsonl:1", "reason": "r", "rule": "rule", "fix": "fix", "severity": "drop"},
            {"place": "a.jsonl:2", "reason": "w", "rule": "rule", "fix": "fix", "severity": "warn"},
        ],
        "notes": ["n"],
    }


def test_shown_values_stay_on_one_short_line():
    assert shown("a\nb") == '"a\\nb"'
    assert len(shown("x" * 1000)) == 40
    assert shown({1, 2}) == "{1, 2}"
    assert shown("\ud800") == '"?"'


def test_votes_without_ties():
    assert votes((2, 1)) == (2.0, 1.0, 0.0)
