"""MT-Bench: judgments to scores, by hand and against the plain way in pandas."""

import json

import numpy as np
import pandas as pd
import pytest

from marginkit.errors import BadInput
from marginkit.evaluation.mt_bench import read_rating, score_mt_bench, score_mt_bench_pairs


def _row(question, turn, score, model="m", judge="gpt-4"):
    return {"question_id": question, "model": model, "judge": [judge, "single-v1"], "score": score, "turn": turn}


def _pair(question, first, second, turn=1, model="m", other="base"):
    names = {"question_id": question, "model_1": model, "model_2": other, "judge": ["gpt-4", "pair-v2"], "turn": turn}
    return names | {"g1_winner": first, "g2_winner": second}


def _file(folder, rows, name="gpt-4_single.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("judgment", "rating"),
    [
        ("Rating: [[8]]", 8.0),
        ("[[7.5]] then [[2]]", 7.5),
        ("[3] before [[9]]", 9.0),
        ("[4] and [5]", 4.0),
        ("[[10]]", 10.0),
        ("[[ 8 ]] [[x]]", None),
        ("8/10", None),
        ("", None),
    ],
)
def test_the_rating_is_the_first_in_two_brackets_else_in_one(judgment, rating):
    assert read_rating(judgment) == rating


def test_the_average_is_over_rows_not_over_turns(tmp_path):
    """Turn 1: 8, 6, 4; turn 2: 2 (and a -1, left out): 6, 2 and 5, where the mean of means is 4."""
    rows = [_row(81, 1, 8), _row(82, 1, 6), _row(83, 1, 4), _row(81, 2, 2), _row(82, 2, -1)]
    [model] = score_mt_bench(_file(tmp_path, rows)).models
    assert (model.turn_1.value, model.turn_2.value, model.average.value) == (6.0, 2.0, 5.0)
    assert (model.turn_1.n, model.turn_2.n, model.average.n) == (3, 1, 4)
    assert (model.questions, model.unread, model.repeated, model.off_scale) == (3, 1, 0, 0)


@pytest.mark.parametrize("repeats", ["last", "all"])
def test_scores_are_those_of_pandas(tmp_path, repeats):
    rng = np.random.default_rng(0)
    rows = [
        _row(question, turn, int(rng.integers(1, 11)) if rng.random() > 0.03 else -1, model)
        for model in ("a", "b")
        for question in range(81, 161)
        for turn in (1, 2)
    ]
    rows += [_row(81, 1, 9.5, "a"), _row(99, 2, 3, "b")]  # judged again
    found = score_mt_bench(_file(tmp_path, rows), repeats=repeats)
    frame = pd.DataFrame(rows)
    if repeats == "last":
        frame = frame.drop_duplicates(["model", "question_id", "turn"], keep="last")
    frame = frame[frame.score != -1]
    for model in found.models:
        own = frame[frame.model == model.model]
        assert model.turn_1.value == pytest.approx(own[own.turn == 1].score.mean())
        assert model.turn_2.value == pytest.approx(own[own.turn == 2].score.mean())
        assert model.average.value == pytest.approx(own.score.mean())
        assert model.average.low < model.average.value < model.average.high
        assert model.average.clusters == own.question_id.nunique()
        assert model.repeated == 1
    assert [m.average.value for m in found.models] == sorted((m.average.value for m in found.models), reverse=True)
    json.dumps(found.to_json(), allow_nan=False)


def test_the_interval_keeps_both_turns_of_a_question_together(tmp_path):
    """Turns that agree carry no more than one of them: the interval is that of 80 questions, not of 160 rows."""
    scores = np.random.default_rng(1).integers(1, 11, 80)
    [model] = score_mt_bench(_file(tmp_path, [_row(q, t, int(s)) for q, s in enumerate(scores) for t in (1, 2)])).models
    half = (model.average.high - model.average.low) / 2
    assert half == pytest.approx(1.96 * scores.std() / np.sqrt(80), rel=0.12)
    assert model.turn_1.low == model.average.low


def test_one_turn_alone_and_a_score_read_from_the_judgment(tmp_path):
    rows = [{k: v for k, v in _row(q, 1, 0).items() if k != "score"} | {"judgment": "so [[7]]"} for q in (1, 2)]
    rows.append({k: v for k, v in _row(3, 1, 0).items() if k != "score"} | {"judgment": "no idea"})
    [model] = score_mt_bench(_file(tmp_path, rows)).models
    assert (model.average.value, model.turn_2.n, model.unread) == (7.0, 0, 1)
    assert model.to_json()["turn_2"]["value"] is None


