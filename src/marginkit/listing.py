"""Recipes in words: what `marginkit list` and the methods page say, and a file to start from; without torch."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from marginkit.registry import PARTS, Option, PartSpec, Recipe

MODEL, DATA, REWARD_MODEL = "Qwen/Qwen3-0.6B", "ratings.jsonl", "runs/rm"
GAMMA = 0.5  # of examples: the one option that the data may ask for
SCORES: Mapping[str, tuple[str, str]] = {  # score field -> in the table, on the recipe's page
    "logp": ("", "log-probabilities of the policy"),
    "ref_logp": (
        "reference",
        "reference log-probabilities (`model.reference`; by default the model before training), computed once and kept",
    ),
    "length": ("", "response lengths"),
    "head": ("", "the output of the reward head"),
    "rm_head": ("reward model", "another reward model's scores (`model.reward_model`), computed once and kept"),
    "log_collision": ("", "how peaked the policy's own next-token distributions are, from the same forward pass"),
    "entropy": ("", "the entropy of the policy's own next-token distributions, from the same forward pass"),
    "hidden": ("", "last hidden states, from the same forward pass"),
}
EVIDENCE: Mapping[str, tuple[str, str]] = {
    "grade_gap": ("grades", "how much better, in grades: a strength, or a grade of each response"),
    "utility_gap": (
        "grades or probabilities",
        "how much better: votes, a probability, utilities or a target gap; or grades and `gamma`",
    ),
    "grade": ("grades", "a grade of each response"),
}
REMEMBERS = {"queue": "the gaps of the last 2048 pairs", "moments": "their running mean and standard deviation"}


def kind_of(spec: Recipe) -> str:
    """What a recipe trains, in words."""
    return {"policy": "policy", "reward_model": "reward model", "sft": "policy"}[spec.kind]


def paper_of(spec: Recipe) -> str:
    """Where a recipe comes from, in one line."""
    paper = spec.paper
    arxiv = f"arXiv {paper.arxiv}" if paper.arxiv else ""
    return ", ".join(word for word in (paper.title, arxiv, paper.where, paper.code) if word)


def short(function: str) -> str:
    """The name of a function without its module."""
    return function.rpartition(":")[2]


def parts_of(spec: Recipe) -> dict[str, PartSpec]:
    """Its reward, target and objective, those it has."""
    return {part: own for part in PARTS if (own := getattr(spec, part)) is not None}


def parts_short(spec: Recipe) -> str:
    """Reward x target x objective, by name.

    Example:
        >>> from marginkit.registry import load_recipe
        >>> parts_short(load_recipe("sft"))
        'logp x - x nll'
    """
    return " x ".join(short(own.function) if (own := getattr(spec, part)) is not None else "-" for part in PARTS)


def parts_line(spec: Recipe) -> str:
    """Reward x target x objective, each with what it is given.

    Example:
        >>> from marginkit.registry import load_recipe
        >>> parts_line(load_recipe("mmpo"))
        'implicit(beta) x soft_label(gamma) x logistic'
    """

    def one(own: PartSpec) -> str:
        given = [
            parameter if parameter == name else f"{parameter}: {name}"
            for name in own.options
            if (parameter := own.parameter(name)) not in ("sft_weight", "sft_per")
        ]
        given += [f"{name} = {_value(value)}" for name, value in own.fixed.items() if not name.startswith("sft_")]
        shared = {name: source.partition(".")[2] for name, source in own.shares.items()}
        given += [name if name == source else f"{name}: {source}" for name, source in shared.items()]
        return short(own.function) + (f"({', '.join(given)})" if given else "")

    return " x ".join(one(own) if own is not None else "-" for own in (getattr(spec, part) for part in PARTS))


# -- what it needs, by the declarations of its functions


@cache
def declared(function: str) -> Mapping[str, Any]:
    """What a function of the core declares of itself, read from its source: importing it would import torch.

    Example:
        >>> declared("marginkit.core.targets:soft_label")["needs"]
        {'utility_gap'}
    """
    place, _, name = function.rpartition(":")
    if not place.endswith(".py"):
        found = find_spec(place)
        place = found.origin or "" if found is not None else ""
    for node in ast.parse(Path(place).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            calls = [call for call in node.decorator_list if isinstance(call, ast.Call)]
            return {word.arg: _literal(word.value) for call in calls for word in call.keywords if word.arg}
    return {}


def _literal(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def sft_term(spec: Recipe) -> tuple[float | None, str, str | None]:
    """Weight of the SFT term by default, token or sequence, and the option that sets the weight (None: fixed)."""
    own = spec.objective
    values: dict[str, Any] = {"sft_weight": 0.0, "sft_per": "token"} | own.fixed
    option = None if "sft_weight" in own.fixed else "sft_weight"
    for name, found in own.options.items():
        values[own.parameter(name)] = found.default
        option = name if own.parameter(name) == "sft_weight" else option
    return values["sft_weight"], values["sft_per"], option


def needs_of(spec: Recipe) -> frozenset[str]:
    """Score fields and evidence that a recipe needs, as its functions declare them."""
    found: set[str] = set()
    for part, own in parts_of(spec).items():
        made = declared(own.function)
        found |= set(made.get("needs", ())) if part != "objective" else set()
        if "population_of" in made:
            found |= declared(f"marginkit.core.rewards:{made['population_of']}")["needs"]
    weight, per, _ = sft_term(spec)
    if spec.kind == "policy" and weight:
        found |= {"logp", "length"} if per == "token" else {"logp"}
    return frozenset(found)


def needs_short(spec: Recipe) -> str:
    """What a recipe asks for beyond the model and pairs, in a few words for a table."""
    needs = needs_of(spec)
    words = [EVIDENCE[name][0] for name in EVIDENCE if name in needs]
    words += [SCORES[name][0] for name in SCORES if name in needs and SCORES[name][0]]
    couples = _target(spec).get("couples", "none")
    words += {"none": [], "population": ["population"], "batch": ["whole batches"]}[couples]
    return ", ".join(words)


def needs_in_words(spec: Recipe) -> list[tuple[str, str]]:
    """What a recipe needs of the model, of the data and of other pairs, as (topic, sentence)."""
    needs, target = needs_of(spec), _target(spec)
    scores = "; ".join(words for name, (_, words) in SCORES.items() if name in needs)
    evidence = "; ".join(words for name, (_, words) in EVIDENCE.items() if name in needs)
    if not evidence:
        evidence = "responses" if spec.target is None else "only which response is better"
    if "chance" in needs:
        evidence += "; one random number a pair, drawn from `seed`"
    lines = [("scores", scores), ("evidence", evidence), ("ties", _ties(target))]
    if target.get("couples") == "population":
        kept = REMEMBERS.get(target.get("remembers", ""), "nothing")
        lines.append(("population", f"the gaps of other pairs (`train.population`); of earlier passes it keeps {kept}"))
    elif target.get("couples") == "batch":
        lines.append(("population", "the other pairs of the same forward pass; evaluation leaves the margin out"))
    weight, per, option = sft_term(spec)
    if spec.kind == "policy" and (weight or option != "sft_weight"):
        of = {"token": "mean over its tokens", "sequence": "summed over its tokens"}[per]
        by = "fixed" if option is None else f"`objective.{option}`"
        lines.append(("SFT term", f"NLL of the chosen response, {of}, with weight {_value(weight)} ({by})"))
    return [line for line in lines if line[1]]


def _target(spec: Recipe) -> Mapping[str, Any]:
    return {} if spec.target is None else declared(spec.target.function)


def _ties(target: Mapping[str, Any]) -> str:
    if not target or target.get("per") == "response":
        return ""
    if "keep" in target.get("makes", ()):
        return "left out: a tie has no winner"
    return "kept, with the probability 1/2" if "prob" in target.get("makes", ()) else "kept, with a gap of 0 to match"


# -- options


def default_of(option: Option) -> str:
    """A default as a page shows it.

    Example:
        >>> default_of(Option(type="float", default=6.906755, help="h"))
        '6.906755'
    """
    return "none" if option.default is None else _value(option.default)


def option_rows(spec: Recipe) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Key, default, range, unit, meaning and source of every option of a recipe."""
    for name, (part, option) in spec.options().items():
        default = "required with grades" if name in required(spec) else default_of(option)
        yield f"{part}.{name}", default, _range(option), option.unit, option.help, option.source


