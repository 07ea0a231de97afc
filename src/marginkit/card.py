"""The model card, and the push to the hub: model, card and manifest go out, never a text of the data."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from marginkit.config import RunConfig
from marginkit.errors import RunFailed
from marginkit.evaluation.compare import WORDS
from marginkit.records import Estimate

log = logging.getLogger("marginkit")

_HUB_TAGS = {"policy": ["dpo"], "reward_model": ["reward-model", "reward-trainer"], "sft": ["sft"]}
_SHOWN = (
    *("accuracy", "length_baseline", "nll", "brier", "ece", "ece_floor", "temperature", "ece_at_temperature"),
    *("nll_per_token", "perplexity"),
)
_TASKS = {
    "reward_model": {"type": "text-classification", "name": "preferences between responses"},
    "policy": {"type": "text-generation", "name": "preferences between responses, by implicit reward"},
    "sft": {"type": "text-generation", "name": "likelihood of responses"},
}
_IN_INDEX = ("accuracy", "nll", "brier", "ece", "nll_per_token")


def write_card(model: Path, config: RunConfig, manifest: Mapping[str, Any], metrics: Mapping[str, Any] | None) -> Path:
    """Write README.md into a model folder: what it was trained to, from what, on how much, and how it was judged.

    Args:
        model: the folder of the trained model.
        config: the run.
        manifest: what `write_manifest` wrote.
        metrics: `Evaluation.to_json()`, or None if nothing was judged.

    Returns:
        The path of the card.
    """
    spec, paper = config.spec, config.spec.paper
    title = f"{spec.kind.replace('_', ' ')} trained with {spec.name}"
    front = yaml.safe_dump(
        _front_matter(config, manifest, metrics, title), sort_keys=False, allow_unicode=True, width=120
    )
    lines = ["---", front.rstrip(), "---", "", f"# {title}", "", f"{spec.summary}.", "", f"    {spec.formula}", ""]
    lines += [f"Paper: {paper.title}{f' (arXiv {paper.arxiv})' if paper.arxiv else ''}.", ""]
    lines += [f"- Deviation: {deviation}" for deviation in spec.deviations] + [""] * bool(spec.deviations)
    lines += [*_settings(config, manifest), *_data(manifest), *_judged(metrics), *_limits(config, metrics)]
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    lines += ["", f"Made with {versions}; commit {manifest['commit'] or 'unknown'}.", ""]
    card = model / "README.md"
    card.write_text("\n".join(lines), encoding="utf-8")
    return card


def _front_matter(
    config: RunConfig, manifest: Mapping[str, Any], metrics: Mapping[str, Any] | None, title: str
) -> dict[str, Any]:
    """The hub's metadata: https://huggingface.co/docs/hub/model-cards."""
    spec, on_embeddings = config.spec, config.model.kind == "embedding"
    held: dict[str, Any] = {"library_name": "marginkit" if on_embeddings else "transformers"}
    held["tags"] = ["marginkit", spec.name, *_HUB_TAGS[spec.kind]]
    base = str(config.model.path)
    if config.model.path not in (None, "fresh", "hash", "minilm") and not Path(base).exists():
        held["base_model"] = base
    names = [name for name in config.data.train if _on_the_hub(name)]
    if names:
        held["datasets"] = names
    if spec.kind == "reward_model" and not on_embeddings:
        held["pipeline_tag"] = "text-classification"
    found = (
        []
        if metrics is None
        else [
            {"type": name, "name": WORDS[name], "value": round(float(metrics[name]["value"]), 4)}
            for name in _IN_INDEX
            if name in metrics and metrics[name]["value"] is not None
        ]
    )
    if found:
        split = "test" if "test" in manifest["data"]["splits"] else "dev"
        dataset = {"type": names[0] if names else "private", "name": names[0] if names else "held-out part of the data"}
        result = {"task": _TASKS[spec.kind], "dataset": dataset | {"split": split}, "metrics": found}
        held["model-index"] = [{"name": title, "results": [result]}]
    return held


def _on_the_hub(name: str) -> bool:
    return (
        name.count("/") == 1 and not name.startswith(("/", ".")) and not Path(name).suffix and not Path(name).exists()
    )


