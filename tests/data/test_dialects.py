"""Every known dataset is recognised by its columns, and its evidence is taken as its authors meant it."""

import json
import math
from pathlib import Path

import pytest

from marginkit.data import dialects
from marginkit.data.dialects.judged import DIALECTS as JUDGED
from marginkit.data.pairing import make_pairs
from marginkit.data.sources import read_groups
from marginkit.errors import BadInput
from marginkit.records import Comparison, Pair, Rating, content_text

ROWS = Path(__file__).parent / "schema_rows"

# file -> dialect, rows, groups, responses of each group; all rows are kept but one of the 55k table
LAYOUTS = {
    "alpaca_eval_annotations.jsonl": ("alpaca-eval", 2, [2, 2]),
    "alpaca_farm_human_preference.jsonl": ("alpaca-farm", 1, [2]),
    "arena_human_preference_140k.jsonl": ("arena", 1, [2]),
    "arena_human_preference_55k.csv": ("arena-55k", 2, [2]),
    "chatbot_arena_conversations.jsonl": ("arena", 2, [2, 2]),
    "helpsteer2.jsonl": ("helpsteer", 4, [2, 2]),
    "helpsteer2_preference.jsonl": ("helpsteer2-preference", 2, [2, 2]),
    "helpsteer3_preference.jsonl": ("helpsteer3-preference", 3, [2, 2, 2]),
    "hh_rlhf.jsonl": ("hh-rlhf", 1, [2]),
    "mt_bench_human_judgments.jsonl": ("mt-bench", 1, [2]),
    "nectar.jsonl": ("nectar", 2, [3, 2]),
    "oasst1_messages.jsonl": ("oasst", 4, [3]),
    "orca_dpo_pairs_argilla.jsonl": ("orca-argilla", 1, [2]),
    "pku_saferlhf.jsonl": ("pku-saferlhf", 2, [2, 2]),
    "preference_collection_prometheus.jsonl": ("prometheus", 1, [2]),
    "prism_utterances.jsonl": ("prism", 2, [2]),
    "reward_bench.jsonl": ("reward-bench", 1, [2]),
    "reward_bench_2.jsonl": ("reward-bench-2", 1, [4]),
    "shp.jsonl": ("shp", 2, [2, 2]),
    "simpo_onpolicy_armorm.jsonl": ("simpo-on-policy", 1, [3]),
    "skywork_reward_preference.jsonl": ("skywork", 1, [2]),
    "summarize_from_feedback_axis.jsonl": ("summarize-from-feedback-axis", 1, [1]),
    "summarize_from_feedback_comparisons.jsonl": ("summarize-from-feedback", 1, [2]),
    "trl_preference.jsonl": ("pair", 2, [2, 2]),
    "trl_ultrafeedback_binarized.jsonl": ("ultrafeedback-binarized", 1, [2]),
    "trl_unpaired_kto.jsonl": ("trl-unpaired", 2, [2]),
    "ultrafeedback.jsonl": ("ultrafeedback", 2, [4, 3]),  # two of its completions say the same
    "ultrafeedback_binarized.jsonl": ("ultrafeedback-binarized", 2, [2, 2]),
    "webgpt_comparisons.jsonl": ("webgpt", 2, [2, 2]),
}


def rows_of(name):
    return [json.loads(line) for line in (ROWS / name).read_text().splitlines()]


def first(name, **changed):
    return rows_of(name)[0] | changed


def read(rows, **options):
    """The groups and the ledger of rows in memory, contradictions shown rather than refused."""
    groups, findings = read_groups(rows, **{"contradiction_limit": 1.0} | options)
    assert findings.read == findings.kept + sum(findings.dropped.values())
    return list(groups), findings


def texts(group):
    return [response.text for response in group.responses]


def grades(group):
    return [response.grade for response in group.responses]


def test_no_layout_is_forgotten():
    assert {path.name for path in ROWS.iterdir()} == set(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_recognised(name):
    dialect, rows, sizes = LAYOUTS[name]
    groups, findings = read_groups(ROWS / name)
    assert (findings.dialect, findings.read) == (dialect, rows)
    assert findings.dropped == ({"missing text": 1} if name.endswith(".csv") else {})
    assert [len(group.responses) for group in groups] == sizes
    assert findings.recognised.startswith(f"{dialect}: has ")
    assert findings.to_json()["recognised"] == findings.recognised


@pytest.mark.parametrize("name", [n for n in LAYOUTS if n.endswith(".jsonl") and n != "trl_preference.jsonl"])
def test_a_parquet_file_is_the_same(name, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows_of(name)), tmp_path / "rows.parquet")
    expected, told = read_groups(ROWS / name)
    groups, findings = read_groups(tmp_path / "rows.parquet")
    assert findings.dialect == told.dialect
    assert [(texts(group), grades(group), group.pairs, group.comparisons) for group in groups] == [
        (texts(group), grades(group), group.pairs, group.comparisons) for group in expected
    ]


def test_the_catalogue_is_in_order():
    names = [dialect.name for dialect in dialects.DIALECTS]
    assert len(set(names)) == len(names)
    for dialect in dialects.DIALECTS:
        assert dialect.needs, dialect.name
        assert dialect.layout in ("pair", "multi-response")
        assert not set(dialect.needs) & set(dialect.reads), dialect.name
        assert dialects.dialect_named(dialect.name) is dialect
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    assert [name for name in names if f"`{name}`" not in page] == []


