"""AlpacaEval's length-controlled win rate: exact with the files that its authors publish, else labelled."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marginkit.errors import BadInput
from marginkit.evaluation.bootstrap import Array, Codes
from marginkit.evaluation.calibration import sigmoid
from marginkit.evaluation.logistic import fit_logistic

GAMED_SHA256 = "97aeec3f1c7de6dee6fd31fe66f1702623f4614c3efe1c6fc5f4927cd5fd674d"
DIFFICULTY_SHA256 = "e28d875bb334f75e17acd1e4ed659b261860e3db379cf5de29060301bed0a18b"
WHERE = "the dataset tatsu-lab/alpaca_eval of the Hugging Face hub, revision 2edc6fad"
COLUMNS = ("length", "difficulty", "model")
GAMED_WEIGHT = 0.2 / 2
APPROXIMATIONS = {
    "difficulty": "LC-approx: without the length-gamed rows that regularise the fit; on 50 public models .8 points off "
    "on average, but 15 where the length itself was gamed",
    "length": "LC-approx: by length alone, without difficulties; on 50 public models 6.9 points off on average, 28 at "
    "most",
    "unofficial": "LC-approx: the fit is AlpacaEval's, the files are not its own",
}


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """The win rate at equal lengths, in percent.

    Args:
        value: percent.
        label: `LC`, or `LC-approx` where it is not AlpacaEval's number.
        says: what the number is, in words.
        standard_error: as upstream, percent: the spread of the fitted win rates over instructions alone. It
            knows nothing of the fit and is two to six times too small.
        low: lower end of the 95% interval by refitting; None without refits.
        high: upper end.
        refits: how many.
        weights: of length, difficulty and model (the constant), as in AlpacaEval's table of weights.
    """

    value: float
    label: str
    says: str
    standard_error: float
    low: float | None
    high: float | None
    refits: int
    weights: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; NaN becomes None."""
        found = {name: getattr(self, name) for name in ("value", "label", "says", "low", "high", "refits", "weights")}
        return found | {"standard_error": None if math.isnan(self.standard_error) else self.standard_error}


@dataclass(frozen=True, slots=True)
class GamedRows:
    """`df_gamed.csv`: two length-gamed copies of the baseline, and the difficulty of each instruction.

    Args:
        preference: `[row]`, in [0, 1], NaN where there is none.
        length: `[row]`, standardised difference of lengths.
        row_difficulty: `[row]`.
        difficulty: of the instruction at each place.
        official: whether the file is the published one, by its SHA-256.
    """

    preference: Array
    length: Array
    row_difficulty: Array
    difficulty: Mapping[int, float]
    official: bool


def read_gamed(path: str | Path, *, unofficial: bool = False) -> GamedRows:
    """Read `df_gamed.csv`.

    Args:
        path: the file.
        unofficial: take a file that is not the published one; numbers are then labelled LC-approx.

    Raises:
        BadInput: no such file, another one, or a column or number is missing.
    """
    rows, official = _table(path, GAMED_SHA256, unofficial)
    wanted = ("preference", "index", "std_delta_len", "instruction_difficulty")
    if rows and not set(wanted) <= set(rows[0]):
        raise BadInput(f"{path}:1: lacks the columns {', '.join(sorted(set(wanted) - set(rows[0])))}")
    columns = {name: [_number(path, at, name, row[name]) for at, row in enumerate(rows)] for name in wanted}
    found: dict[float, int] = {}
    for at, index in enumerate(columns["index"]):
        found.setdefault(index, at)
    difficulty = {at: columns["instruction_difficulty"][at] for at in found.values()}
    return GamedRows(
        np.asarray(columns["preference"]),
        np.asarray(columns["std_delta_len"]),
        np.asarray(columns["instruction_difficulty"]),
        difficulty,
        official,
    )


def read_difficulty(path: str | Path, *, unofficial: bool = False) -> tuple[dict[int, float], bool]:
    """Read `instruction_difficulty.csv`: the difficulty at each place, and whether the file is the published one.

    Args:
        path: the file: an index column and one of numbers.
        unofficial: take a file that is not the published one.

    Raises:
        BadInput: as in `read_gamed`.
    """
    rows, official = _table(path, DIFFICULTY_SHA256, unofficial)
    if not rows or len(rows[0]) < 2:
        raise BadInput(f"{path}:1: has two columns, the index and the difficulty")
    names = list(rows[0])
    found = {
        int(_number(path, at, names[0], row[names[0]])): _number(path, at, names[1], row[names[1]])
        for at, row in enumerate(rows)
    }
    return found, official