def required(spec: Recipe) -> list[str]:
    """The options that have no default and that graded data needs."""
    if "utility_gap" not in needs_of(spec) or spec.target is None:
        return []
    return [name for name, option in spec.target.options.items() if option.default is None]


def _range(option: Option) -> str:
    return "true | false" if option.type == "bool" else option.range_text()


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return f"{value:.10g}" if isinstance(value, (int, float)) else str(value)


# -- how to use it


def first_command(spec: Recipe) -> str | None:
    """The command that trains the reward model a recipe needs; None where it needs none."""
    if "rm_head" not in needs_of(spec):
        return None
    return f"marginkit train bt model.path={MODEL} data.train={DATA} out={REWARD_MODEL}"


def command(spec: Recipe) -> str:
    """The command that trains it."""
    words = ["marginkit train", spec.name, f"model.path={MODEL}", f"data.train={DATA}"]
    words += [f"target.{name}={GAMMA:g}" for name in required(spec)]
    words += [f"model.reward_model={REWARD_MODEL}"] * ("rm_head" in needs_of(spec))
    return " ".join(words)


def in_python(spec: Recipe) -> str:
    """The line that makes its loss, defaults written out.

    Example:
        >>> from marginkit.registry import load_recipe
        >>> in_python(load_recipe("mmpo"))
        'loss = mk.recipe("mmpo", beta=0.01, gamma=0.5)'
    """
    given = {name: option.default for name, (_, option) in spec.options().items() if option.default is not None}
    given |= dict.fromkeys(required(spec), GAMMA)
    words = [f'"{spec.name}"'] + [
        f"{name}={json.dumps(given[name]) if isinstance(given[name], str) else repr(given[name])}"
        for name in spec.options()
        if name in given
    ]
    return f"loss = mk.recipe({', '.join(words)})"


