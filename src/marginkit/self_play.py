"""One round of learning from oneself: draw responses, let a reward model grade them, pair them, keep it all.

The next round trains on the result and starts from the model it gives; docs/self_play.md is the loop in commands.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from marginkit.config import RunConfig, resolve, trained_model
from marginkit.data.manifests import manifest_path, write_dataset
from marginkit.data.pairing import HOWS, make_pairs
from marginkit.data.prompts import read_prompts
from marginkit.decoding import Draws
from marginkit.errors import BadInput
from marginkit.generate import MOST_NEW_TOKENS, draw_samples
from marginkit.groups import Groups
from marginkit.policies import open_policy, refuse_missing
from marginkit.progress import progress
from marginkit.records import Group, Response
from marginkit.registry import resolve_options
from marginkit.run import Run, score
from marginkit.signals import collect_signals, policy_tokenizer
from marginkit.store import file_fingerprint, folder_fingerprint

log = logging.getLogger("marginkit")

Into = Literal["auto", "grade", "utility"]
_INTO = get_args(Into)
NOT_READ = "too long for the reward model"
_LOGITS = {
    "reward": {"marginkit.core.rewards:head", "marginkit.core.rewards:implicit"},
    "target": {"marginkit.core.targets:none", "marginkit.core.targets:soft_label"},
    "objective": {"marginkit.core.objectives:logistic", "marginkit.core.anchored:centred_logistic"},
}
"""Parts under which a gap of rewards is trained to be the log-odds of the preference: no margin, no smoothing."""


def says_logits(config: RunConfig) -> bool:
    """Whether the rewards of a run are utilities: sigmoid(reward_i - reward_j) is its P(i is better than j).

    So it is where the objective is logistic in the bare gap and the target a label or a probability: Bradley-Terry,
    MMPO, DPO. A margin, a smoothed label or a regression on grades makes the gap something else.

    Example:
        >>> [says_logits(resolve(name)) for name in ("bt", "mmpo_rm", "bt_smooth", "regression")]
        [True, True, False, False]
    """
    found = {part: resolve_options(config.spec, part, getattr(config, part))[0] for part in _LOGITS}
    return all(found[part] in known for part, known in _LOGITS.items())


def grade_by_model(groups: Groups, run: Run | str | Path, *, recipe: str | None = None, into: Into = "auto") -> Groups:
    """Grade every response by what a stored reward model says of it.

    grade = reward, in the model's own units; utility = reward too where it is one, in logits (see `says_logits`).
    Grades, ratings and aspects that were there are replaced: two scales in one column would be compared.

    Args:
        groups: any; their ids must differ.
        run: a run, its directory, or a saved reward model.
        recipe: how to read a model that is no run.
        into: auto (grade, and utility where the reward is one), grade, or utility as well, whatever the recipe.

    Returns:
        Graded groups, without pairs; those the model cannot read whole are counted as "too long for the reward model".

    Raises:
        BadInput: no such model, two groups with one id, or an unknown `into`.
        RunFailed: a reward is not finite.
    """
    if into not in _INTO:
        raise BadInput(f"into={into!r}: the choices are {', '.join(_INTO)}")
    names = groups.column("id")
    if len(set(names)) < len(names):
        raise BadInput("two groups have one id, so that their rewards cannot be told apart; give each its own")
    scores = score(run, groups, recipe=recipe).responses.select(["group", "response", "reward"])
    rewards = {(row["group"], row["response"]): row["reward"] for row in scores.to_pylist()}
    fills = into == "utility" or (into == "auto" and _reads_as_logits(run, recipe))

    def graded(group: Group) -> Group:
        responses = []
        for k, response in enumerate(group.responses):
            reward = rewards[group.id, k]
            responses.append(Response(response.turns, reward, utility=reward if fills else None, model=response.model))
        return replace(group, responses=tuple(responses), pairs=(), comparisons=())

    return groups.filter(lambda group: (group.id, 0) in rewards, reason=NOT_READ).map(graded)


def _reads_as_logits(run: Run | str | Path, recipe: str | None) -> bool:
    """Of a model that is no run, its maker has to say: `recipe`."""
    if isinstance(run, Run):
        return says_logits(run.config)
    if (Path(run) / "config.yaml").is_file():
        return says_logits(trained_model(Path(run))[0])
    return recipe is not None and says_logits(resolve(recipe))


def sample_dataset(
    policy: str,
    source: str,
    out: str | Path,
    *,
    n: int = 5,
    temperature: float = 0.8,
    top_p: float = 0.95,
    max_new_tokens: int | None = None,
    seed: int = 0,
    reward: str | None = None,
    reward_recipe: str | None = None,
    reward_as: Into = "auto",
    how: str | None = None,
    keep_ties: bool = False,
    with_given: bool = False,
    drop_cut: bool = False,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    mapping: str | None = None,
    limit: int | None = None,
    engine: str = "transformers",
    batch_tokens: int = 16384,
    overrides: Sequence[str] = (),
) -> tuple[dict[str, Any], bool]:
    """Draw, grade and pair into a dataset with its manifest: `marginkit sample`.

    Until the dataset is there, what was drawn lies in OUT.draft.jsonl; the same call goes on from it. A dataset made by
    the same call from the same things is left as it is.

    Args:
        policy: a run directory or a saved causal model.
        source: a file, folder or hub name with prompts.
        out: a .jsonl file.
        n: see `generate.sample`, as for temperature, top_p, max_new_tokens, seed, with_given, drop_cut, engine,
            batch_tokens, overrides.
        temperature: of the softmax.
        top_p: probability that the nucleus holds.
        max_new_tokens: tokens a response may have.
        seed: of the draws.
        reward: a run directory of a reward model, or a saved one; None leaves the responses ungraded and unpaired.
        reward_recipe: how to read a reward model that is no run.
        reward_as: see `grade_by_model`.
        how: how graded responses are paired, see `make_pairs`; default best_worst. dcrm asks the policy for its
            log-probabilities.
        keep_ties: keep prompts whose pairs are all tied; else they are counted as "all ties".
        with_given: keep the given responses beside the drawn ones.
        drop_cut: leave out responses that did not end by themselves.
        split: draw for this split only.
        columns: as for `read_groups`.
        mapping: as for `read_groups`.
        limit: read at most so many rows.
        engine: transformers or vllm.
        batch_tokens: of a batch.
        overrides: of the policy's configuration.

    Returns:
        The manifest, and whether the dataset was there before.

    Raises:
        BadInput: as in `sample`, or OUT holds something else.
    """
    target = Path(out)
    if target.suffix != ".jsonl":
        raise BadInput(f"out={target}: name a .jsonl file")
    if reward_as not in _INTO:
        raise BadInput(f"reward_as={reward_as!r}: the choices are {', '.join(_INTO)}")
    if reward is None and (how is not None or keep_ties or reward_recipe is not None or reward_as != "auto"):
        raise BadInput("how, keep_ties, reward_recipe and reward_as are of a reward model; name it with --reward")
    draws = Draws(n, temperature, top_p, MOST_NEW_TOKENS if max_new_tokens is None else max_new_tokens, seed)
    found = open_policy(policy, overrides)
    settings: dict[str, Any] = {
        "policy": policy,
        "policy_fingerprint": found.fingerprint,
        "source": source,
        "source_fingerprint": file_fingerprint(Path(source)) if Path(source).is_file() else None,
        "overrides": list(overrides),
        "n": n,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "engine": engine,
        "with_given": with_given,
        "drop_cut": drop_cut,
        "split": split,
        "columns": dict(columns or {}),
        "mapping": mapping,
        "limit": limit,
        "reward": reward,
    }
    if reward is not None:
        how = how or "best_worst"
        if how not in HOWS or how == "given":
            raise BadInput(f"how={how!r}: new pairs are made by {', '.join(name for name in HOWS if name != 'given')}")
        if n == 1 and not with_given:
            raise BadInput("n=1: a pair needs two responses to a prompt; draw n=2 or more, or use --with-given")
        _check_reward(reward, reward_recipe)
        settings |= {"reward_fingerprint": _fingerprint(reward), "reward_recipe": reward_recipe}
        settings |= {"reward_as": reward_as, "how": how, "keep_ties": keep_ties}
    before = _made_before(target, settings)
    if before is not None:
        return before, True
    with progress(None, "read prompts") as bar:
        prompts = read_prompts(source, split=split, columns=columns, mapping=mapping, limit=limit, progress=bar.to)
    draft = target.with_suffix(".draft.jsonl")
    drawn = draw_samples(
        found,
        prompts,
        draws,
        shorten=max_new_tokens is None,
        with_given=with_given,
        drop_cut=drop_cut,
        engine=engine,
        batch_tokens=batch_tokens,
        draft=draft,
        keep_draft=True,
    )
    groups, facts = drawn.groups, dict(drawn.facts)
    if reward is not None:
        graded = grade_by_model(groups, reward, recipe=reward_recipe, into=reward_as)
        if not len(graded):
            raise BadInput(
                f"--reward {reward}: every prompt with its responses is too long for it; what was drawn lies in {draft}"
            )
        facts["graded_in"] = "logits" if any(r.utility is not None for r in graded[0].responses) else "reward units"
        groups = _paired(graded, policy, how or "best_worst", found.config, keep_ties=keep_ties, seed=seed)
        if not len(groups):
            why = ", ".join(f"{reason}: {count}" for reason, count in groups.dropped.items())
            raise BadInput(f"{source}: no prompt has a pair ({why}); what was drawn lies in {draft}")
    manifest = write_dataset(groups, target, verb="sample", settings=settings, sources=[source], facts=facts)
    draft.unlink(missing_ok=True)
    return manifest, False


def _paired(graded: Groups, policy: str, how: str, config: RunConfig, *, keep_ties: bool, seed: int) -> Groups:
    """Pairs of graded responses; for dcrm with the policy's own log-probabilities and tokens."""
    signals = collect_signals(graded, policy=policy, store=config.store.path) if how == "dcrm" else None
    return make_pairs(
        graded,
        how,  # type: ignore[arg-type]
        ties="half" if keep_ties else "drop",
        seed=seed,
        signals=signals,
        tokenize=policy_tokenizer(policy) if how == "dcrm" else None,
    )