def _settings(config: RunConfig, manifest: Mapping[str, Any]) -> list[str]:
    lines = ["## Settings", ""]
    for part, held in manifest["parts"].items():
        options = ", ".join(f"{name} = {value}" for name, value in held["options"].items()) or "no options"
        lines.append(f"- {part}: `{held['function']}`, {options}")
    chosen = manifest.get("gamma")
    if chosen:
        lines.append(f"- gamma was chosen: {chosen['sentence']}")
    train = config.train
    lines += [f"- learning rate {train.learning_rate:g}, epochs {train.num_train_epochs:g}, seed {config.seed}"]
    return [*lines, f"- {manifest['batches']}", ""]


def _data(manifest: Mapping[str, Any]) -> list[str]:
    lines = ["## Data", "", "| split | groups | pairs | left out |", "|---|---|---|---|"]
    encoding = manifest["data"].get("encoding", {})
    for name, part in manifest["data"]["splits"].items():
        reasons = {**part["left_out"], **encoding.get(name, {}).get("dropped", {})}
        left_out = ", ".join(f"{reason}: {count}" for reason, count in reasons.items()) or "-"
        lines.append(f"| {name} | {part['groups']} | {part['pairs']} | {left_out} |")
    for found in manifest["data"]["files"]:
        dropped = ", ".join(f"{reason}: {count}" for reason, count in found["dropped"].items()) or "none"
        lines.append(f"\n{found['read']} rows read, {found['kept']} kept, dropped: {dropped}.")
        if found.get("recognised"):
            lines.append(f"Read as {found['recognised']}.")
    return lines


def _judged(metrics: Mapping[str, Any] | None) -> list[str]:
    if metrics is None:
        return ["", "## On held-out data", "", "Nothing was judged: the data had no test and no dev split with pairs."]
    lines = ["", "## On held-out data", "", "| | value [95%] | n |", "|---|---|---|"]
    lines += [
        f"| {WORDS[name]} | {_estimate(metrics[name])} | {metrics[name]['n']} |" for name in _SHOWN if name in metrics
    ]
    return [*lines, *_calibration(metrics)]


def _calibration(metrics: Mapping[str, Any]) -> list[str]:
    """Whether its confidence can be used as it is, and how to repair it."""
    told = metrics.get("verdict") or {}
    if "calibrated" not in told or told["calibrated"] is None or "temperature" not in metrics:
        return []
    ece, floor = metrics["ece"]["value"], told["floor"]
    if told["calibrated"]:
        return [
            "",
            f"sigmoid(reward gap) is calibrated as far as these pairs can tell: ECE {ece:.3f}, floor {floor:.3f}.",
        ]
    T = metrics["temperature"]["value"]
    repair = f"dividing rewards by {T:.2f} repairs what one number can, fitted on these same pairs"
    return ["", f"sigmoid(reward gap) is not calibrated (ECE {ece:.3f}, floor {floor:.3f}); {repair}."]


def _limits(config: RunConfig, metrics: Mapping[str, Any] | None) -> list[str]:
    lines = ["", "## Limits", "", "- Judged on data like that of the training; elsewhere the figures are others."]
    if metrics and "length_baseline" in metrics and "accuracy" in metrics:
        lines.append(
            "- How far mere length goes stands beside the accuracy: a model that is no better has learnt length."
        )
    if config.kind == "policy":
        lines.append("- The figures are of its implicit reward; they say nothing of the text it writes.")
    return lines


def _estimate(found: Mapping[str, Any]) -> str:
    return "-" if found["value"] is None else str(Estimate.from_json(found))


def push(model: Path, config: RunConfig, manifest: Mapping[str, Any]) -> str:
    """Upload a model folder with its card and a manifest without the findings, which quote rows.

    Returns:
        The repository.

    Raises:
        RunFailed: the hub refuses; the model stays on disk.
    """
    from huggingface_hub import HfApi

    told = dict(manifest)
    told["data"] = dict(manifest["data"]) | {
        "files": [
            {k: v for k, v in found.items() if k not in ("findings", "notes")} for found in manifest["data"]["files"]
        ]
    }
    told.pop("command", None)
    (model / "manifest.json").write_text(json.dumps(told, indent=2, default=str), encoding="utf-8")
    api = HfApi()
    name = config.train.hub_model_id or f"{Path(str(config.out or config.recipe)).name}"
    try:
        repo: str = api.create_repo(name, private=config.train.hub_private_repo, exist_ok=True).repo_id
        api.upload_folder(repo_id=repo, folder_path=model, ignore_patterns=["training_args.bin"])
    except Exception as error:
        raise RunFailed(f"hub: {str(error).strip().splitlines()[0]}; the model is in {model}") from None
    log.info("pushed to %s", repo)
    return repo