# ---------------------------------------------------------------------------------------------------------------------
# Recognition


def test_why_is_said():
    _, findings = read(rows_of("webgpt_comparisons.jsonl"))
    assert findings.recognised == (
        "webgpt: has question, answer_0, answer_1, score_0, score_1, as openai/webgpt_comparisons"
    )
    assert read([{"prompt": "p", "chosen": "x", "rejected": "y"}])[1].recognised == "pair: has prompt, chosen, rejected"


def test_the_nearest_dialects_and_what_they_lack():
    row = {name: value for name, value in first("shp.jsonl").items() if name not in ("score_B", "labels")}
    with pytest.raises(BadInput, match=r"the nearest dialects: shp \(lacks score_B \(is it score_b\?\), labels\)"):
        read_groups([row | {"score_b": 3}])
    row = {"instruction": "q", "output_1": "x", "output_2": "y", "prefrence": 1}
    with pytest.raises(BadInput, match=r"alpaca-farm \(lacks preference \(is it prefrence\?\)\)"):
        read_groups([row])


def test_relatives_are_told_apart():
    """AlpacaEval has alpaca_farm's columns and more; the arena has MT-bench's and more; a user's file is neither."""
    assert read([first("alpaca_eval_annotations.jsonl")])[1].dialect == "alpaca-eval"
    assert read(rows_of("chatbot_arena_conversations.jsonl"))[1].dialect == "arena"
    pair = {"prompt": "p", "chosen": "x", "rejected": "y", "score_chosen": 2, "score_rejected": 1}
    assert read([pair])[1].dialect == "pair"
    assert read([pair | {"source": "s"}])[1].dialect == "pair"
    assert read([{"prompt": "p", "responses": [{"text": "x"}], "answers": [1]}])[1].dialect == "multi-response"
    assert read([{"instruction": "i", "output": "o", "input": ""}])[1].dialect == "sft"


def test_codes_of_another_file_are_not_guessed():
    """Who writes 0 and 1 for the two outputs does not mean alpaca_farm's 1 and 2."""
    rows = [{"instruction": f"{n}?", "output_1": "x", "output_2": "y", "preference": n % 2} for n in range(4)]
    with pytest.raises(BadInput, match="no known layout"):
        read(rows)
    assert read([row | {"preference": row["preference"] + 1} for row in rows])[1].dialect == "alpaca-farm"
    with pytest.raises(BadInput, match="no known layout"):
        read([{"question": "q", "answer_0": "x", "answer_1": "y", "score_0": 1, "score_1": 0}])
    with pytest.raises(BadInput, match="no known layout"):
        read([{"info": "text", "summary": "short"}])


def test_a_graded_transcript_is_not_taken_for_hh_rlhf():
    said = {side: f"\n\nHuman: Hi\n\nAssistant: {side}" for side in ("chosen", "rejected")}
    assert read([said])[1].dialect == "hh-rlhf"
    groups, findings = read([said | {"score_chosen": 2, "score_rejected": 1}])
    assert (findings.dialect, grades(groups[0])) == ("pair", [2.0, 1.0])


