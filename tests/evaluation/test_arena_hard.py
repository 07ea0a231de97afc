"""Arena-Hard: verdicts by hand, win rates as Bradley-Terry, style control against a plain fit."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize

from marginkit.errors import BadInput
from marginkit.evaluation.arena_hard import (
    LABELS,
    read_battles,
    read_verdict,
    score_arena_hard,
    verdict_scores,
)
from marginkit.evaluation.style_control import control_style, read_styles, style_differences

BASE = "o3-mini-2025-01-31"


def _row(uid, first, second, model="m", **more):
    games = [None if label is None else {"score": label} for label in (first, second)]
    row = {"uid": uid, "category": "hard_prompt", "judge": "gpt-4.1", "model": model, "baseline": BASE, "games": games}
    return row | more


def _file(folder, rows, name="m.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("judgment", "label"),
    [
        ("My final verdict is: [[A>B]]", "A>B"),
        ("[[A>>B]] ... on reflection [[B=A]]", "B=A"),
        ("[[b>>a]]", "B>>A"),
        ("[A=B] and later [B>A]", "B>A"),
        ("[B>A] but [[A=B]] and [A>B]", "A=B"),
        ("[[A is better]]", None),
        ("", None),
        ("[[A<>B]]", "A<>B"),
    ],
)
def test_the_verdict_is_the_last_in_two_brackets_else_in_one(judgment, label):
    assert read_verdict(judgment) == label


@pytest.mark.parametrize(
    ("first", "second", "scores"),
    [
        ("B>>A", "A>B", [1, 1, 1, 1]),
        ("A=B", "B>A", [0, 0.5]),
        ("A>>B", "A>>B", [1, 1, 1, 0, 0, 0]),
        ("A>B", "B>A", [0, 0]),
        ("B<A", "A<B", [0, 0]),
        ("A<<B", "B<<A", [1] * 6),
        ("B=A", "A=B", [0.5, 0.5]),
        (None, "A>B", []),
        ("A>B", None, []),
    ],
)
def test_two_games_to_scores(first, second, scores):
    assert list(verdict_scores(first, second)) == scores


def test_the_fixtures_mean_what_the_sheet_says():
    means = [np.mean(verdict_scores(*pair)) for pair in (("A=B", "B>A"), ("A>>B", "A>>B"), ("A>B", "B>A"))]
    assert means == [0.25, 0.5, 0.0]


@pytest.mark.parametrize("label", sorted(LABELS))
def test_spellings_mirror(label):
    mirrored = label.translate(str.maketrans("AB<>", "BA><"))
    turned = label.translate(str.maketrans("AB", "BA"))
    assert LABELS[label] == LABELS[mirrored]
    assert [1 - score for score in LABELS[label]] == list(LABELS[turned])


def test_a_missing_game_drops_the_question_or_in_v01_itself(tmp_path):
    rows = [_row("a", "B>A", "A>B"), _row("b", None, "A>B"), _row("c", "A>B", "B>A")]
    [now] = read_battles(_file(tmp_path, rows))
    assert (now.question, now.score.tolist(), now.questions, now.missing) == (["a", "a", "c", "c"], [1, 1, 0, 0], 2, 1)
    old = [{"question_id": row["uid"], "model": "m", "judge": "gpt-4", "games": row["games"]} for row in rows]
    [before] = read_battles(_file(tmp_path, old, "old.jsonl"))
    assert (before.rule, before.category, before.baseline) == ("v0.1", "arena-hard-v0.1", "gpt-4-0314")
    assert (before.score.tolist(), before.questions, before.missing) == ([1, 1, 1, 0, 0], 3, 1)
    assert score_arena_hard([before])[0].upstream.level == 0.95


def test_a_label_is_read_from_the_judgment_where_there_is_no_score(tmp_path):
    row = _row("a", "A>B", "A>B") | {"games": [{"judgment": "so [[B>>A]]"}, {"judgment": "cannot say"}]}
    [found] = read_battles(_file(tmp_path, [row, _row("b", "B>A", "A>B")]))
    assert (found.questions, found.missing) == (1, 1)


def _world(seed=0, n=120, strengths=(("a", 0.5), ("b", -0.4), ("zero", 0.0))):
    rng = np.random.default_rng(seed)
    labels = ["A>B", "A>>B", "A=B", "B>A", "B>>A"]
    rows = []
    for model, strength in strengths:
        p = np.array([0.25 - 0.1 * strength, 0.15, 0.2, 0.25 + 0.1 * strength, 0.15])
        for k in range(n):
            first, second = (str(rng.choice(labels, p=q)) for q in (p, p[[3, 4, 2, 0, 1]]))
            rows.append(_row(f"q{k}", first, second, model))
    return rows


def test_the_win_rate_is_the_weighted_mean_and_bradley_terrys(tmp_path):
    battles = read_battles(_file(tmp_path, _world()))
    found = score_arena_hard(battles)
    for one in found:
        [own] = [b for b in battles if b.model == one.model]
        assert one.score.value == pytest.approx(100 * own.score.mean())
        # v0.1's way: an unregularised Bradley-Terry fit against the one baseline, base 10 and scale 400
        fit = minimize(
            lambda r, own=own: np.sum(np.logaddexp(0, r[0]) - own.score * r[0]), [0.0], method="BFGS", tol=1e-10
        )
        rating = 400 * fit.x[0] / np.log(10)
        assert one.score.value == pytest.approx(100 / (1 + 10 ** (-rating / 400)), abs=1e-3)
        assert one.upstream.value == pytest.approx(one.score.value, abs=1.0)
        assert one.upstream.level == 0.9
        assert one.upstream.high - one.upstream.low < one.score.high - one.score.low  # 90% of rows, 95% of questions
        assert one.score.clusters == 120
        assert one.verdicts == len(own.score)
    assert [one.score.value for one in found] == sorted((one.score.value for one in found), reverse=True)
    json.dumps([one.to_json() for one in found], allow_nan=False)


def test_categories_are_told_apart(tmp_path):
    creative = {"category": "creative_writing", "baseline": "gemini-2.0-flash-001"}
    rows = [_row("a", "B>A", "A>B"), _row("b", "A>B", "B>A", **creative)]
    found = score_arena_hard(read_battles(_file(tmp_path, rows)))
    assert [(one.category, one.score.value) for one in found] == [("creative_writing", 0.0), ("hard_prompt", 100.0)]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([_row("a", "A<>B", "A>B")], ":1: the label 'A<>B' is none of A>B"),
        ([_row("a", "A>B", "A>B"), _row("a", "A>B", "A>B")], ":2: question a of m was there before"),
        ([_row("a", "A>B", "A>B") | {"games": [{"score": "A>B"}]}], ":1: 'games' has 1 games"),
        ([_row("a", "A>B", "A>B") | {"games": [{"score": "A>B"}, {}]}], ":1: game 2 has no 'score'"),
        ([_row("a", "A>B", "A>B") | {"games": [{"score": 1}, {"score": "A>B"}]}], "'score' of game 1 is a label"),
        ([_row("a", None, "A>B")], ":1: m, hard_prompt: none of its 1 questions has a verdict"),
        ([_row("a", "A>B", "A>B"), _row("b", "A>B", "A>B", baseline="x")], "the baseline is not one"),
        ([_row("a", "A>B", "A>B"), _row("b", "A>B", "A>B", judge="x")], "gpt-4.1, x; choose one"),
        ([_row("a", "A>B", "A>B") | {"model": None}], ":1: 'model' is null"),
    ],
)
def test_judgments_that_do_not_fit_are_refused(tmp_path, rows, says):
    with pytest.raises(BadInput, match=says):
        read_battles(_file(tmp_path, rows))


def test_an_unknown_rule_or_judge(tmp_path):
    path = _file(tmp_path, [_row("a", "A>B", "A>B")])
    with pytest.raises(BadInput, match="rule='v3'"):
        read_battles(path, rule="v3")
    with pytest.raises(BadInput, match="no judgment of 'x'"):
        read_battles(path, judge="x")


# -- style control


def _answers(seed, models=("a", "b", "zero", BASE), n=120):
    rng = np.random.default_rng(seed)
    for model in models:
        for k in range(n):
            metadata = {
                "token_len": int(rng.integers(50, 900)),
                "header_count": {f"h{level}": int(rng.poisson(0.4)) for level in range(1, 7)},
                "list_count": {"ordered": int(rng.poisson(2)), "unordered": int(rng.poisson(3))},
                "bold_count": {"**": int(rng.poisson(4)), "__": 0},
            }
            yield {"uid": f"q{k}", "model": model, "metadata": metadata}


def test_style_control_is_the_minimum_of_upstreams_objective(tmp_path):
    """Upstream's own matrix (one column for every model and the baseline), minimised here by another method."""
    battles = read_battles(_file(tmp_path, _world()))
    styles = read_styles(_file(tmp_path, _answers(1), "answers.jsonl"))
    [found] = control_style(battles, styles, resamples=20)
    names = ["a", "b", BASE, "zero"]
    rows = [(b.model, q, s) for b in battles for q, s in zip(b.question, b.score, strict=True)]
    one_hot = np.zeros((len(rows), 4))
    for at, (model, _, _) in enumerate(rows):
        one_hot[at, names.index(model)] = 1
        one_hot[at, names.index(BASE)] = -1
    own, base = (np.array([styles[name or m, q] for m, q, _ in rows]) for name in (None, BASE))
    tokens, others = own[:, 0], base[:, 0]
    density, beside = own[:, 1:] / (tokens[:, None] + 1), base[:, 1:] / (others[:, None] + 1)
    z = np.column_stack([(tokens - others) / (tokens + others), (density - beside) / (density + beside + 1)])
    z = (z - z.mean(0)) / z.std(0, ddof=1)
    x, y = np.column_stack([one_hot, z]), np.array([s for *_, s in rows])
    oracle = minimize(lambda w: np.sum(np.logaddexp(0, x @ w) - y * (x @ w)), np.full(8, 0.5), method="BFGS").x
    for one in found.models:
        apart = oracle[names.index(one.model)] - oracle[names.index(BASE)]
        assert one.score.value == pytest.approx(100 / (1 + np.exp(-apart)), abs=0.01)
        assert one.score.low < one.score.value < one.score.high
        assert one.upstream.value == pytest.approx(one.score.value, abs=1.0)
    assert list(found.coefficients.values()) == pytest.approx(oracle[4:], abs=1e-3)
    json.dumps(found.to_json(), allow_nan=False)


