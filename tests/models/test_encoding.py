"""Groups become tokens: every token is there once, no response is cut, and nothing is left out unseen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import tiny
from marginkit.data.encoded import EncodedGroup
from marginkit.data.encoding import CHATML, Encoder
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Content, Group, Pair, Response, Turn

PAD, BOS, EOS, START, END = range(5)  # ids in the tokenizer of `tiny`
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# what thinking models do: the turn that is to be answered is rendered in another way than once it is answered
REWRITES = (
    "{% for m in messages %}{% if m['role'] == 'user' and loop.last %}"
    "{{ '<|im_start|>user\n' + m['content'] + ' now' + '<|im_end|>' }}{% else %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_GENERATION_PROMPT = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}{% endfor %}"
TOOLS = (
    "{{ '<|bos|>' }}{% if tools %}{{ 'tools ' + tools[0]['function']['name'] + ' ' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% if m['tool_calls'] %}{{ ' calls ' + m['tool_calls'][0]['function']['name'] }}{% endif %}{{ '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def group(prompt: Content, *responses: Content, **fields: Any) -> Groups:
    """One group in a file of its own."""
    answers = tuple(Response(response) for response in responses)
    pairs = (Pair(0, 1),) if len(answers) > 1 else ()
    return Groups.from_iterable([Group("g1", prompt, answers, pairs=pairs, **fields)])


def encode(groups: Groups, own: Any = None, **options: Any) -> EncodedGroup:
    """The one group in tokens."""
    encoded, report = Encoder(own or tiny.tokenizer(), **{"max_length": 200} | options).encode(groups)
    assert (report.kept, report.groups) == (1, 1)
    one: EncodedGroup = encoded[0]
    return one


# ------------------------------------------------------------------------------------------------------ plain text


def test_plain_text_is_bos_prompt_separator_then_response_and_eos() -> None:
    """ids(BOS + prompt + newline) once, ids(response) + EOS each; all text can be read back."""
    own = tiny.tokenizer()
    one = encode(group("the red bird", "sings", "runs over the hill"), own)
    assert one.prompt_ids == [BOS, *own("the red bird\n", add_special_tokens=False)["input_ids"]]
    assert one.response_ids == [
        [*own(text, add_special_tokens=False)["input_ids"], EOS] for text in ("sings", "runs over the hill")
    ]
    assert own.decode(one.prompt_ids[1:] + one.response_ids[1][:-1]) == "the red bird\nruns over the hill"


def test_an_end_token_that_is_there_is_not_doubled() -> None:
    """A response that ends with the EOS text keeps one; one without gets one; the report counts those added."""
    own = tiny.tokenizer()
    encoded, report = Encoder(own, max_length=200).encode(group("a", "sings<|eos|>", "sings"))
    assert encoded[0].response_ids[0] == encoded[0].response_ids[1]
    assert encoded[0].response_ids[0].count(EOS) == 1
    assert report.eos_added == 1


def test_a_start_token_in_the_prompt_is_not_doubled() -> None:
    """A prompt that already starts with BOS has one."""
    one = encode(group("<|bos|>the bird", "sings", "runs"))
    assert one.prompt_ids.count(BOS) == 1
    assert one.prompt_ids[0] == BOS


def test_an_empty_prompt_is_a_start_token() -> None:
    """The first response token is predicted from something: BOS, or EOS where there is no BOS."""
    assert encode(group("", "sings", "runs")).prompt_ids == [BOS]
    bare = tiny.tokenizer()
    bare.backend_tokenizer.post_processor = processors.Sequence([])
    bare.bos_token = None
    assert encode(group("", "sings", "runs"), bare).prompt_ids == [EOS]


def test_an_empty_response_is_its_end_token() -> None:
    """Saying nothing is a response of one token."""
    assert encode(group("the bird", "", "runs")).response_ids[0] == [EOS]


def test_an_encoder_is_framed_by_cls_and_sep() -> None:
    """[CLS] prompt response [SEP], each once."""
    own = tiny.tokenizer(encoder=True)
    one = encode(group("the bird", "sings", "runs"), own)
    assert one.prompt_ids[0] == own.cls_token_id
    assert one.response_ids[0][-1] == own.sep_token_id
    whole = one.prompt_ids + one.response_ids[0]
    assert whole.count(own.cls_token_id) == whole.count(own.sep_token_id) == 1


def sentencepiece_like() -> Any:
    """A tokenizer that puts a space in front of every text, as Llama 2's and Gemma's relatives do."""
    own = Tokenizer(models.BPE(unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    own.decoder = decoders.Metaspace(prepend_scheme="always")
    own.train_from_iterator(
        [" ".join(tiny.WORDS) + "\n" + " ".join(tiny.WORDS)] * 4,
        trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_no_space_is_put_in_front_of_a_continuation() -> None:
    """With a tokenizer that prefixes a space, prompt + response still spell the text without one."""
    own = sentencepiece_like()
    alone = own("sings", add_special_tokens=False)["input_ids"]
    assert own.convert_ids_to_tokens(alone)[0].startswith("▁"), "tokenized alone, it gets a space"
    one = encode(group("the bird", "sings", "apple"), own)
    text = "".join(own.convert_ids_to_tokens(one.prompt_ids + one.response_ids[0][:-1]))
    assert text == "▁the▁bird\nsings"


# ------------------------------------------------------------------------------------------------------------ chat


def test_chatml_splits_at_the_generation_prompt() -> None:
    """The prompt ends with the assistant's header; the response with <|im_end|> and no second end token."""
    own = tiny.tokenizer(chat_template=CHATML)
    prompt = (Turn("system", "be slow"), Turn("user", "the bird"))
    one = encode(group(prompt, (Turn("assistant", "sings"),), "runs"), own)
    head = "<|im_start|>system\nbe slow<|im_end|>\n<|im_start|>user\nthe bird<|im_end|>\n<|im_start|>assistant\n"
    assert own.decode(one.prompt_ids) == head
    assert [own.decode(ids) for ids in one.response_ids] == ["sings<|im_end|>\n", "runs<|im_end|>\n"]
    assert all(EOS not in ids for ids in one.response_ids)
    whole = own.apply_chat_template(
        [
            {"role": "system", "content": "be slow"},
            {"role": "user", "content": "the bird"},
            {"role": "assistant", "content": "runs"},
        ],
        tokenize=True,
        return_dict=False,
    )
    assert one.prompt_ids + one.response_ids[1] == whole