@pytest.mark.parametrize("hub", ["stanfordnlp/SHP-2", "stanfordnlp/shp"])
def test_a_hub_name_is_said(monkeypatch, hub):
    import datasets

    held = datasets.Dataset.from_list(rows_of("shp.jsonl"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: {"train": held.to_iterable_dataset()})
    groups, findings = read_groups(hub)
    named = "stanfordnlp/SHP-2" if hub.endswith("2") else "stanfordnlp/SHP"
    assert findings.recognised.endswith(f"as {named}")
    assert groups[0].source == hub


def test_a_dialect_can_be_named():
    rows = rows_of("pku_saferlhf.jsonl")
    assert texts(read(rows)[0][1]) == ["Bees make honey and pollinate plants.", "Bees."]
    groups, findings = read(rows, mapping="pku-saferlhf-safer")
    assert texts(groups[1]) == ["Bees.", "Bees make honey and pollinate plants."]
    assert findings.dialect == "pku-saferlhf-safer"
    with pytest.raises(BadInput, match="pku-saferlhf needs the columns response_0, response_1"):
        read([{"prompt": "p", "chosen": "x", "rejected": "y"}], mapping="pku-saferlhf")
    with pytest.raises(BadInput, match="no YAML file and no dialect of that name; did you mean 'nectar'"):
        read(rows, mapping="necter")


def test_columns_are_renamed_first():
    row = {("post" if name == "history" else name): value for name, value in first("shp.jsonl").items()}
    groups, findings = read([row], columns={"post": "history", "domain": "ignore"})
    assert (findings.dialect, groups[0].prompt, groups[0].subset) == ("shp", "Why does my bread not rise?", None)
    with pytest.raises(BadInput, match=r"columns.domain=kind: the dialect shp has no column 'kind'"):
        read([first("shp.jsonl")], columns={"domain": "kind"})
    with pytest.raises(BadInput, match=r"columns.nothing: .* has no such column"):
        read([first("shp.jsonl")], columns={"nothing": "ignore"})


# ---------------------------------------------------------------------------------------------------------------------
# Traps: what each dataset is known for, and what a loader gets wrong


def test_shp_label_1_is_a_and_is_checked_against_the_scores():
    groups, _ = read(rows_of("shp.jsonl"))
    assert [texts(group)[0] for group in groups] == ["Check that the yeast is alive.", "Rayleigh scattering."]
    assert grades(groups[0]) == [math.log(340), math.log(166)]
    assert groups[0].responses[0].aspects == {"upvotes": 340.0}
    gap = grades(groups[0])[0] - grades(groups[0])[1]
    assert 1 / (1 + math.exp(-gap)) == pytest.approx(340 / (340 + 166))  # gamma = 1 gives the share of the votes
    inverted = [first("shp.jsonl", labels=0)]
    assert read(inverted)[1].dropped == {"contradiction": 1}
    assert texts(read(inverted, contradiction="trust_grade")[0][0])[0] == "Check that the yeast is alive."
    low = read([first("shp.jsonl", score_A=4, score_B=-7)])[0][0]
    assert grades(low) == [math.log(4), 0.0]  # scores below 1 are read as 1


def test_lower_ranks_are_better_through_a_mapping():
    """The trap of UKPConvArg's rank file."""
    rows = [{"q": "?", "args": [{"a": "x", "rank": 2.5}, {"a": "y", "rank": 0.5}]}]
    given = {"prompt": "q", "responses": {"from": "args", "text": "a", "score": "-rank"}}
    groups, _ = read_groups(rows, mapping=given)
    assert grades(groups[0]) == [-2.5, -0.5]


def test_alpaca_eval_counts_from_one_and_zero_is_a_tie():
    rows = [
        first("alpaca_eval_annotations.jsonl", instruction=f"{at}?", preference=said)
        for at, said in enumerate([1.25, 1.75, 2, 1, 0, 1.5, None, 2.5])
    ]
    groups, findings = read(rows)
    assert [(texts(group)[0], group.pairs[0].prob, group.pairs[0].tie) for group in groups] == [
        ("An apple.", 0.75, False),
        ("Apple", 0.75, False),
        ("Apple", 1.0, False),
        ("An apple.", 1.0, False),
        ("An apple.", 0.5, True),
        ("An apple.", 0.5, True),
    ]
    assert findings.dropped == {"missing evidence": 1, "evidence out of range": 1}
    assert groups[0].responses[0].model == "gpt4_1106_preview"  # output_1 is the reference


def uf(score, fine, **aspects):
    annotations = {name: {"Rating": rating} for name, rating in aspects.items()}
    return {"response": f"{score} {fine} {aspects}", "model": "m", "overall_score": score, "fine-grained_score": fine,
            "annotations": annotations}  # fmt: skip


def test_ultrafeedback_writes_ratings_as_text_and_ten_for_one():
    completions = [
        uf(10.0, 1.5, helpfulness="1", honesty="N/A"),
        uf(10.0, 2.0),
        uf(10.0, 4.25, helpfulness="5"),
        uf(10.0, 3.0),
        uf(10.0, 4.0),
        uf(7.5, 1.0),
        uf(10.0, None, helpfulness="1", honesty="2"),
        uf(10.0, None, helpfulness="5", honesty="5"),
        uf(10.0, None),
        uf("8.5", "4"),
    ]
    groups, findings = read([{"instruction": "q", "source": "flan", "completions": completions}])
    assert grades(groups[0]) == [1.0, 1.0, 10.0, None, None, 7.5, 1.0, 10.0, None, 8.5]
    assert groups[0].responses[0].aspects == {"helpfulness": 1.0, "fine-grained": 1.5}
    assert findings.warned == {"overall_score 10 for 1": 3, "doubtful overall_score 10": 3}
    assert str(findings.items[0]) == (
        "row 1: completions[0] has overall_score 10, but its aspects average 1.5 of 5; read as 1"
    )
    assert groups[0].subset == "flan"
    broken = read([{"instruction": "q", "completions": [uf(3, 3, helpfulness="good")]}])[1]
    assert str(broken.items[0]).startswith('row 1: completions[0].annotations.helpfulness.Rating is "good"')


def test_equal_scores_of_ultrafeedback_binarized_are_ties():
    groups, _ = read(rows_of("ultrafeedback_binarized.jsonl"))
    assert [(grades(group), group.pairs[0].tie) for group in groups] == [([8.5, 4.0], False), ([7.0, 7.0], True)]


def test_the_sets_that_argilla_made_of_ultrafeedback():
    row = {"source": "s", "instruction": "q", "chosen_response": "x", "rejected_response": "y",
           "chosen_avg_rating": 4.75, "rejected_avg_rating": "2.5", "chosen_model": "m"}  # fmt: skip
    groups, findings = read([row])
    assert (findings.dialect, grades(groups[0])) == ("ultrafeedback-argilla", [4.75, 2.5])
    assert (groups[0].subset, groups[0].responses[0].model) == ("s", "m")
    row = {"prompt": "q", "chosen": "x", "rejected": "y", "chosen-rating": 5.0, "rejected-rating": 3.0,
           "chosen-model": "m", "rejected-model": "n"}  # fmt: skip
    groups, findings = read([row])
    assert (findings.dialect, grades(groups[0])) == ("ultrafeedback-argilla-cleaned", [5.0, 3.0])
    assert [response.model for response in groups[0].responses] == ["m", "n"]


def test_helpsteer_is_gathered_and_its_weights_are_stated():
    groups, findings = read(rows_of("helpsteer2.jsonl"))
    assert (findings.read, findings.kept, len(groups)) == (4, 4, 2)
    assert grades(groups[0]) == pytest.approx([4 * 0.65 + 4 * 0.8 + 4 * 0.45, 3 * 0.45])
    wordy = [first("helpsteer2.jsonl", verbosity=4, complexity=2), *rows_of("helpsteer2.jsonl")[1:]]
    assert grades(read(wordy)[0][0])[0] == pytest.approx(
        7.6 + 2 * 0.55 - 4 * 0.4
    )  # verbosity is not "the more the better"
    assert groups[0].responses[0].aspects["coherence"] == 4.0
    assert "0.65 helpfulness + 0.8 correctness + 0.45 coherence + 0.55 complexity - 0.4 verbosity" in findings.notes[0]
    assert [turn.role for turn in groups[1].prompt] == ["user", "assistant", "user"]
    assert groups[1].prompt[2].content == "Name a fruit."
    partly = read([first("helpsteer2.jsonl", coherence=None)])[0][0]
    assert (grades(partly), partly.responses[0].aspects["helpfulness"]) == ([None], 4.0)


@pytest.mark.parametrize("name", ["helpsteer2_preference.jsonl", "helpsteer3_preference.jsonl"])
def test_negative_strength_is_for_the_first_response(name):
    key = "preference_strength" if "2" in name else "overall_preference"
    one, two = ("response_1", "response_2") if "2" in name else ("response1", "response2")
    for said, better, strength in ((-2, "one", 2.0), (1, "two", 1.0), (0, "one", 0.0)):
        groups, _ = read([first(name, **{key: said, one: "one", two: "two"})])
        assert (texts(groups[0])[0], groups[0].pairs[0].strength) == (better, strength)
        assert groups[0].pairs[0].tie == (said == 0)


def test_annotators_of_helpsteer_are_kept_with_their_sign():
    row = first("helpsteer3_preference.jsonl", overall_preference=-1)
    row["individual_preference"] = [{"score": -2}, {"score": 1}, {"score": None}]
    chosen, rejected = read([row])[0][0].responses
    assert chosen.text == "A carrot."
    assert chosen.ratings == (Rating("annotator 1", 2.0, "preference"), Rating("annotator 2", -1.0, "preference"))
    assert [rating.value for rating in rejected.ratings] == [0.0, 0.0]


def test_annotators_of_a_tie_keep_their_sign_too():
    """Below 0 is for the first response, and the first one is told of in a tie."""
    row = first("helpsteer3_preference.jsonl", overall_preference=0)
    row["individual_preference"] = [{"score": -2}, {"score": 1}]
    group = read([row])[0][0]
    assert (group.responses[0].text, group.pairs[0].tie) == (row["response1"], True)
    assert [[rating.value for rating in one.ratings] for one in group.responses] == [[2.0, -1.0], [0.0, 0.0]]


def test_nectar_ranks_from_one_and_drops_answers_that_go_on_as_the_user():
    row = first("nectar.jsonl")
    row["answers"] = [*row["answers"], {"answer": "Sure.\n\nHuman: thanks", "model": "m", "rank": 4.0}]
    groups, findings = read([row])
    assert grades(groups[0]) == [-1.0, -2.0, -7.0]
    assert content_text(groups[0].prompt) == "What is 2+2?"
    assert findings.warned == {"answers with turns of the user": 1}
    assert [turn.role for turn in read(rows_of("nectar.jsonl"))[0][1].prompt] == ["user", "assistant", "user"]
    only = row | {"answers": [row["answers"][-1]]}
    assert read([only])[1].dropped == {"answers with turns of the user": 1}


def test_hh_rlhf_that_differs_before_the_last_turn_is_refused():
    row = first("hh_rlhf.jsonl")
    groups, findings = read([row, row | {"rejected": row["rejected"].replace("Hello!", "Hey!")}])
    assert (len(groups), findings.dropped) == (1, {"different prompts": 1})
    assert groups[0].pairs == (Pair(0, 1),)


def test_pku_labels_may_disagree_and_both_may_be_unsafe():
    row = first("pku_saferlhf.jsonl", is_response_1_safe=False, safer_response_id=0, response_1_severity_level=2)
    groups, findings = read([row])
    assert texts(groups[0])[0] == "Use the official reset page."  # better_response_id is 1
    assert findings.warned == {"better and safer disagree": 1, "both responses unsafe": 1}
    assert [response.aspects for response in groups[0].responses] == [
        {"severity": 2.0, "safe": 0.0},
        {"severity": 1.0, "safe": 0.0},
    ]


@pytest.mark.parametrize(
    ("winner", "votes", "subset"),
    [
        ("model_a", (1.0, 0.0, 0.0), None),
        ("tie", (0.0, 0.0, 1.0), "tie"),
        ("tie (bothbad)", (0.0, 0.0, 1.0), "both bad"),
        ("both_bad", (0.0, 0.0, 1.0), "both bad"),
    ],
)
def test_the_arena_has_four_outcomes(winner, votes, subset):
    groups, findings = read([first("chatbot_arena_conversations.jsonl", winner=winner)])
    assert (groups[0].pairs[0].votes, groups[0].subset) == (votes, subset)
    assert groups[0].pairs[0].tie == (winner != "model_a")
    assert findings.warned == ({"tie: both bad": 1} if subset == "both bad" else {})


def test_the_arena_orders_by_the_winner_and_refuses_what_it_does_not_know():
    rows = [first("chatbot_arena_conversations.jsonl", question_id=str(at), winner=winner)
            for at, winner in enumerate(["model_b", "draw", None, 1])]  # fmt: skip
    groups, findings = read(rows)
    assert texts(groups[0]) == ["A carrot.", "Apple."]
    assert groups[0].responses[0].model == "koala-13b"
    assert findings.dropped == {"unknown code": 3}
    assert str(findings.items[0]).startswith('row 2: winner is "draw"; the codes are "model_a", "model_b", "tie"')


def chat(*said):
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]


