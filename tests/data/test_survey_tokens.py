"""What a tokenizer makes of the data: lengths, limits, and templates that join prompt and response wrongly."""

from typing import Any

import pytest

from marginkit.data.summary import Survey, summarise
from marginkit.data.survey import tokens
from marginkit.groups import Groups
from marginkit.models.loading import fresh_tokenizer
from marginkit.records import Group, Pair, Response, Turn

TEXT = "the red stone sings over the old river under a green hill"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENDLESS = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\nthink{% endif %}")


def tokenizer(template: str | None = None) -> Any:
    return fresh_tokenizer([TEXT] * 4, 300, chat_template=template)


def pair(name: str, chosen: str, rejected: str, prompt: Any = "Sing.") -> Group:
    return Group(name, prompt, (Response(chosen), Response(rejected)), pairs=(Pair(0, 1),))


def surveyed(groups: list[Group], **options: Any) -> tuple[Survey, dict[str, Any]]:
    survey = summarise(Groups.from_iterable(groups), **options)
    return survey, survey.facts["tokens"]


def said(survey: Survey, topic: str) -> list[tuple[str, str]]:
    return [(remark.level, remark.says) for remark in survey.remarks if remark.topic == topic]


def test_lengths_are_the_tokenizers_own() -> None:
    """Plain text: ids of the response and the end token; the longer one is counted in tokens."""
    ours = tokenizer()
    texts = [TEXT, "the river", TEXT + " " + TEXT]
    groups = [pair(str(n), text, "a") for n, text in enumerate(texts)]
    survey, facts = surveyed(groups, tokenizer=ours)
    # a continuation is tokenized behind a line end, which is then taken off
    expected = [len(ours("\n" + text, add_special_tokens=False)["input_ids"]) for text in texts]
    assert facts["response"]["max"] == max(expected)
    assert facts["longer_wins"]["value"] == 1
    assert facts["groups"] == 3
    assert not facts["sampled"]
    assert survey.level == "ok" or said(survey, "tokens")[0][0] == "ok"


def test_what_a_limit_cuts_off() -> None:
    """Of four pairs: b differs only behind the limit, c loses one end, d's prompt alone fills the limit."""
    ours = tokenizer()
    room = len(ours("Sing.\n", add_special_tokens=False)["input_ids"]) + 1
    limit = room + len(ours("\n" + TEXT, add_special_tokens=False)["input_ids"]) - 1
    groups = [
        pair("a", "a red stone", "a blue bird"),
        pair("b", TEXT + " and sings", TEXT + " and runs"),
        pair("c", TEXT + " " + TEXT, "a blue bird"),
        pair("d", "a red stone", "a blue bird", prompt=TEXT + " " + TEXT),
    ]
    survey, facts = surveyed(groups, tokenizer=ours, max_length=limit)
    assert facts["groups_over_max_length"] == 3
    assert facts["responses_end_lost"] == 2 + 1 + 2
    assert facts["pairs_identical_after_truncation"] == 2
    assert {row.id for row in survey.worst if "agree up to" in row.reason} == {"b", "d"}
    assert [level for level, _ in said(survey, "limit")] == ["warning", "warning"]
    survey, facts = surveyed(groups, tokenizer=ours, max_length=10_000)
    assert facts["groups_over_max_length"] == facts["pairs_identical_after_truncation"] == 0


def test_a_template_that_changes_the_prompt_is_named_with_its_first_token() -> None:
    """A generation prompt that is not there when the answer is: a problem, and the token is told."""
    survey, facts = surveyed([pair("a", "red", "blue")], tokenizer=tokenizer(THINKING))
    assert facts["prompts_not_a_prefix"] == 1
    ((level, words),) = said(survey, "template")[:1]
    assert level == "problem"
    assert "group a" in words
    assert "token" in words
    survey, facts = surveyed([pair("a", "red", "blue")], tokenizer=tokenizer(CHATML))
    assert facts["prompts_not_a_prefix"] == facts["responses_without_end"] == 0
    assert [level for level, _ in said(survey, "template")] == ["ok"]


def test_a_template_that_never_ends_a_response() -> None:
    """Both responses lack an end token; marginkit adds it and says so."""
    survey, facts = surveyed([pair("a", "red", "blue")], tokenizer=tokenizer(ENDLESS))
    assert facts["responses_without_end"] == 2
    assert said(survey, "template") == [("note", "the template does not end 2 of 2 (100%) responses with an end token")]


def test_two_start_tokens() -> None:
    """A template that writes the start token, and a tokenizer that adds one."""
    from tokenizers import processors

    twice = tokenizer("{{ bos_token }}" + CHATML)
    start = twice.bos_token, twice.bos_token_id
    twice.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start[0]} $A", pair=None, special_tokens=[start]
    )
    survey, facts = surveyed([pair("a", "red", "blue")], tokenizer=twice)
    assert facts["template_starts_twice"]
    assert any("two start tokens" in words for _, words in said(survey, "template"))
    once = tokenizer(CHATML)
    _, facts = surveyed([pair("a", "red", "blue")], tokenizer=once)
    assert not facts["template_starts_twice"]


def test_special_tokens_in_the_texts() -> None:
    """Responses that are templated already."""
    ours = tokenizer()
    templated = f"red {ours.eos_token} blue stone over a hill"
    survey, facts = surveyed([pair("a", templated, "blue")], tokenizer=ours)
    assert facts["responses_with_special_tokens"] == 1
    assert ("warning", "1 of 2 (50%) responses hold special tokens of this tokenizer") in said(survey, "template")


def test_a_chat_without_a_template_is_a_problem_with_a_way_out() -> None:
    """The encoder's own words; chatml is one."""
    chat = [pair("a", "red", "blue", prompt=(Turn("system", "Be brief."), Turn("user", "Sing.")))]
    survey, facts = surveyed(chat, tokenizer=tokenizer())
    assert "no chat template" in facts["refused"]
    assert survey.level == "problem"
    _, facts = surveyed(chat, tokenizer=tokenizer(), chat_template="chatml")
    assert facts["groups"] == 1


def test_large_data_is_sampled_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third of 25 groups where at most ten are encoded."""
    monkeypatch.setattr(tokens, "ENCODED", 10)
    survey, facts = surveyed([pair(str(n), f"red {n}", "blue") for n in range(25)], tokenizer=tokenizer())
    assert facts["sampled"]
    assert facts["groups"] == 9
    assert "every 3th" in said(survey, "tokens")[0][1]
