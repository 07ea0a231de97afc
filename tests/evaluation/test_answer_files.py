"""Questions to prompts, and answers to the files that judges read."""

import json

import pytest

from marginkit.errors import BadInput
from marginkit.evaluation.answer_files import Answers, answer_rows, best_of_n_rows, prompt_rows, style_of
from marginkit.evaluation.benchmark_questions import Question, read_questions
from marginkit.records import Group, Response, Turn

MT = [
    Question(81, ("Write.", "Again."), "writing"),
    Question(111, ("Add.", "Why?"), "math"),
    Question(9, ("A", "B"), "x"),
]


def _file(folder, rows, name="question.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _chat(*said):
    return tuple(Turn("assistant" if k % 2 else "user", words) for k, words in enumerate(said))


def _drawn(prompt, *texts, grades=None):
    graded = grades or [None] * len(texts)
    return Group("g", prompt, tuple(Response(t, g) for t, g in zip(texts, graded, strict=True)))


def test_questions_of_each_benchmark_are_read(tmp_path):
    mt = _file(tmp_path, [{"question_id": 81, "category": "writing", "turns": ["a", "b"], "reference": ["r"]}])
    assert read_questions("mt-bench", mt) == [Question(81, ("a", "b"), "writing")]
    alpaca = tmp_path / "alpaca.json"
    alpaca.write_text(json.dumps([{"instruction": "a", "output": "o"}, {"instruction": "a"}]))
    assert read_questions("alpaca-eval", alpaca) == [Question(0, ("a",)), Question(1, ("a",))]
    two = _file(tmp_path, [{"uid": "u", "category": "hard_prompt", "subcategory": "s", "prompt": "p"}])
    assert read_questions("arena-hard", two) == [Question("u", ("p",), "hard_prompt")]
    one = _file(tmp_path, [{"question_id": "q", "category": "arena-hard-v0.1", "turns": [{"content": "p"}]}])
    assert read_questions("arena-hard", one) == [Question("q", ("p",), "arena-hard-v0.1")]


@pytest.mark.parametrize(
    ("name", "rows", "says"),
    [
        ("mtbench", [{}], "benchmark 'mtbench': is one of mt-bench"),
        ("mt-bench", [{"question_id": 1, "turns": "a"}], ":1: 'turns' is a list of texts"),
        ("mt-bench", [{"question_id": 1, "turns": [" "]}], ":1: question 1 is empty"),
        ("mt-bench", [{"question_id": 1, "turns": ["a"]}] * 2, ":2: question 1 stands here for the second time"),
        ("alpaca-eval", [{"prompt": "a"}], ":1: has no 'instruction'"),
        ("arena-hard", [{"uid": "u", "prompt": "p"}], ":1: has no 'category'"),
        ("arena-hard", [{"question_id": "q", "turns": ["p"]}], ":1: 'turns' is a list of"),
    ],
)
def test_questions_that_do_not_fit_are_refused(tmp_path, name, rows, says):
    with pytest.raises(BadInput, match=says):
        read_questions(name, _file(tmp_path, rows))


def test_two_passes_of_mt_bench():
    first = prompt_rows("mt-bench", MT)
    assert [row["split"] for row in first] == ["t0.7", "t0", "t0.7"]
    assert first[1]["prompt"] == [{"role": "user", "content": "Add."}]
    drawn = [_drawn(_chat(q.turns[0]), f"{q.id} one") for q in MT]
    second = prompt_rows("mt-bench", MT, drawn)
    assert second[1]["prompt"] == [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "111 one"},
        {"role": "user", "content": "Why?"},
    ]
    again = [_drawn(_chat(q.turns[0], f"{q.id} one", q.turns[1]), f"{q.id} two") for q in MT]
    rows = answer_rows("mt-bench", MT, Answers(again), "mine", now=5.0)
    assert rows[1].pop("answer_id")
    assert rows[1] == {
        "question_id": 111,
        "model_id": "mine",
        "choices": [{"index": 0, "turns": ["111 one", "111 two"]}],
        "tstamp": 5.0,
    }
    assert len({row["answer_id"] for row in answer_rows("mt-bench", MT, Answers(again), "mine", now=6.0)}) == 3


def test_missing_answers_are_refused_or_empty_and_counted():
    drawn = [_drawn(_chat(q.turns[0]), f"{q.id} one") for q in MT[:2]]
    with pytest.raises(BadInput, match=r"1 of 3 questions have no answer \(9\)"):
        prompt_rows("mt-bench", MT, drawn)
    assert len(prompt_rows("mt-bench", MT, drawn, missing="empty")) == 2
    both = [*drawn, _drawn(_chat("Write.", "81 one", "Again."), "81 two")]
    answers = Answers(both)
    with pytest.raises(BadInput, match=r"2 of 3 questions have no answer \(111, 9\)"):
        answer_rows("mt-bench", MT, answers, "mine", now=0.0)
    rows = answer_rows("mt-bench", MT, answers, "mine", now=0.0, missing="empty")
    assert [row["choices"][0]["turns"] for row in rows] == [["81 one", "81 two"], ["111 one", ""], ["", ""]]
    assert answers.lacking(MT) == 2
    with pytest.raises(BadInput, match="missing='skip'"):
        answer_rows("mt-bench", MT, answers, "mine", now=0.0, missing="skip")