def test_arena_conversations_need_one_prompt():
    row = first("chatbot_arena_conversations.jsonl")
    rows = [
        row
        | {"question_id": "1", "conversation_a": chat("q", "x", "r", "y"), "conversation_b": chat("q", "z", "r", "y2")},
        row | {"question_id": "2", "conversation_a": chat("q", "x"), "conversation_b": chat("p", "y")},
        row
        | {"question_id": "3", "conversation_a": chat("q", "x", "r", "y"), "conversation_b": chat("q", "x", "r", "z")},
    ]
    groups, findings = read(rows)
    assert findings.dropped == {"different histories": 1, "different prompts": 1}
    assert (content_text(groups[0].prompt), texts(groups[0])) == ("q\nx\nr", ["y", "z"])


def test_two_people_may_vote_on_the_same_pair():
    row = first("chatbot_arena_conversations.jsonl")
    groups, findings = read([row, row | {"question_id": "other", "judge": "arena_user_2"}, row])
    assert (len(groups), findings.dropped) == (2, {"duplicate row": 1})


def test_the_55k_table_holds_lists_in_strings_and_nulls(tmp_path):
    header, nulls, tie = (ROWS / "arena_human_preference_55k.csv").read_text().splitlines()
    kept = tie.replace('"[""Hey""]",0,0,1', '"[""Hey""]",0,1,0')
    two = tie.replace("0,0,1", "1,0,1").replace("30193", "30194")
    (tmp_path / "a.csv").write_text("\n".join([header, nulls, kept, two]) + "\n")
    groups, findings = read_groups(tmp_path / "a.csv")
    assert texts(groups[0]) == ["Hey", "Hello"]
    assert [str(finding) for finding in findings.items] == [
        "a.csv:2: a turn of prompt or response_b is null; remove the row",
        "a.csv:4: winner_model_a, winner_model_b, winner_tie are [1.0, 0.0, 1.0]; exactly one of them is 1",
    ]