def test_several_judges_are_not_mixed(tmp_path):
    rows = [_row(81, 1, 8), _row(81, 1, 2, judge="gpt-5")]
    path = _file(tmp_path, rows)
    with pytest.raises(BadInput, match=r"gpt-4, gpt-5; choose one"):
        score_mt_bench(path)
    assert score_mt_bench(path, judge="gpt-5").models[0].average.value == 2.0
    with pytest.raises(BadInput, match="no judgment of 'x'"):
        score_mt_bench(path, judge="x")


def test_scores_off_the_scale_count_and_are_told(tmp_path):
    [model] = score_mt_bench(_file(tmp_path, [_row(1, 1, 0), _row(2, 1, 100)])).models
    assert (model.average.value, model.off_scale) == (50.0, 2)


def test_pairs_by_hand(tmp_path):
    """Won, lost, a tie said, a tie by disagreement twice, an error: (1 + 3 / 2) / 5."""
    rows = [
        _pair(81, "model_1", "model_1"),
        _pair(82, "model_2", "model_2"),
        _pair(83, "tie", "model_1"),
        _pair(84, "model_1", "model_2"),
        _pair(85, "model_2", "tie"),
        _pair(86, "model_1", "error"),
        _pair(81, "model_1", "model_1", model="other"),
    ]
    found = score_mt_bench_pairs(_file(tmp_path, rows), baseline="base")
    best, own = found.models
    assert (best.model, best.win_rate_adjusted.value) == ("other", 1.0)
    assert (own.wins, own.losses, own.ties) == (1, 1, 3)
    assert own.win_rate.value == pytest.approx(1 / 5)
    assert own.loss_rate.value == pytest.approx(1 / 5)
    assert own.win_rate_adjusted.value == pytest.approx(0.5)
    assert found.errors == 1
    assert found.swayed == pytest.approx(3 / 6)
    json.dumps(found.to_json(), allow_nan=False)


def test_all_pairs_count_for_both_and_the_places_do_not_matter(tmp_path):
    rows = [_pair(1, "model_1", "model_1"), _pair(2, "model_2", "model_2", model="base", other="m")]
    found = score_mt_bench_pairs(_file(tmp_path, rows))
    assert {m.model: (m.wins, m.losses) for m in found.models} == {"m": (2, 0), "base": (0, 2)}


def test_games_judged_again_replace_the_first(tmp_path):
    rows = [_pair(1, "model_1", "model_1"), _pair(1, "model_2", "model_2"), _pair(1, "tie", "tie", turn=2)]
    path = _file(tmp_path, rows)
    last, every = (score_mt_bench_pairs(path, baseline="base", repeats=how) for how in ("last", "all"))
    assert (last.models[0].wins, last.models[0].losses, last.repeated) == (0, 1, 1)
    assert (every.models[0].wins, every.models[0].losses) == (1, 1)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([_row(1, 3, 5)], ":1: 'turn' is 3"),
        ([_row(1, 1, 5), {"question_id": 1}], ":2: has no 'judge'"),
        ([_row(1, 1, "7")], ":1: 'score' is a text"),
        ([_row(1.5, 1, 7)], ":1: 'question_id' is a number"),
        ([_row(1, 1, 7) | {"judge": []}], ":1: 'judge' is the judge's name"),
        ([_row(1, 1, -1)], "none of its 1 judgments has a score"),
    ],
)
def test_judgments_that_do_not_fit_are_refused(tmp_path, rows, says):
    with pytest.raises(BadInput, match=says):
        score_mt_bench(_file(tmp_path, rows))


@pytest.mark.parametrize(
    ("rows", "baseline", "says"),
    [
        ([_pair(1, "A", "B")], None, ":1: 'g1_winner' is 'A'"),
        ([_pair(1, "tie", "tie")], "nobody", "no game against the baseline 'nobody'"),
        ([_pair(1, "error", "tie")], None, "none of 1 games has a verdict"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(tmp_path, rows, baseline, says):
    with pytest.raises(BadInput, match=says):
        score_mt_bench_pairs(_file(tmp_path, rows), baseline=baseline)


def test_an_unknown_way_with_repeats():
    with pytest.raises(BadInput, match="repeats='first'"):
        score_mt_bench("x", repeats="first")
    with pytest.raises(BadInput, match="repeats='first'"):
        score_mt_bench_pairs("x", repeats="first")