def length_controlled(
    preference: Array,
    length_1: Array,
    length_2: Array,
    *,
    difficulty: Array | None = None,
    gamed: GamedRows | None = None,
    official: bool = False,
    refits: int = 0,
    seed: int = 0,
) -> LengthControlled:
    """Win rate that the model would have at the baseline's lengths.

    logit P(the model wins i) = w_len tanh(L_i) + w_dif D_i + w_0, with L = (length_1 - length_2) / sd over this model's
    rows; LC = 100 mean_i sigmoid(w_dif D_i + w_0) over all rows, those without a preference too.

    With the gamed rows (weight .1 each, without the constant) the fit is AlpacaEval's own: L1-penalised, the penalty
    chosen from ten by five-fold cross-validation, by scikit-learn. Without, it is unpenalised, and labelled.

    Args:
        preference: `[row]`, x = preference - 1 in [0, 1], NaN where the judge gave none.
        length_1: `[row]`, characters of the baseline's output.
        length_2: `[row]`, characters of the model's.
        difficulty: `[row]`; None fits length alone.
        gamed: what `read_gamed` gave; needs `difficulty`.
        official: whether gamed rows and difficulties are the published ones.
        refits: bootstrap draws of instructions, each refitted at the penalty chosen on all; 0 gives no interval.
        seed: of the bootstrap.

    Returns:
        The win rate, in percent.

    Raises:
        BadInput: fewer than two rows with a preference, equal lengths everywhere, or scikit-learn is not installed.

    Example:
        >>> x, own = np.array([0.2, 0.9, 0.8, 0.3]), np.array([10.0, 30.0, 30.0, 10.0])
        >>> found = length_controlled(x, np.full(4, 20.0), own)
        >>> found.label, round(found.value, 1), found.weights["length"] < 0  # longer is favoured
        ('LC-approx', 57.9, True)

    Source: Dubois et al. 2404.04475; alpaca_eval src/alpaca_eval/metrics/glm_winrate.py. Deviation: the interval.
    """
    if gamed is not None and difficulty is None:
        raise BadInput("the gamed rows need difficulties beside them")
    here = ~np.isnan(preference)
    delta = length_1 - length_2
    spread = float(np.std(delta, ddof=1)) if len(delta) > 1 else 0.0
    if here.sum() < 2 or not spread > 0:
        raise BadInput("a length-controlled win rate needs two rows with a preference, and lengths that differ")
    columns = [np.tanh(delta / spread), *([] if difficulty is None else [difficulty]), np.ones(len(delta))]
    names = [name for name in COLUMNS if difficulty is not None or name != "difficulty"]
    x = np.stack(columns, axis=1)
    fit = _Fit(gamed) if gamed is not None else None

    def weights_on(rows: Codes, *, penalty: float | None) -> Array:
        inside = rows[here[rows]]
        if fit is None:
            return fit_logistic(x[inside], preference[inside])
        return fit.weights(x[inside], preference[inside], penalty)

    everything = np.arange(len(x))
    weights = weights_on(everything, penalty=None)
    even = x.copy()
    even[:, 0] = 0.0
    fitted = 100 * sigmoid(even @ weights)
    generator, drawn = np.random.default_rng(seed), []
    for _ in range(refits):
        rows = generator.integers(len(x), size=len(x))
        chosen = None if fit is None else fit.penalty
        drawn.append(float(np.mean(100 * sigmoid(even[rows] @ weights_on(rows, penalty=chosen)))))
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist() if drawn else (None, None)
    if gamed is not None and official:
        label, says = "LC", "AlpacaEval's length-controlled win rate"
    else:
        kind = "unofficial" if gamed is not None else "length" if difficulty is None else "difficulty"
        label, says = "LC-approx", APPROXIMATIONS[kind]
    error = float(np.std(fitted, ddof=1) / math.sqrt(len(fitted)))
    named = dict(zip(names, weights.tolist(), strict=True))
    return LengthControlled(float(fitted.mean()), label, says, error, low, high, refits, named)