def test_mt_bench_votes_are_gathered_by_question_and_turn():
    row = first("mt_bench_human_judgments.jsonl")
    rows = [
        row,
        row | {"judge": "expert_2", "winner": "tie"},
        row | {"model_b": "vicuna", "conversation_b": chat("q1", "c1", "q2", "c2"), "winner": "model_a"},
        row,  # the same judge, twice
        row | {"turn": 2},
        row | {"question_id": 82, "conversation_a": chat("p1", "a"), "conversation_b": chat("p1", "b")},
        row | {"judge": "expert_9"},
    ]
    groups, findings = read(rows)
    assert findings.dropped == {"duplicate row": 1, "different histories": 1}
    assert texts(groups[0]) == ["a1", "b1", "c1"]
    assert groups[0].comparisons == (
        Comparison(0, 1, 0.0, 1.0, 0.0, "expert_17"),
        Comparison(0, 1, 0.0, 0.0, 1.0, "expert_2"),
        Comparison(0, 2, 1.0, 0.0, 0.0, "expert_17"),
    )
    assert [len(group.responses) for group in groups] == [3, 2, 2]
    assert any(note.startswith("1 times a prompt came again") for note in findings.notes)
    pairs = make_pairs(read_groups(rows)[0], how="given")[0].pairs
    assert pairs[0].votes == (1.0, 0.0, 1.0)


def test_mqm_scores_may_be_negative_zero_or_missing():
    given = {"prompt": "src", "responses": [{"text": "a", "score": "-pa"}, {"text": "b", "score": "-pb"}]}
    rows = [
        {"src": "s", "a": "x", "b": "y", "pa": 0.0, "pb": None},
        {"src": "t", "a": "x", "b": "y", "pa": 0.0, "pb": -0.0},
    ]
    groups, _ = read_groups(rows, mapping=given)
    assert grades(groups[0]) == [0.0, None]
    assert make_pairs(groups, how="all")[0].pairs == (Pair(0, 1, tie=True),)


@pytest.mark.parametrize(
    ("confidence", "choice", "strength"), [(1, 0, 4.0), (5, 0, 0.0), (9, 1, 4.0), (6, 1, 1.0), (None, 1, None)]
)
def test_confidence_of_summarize_from_feedback_is_signed_around_five(confidence, choice, strength):
    row = first("summarize_from_feedback_comparisons.jsonl", choice=choice, extra={"confidence": confidence})
    groups, _ = read([row])
    assert groups[0].pairs[0].strength == strength
    assert texts(groups[0])[0] == row["summaries"][choice]["text"]
    assert groups[0].prompt.startswith("SUBREDDIT: r/tifu\n\nTITLE: Lost keys\n\nPOST: I lost")


