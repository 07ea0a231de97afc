"""The model card, and the push to the hub: model, card and manifest go out, never a text of the data."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marginkit.config import RunConfig
from marginkit.errors import RunFailed

log = logging.getLogger("marginkit")

_HUB_TAGS = {"policy": ["dpo"], "reward_model": ["reward-model", "reward-trainer"], "sft": ["sft"]}
_SHOWN = ("accuracy", "length_baseline", "nll", "brier", "ece", "ece_floor", "nll_per_token", "perplexity")


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
    spec = config.spec
    on_embeddings = config.model.kind == "embedding"
    base = config.model.path if config.model.path != "fresh" and not Path(str(config.model.path)).exists() else None
    library = "marginkit" if on_embeddings else "transformers"
    head = ["---", f"library_name: {library}", f"tags: {json.dumps(['marginkit', spec.name, *_HUB_TAGS[spec.kind]])}"]
    head += [f"base_model: {json.dumps(base)}"] if base not in (None, "hash", "minilm") else []
    head += ["pipeline_tag: text-classification"] if spec.kind == "reward_model" and not on_embeddings else []
    paper = spec.paper
    lines = [*head, "---", "", f"# {spec.kind.replace('_', ' ')} trained with {spec.name}", "", f"{spec.summary}.", ""]
    lines += [f"    {spec.formula}", "", f"Paper: {paper.title}{f' (arXiv {paper.arxiv})' if paper.arxiv else ''}.", ""]
    lines += [f"- Deviation: {deviation}" for deviation in spec.deviations] + [""] * bool(spec.deviations)
    lines += ["## Settings", ""]
    for part, held in manifest["parts"].items():
        options = ", ".join(f"{name} = {value}" for name, value in held["options"].items()) or "no options"
        lines.append(f"- {part}: `{held['function']}`, {options}")
    train = config.train
    lines += [f"- learning rate {train.learning_rate:g}, epochs {train.num_train_epochs:g}, seed {config.seed}"]
    lines += [
        f"- {manifest['batches']}",
        "",
        "## Data",
        "",
        "| split | groups | pairs | left out |",
        "|---|---|---|---|",
    ]
    for name, part in manifest["data"]["splits"].items():
        left_out = ", ".join(f"{reason}: {count}" for reason, count in part["left_out"].items()) or "-"
        lines.append(f"| {name} | {part['groups']} | {part['pairs']} | {left_out} |")
    for found in manifest["data"]["files"]:
        dropped = ", ".join(f"{reason}: {count}" for reason, count in found["dropped"].items()) or "none"
        lines.append(f"\n{found['read']} rows read, {found['kept']} kept, dropped: {dropped}.")
    if metrics is not None:
        lines += ["", "## On held-out data", "", "| | value [95%] | n |", "|---|---|---|"]
        lines += [
            f"| {name} | {_estimate(metrics[name])} | {metrics[name]['n']} |" for name in _SHOWN if name in metrics
        ]
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    lines += ["", f"Made with {versions}; commit {manifest['commit'] or 'unknown'}.", ""]
    card = model / "README.md"
    card.write_text("\n".join(lines), encoding="utf-8")
    return card


def _estimate(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "-"
    interval = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
    return f"{found['value']:.3f}{interval}"


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