def test_plain_text_goes_through_the_template_of_a_chat_model() -> None:
    """A plain prompt is a user turn, a plain response the assistant's."""
    own = tiny.tokenizer(chat_template=CHATML)
    turns = encode(group((Turn("user", "the bird"),), (Turn("assistant", "sings"),), "runs"), own)
    plain = encode(group("the bird", "sings", "runs"), own)
    assert (turns.prompt_ids, turns.response_ids) == (plain.prompt_ids, plain.response_ids)


def test_a_template_that_forbids_a_system_turn_is_quoted() -> None:
    """The message names the group and repeats what the template says."""
    own = tiny.tokenizer(chat_template=NO_SYSTEM)
    prompt = (Turn("system", "be slow"), Turn("user", "the bird"))
    with pytest.raises(BadInput, match=r"group g1: the chat template refuses it \(System role not supported\)"):
        encode(group(prompt, "sings", "runs"), own)
    assert encode(group(prompt[1:], "sings", "runs"), own).response_ids[0][-1] == END


def test_a_template_that_rewrites_the_prompt_is_refused_with_the_first_token_that_differs() -> None:
    """`prefix` refuses and shows both tokens; `common_prefix` counts all from there as response."""
    own = tiny.tokenizer(chat_template=REWRITES)
    groups = group((Turn("user", "the bird"),), "sings", "runs")
    with pytest.raises(
        BadInput, match=r"does not keep the prompt as it was: token \d+ is ' ?n?\w*' in the prompt"
    ) as e:
        encode(groups, own)
    assert "'<|im_end|>' in prompt + response" in str(e.value)
    assert "encoding.boundary=common_prefix" in str(e.value)
    encoder = Encoder(own, max_length=200, boundary="common_prefix")
    encoded, report = encoder.encode(groups)
    assert own.decode(encoded[0].prompt_ids) == "<|im_start|>user\nthe bird"
    assert own.decode(encoded[0].response_ids[0]) == "<|im_end|><|im_start|>assistant\nsings<|im_end|>"
    assert report.boundary_merged == 1


def test_without_a_generation_prompt_the_header_belongs_to_the_response() -> None:
    """The template ends no turn either: the response gets an end token."""
    own = tiny.tokenizer(chat_template=NO_GENERATION_PROMPT)
    long, short = "runs over the old green hill", "runs"
    one = encode(group((Turn("user", "the bird"),), long, short), own)
    assert own.decode(one.prompt_ids) == "<|im_start|>user\nthe bird"
    assert own.decode(one.response_ids[0]) == f"<|im_start|>assistant\n{long}<|eos|>"


