"""The parts of a page that come from training: what went in, how it went, what it cost, how to repeat it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from marginkit.evaluation.history import Snapshot
from marginkit.reporting.blocks import Block, Chart, Code, Facts, Fold, Lines, Prose, Section, Series, Table
from marginkit.reporting.numbers import number
from marginkit.reporting.runs import RunRecord


def data_section(record: RunRecord) -> Section:
    """The ledger: rows read, kept and dropped by reason, file by file and split by split."""
    data = record.manifest.get("data")
    if not data:
        why = "These are score tables: how they came about is not known." if not record.config else "Nothing was read."
        return Section("Data", [Prose(why)], "data")
    blocks: list[Block] = []
    files = data.get("files", [])
    if files:
        rows = [
            (
                PurePath(str(one["file"])).name,
                one.get("dialect") or "-",
                _n(one["read"]),
                _n(one["kept"]),
                _n(one["read"] - one["kept"]),
            )
            for one in files
        ]
        blocks.append(Table(("file", "read as", "rows", "kept", "dropped"), rows, "Files", (2, 3, 4)))
    reasons = [
        (PurePath(str(one["file"])).name, what, reason, _n(count))
        for one in files
        for what, held in (("dropped", one.get("dropped", {})), ("kept, with a warning", one.get("warned", {})))
        for reason, count in held.items()
    ]
    if reasons:
        blocks.append(Table(("file", "what", "reason", "rows"), reasons, "Rows dropped or warned of", (3,)))
    encoding = data.get("encoding", {})
    splits = []
    for name, part in record.splits.items():
        encoded = encoding.get(name, {})
        left_out = {**part.get("left_out", {}), **encoded.get("dropped", {})}
        tokens = encoded.get("prompt_tokens", 0) + encoded.get("response_tokens", 0)
        told = ", ".join(f"{reason}: {_n(count)}" for reason, count in left_out.items()) or "-"
        cut = encoded.get("cut_prompts", 0)
        told += f", prompts cut: {_n(cut)}" if cut else ""
        splits.append((name, _n(part["groups"]), _n(part["pairs"]), _n(tokens) if tokens else "-", told))
    if splits:
        heads = ("split", "groups", "pairs", "tokens", "left out")
        blocks.append(Table(heads, splits, "Splits: groups, pairs, and what was left out of them", (1, 2, 3)))
    notes = [note for one in files for note in one.get("notes", [])]
    blocks += [Prose(note[0].upper() + note[1:] + ".") for note in dict.fromkeys(notes) if note]
    return Section("Data", blocks, "data")


def _n(count: Any) -> str:
    return f"{int(count):,}"


def settings_section(record: RunRecord) -> Section:
    """What it was trained to."""
    manifest = record.manifest
    if not manifest:
        return Section("Settings", [Prose("No manifest: how this was trained is not known.")], "settings")
    train = record.config.get("train", {})
    facts = [("recipe", record.recipe)]
    for part, held in manifest.get("parts", {}).items():
        options = ", ".join(f"{name} = {_plain(value)}" for name, value in held["options"].items())
        facts.append((part, f"{held['function'].rpartition(':')[2]}{f' ({options})' if options else ''}"))
    gamma = manifest.get("gamma")
    if gamma:
        facts.append(("gamma, chosen", str(gamma.get("sentence", number(gamma.get("gamma"))))))
    model = record.config.get("model", {})
    facts.append(("model", f"{_local(str(model.get('path') or '-'))} ({model.get('kind')})"))
    facts += [(words, _plain(train[name])) for name, words in _TRAIN.items() if train.get(name) is not None]
    facts.append(("seed", str(manifest.get("seed", "-"))))
    paper = manifest.get("recipe", {}).get("paper", {})
    if paper.get("title"):
        facts.append(("paper", f"{paper['title']}{' (arXiv ' + paper['arxiv'] + ')' if paper.get('arxiv') else ''}"))
    return Section("Settings", [Facts(facts)], "settings")


_TRAIN = {
    "learning_rate": "learning rate",
    "num_train_epochs": "epochs",
    "prompts_per_step": "prompts a step",
    "lr_scheduler_type": "schedule",
    "load_best_model_at_end": "keeps the best by dev",
}


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _local(path: str) -> str:
    """The last two parts of a path on this machine; a hub name as it is."""
    own = PurePath(path)
    return "/".join(own.parts[-2:]) if own.is_absolute() else path


_CURVES: tuple[tuple[str, str, tuple[tuple[str, str, bool], ...]], ...] = (
    ("Loss", "loss", (("loss", "train", False), ("eval_loss", "eval", True))),
    ("Likelihood of the labels", "NLL (nats a pair)", (("nll", "train", False), ("eval_nll", "eval", True))),
    ("Accuracy", "accuracy", (("rewards/accuracies", "train", False), ("eval_rewards/accuracies", "eval", True))),
    (
        "Gap and what it should be",
        "logits",
        (
            ("rewards/margins", "gap, train", False),
            ("eval_rewards/margins", "gap, eval", True),
            ("target/gap", "target, train", True),
        ),
    ),
    (
        "Rewards",
        "logits",
        (
            ("rewards/chosen", "chosen", False),
            ("rewards/rejected", "rejected", True),
            ("eval_rewards/chosen", "chosen, eval", False),
            ("eval_rewards/rejected", "rejected, eval", True),
        ),
    ),
    (
        "Log-probabilities",
        "nats a response",
        (
            ("logps/chosen", "chosen", False),
            ("logps/rejected", "rejected", True),
            ("eval_logps/chosen", "chosen, eval", False),
            ("eval_logps/rejected", "rejected, eval", True),
        ),
    ),
    ("Calibration error", "ECE (plug-in)", (("eval_calibration/ece", "eval", True),)),
    ("Pairs below their margin", "share", (("slack/violation_rate", "train", False),)),
    ("Nats a token", "nats", (("nll/token", "train", False), ("eval_nll/token", "eval", True))),
    ("Learning rate", "rate", (("learning_rate", "rate", False),)),
    ("Gradient norm", "norm", (("grad_norm", "norm", False),)),
)


def curves_section(record: RunRecord) -> Section:
    """What was logged, train and eval."""
    title, anchor = "How training went", "training"
    history = record.history
    blocks: list[Block] = []
    once: list[tuple[str, ...]] = []
    for caption, unit, wanted in _CURVES:
        series = [
            Series(name, history.series[key], dashed=dashed) for key, name, dashed in wanted if history.series.get(key)
        ]
        if any(len(one.points) > 1 for one in series):
            figure = Lines(series, "epoch" if history.unit == "epoch" else "optimizer step", unit)
            blocks.append(Chart(figure, caption, "; ".join(_course(one) for one in series)))
        else:
            once += [(f"{caption}: {one.name}", *(number(x) for x in reversed(one.points[0]))) for one in series]
    if once:
        blocks.append(Table(("", "value", f"at {history.unit}"), once, "Logged once: no course to draw", (1, 2)))
    if not blocks:
        why = "These are score tables: there was no training to follow." if not record.config else "Nothing was logged."
        return Section(title, [Prose(why)], anchor)
    blocks += _over_time(history.snapshots)
    if not any(name.startswith("eval_") for name in history.series):
        blocks.append(Prose("There was no dev split to follow during training, so there are no curves of it."))
    if history.broken:
        blocks.append(Prose(f"{history.broken} line(s) of the log could not be read and are left out."))
    return Section(title, blocks, anchor)


def _over_time(snapshots: Sequence[Snapshot]) -> list[Block]:
    """Gap against target at the first, a middle and the last evaluation."""
    if len(snapshots) < 2:
        return []
    chosen = [snapshots[0], snapshots[len(snapshots) // 2], snapshots[-1]] if len(snapshots) > 2 else list(snapshots)
    series = [Series(f"at {number(one.step)}", list(zip(one.target, one.gap, strict=True))) for one in chosen]
    logits = snapshots[-1].measure == "target_gap"
    if logits:
        ends = [min(chosen[-1].target), max(chosen[-1].target)]
        series.append(Series("as it should be", [(end, end) for end in ends], dashed=True))
    name = "target gap (logits)" if logits else "grade gap (dataset units)"
    figure = Lines(series, name, "mean gap (logits)", zero=True)
    return [Chart(figure, "Gap against target over time, on the dev split", "; ".join(map(_course, series)))]


def _course(one: Series) -> str:
    (x0, y0), (x1, y1) = one.points[0], one.points[-1]
    return f"{one.name} from {number(y0)} at {number(x0)} to {number(y1)} at {number(x1)}"


def cost_section(record: RunRecord) -> Section:
    """What it took."""
    title, anchor = "Cost and speed", "cost"
    cost: Mapping[str, Any] = record.manifest.get("cost") or {}
    if not cost:
        return Section(
            title, [Prose("Not known: nothing was trained here, or the run has not come to its end.")], anchor
        )
    facts = []
    for name, words, form in _COST:
        value = cost.get(name)
        if isinstance(value, (int, float)) and math.isfinite(value):
            facts.append((words, form.format(value)))
    for name in ("batches", "layout"):
        if record.manifest.get(name):
            facts.append((name, str(record.manifest[name])))
    return Section(title, [Facts(facts)] if facts else [Prose("Nothing was measured.")], anchor)


_COST = (
    ("seconds", "training", "{:,.1f} s"),
    ("steps", "optimizer steps", "{:,.0f}"),
    ("tokens", "tokens computed", "{:,.0f}"),
    ("pair_tokens", "tokens of a padded pair trainer", "{:,.0f}"),
    ("times_padded_pairs", "fewer tokens than it by", "{:.2f} times"),
    ("tokens_per_second", "tokens a second", "{:,.0f}"),
    ("goodput", "share of the machine's measured peak", "{:.0%}"),
    ("peak_memory", "peak memory", "{:,.0f} bytes"),
)


def repeat_section(record: RunRecord) -> Section:
    """How to get the same again."""
    title, anchor = "How to repeat it", "repeat"
    if not record.config:
        why = "The command that made these tables is not known; `marginkit score RUN FILE --out FOLDER` makes such."
        return Section(title, [Prose(why)], anchor)
    command = " ".join(shlex.quote(_in_command(word)) for word in _command(record))
    blocks: list[Block] = [Code(command, "The command, as it was given; paths are shortened to their names")]
    versions = record.manifest.get("versions", {})
    told = [(name, str(version)) for name, version in versions.items()]
    blocks.append(Facts([("commit", str(record.manifest.get("commit") or "not from a checkout")), *told]))
    config = record.path / "config.yaml"
    if config.is_file():
        blocks.append(Fold("config.yaml, with every default", [Code(_without_paths(config))]))
    return Section(title, blocks, anchor)


def _command(record: RunRecord) -> list[str]:
    command = [str(word) for word in record.manifest.get("command", [])]
    if not command or PurePath(command[0]).name not in ("marginkit", "__main__.py"):
        return ["marginkit", "train", f"{record.name}/config.yaml", "out=NEW"]
    return ["marginkit", *command[1:]]


def _in_command(word: str) -> str:
    name, sign, value = word.partition("=")
    if sign and PurePath(value).is_absolute():
        return f"{name}={PurePath(value).name}"
    return PurePath(word).name if PurePath(word).is_absolute() else word


def _without_paths(config: Path) -> str:
    """The configuration; absolute paths by their last part: where a home folder lies is nobody's business."""
    lines = []
    for line in config.read_text(encoding="utf-8").splitlines():
        lead, sign, value = line.rpartition(" ")
        lines.append(f"{lead}{sign}{PurePath(value).name}" if PurePath(value).is_absolute() else line)
    return "\n".join(lines)