def training_of(spec: Recipe) -> str:
    """The training settings that come with a recipe."""
    return ", ".join(f"{key} {_value(value)}" for key, value in spec.train.items())


def facts(spec: Recipe) -> Iterator[tuple[str, str]]:
    """What there is to say of a recipe beside its options, as (topic, sentence)."""
    yield from needs_in_words(spec)
    yield "paper", paper_of(spec)
    yield "published", spec.published
    yield from (("reconstructed", sentence) for sentence in spec.reconstructed)
    yield from (("deviation", sentence) for sentence in spec.deviations)
    if spec.train:
        yield "training", training_of(spec)


def starter(spec: Recipe) -> str:
    """A YAML file to start from, that `marginkit train` takes as it is once the paths are filled in."""
    lines = [f"# {spec.name}: {spec.summary}", f"recipe: {spec.name}", f"out: null  # default runs/{spec.name}-N"]
    lines += ["model:", "  path: null  # a folder, a hub name, or fresh", "  # lora: {r: 16, alpha: 32}"]
    if "rm_head" in needs_of(spec):
        lines += ["  reward_model: null  # a folder, a hub name, or a run: the reward model whose scores are needed"]
    lines += ["data:", f"  train: [{DATA}]"]
    for part, own in parts_of(spec).items():
        if own.options:
            lines.append(f"{part}:")
        for name, option in own.options.items():
            words = [_range(option), option.unit, option.help]
            lines.append(f"  {name}: {_yaml(option.default)}  # {'; '.join(word for word in words if word)}")
    if spec.kind == "policy" and sft_term(spec)[2] == "sft_weight" and not spec.objective.options:
        lines.append("# objective: {sft_weight: 0.1, sft_per: token}  # adds the NLL of the chosen response")
    lines.append("train:")
    lines += [f"  {key}: {_yaml(value)}" for key, value in spec.train.items()]
    lines += ["  prompts_per_step: 32", "  tokens_per_micro_batch: 8192"]
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    """A value that YAML reads back as it is: text is quoted (`no` and `off` are not false)."""
    return json.dumps(value)