def _check_reward(reward: str, recipe: str | None) -> None:
    """Find out before anything is drawn whether there is a model to grade with."""
    refuse_missing(reward)
    if (Path(reward) / "config.yaml").is_file():
        trained_model(Path(reward))
    elif not Path(reward).is_dir() and recipe is None:
        raise BadInput(f"--reward {reward}: of a model on the hub say how to read it, e.g. --reward-recipe bt")
    if recipe is not None:
        resolve(recipe)


def _fingerprint(model: str) -> str | None:
    """Of a reward model's weights; None for a hub name."""
    folder = Path(model) / "model" if (Path(model) / "config.yaml").is_file() else Path(model)
    return folder_fingerprint(folder) if folder.is_dir() else None


def _made_before(target: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest, if the dataset is there already and was made in the same way.

    Raises:
        BadInput: it was made otherwise.
    """
    place = manifest_path(target)
    if not target.exists():
        return None
    if not place.is_file():
        raise BadInput(f"out={target}: is there already, without {place.name}; name another file")
    manifest: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(dict(settings), default=str))
    was = manifest.get("settings", {})
    for key in now:
        if manifest.get("verb") != "sample" or was.get(key) != now[key]:
            told = (
                f"{key} was {was.get(key)!r}, now {now[key]!r}" if manifest.get("verb") == "sample" else "another verb"
            )
            raise BadInput(f"out={target}: holds a dataset made otherwise ({told}); name another file, or remove it")
    return manifest