def test_a_judge_that_likes_length_is_seen_through(tmp_path):
    """Two models as good as the baseline, one of them longer; the judge goes by length alone."""
    rng = np.random.default_rng(2)
    rows, answers = [], []
    for k in range(400):
        tokens = {
            "long": int(rng.integers(300, 900)),
            "same": int(rng.integers(100, 600)),
            BASE: int(rng.integers(100, 600)),
        }
        for model, count in tokens.items():
            counts = {"header_count": {"h1": 0}, "list_count": {"ordered": 0}, "bold_count": {"**": 0}}
            answers.append({"uid": f"q{k}", "model": model, "metadata": {"token_len": count} | counts})
        for model in ("long", "same"):
            z = 3 * (tokens[model] - tokens[BASE]) / (tokens[model] + tokens[BASE])
            won = rng.random(2) < 1 / (1 + np.exp(-z))
            rows.append(_row(f"q{k}", "B>A" if won[0] else "A>B", "A>B" if won[1] else "B>A", model))
    battles = read_battles(_file(tmp_path, rows))
    plain = {one.model: one.score for one in score_arena_hard(battles)}
    [found] = control_style(battles, read_styles(_file(tmp_path, answers, "answers.jsonl")), resamples=60)
    controlled = {one.model: one.score for one in found.models}
    assert plain["long"].low > 60
    assert controlled["long"].value < plain["long"].value - 5
    assert set(found.coefficients) == {"length"}  # the others never differ
    assert found.coefficients["length"] > 0.5


