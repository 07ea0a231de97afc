"""Arena-Hard's style control: what the win rate would be if answers were equally long and equally marked up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from marginkit.errors import BadInput
from marginkit.evaluation.arena_hard import UPSTREAM_DRAWS, Battles, Upstream
from marginkit.evaluation.bootstrap import Array, Codes, units
from marginkit.evaluation.calibration import sigmoid
from marginkit.evaluation.judgment_files import JudgedRow, Paths, read_rows
from marginkit.evaluation.logistic import fit_logistic
from marginkit.records import Estimate

FEATURES = ("length", "headers", "lists", "bold")
_COUNTS = {"headers": "header_count", "lists": "list_count", "bold": "bold_count"}
LEVEL = 0.9


@dataclass(frozen=True, slots=True)
class Controlled:
    """Win rate of one model with style taken out, in percent.

    Args:
        model: who was judged.
        score: percent, at the fit on all rows, with our 95% interval over questions.
        upstream: percent, as Arena-Hard prints it: the median of 100 bootstraps over the verdicts of all models, 90%.
    """

    model: str
    score: Estimate
    upstream: Upstream


@dataclass(frozen=True, slots=True)
class StyleControl:
    """One category with style control.

    Args:
        category: of the questions.
        baseline: against whom; 50.
        models: the best first.
        coefficients: of each feature, in logits a standard deviation: what the judge likes. A feature that never
            differs is left out.
    """

    category: str
    baseline: str
    models: list[Controlled]
    coefficients: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, estimates as they are elsewhere."""
        models = [{"model": m.model, "score": m.score.to_json(), "upstream": m.upstream.to_json()} for m in self.models]
        names = ("category", "baseline", "coefficients")
        return {name: getattr(self, name) for name in names} | {"models": models}


Styles = Mapping[tuple[str, str], Array]
"""`(model, question) -> [4]`: tokens, and how many headers, list items and bold spans an answer has."""


def read_styles(paths: Paths) -> dict[tuple[str, str], Array]:
    """What the answer files say of the answers' style: their `metadata`.

    Args:
        paths: `model_answer/MODEL.jsonl` of the models and of the baseline.

    Raises:
        BadInput: an answer has no metadata, or a count is no number.
    """
    found: dict[tuple[str, str], Array] = {}
    for row in read_rows(paths):
        model = row.name("model" if "model" in row.value else "model_id")
        metadata = row.value.get("metadata")
        if not isinstance(metadata, Mapping):
            row.refuse(
                f"the answer of {model} has no 'metadata'; write the answers with --tokenizer, or add it as upstream"
            )
        inner = JudgedRow(f"{row.where}, metadata", metadata)
        counts = [inner.number("token_len"), *(_total(inner, key) for key in _COUNTS.values())]
        if min(counts) < 0:
            inner.refuse("a count is below 0")
        found[model, str(row.identifier("uid" if "uid" in row.value else "question_id"))] = np.asarray(counts)
    return found


def _total(row: JudgedRow, key: str) -> float:
    counts = row.get(key)
    if not isinstance(counts, Mapping):
        return row.number(key)
    inner = JudgedRow(f"{row.where}, {key}", counts)
    return sum(inner.number(name) for name in counts)


def style_differences(own: Array, baseline: Array) -> Array:
    """How an answer's style differs from the baseline's.

    With t tokens and density d = count / (t + 1): `(t_m - t_b) / (t_m + t_b)` for the length, and
    `(d_m - d_b) / (d_m + d_b + 1)` for headers, lists and bold.

    Args:
        own: `[row, 4]`: tokens and three counts.
        baseline: `[row, 4]`.

    Returns:
        `[row, 4]`, each in [-1, 1]; 0 where both answers are empty.

    Example:
        >>> style_differences(np.array([[30.0, 0, 0, 31]]), np.array([[10.0, 0, 0, 0]])).round(3).tolist()
        [[0.5, 0.0, 0.0, 0.5]]

    Source: arena-hard-auto show_result.py.
    """
    together = own[:, :1] + baseline[:, :1]
    length = np.divide(own[:, :1] - baseline[:, :1], together, out=np.zeros_like(together), where=together > 0)
    first, second = own[:, 1:] / (own[:, :1] + 1), baseline[:, 1:] / (baseline[:, :1] + 1)
    return np.concatenate([length, (first - second) / (first + second + 1)], axis=1)