def test_confidence_against_the_choice_is_a_contradiction():
    rows = [first("summarize_from_feedback_comparisons.jsonl", extra={"confidence": 8})]
    assert read(rows)[1].dropped == {"contradiction": 1}
    rows = [first("summarize_from_feedback_comparisons.jsonl", extra={"confidence": 11})]
    assert read(rows)[1].dropped == {"evidence out of range": 1}


def test_axes_of_several_workers_are_one_response():
    row = first("summarize_from_feedback_axis.jsonl")
    other = json.loads(json.dumps(row | {"worker": "w2"}))
    other["summary"]["axes"] |= {"overall": 3, "accuracy": None}
    third = json.loads(json.dumps(row))
    third["summary"] |= {"text": " Keys.", "policy": "ref"}
    groups, findings = read([row, other, third])
    assert (len(groups), findings.warned) == (1, {})
    both, alone = groups[0].responses
    assert (both.grade, both.aspects["overall"], both.aspects["accuracy"]) == (4.5, 4.5, 7.0)
    assert {(r.rater, r.value) for r in both.ratings if r.aspect == "overall"} == {("w1", 6.0), ("w2", 3.0)}
    assert (alone.text, alone.grade, alone.model) == (" Keys.", 6.0, "ref")


@pytest.mark.parametrize("code", ["tie", 2, 0])
def test_tie_codes_differ(code):
    given = {"prompt": "q", "response_a": "l", "response_b": "r",
             "winner": {"from": "w", "a": ["A", 1], "b": ["B", -1], "tie": [code]}}  # fmt: skip
    rows = [{"q": "?", "l": "x", "r": "y", "w": code}, {"q": "!", "l": "x", "r": "y", "w": "B"}]
    groups, _ = read_groups(rows, mapping=given)
    assert [(texts(group)[0], group.pairs[0].tie) for group in groups] == [("x", True), ("y", False)]


def test_webgpt_scores_and_ties():
    groups, _ = read(rows_of("webgpt_comparisons.jsonl"))
    assert (grades(groups[0]), groups[0].pairs[0].tie, groups[1].pairs[0].tie) == ([0.6666666, -0.6666666], False, True)
    turned = first("webgpt_comparisons.jsonl", score_0=-0.5, score_1=0.5)
    assert texts(read([turned])[0][0])[0] == "The sea."


def test_alpaca_farm_raw_preference():
    row = first("alpaca_farm_human_preference.jsonl", instruction="Say it", input="in French")
    groups, _ = read([row | {"raw_preference": 2}])
    assert (groups[0].prompt, groups[0].pairs[0].strength) == ("Say it\n\nin French", 0.5)
    assert read([row | {"preference": 2, "raw_preference": 4}])[0][0].pairs[0].strength == 1.5
    assert read([row | {"preference": 2}])[1].dropped == {"contradiction": 1}


# ---------------------------------------------------------------------------------------------------------------------
# Samples, trees and other trainers


def test_simpo_sets_must_agree_with_their_scores():
    row = first("simpo_onpolicy_armorm.jsonl")
    assert grades(read([row])[0][0]) == [0.081, 0.152, 0.149]
    turned = row | {"chosen": row["rejected"]}
    assert read([turned])[1].dropped == {"contradiction": 1}
    groups, findings = read([turned], contradiction="keep")
    assert (grades(groups[0]), findings.warned) == ([0.081, 0.152, 0.149], {"contradiction": 1})
    assert read([row | {"all_rm_scores": [1.0]}])[1].dropped == {"malformed row": 1}


def message(name, parent, role="assistant", rank=None, **rest):
    shown = {"message_id": name, "parent_id": parent, "text": f"text of {name}", "role": role, "rank": rank}
    return shown | {"message_tree_id": "t", "lang": "en", "deleted": False, "labels": None, "model_name": None} | rest


def test_a_tree_of_messages():
    rows = [
        message("q", None, "prompter"),
        message("a", "q", rank=1.0),
        message("b", "q", rank=0.0, labels={"name": ["quality"], "value": [0.5], "count": [1]}),
        message("r", "b", "prompter", rank=0.0),
        message("c", "r", rank=None),
        message("s", "a", "prompter", rank=0.0),  # nobody answered
        message("d", "q", rank=2.0, deleted=True),
        message("e", "gone", rank=0.0),
    ]
    groups, findings = read(rows)
    assert [(group.id, texts(group), grades(group)) for group in groups] == [
        ("q", ["text of a", "text of b"], [-1.0, 0.0]),
        ("r", ["text of c"], [None]),
    ]
    assert groups[0].responses[1].aspects == {"quality": 0.5}
    assert [turn.content for turn in groups[1].prompt] == ["text of q", "text of b", "text of r"]
    assert (findings.read, findings.kept) == (8, 5)
    assert findings.dropped == {"deleted message": 1, "no answers": 2}


def test_a_leaf_of_a_tree_breaks_no_rule():
    rows = [message("q", None, "prompter"), message("a", "q", rank=0.0), message("s", "a", "prompter")]
    assert read(rows, strict=True)[1].dropped == {"no answers": 1}
    with pytest.raises(BadInput, match=r"1 of 4 rows break a rule \(strict\)"):
        read([*rows, message("b", "q", rank="best")], strict=True)