def test_second_turns_need_questions_with_two():
    with pytest.raises(BadInput, match="second turns"):
        prompt_rows("alpaca-eval", [Question(0, ("a",))], [_drawn("a", "b")])
    with pytest.raises(BadInput, match="second turns"):
        prompt_rows("mt-bench", MT, [], plain=True)


def test_equal_instructions_share_an_answer_and_keep_their_rows():
    questions = [Question(0, ("a",)), Question(1, ("b",)), Question(2, ("a",))]
    answers = Answers([_drawn("b", "B"), _drawn(_chat("a"), "A")])
    rows = answer_rows("alpaca-eval", questions, answers, "mine", now=0.0)
    assert [row["output"] for row in rows] == ["A", "B", "A"]
    assert [row["prompt"] for row in prompt_rows("alpaca-eval", questions, plain=True)] == ["a", "b", "a"]


def test_of_several_responses_one_is_chosen_as_told():
    groups = [_drawn("a", "one", "two", "three", grades=[0.5, 2.0, 2.0])]
    with pytest.raises(BadInput, match=r"3 responses; draw one \(-n 1\)"):
        Answers(groups)
    assert Answers(groups, "first")["a",] == ("one",)
    assert Answers(groups, "best")["a",] == ("two",)
    with pytest.raises(BadInput, match="without a grade"):
        Answers([_drawn("a", "one", "two")], "best")
    with pytest.raises(BadInput, match="choose='worst'"):
        Answers(groups, "worst")
    with pytest.raises(BadInput, match="answered in two ways"):
        Answers([_drawn("a", "one"), _drawn(_chat("a"), "two")])


def test_a_system_turn_is_no_question():
    prompt = (Turn("system", "Be kind."), Turn("user", "a"))
    assert Answers([_drawn(prompt, "A")])["a",] == ("A",)


def test_arena_hard_rows_and_their_metadata():
    questions = [Question("u", ("p",), "hard_prompt")]
    answers = Answers([_drawn("p", "**Yes** and no")])
    [bare] = answer_rows("arena-hard", questions, answers, "mine", now=1.0)
    assert set(bare) == {"uid", "ans_id", "model", "messages", "tstamp"}
    assert bare["messages"][1] == {"role": "assistant", "content": {"answer": "**Yes** and no"}}
    [row] = answer_rows("arena-hard", questions, answers, "mine", now=1.0, count_tokens=lambda text: len(text.split()))
    assert row["metadata"]["token_len"] == 3
    assert row["metadata"]["bold_count"] == {"**": 1, "__": 0}
    assert list(row["metadata"]) == ["token_len", "header_count", "list_count", "bold_count"]  # upstream goes by place


def test_markdown_is_counted_outside_of_code():
    text = (
        "# One\n## Two\n### Three\n#### \n####### Seven\n#no\n text # no\n"
        "- a\n  * b\n+ c\n1. d\n  22. e\n-no\n1.no\n"
        "**bold** and **two\nlines __under__ ****\n"
        "```python\n# comment\n- x\n**y**\n```\n"
    )
    found = style_of(text, 7)
    assert found["header_count"] == {"h1": 1, "h2": 1, "h3": 1, "h4": 1, "h5": 0, "h6": 0}
    assert found["list_count"] == {"ordered": 2, "unordered": 3}
    assert found["bold_count"] == {"**": 1, "__": 1}
    assert found["token_len"] == 7


def test_best_of_n_keeps_the_first_n_and_the_first_of_equals():
    group = _drawn("a", "one", "two", "three")
    rewards = {("g", 0): 1.0, ("g", 1): 1.0, ("g", 2): 5.0}
    assert [next(best_of_n_rows([group], rewards, n, "bon"))["output"] for n in (1, 2, 3, None)] == [
        "one",
        "one",
        "three",
        "three",
    ]
    assert next(best_of_n_rows([group], rewards, 2, "bon")) == {
        "instruction": "a",
        "input": "",
        "output": "one",
        "generator": "bon",
    }
    with pytest.raises(BadInput, match="fewer than n=4"):
        list(best_of_n_rows([group], rewards, 4, "bon"))
    with pytest.raises(BadInput, match="response 2 has no reward"):
        list(best_of_n_rows([group], {("g", 0): 1.0, ("g", 1): 1.0}, None, "bon"))