class _Fit:
    """AlpacaEval's fit, and the penalty that it chose."""

    def __init__(self, gamed: GamedRows) -> None:
        known = ~np.isnan(gamed.preference)
        self.features = np.stack(
            [np.tanh(gamed.length[known]), gamed.row_difficulty[known], np.zeros(int(known.sum()))], axis=1
        )
        self.target = gamed.preference[known]
        self.penalty: float | None = None

    def weights(self, x: Array, y: Array, penalty: float | None) -> Array:
        """Coefficients; with `penalty` None it is chosen, and kept."""
        try:
            import sklearn
            from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
            from sklearn.metrics import make_scorer
            from sklearn.model_selection import GroupKFold
        except ImportError:
            raise BadInput(
                "the exact length-controlled win rate is fitted by scikit-learn: pip install 'marginkit[alpaca]'"
            ) from None
        features, target = np.concatenate([self.features, x]), np.concatenate([self.target, y])
        importance = np.concatenate([np.full(len(self.target), GAMED_WEIGHT), np.ones(len(y))])
        # each row twice: once won, with weight x, once lost, with weight 1 - x
        twice, label = np.concatenate([features, features]), np.repeat([1, 0], len(target))
        share, importance = np.concatenate([target, 1 - target]), np.concatenate([importance, importance])
        settings: dict[str, Any] = {"solver": "liblinear", "fit_intercept": False, "random_state": 123}
        if penalty is not None:
            model = LogisticRegression(C=penalty, l1_ratio=1.0, **settings)
            return np.asarray(model.fit(twice, label, sample_weight=share * importance).coef_[0])
        with sklearn.config_context(enable_metadata_routing=True):
            scorer = make_scorer(_soft_loss, response_method="predict_proba", greater_is_better=False)
            model = LogisticRegressionCV(
                cv=GroupKFold(n_splits=5),
                scoring=scorer.set_score_request(share=True, importance=True),
                l1_ratios=(1.0,),
                use_legacy_attributes=False,
                **settings,
            ).set_fit_request(sample_weight=True)
            model.fit(
                twice,
                label,
                sample_weight=share * importance,
                groups=np.tile(np.arange(len(target)), 2),
                share=share,
                importance=importance,
            )
        self.penalty = float(np.ravel(model.C_)[0])
        return np.asarray(model.coef_[0])


def _soft_loss(label: Array, prob: Array, share: Array, importance: Array) -> float:
    """Mean weighted cross-entropy against the share of wins; `share` is that of the row's own label."""
    target = np.where(label == 1, share, 1 - share)
    p = np.clip(prob, 1e-15, 1 - 1e-15)
    return float(-np.mean(importance * (target * np.log(p) + (1 - target) * np.log(1 - p))))


def _table(path: str | Path, sha256: str, unofficial: bool) -> tuple[list[dict[str, str]], bool]:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}; the file is in {WHERE}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256 and not unofficial:
        raise BadInput(
            f"{path}: sha256 is {found[:12]}..., that of the published file {sha256[:12]}...; take it from {WHERE}, or "
            "say --unofficial for a number that is labelled LC-approx"
        )
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: byte {error.start} is not UTF-8") from None
    return list(csv.DictReader(lines)), found == sha256


def _number(path: str | Path, at: int, name: str, text: str | None) -> float:
    if name == "preference" and text == "":
        return math.nan
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadInput(f"{path}:{at + 2}: {name} is {text!r}, not a number")
    return value


def difficulties(
    difficulty: Mapping[int, float], instructions: Sequence[str], ordered: Sequence[str] | None = None
) -> Array:
    """The difficulty of each row, `[row]`, by place or by instruction.

    AlpacaEval looks difficulties up by the row's place. A file that lacks rows (empty outputs were dropped for some
    models) gets those of other instructions from the first gap on; joining on the instruction does not, and differs
    from the published number there.

    Args:
        difficulty: by place in the benchmark.
        instructions: of the rows.
        ordered: all instructions in the benchmark's order, to join on; None takes the row's own place, as upstream.

    Raises:
        BadInput: a row has no difficulty.

    Example:
        >>> difficulties({0: 0.5, 1: -0.5}, ["b"]).tolist(), difficulties({0: 0.5, 1: -0.5}, ["b"], ["a", "b"]).tolist()
        ([0.5], [-0.5])
    """
    places: list[int | None] = list(range(len(instructions)))
    if ordered is not None:
        at = {instruction: place for place, instruction in reversed(list(enumerate(ordered)))}  # the first of equals
        places = [at.get(instruction) for instruction in instructions]
    for row, place in enumerate(places, 1):
        if place is None or place not in difficulty:
            raise BadInput(
                f"row {row} has no difficulty: {len(difficulty)} are known; are these AlpacaEval's instructions?"
            )
    return np.asarray([difficulty[place] for place in places if place is not None])