def test_the_same_tree_in_one_row():
    reply = {"message_id": "a", "text": "Apple.", "role": "assistant", "rank": 0,
             "labels": {"quality": {"value": 0.75, "count": 3}}, "replies": []}  # fmt: skip
    later = {"message_id": "r", "text": "And more?", "role": "prompter", "replies": [
        {"message_id": "c", "text": " ", "role": "assistant", "replies": []}]}  # fmt: skip
    other = reply | {"message_id": "b", "text": "Pear.", "rank": 1, "replies": [later]}
    tree = {"message_id": "q", "text": "Name a fruit.", "role": "prompter", "replies": [reply, other]}
    groups, findings = read([{"message_tree_id": "q", "tree_state": "ready", "prompt": tree}])
    assert (findings.dialect, findings.read, findings.kept) == ("oasst-trees", 1, 1)
    assert [(texts(group), grades(group)) for group in groups] == [(["Apple.", "Pear."], [0.0, -1.0])]
    assert findings.warned == {"part of the row left out": 1}
    ring = [message("x", "y", "prompter"), message("y", "x"), message("z", "x")]
    assert read(ring)[1].dropped == {"broken tree": 3}


def test_prism_goes_on_from_the_chosen_answers():
    row = first("prism_utterances.jsonl")
    rows = [
        *rows_of("prism_utterances.jsonl"),
        row | {"interaction_id": "i1", "turn": 1, "user_prompt": "Another?", "model_response": "Pear.", "score": 50},
        row | {"interaction_id": "i1", "turn": 1, "user_prompt": "Another?", "model_response": "Fig.", "score": 70,
               "if_chosen": False},
        row | {"conversation_id": "c1", "interaction_id": "i9", "turn": 2},  # its first turns are not here
    ]  # fmt: skip
    groups, findings = read(rows)
    assert [(group.id, grades(group)) for group in groups] == [("int0", [92.0, 11.0]), ("i1", [50.0, 70.0])]
    assert [turn.content for turn in groups[1].prompt] == ["Name a fruit.", "Apple.", "Another?"]
    assert findings.dropped == {"broken conversation": 1}


def test_unpaired_labels_make_groups_and_pairs_where_both_are_there():
    said = [("p", "x", True), ("p", "y", False), ("q", "z", True), ("q", "w", None)]
    rows = [{"prompt": prompt, "completion": text, "label": label} for prompt, text, label in said]
    groups, findings = read(rows)
    assert [(texts(group), grades(group)) for group in groups] == [(["x", "y"], [1.0, 0.0]), (["z"], [1.0])]
    assert (findings.kept, findings.dropped) == (3, {"unknown code": 1})
    made = make_pairs(read_groups(rows)[0], how="all")
    assert (len(made), made.dropped["one response only"]) == (1, 1)


TRAINERS = {
    "openrlhf": ({"prompt": "q", "chosen": "x", "rejected": "y", "margin": 1.5}, "pair", [None, None]),
    "distilabel pairs": (
        {"prompt": "q", "chosen": "x", "chosen_rating": 5, "rejected": "y", "rejected_rating": 2},
        "pair", [5.0, 2.0]),
    "distilabel": (
        {"instruction": "q", "generations": ["x", "y"], "ratings": [5, None], "generation_models": ["m", "n"]},
        "distilabel", [5.0, None]),
    "nemo-rl": (
        {"context": [{"role": "user", "content": "q"}],
         "completions": [{"rank": 0, "completion": [{"role": "assistant", "content": "x"}]},
                         {"rank": 1, "completion": [{"role": "assistant", "content": "y"}]}]},
        "nemo-rl", [0.0, -1.0]),
    "nemo-aligner": (
        {"prompt": "q", "chosen_response": "x", "rejected_response": "y", "chosen_reward": 4.0, "rejected_reward": 1.0},
        "nemo-aligner", [4.0, 1.0]),
    "ms-swift": ({"messages": chat("q", "x"), "rejected_response": "y", "margin": 2.0}, "ms-swift", [None, None]),
    "ms-swift messages": (
        {"messages": chat("q", "x"), "rejected_messages": chat("q", "y")}, "ms-swift-messages", [None, None]),
    "llama-factory": (
        {"instruction": "q", "input": "", "chosen": "x", "rejected": "y", "history": [["a", "b"]]},
        "llama-factory", [None, None]),
    "llama-factory sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "x"},
         "rejected": {"from": "gpt", "value": "y"}},
        "llama-factory-sharegpt", [None, None]),
    "llama-factory messages": (
        {"messages": chat("q"), "chosen": {"role": "assistant", "content": "x"},
         "rejected": {"role": "assistant", "content": "y"}},
        "llama-factory-messages", [None, None]),
    "turbo-alignment": ({"prompt": "q", "chosen": "x", "rejected": "y", "precomputed_margin": 2}, "pair", [None, None]),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINERS)