def test_a_short_answer_ends_as_a_long_one_does() -> None:
    """The header's own special token is not taken for the end of an answer of one token."""
    own = tiny.tokenizer(chat_template="{% for m in messages %}{{ '<|im_start|>' + m['content'] }}{% endfor %}")
    one = encode(group((Turn("user", "the bird"),), "s", "sings over the old green hill"), own)
    assert [own.decode(ids) for ids in one.response_ids] == [
        "<|im_start|>s<|eos|>",
        "<|im_start|>sings over the old green hill<|eos|>",
    ]


def test_a_base_model_takes_a_single_turn_and_refuses_a_chat() -> None:
    """One user turn is plain text; more turns, tools or calls need a template, and the message says which key."""
    plain = encode(group("the bird", "sings", "runs"))
    single = encode(group((Turn("user", "the bird"),), (Turn("assistant", "sings"),), "runs"))
    assert (single.prompt_ids, single.response_ids) == (plain.prompt_ids, plain.response_ids)
    turns = (Turn("user", "the bird"), Turn("assistant", "sings"), Turn("user", "and"))
    call = Turn("assistant", "", tool_calls=({"function": {"name": "f"}},))
    for refused in (
        group(turns, "a", "b"),
        group((Turn("system", "be slow"), Turn("user", "the bird")), "a", "b"),
        group("the bird", "a", "b", tools=({"function": {"name": "f"}},)),
        group("the bird", (call,), "b"),
    ):
        with pytest.raises(BadInput, match=r"group g1: .* no chat template; set encoding.chat_template=chatml"):
            encode(refused)
    assert encode(group(turns, "a", "b"), chat_template="chatml").response_ids[0][-2] == END


def test_tools_and_calls_reach_the_template() -> None:
    """Tools, tool calls and tool turns are rendered; BOS comes from the template, once."""
    own = tiny.tokenizer(chat_template=TOOLS)
    tools = ({"type": "function", "function": {"name": "stone", "parameters": {}}},)
    turns = (
        Turn("assistant", "", tool_calls=({"type": "function", "function": {"name": "stone", "arguments": {}}},)),
        Turn("tool", "old", name="stone"),
        Turn("assistant", "sings"),
    )
    one = encode(group((Turn("user", "the bird"),), turns, "runs", tools=tools), own)
    assert (
        own.decode(one.prompt_ids) == "<|bos|>tools stone <|im_start|>user\nthe bird<|im_end|><|im_start|>assistant\n"
    )
    assert own.decode(one.response_ids[0]).startswith(" calls stone<|im_end|><|im_start|>tool\nold<|im_end|>")
    assert (one.prompt_ids + one.response_ids[0]).count(BOS) == 1


def test_a_template_comes_from_a_file(tmp_path: Path) -> None:
    """A Jinja file replaces the tokenizer's own; a missing one is named."""
    path = tmp_path / "mine.jinja"
    path.write_text(NO_SYSTEM)
    one = encode(group("the bird", "sings", "runs"), tiny.tokenizer(chat_template=CHATML), chat_template=str(path))
    assert one.response_ids[0][-1] == END
    with pytest.raises(BadInput, match=r"encoding.chat_template: no file nowhere.jinja; give a Jinja file or `chatml`"):
        Encoder(tiny.tokenizer(), max_length=9, chat_template="nowhere.jinja")


def test_a_tokenizer_without_an_end_is_refused() -> None:
    """Without EOS or SEP no response ever ends."""
    own = tiny.tokenizer()
    own.eos_token = None
    with pytest.raises(BadInput, match="neither an EOS nor a SEP token"):
        Encoder(own, max_length=9)


# -------------------------------------------------------------------------------------------------------- overflow


def many(long: int, count: int = 40) -> Groups:
    """`long` of `count` groups have a prompt of 60 words, the others of 2."""
    return Groups.from_iterable(
        Group(
            f"g{number}",
            "bird " * (60 if number < long else 2),
            (Response("sings over the hill"), Response("runs")),
            pairs=(Pair(0, 1),),
        )
        for number in range(count)
    )


def test_too_many_over_long_groups_stop_with_counts_and_ways_out() -> None:
    """3 of 40 is above 1%: the message has counts, share, percentile, longest and the three ways out."""
    with pytest.raises(BadInput) as e:
        Encoder(tiny.tokenizer(), max_length=40).encode(many(3))
    message = str(e.value)
    assert message.startswith("3 of 40 groups (7.5%) are longer than max_length=40 tokens (95% are within ")
    for word in ("the longest is", "encoding.max_length", "on_overflow=drop | cut_prompt_left"):
        assert word in message
    assert "\n" not in message