def control_style(
    battles: Sequence[Battles],
    styles: Styles,
    *,
    features: Sequence[str] = FEATURES,
    resamples: int = 200,
    seed: int = 0,
) -> list[StyleControl]:
    """Win rates with length and markdown held equal, by category: all models of a category in one fit.

    logit P(model m wins) = c_m + sum_k s_k z_k, z the style differences, standardised over all verdicts (ddof 1); the
    win rate is sigmoid(c_m).

    Args:
        battles: what `read_battles` gave.
        styles: what `read_styles` gave, of every model and its baseline.
        features: which of length, headers, lists, bold are controlled for.
        resamples: draws of our bootstrap over questions; each is a fit.
        seed: of both bootstraps.

    Returns:
        By category.

    Raises:
        BadInput: an answer has no style, baselines differ within a category, or an unknown feature.

    Source: arena-hard-auto show_result.py and utils/math_utils.py (v2). Deviations: the baseline's coefficient is 0,
    where upstream fits one more and subtracts it (the same objective, without its flat direction); the fit goes on to
    the minimum, where upstream stops after 50 steps at a learning rate of .1, short of it by tenths of a point; a
    feature that never differs is left out, where upstream divides by 0; single features work, where upstream cuts the
    wrong columns.
    """
    unknown = sorted(set(features) - set(FEATURES))
    if unknown or not features:
        raise BadInput(f"features {', '.join(unknown) or 'none'}: choose from {', '.join(FEATURES)}")
    found = []
    for category in sorted({one.category for one in battles}):
        found.append(_control([one for one in battles if one.category == category], styles, features, resamples, seed))
    return found


def _control(
    battles: Sequence[Battles], styles: Styles, features: Sequence[str], resamples: int, seed: int
) -> StyleControl:
    baseline, category = battles[0].baseline, battles[0].category
    if any(one.baseline != baseline for one in battles):
        raise BadInput(f"{category}: the models were judged against different baselines; judge them against one")
    models = [one.model for one in battles if one.model != baseline]
    rows = [(at, one.model, q) for at, one in enumerate(battles) for q in one.question]
    style = [_style(styles, model, question) for _, model, question in rows]
    beside = [_style(styles, baseline, question) for _, _, question in rows]
    z = style_differences(np.stack(style), np.stack(beside))
    spread = z.std(axis=0, ddof=1)
    used = [k for k, name in enumerate(FEATURES) if name in features and spread[k] > 0]
    z = (z[:, used] - z[:, used].mean(axis=0)) / spread[used]
    one_hot = np.asarray([[model == name for name in models] for _, model, _ in rows], dtype=np.float64)
    x = np.concatenate([one_hot, z], axis=1)
    y = np.concatenate([one.score for one in battles])
    questions = np.asarray([question for _, _, question in rows])
    clusters, independent = units(questions)

    def rates(weight: Array | None) -> Array:
        return fit_logistic(x, y, weight)

    fitted = rates(None)
    generator = np.random.default_rng(seed)
    count = int(clusters.max()) + 1
    by_question = np.stack([rates(_drawn(generator, count)[clusters]) for _ in range(resamples)])
    by_verdict = np.stack([rates(_drawn(generator, len(y))) for _ in range(UPSTREAM_DRAWS)])
    controlled = []
    for k, model in enumerate(models):
        own, upstream = 100 * sigmoid(by_question[:, k]), 100 * sigmoid(by_verdict[:, k])
        low, high = np.quantile(own, [0.025, 0.975])
        rows_of = int(one_hot[:, k].sum())
        score = Estimate(float(100 * sigmoid(fitted[k : k + 1])[0]), float(low), float(high), rows_of, independent)
        middle, bottom, top = np.quantile(upstream, [0.5, (1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        controlled.append(Controlled(model, score, Upstream(middle, bottom, top, LEVEL)))
    coefficients = dict(zip([FEATURES[k] for k in used], fitted[len(models) :].tolist(), strict=True))
    return StyleControl(category, baseline, sorted(controlled, key=lambda one: -one.score.value), coefficients)


def _drawn(generator: np.random.Generator, count: int) -> Array:
    """How often each of `count` is drawn."""
    drawn: Codes = generator.integers(count, size=count)
    return np.bincount(drawn, minlength=count).astype(np.float64)


def _style(styles: Styles, model: str, question: str) -> Array:
    try:
        return styles[model, question]
    except KeyError:
        has = any(name == model for name, _ in styles)
        what = f"its answer to question {question} is" if has else "its answers are"
        raise BadInput(f"style control needs the style of {model}: {what} in none of the answer files") from None