def test_column_sets_of_other_trainers(name):
    row, dialect, given = TRAINERS[name]
    groups, findings = read([row])
    assert (findings.dialect, findings.dropped) == (dialect, {})
    assert (texts(groups[0]), grades(groups[0])) == (["x", "y"], given)
    assert content_text(groups[0].prompt).split("\n")[-1] == "q"
    if "margin" in row or "precomputed_margin" in row:
        assert groups[0].pairs[0].strength == next(row[key] for key in row if "margin" in key)


@pytest.mark.parametrize(
    "name", [n for n, (_, dialect, _) in TRAINERS.items() if "swift" in dialect or "llama" in dialect]
)
def test_evidence_beside_the_columns_of_other_trainers_is_kept(name):
    row, dialect, _ = TRAINERS[name]
    row = row | {"chosen_rating": 4, "score_rejected": 1.5, "votes": [3, 1], "chosen_model": "m"}
    groups, findings = read([row])
    assert (findings.dialect, grades(groups[0])) == (dialect, [4.0, 1.5])
    assert (groups[0].pairs[0].votes, groups[0].responses[0].model) == ((3.0, 1.0, 0.0), "m")
    assert not any("not read" in note for note in findings.notes)


def test_evidence_of_a_dialect_in_table_cells(tmp_path):
    (tmp_path / "a.csv").write_text('instruction,chosen,rejected,margin,votes\nq,x,y,2.5,"[3, 1]"\n')
    groups, findings = read_groups(tmp_path / "a.csv")
    assert findings.dialect == "llama-factory"
    assert groups[0].pairs[0] == Pair(0, 1, strength=2.5, votes=(3.0, 1.0, 0.0))


def test_pku_labels_may_be_text_and_must_be_there():
    row = first("pku_saferlhf.jsonl")
    text = row | {name: str(row[name]) for name in ("better_response_id", "safer_response_id")}
    assert texts(read([text])[0][0]) == texts(read([row])[0][0])
    assert read([row | {"better_response_id": None}])[1].dropped == {"missing evidence": 1}


def test_reward_bench_2_with_several_correct_responses():
    row = first("reward_bench_2.jsonl", chosen=["Apple.", "Pear."], num_correct=2, subset="Ties", models=[])
    groups, _ = read([row])
    assert grades(groups[0]) == [1.0, 1.0, 0.0, 0.0, 0.0]
    pairs = make_pairs(read_groups([row])[0], how="all")[0].pairs
    assert sum(pair.tie for pair in pairs) == 1 + 3
    assert read([row | {"rejected": []}])[1].dropped == {"missing text": 1}


def test_orca_ratings_follow_the_order():
    row = first("orca_dpo_pairs_argilla.jsonl")
    assert grades(read([row])[0][0]) == [9.0, 3.0]
    assert read([row | {"chosen_score": 8.0}])[1].dropped == {"two grades of one response": 1}
    assert read([row | {"order": ["chosen", "chosen"]}])[1].dropped == {"malformed row": 1}
    assert read([row | {"order": ["chosen", "rejected"], "chosen_score": None}])[1].dropped == {"contradiction": 1}


def test_prometheus_scores_are_text():
    row = first("preference_collection_prometheus.jsonl")
    assert grades(read([row])[0][0]) == [5.0, 1.0]
    assert read([row | {"orig_preference": "B"}])[1].dropped == {"contradiction": 1}
    assert read([row | {"orig_score_A": "five"}])[1].dropped == {"wrongly typed evidence": 1}
    assert {dialect.name for dialect in JUDGED} >= {"prometheus", "alpaca-eval"}


# ---------------------------------------------------------------------------------------------------------------------
# Gathering


def test_a_bad_row_among_those_of_a_prompt_is_refused_alone():
    rows = rows_of("helpsteer2.jsonl")
    rows[1] = rows[1] | {"helpfulness": "very"}
    rows.insert(3, rows[2] | {"response": ""})
    groups, findings = read(rows)
    assert [texts(group) for group in groups] == [["4."], ["Apple.", "A carrot."]]
    assert (findings.read, findings.kept) == (5, 3)
    assert findings.dropped == {"wrongly typed evidence": 1, "empty response": 1}


def test_prompts_that_come_again_later_stay_apart_and_are_counted():
    rows = rows_of("helpsteer2.jsonl")
    groups, findings = read([*rows, rows[0] | {"response": "Four."}])
    assert [len(group.responses) for group in groups] == [2, 2, 1]
    assert any(note.startswith("1 times a prompt came again") for note in findings.notes)
    _, again = read([*rows, *rows])
    assert (again.kept, again.dropped) == (4, {"duplicate row": 4})


def test_a_limit_and_a_split_count_rows_of_gathered_groups():
    rows = [row | {"split": "train" if at < 2 else "dev"} for at, row in enumerate(rows_of("helpsteer2.jsonl"))]
    groups, findings = read(rows, limit=3)
    assert (findings.read, [len(group.responses) for group in groups]) == (3, [2, 1])
    groups, findings = read(rows, split="dev")
    assert (findings.read, findings.kept, len(groups), groups[0].split) == (2, 2, 1, "dev")


def test_a_very_long_run_of_rows_is_cut(monkeypatch):
    from marginkit.data import gathering

    monkeypatch.setattr(gathering, "MOST_GATHERED", 3)
    rows = [first("helpsteer2.jsonl", response=str(at)) for at in range(7)]
    groups, findings = read(rows)
    assert ([len(group.responses) for group in groups], findings.kept) == ([3, 3, 1], 7)