@pytest.mark.parametrize(("options", "long"), [({"on_overflow": "drop"}, 3), ({"overflow_limit": 0.1}, 3)])
def test_over_long_groups_are_dropped_and_counted(options: dict[str, Any], long: int) -> None:
    """Kept + dropped == groups; those kept are whole."""
    encoded, report = Encoder(tiny.tokenizer(), max_length=40, **options).encode(many(long))
    assert report.dropped == {"longer than max_length": long}
    assert report.kept + sum(report.dropped.values()) == report.groups == 40
    assert len(encoded) == report.kept == 37
    assert [one.row for one in encoded] == list(range(3, 40)), "rows point into the groups they came from"
    assert max(one.length for one in encoded) <= 40 < report.longest


def test_cut_prompt_left_keeps_the_start_token_and_whole_responses() -> None:
    """The cut group has exactly max_length tokens: BOS, the end of the prompt, and the response as it was."""
    own = tiny.tokenizer()
    whole = Encoder(own, max_length=200).encode(many(3))[0]
    encoded, report = Encoder(own, max_length=40, on_overflow="cut_prompt_left").encode(many(3))
    assert (report.kept, report.cut_prompts, report.dropped) == (40, 3, {})
    for before, after in zip(whole, encoded, strict=True):
        assert after.response_ids == before.response_ids
        assert after.prompt_ids[0] == BOS
        assert after.prompt_ids[1:] == before.prompt_ids[len(before.prompt_ids) - len(after.prompt_ids) + 1 :]
        assert after.length == min(40, before.length)


def test_a_response_that_leaves_no_room_is_dropped_even_then() -> None:
    """No response is ever cut: a group whose response fills max_length is left out under a reason of its own."""
    groups = Groups.from_iterable(
        [Group("g", "the bird", (Response("bird " * 60), Response("runs")), pairs=(Pair(0, 1),)), *many(0, 4)]
    )
    encoded, report = Encoder(tiny.tokenizer(), max_length=40, on_overflow="cut_prompt_left").encode(groups)
    assert report.dropped == {"response fills max_length": 1}
    assert report.kept + 1 == report.groups == 5
    assert len(encoded) == 4


def test_the_report_counts_every_token() -> None:
    """Prompt and response tokens of what was kept, and the words for the log."""
    encoded, report = Encoder(tiny.tokenizer(), max_length=40, on_overflow="drop").encode(many(3))
    assert report.prompt_tokens == sum(len(one.prompt_ids) for one in encoded)
    assert report.response_tokens == sum(len(ids) for one in encoded for ids in one.response_ids)
    assert report.in_words().startswith("37 of 40 groups, ")
    assert "3 dropped (longer than max_length)" in report.in_words()


# ------------------------------------------------------------------------------------------------------- evidence


def test_the_columns_of_the_pairs_come_along() -> None:
    """Grades, utilities, votes as a probability, strength, weight, ties; NaN stands for absent."""
    made = Group(
        "g",
        "the bird",
        (Response("sings", grade=3.0, utility=0.5), Response("runs", grade=1.0), Response("under")),
        pairs=(Pair(0, 1, votes=(3, 1, 0), weight=2.0), Pair(1, 2, strength=1.5), Pair(2, 0, tie=True)),
    )
    one = encode(Groups.from_iterable([made]))
    assert (one.chosen, one.rejected, one.tie) == ([0, 1, 2], [1, 2, 0], [False, False, True])
    assert one.grade[:2] == [3.0, 1.0]
    assert one.grade[2] != one.grade[2]
    assert one.utility[0] == 0.5
    assert one.prob[0] == 0.75
    assert one.prob[1] != one.prob[1]
    assert one.strength[1] == 1.5
    assert one.weight == [2.0, 1.0, 1.0]


def test_many_groups_are_encoded_as_each_alone() -> None:
    """600 groups (more than one batch of the tokenizer) in order, each with the tokens it has by itself."""
    own, groups = tiny.tokenizer(), tiny.graded_groups(600)
    encoded = tiny.encode(groups, own)
    assert [one.id for one in encoded] == groups.column("id")
    for index in (0, 255, 256, 511, 512, 599):
        alone = tiny.encode(Groups.from_iterable([groups[index]]), own)[0]
        together = encoded[index]
        assert (together.prompt_ids, together.response_ids) == (alone.prompt_ids, alone.response_ids)