def test_features_can_be_chosen_and_are_bounded():
    own = np.array([[100.0, 5, 0, 0], [0.0, 0, 0, 0]])
    other = np.array([[300.0, 0, 9, 0], [0.0, 0, 0, 0]])
    found = style_differences(own, other)
    assert found[0, 0] == -0.5
    assert found[0, 1] == pytest.approx((5 / 101) / (5 / 101 + 1))
    assert found[0, 2] == pytest.approx(-(9 / 301) / (9 / 301 + 1))
    assert found[1].tolist() == [0, 0, 0, 0]
    assert (np.abs(found) <= 1).all()


def test_single_features_are_those_columns(tmp_path):
    battles = read_battles(_file(tmp_path, _world()))
    styles = read_styles(_file(tmp_path, _answers(1), "answers.jsonl"))
    [length] = control_style(battles, styles, features=["length"], resamples=2)
    assert list(length.coefficients) == ["length"]
    with pytest.raises(BadInput, match="features colour"):
        control_style(battles, styles, features=["colour"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[1:], "style of a: its answer to question q0 is in none"),
        (lambda rows: [row for row in rows if row["model"] != BASE], f"style of {BASE}: its answers are in none"),
        (lambda rows: [rows[0] | {"metadata": None}, *rows[1:]], ":1: the answer of a has no 'metadata'"),
        (
            lambda rows: [rows[0] | {"metadata": rows[0]["metadata"] | {"token_len": "9"}}, *rows[1:]],
            ":1, metadata: 'token_len' is a text",
        ),
        (
            lambda rows: [rows[0] | {"metadata": rows[0]["metadata"] | {"token_len": -1}}, *rows[1:]],
            "a count is below 0",
        ),
    ],
)
def test_answers_without_style_are_refused(tmp_path, change, says):
    battles = read_battles(_file(tmp_path, _world(n=5)))
    with pytest.raises(BadInput, match=says):
        control_style(battles, read_styles(_file(tmp_path, change(list(_answers(1, n=5))), "answers.jsonl")))
