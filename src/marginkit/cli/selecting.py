"""marginkit pair and marginkit select."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marginkit.cli.app import Columns, Json, MappingFile, app
from marginkit.cli.rendering import assignments, say, say_json, table
from marginkit.cli.showing_selections import show_comparison, show_selection
from marginkit.errors import BadInput
from marginkit.reporting.survey_words import plain

if TYPE_CHECKING:
    from marginkit.data.signals import Signals
    from marginkit.groups import Groups

Files = Annotated[list[str], typer.Argument(help="Files, saved dataset folders or hub names.")]
Out = Annotated[Path | None, typer.Option(help="The .jsonl file to make; its manifest appears beside it.")]
Reward = Annotated[
    list[str] | None,
    typer.Option(
        help="What ranks the responses: grade | utility (in the data), score tables, a run, a saved reward model. "
        "Several are an ensemble. Default: utility where every response has one, else grade.",
    ),
]
Crossfit = Annotated[
    str | None,
    typer.Option(metavar="EMBEDDER", help="Rank by a head on embeddings (hash, minilm, a folder), cross-fitted."),
]
Policy = Annotated[
    str | None, typer.Option(help="Log-probabilities and tokens: a run, a saved model, or score tables of one.")
]
Reference = Annotated[str | None, typer.Option(help="Likewise, of the policy before tuning.")]
Tokenizer = Annotated[
    str | None, typer.Option(help="For edit distances; default: the policy's, else words are compared.")
]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Split = Annotated[str | None, typer.Option(help="Only this split.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="An option of the method; docs/selection.md lists them."),
]
Store = Annotated[Path, typer.Option(help="Folder where the scores of models are kept.")]
_HOWS = "given | best_worst | best_random | best_vs_others | adjacent | all | dcrm"
_METHODS = (
    "random | explicit | implicit | threshold | dcrm | alignment | dual_add | dual_mul | ifd | ensemble | confidence"
)


@app.command(
    epilog="Example:  marginkit pair samples.jsonl --how best_worst --reward runs/mmpo_rm-1 --out pairs.jsonl\n\n"
    "dcrm: formula, units and eps as recalled, not read in the paper."
)
def pair(
    files: Files,
    how: Annotated[str, typer.Option(help=_HOWS)] = "best_worst",
    out: Out = None,
    reward: Reward = None,
    crossfit: Crossfit = None,
    policy: Policy = None,
    tokenizer: Tokenizer = None,
    ties: Annotated[str, typer.Option(help="half | label | drop")] = "half",
    max_pairs: Annotated[int | None, typer.Option(help="At most so many pairs a prompt, drawn at random.")] = None,
    rso: Annotated[
        int | None, typer.Option(help="First keep so many responses a prompt, by rejection sampling (RSO).")
    ] = None,
    rso_beta: Annotated[float, typer.Option(help="Its temperature, in the unit of the reward.")] = 0.5,
    seed: Seed = 0,
    split: Split = None,
    option: Set = None,
    workers: Annotated[int | None, typer.Option(help="Processes for edit distances; default: all cores.")] = None,
    store: Store = Path("store"),
    column: Columns = None,
    mapping: MappingFile = None,
    as_json: Json = False,
) -> None:
    """Make pairs of graded responses and write them as a dataset: by rank, all, or the best of N^2 by DCRM."""
    from marginkit.data.dcrm import DcrmOptions
    from marginkit.data.pairing import make_pairs
    from marginkit.data.rso import thin_responses
    from marginkit.progress import progress
    from marginkit.signals import policy_tokenizer

    target = _named(out, files, "pair")
    options = assignments_of(option)
    scored_by = policy
    if how == "dcrm":
        scored_by = policy if DcrmOptions.of(options).logps else None  # without p_D its tokens alone are wanted
    elif policy is not None:
        raise BadInput(f"--policy {policy}: is not read by --how {how}, only by dcrm; leave it out")
    groups, read = _read(files, column, mapping, split)
    signals = _signals(groups, reward, crossfit, scored_by, None, False, store, seed)
    if rso is not None:
        groups, signals = thin_responses(groups, signals, count=rso, beta=rso_beta, seed=seed)
    with progress(len(groups), "pair") as bar:
        made = make_pairs(
            groups,
            how,  # type: ignore[arg-type] # checked there, with a message
            ties=ties,  # type: ignore[arg-type]
            max_pairs=max_pairs,
            seed=seed,
            signals=signals,
            options=options,
            tokenize=policy_tokenizer(policy, tokenizer) if how == "dcrm" else None,
            workers=_cores() if workers is None else workers,
            progress=bar,
        )
    settings: dict[str, Any] = {
        "how": how,
        "ties": ties,
        "max_pairs": max_pairs,
        "rso": rso,
        "rso_beta": rso_beta,
        "seed": seed,
    }
    settings |= {"split": split, "tokenizer": tokenizer, "options": options}
    settings |= {"columns": assignments(column), "mapping": mapping}
    facts = {"read": read, "signals": dict(signals.facts), **getattr(made, "facts", {})}
    manifest = _write(made, target, files, "pair", settings, facts)
    result = {"out": str(target), "how": how, "read": read, "kept": len(made), "pairs": manifest["pairs"]}
    result |= {"dropped": dict(made.dropped), "facts": facts}
    if as_json:
        say_json(result)
        return
    rows = [("prompts read", str(read["groups"])), ("prompts kept", str(len(made))), ("pairs", str(manifest["pairs"]))]
    rows += [(f"left out: {reason}", str(count)) for reason, count in made.dropped.items()]
    rows += [(name, plain(value)) for name, value in getattr(made, "facts", {}).items() if value is not None]
    table(f"{how} -> {target}", ("", ""), rows)


@app.command(
    epilog="Example:  marginkit select pairs.jsonl --how dcrm --policy Qwen/Qwen3-0.6B --top 0.4 --out best.jsonl\n\n"
    "dcrm: formula, units and eps as recalled, not read in the paper.\n\n"
    "Two selections side by side:  marginkit select --compare best.jsonl random.jsonl"
)
def select(
    files: Files,
    how: Annotated[str, typer.Option(help=_METHODS)] = "random",
    top: Annotated[
        str | None, typer.Option(help="How much to keep: a share with a point (0.4, 1.0) or a count of pairs (2000).")
    ] = None,
    out: Out = None,
    compare: Annotated[bool, typer.Option("--compare", help="Compare two selections instead.")] = False,
    pairs: Annotated[
        str,
        typer.Option(
            help="How pairs are made where the data gives none: auto (best_worst; dcrm for dcrm) or as "
            "in `marginkit pair`."
        ),
    ] = "auto",
    reward: Reward = None,
    crossfit: Crossfit = None,
    policy: Policy = None,
    reference: Reference = None,
    tokenizer: Tokenizer = None,
    region: Annotated[str | None, typer.Option(help="explicit, implicit, ifd: top | bottom | mid")] = None,
    min_prob: Annotated[float | None, typer.Option(help="confidence: below it a label is doubtful.")] = None,
    action: Annotated[str | None, typer.Option(help="confidence: keep | drop | soften doubtful pairs.")] = None,
    option: Set = None,
    seed: Seed = 0,
    split: Annotated[
        str | None,
        typer.Option(
            help="Select in this split, the others stay as they are; default train, where there are splits; all."
        ),
    ] = None,
    store: Store = Path("store"),
    column: Columns = None,
    mapping: MappingFile = None,
    as_json: Json = False,
) -> None:
    """Keep the pairs worth training on and write them as a dataset; every pair left out is counted by reason."""
    if compare:
        _compare(files, column, as_json)
        return
    from marginkit.data.dcrm import DcrmOptions
    from marginkit.data.selection import READ_POLICY, READ_REFERENCE, check_options
    from marginkit.data.selection import select as select_pairs
    from marginkit.data.splits import set_aside
    from marginkit.groups import Groups
    from marginkit.signals import policy_tokenizer

    named = {"region": region, "min_prob": min_prob, "action": action}
    options: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    options |= assignments_of(option)
    options = check_options(how, options)  # before anything is read or computed
    share, target = _top(top), _named(out, files, "select")
    for name, value, readers in (("policy", policy, READ_POLICY), ("reference", reference, READ_REFERENCE)):
        if value is not None and how not in readers and "dcrm" not in (how, pairs):
            raise BadInput(f"--{name} {value}: is not read by --how {how}, only by {', '.join(readers)}; leave it out")
    scored_by = None if how == "dcrm" and not DcrmOptions.of(options).logps else policy
    everything, read = _read(files, column, mapping, None)
    groups, aside, words = set_aside(everything, split)
    tokenize = policy_tokenizer(policy, tokenizer) if "dcrm" in (how, pairs) else None
    signals = _signals(groups, reward, crossfit, scored_by, reference, how == "ifd", store, seed)
    if not any(group.pairs for group in groups):
        judged = how in ("ensemble", "confidence") or crossfit is not None  # the data's own labels are what is judged
        groups = _paired(groups, None if judged else signals, how, pairs, options, tokenize, seed)
        aside = None if aside is None else _paired(aside, None, "", "all", {}, None, seed)
    elif pairs != "auto":
        raise BadInput(f"--pairs {pairs}: the data has pairs; select among them, or make others with marginkit pair")
    made = select_pairs(groups, how, top=share, seed=seed, signals=signals, tokenize=tokenize, **options)
    settings = {"how": how, "top": top, "options": made.facts["options"], "pairs": pairs, "seed": seed, "split": split}
    whole = made if aside is None else Groups.from_iterable(itertools.chain(made, aside), made.dropped)
    settings |= {"reward": reward, "crossfit": crossfit, "policy": policy, "reference": reference}
    settings |= {"columns": assignments(column), "mapping": mapping}
    facts = {"read": read, "splits": words, **made.facts}
    if not len(made):
        whole = made  # what was set aside is no selection
    _write(whole, target, files, "select", settings, facts)
    result = {"out": str(target), "how": how, "candidates": len(made.scores), "pairs": int(made.kept.sum())}
    result |= {"groups": len(made), "dropped": dict(made.dropped), "facts": facts}
    if as_json:
        say_json(result)
    else:
        show_selection(made, target)
        say(words)


def assignments_of(option: Sequence[str] | None) -> dict[str, str]:
    """What `--set NAME=VALUE` says.

    Raises:
        BadInput: an item has no `=`.
    """
    try:
        return assignments(option)
    except BadInput:
        raise BadInput(f"--set {' '.join(option or ())}: write NAME=VALUE, e.g. --set weight=2.5") from None


def _named(out: Path | None, files: Sequence[str], verb: str) -> Path:
    from marginkit.data.manifests import check_target

    if out is None:
        raise BadInput(f"--out is missing: name the file to make, e.g. marginkit {verb} {files[0]} --out best.jsonl")
    return check_target(out, files)


def _write(made: Groups, target: Path, files: list[str], verb: str, settings: dict[str, Any], facts: Any) -> Any:
    """The manifest of what was written; nothing is where no pair is left.

    Raises:
        BadInput: no pair is left.
    """
    from marginkit.data.manifests import write_dataset

    if not len(made):
        why = ", ".join(f"{reason}: {count}" for reason, count in made.dropped.items())
        raise BadInput(f"{', '.join(files)}: no pair is left ({why}), so {target} is not written")
    return write_dataset(made, target, verb=verb, settings=settings, sources=files, facts=facts)


def _read(
    files: Sequence[str], column: list[str] | None, mapping: str | None, split: str | None
) -> tuple[Groups, dict[str, Any]]:
    """The groups, and what the reader says of the rows."""
    from marginkit.data.sources import read_groups
    from marginkit.data.splits import select_split
    from marginkit.progress import progress

    with progress(None, "read rows") as bar:
        groups, found = read_groups(
            list(files) if len(files) > 1 else files[0], columns=assignments(column), mapping=mapping, progress=bar.to
        )
    if split is not None:
        groups = select_split(groups, split)
    if not len(groups):
        raise BadInput(f"{', '.join(files)}: no group is left; marginkit check says why")
    return groups, {"rows": found.read, "kept": found.kept, "dropped": dict(found.dropped), "groups": len(groups)}


def _signals(
    groups: Groups,
    reward: list[str] | None,
    crossfit: str | None,
    policy: str | None,
    reference: str | None,
    bare: bool,
    store: Path,
    seed: int,
) -> Signals:
    from marginkit.signals import collect_signals

    return collect_signals(
        groups,
        rewards=reward or (),
        crossfit=crossfit,
        policy=policy,
        reference=reference,
        bare=bare,
        store=store,
        seed=seed,
    )


def _paired(
    groups: Groups, signals: Signals | None, how: str, pairs: str, options: dict[str, Any], tokenize: Any, seed: int
) -> Groups:
    """The groups with pairs, all groups kept so that the signals still fit."""
    from marginkit.data.pairing import make_pairs

    way = pairs
    if pairs == "auto":
        compared = any(group.comparisons for group in groups)
        way = "dcrm" if how == "dcrm" else "given" if compared else "best_worst"
    return make_pairs(
        groups,
        way,  # type: ignore[arg-type]
        signals=signals,
        options=options if way == how == "dcrm" else {},
        tokenize=tokenize,
        keep_unpaired=True,
        seed=seed,
        workers=_cores(),
    )


def _top(top: str | None) -> float | int | None:
    if top is None:
        return None
    try:
        return int(top) if top.strip().isdigit() else float(top)
    except ValueError:
        raise BadInput(f"--top {top}: a share such as 0.4, or a count such as 2000") from None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compare(files: Sequence[str], column: list[str] | None, as_json: bool) -> None:
    from marginkit.data.selection_facts import compare_selections
    from marginkit.data.sources import read_groups

    if len(files) != 2:
        raise BadInput(f"--compare: name two files, got {len(files)}")
    first, second = (read_groups(name, columns=assignments(column))[0] for name in files)
    found = compare_selections(first, second)
    if as_json:
        say_json({"files": list(files)} | found)
        return
    show_comparison(files, found)
