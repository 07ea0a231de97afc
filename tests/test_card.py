"""The model card tells how a model came to be; a push sends no text of the data."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from marginkit.card import push, write_card
from marginkit.config import resolve
from marginkit.errors import RunFailed

MANIFEST = {
    "parts": {"target": {"function": "marginkit.core.targets:soft_label", "options": {"gamma": 0.5}, "digest": None}},
    "data": {
        "files": [
            {
                "file": "r.jsonl",
                "read": 9,
                "kept": 8,
                "dropped": {"empty response": 1},
                "findings": [{"place": "r.jsonl:3", "rule": 'chosen is "SECRET WORDS"'}],
                "notes": ["columns not read: SECRET WORDS"],
            }
        ],
        "splits": {"train": {"groups": 8, "pairs": 8, "left_out": {}}},
    },
    "batches": "4 prompts an optimizer step",
    "versions": {"torch": "2.13.0"},
    "commit": None,
    "command": ["marginkit", "train", "SECRET WORDS"],
}
METRICS = {"accuracy": {"value": 0.75, "low": 0.5, "high": 1.0, "n": 8, "clusters": 8}}


def test_the_card_says_what_was_done(tmp_path: Path) -> None:
    """Recipe, options, rows kept and dropped, figures with intervals; no excerpt of the data."""
    config = resolve("mmpo_rm", ["model.path=org/base", "target.gamma=0.5"])
    text = write_card(tmp_path, config, MANIFEST, METRICS).read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert (front["base_model"], front["pipeline_tag"]) == ("org/base", "text-classification")
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "name": "accuracy", "value": 0.75}]
    assert result["dataset"] == {"type": "private", "name": "held-out part of the data", "split": "dev"}
    assert "gamma = 0.5" in text
    assert "9 rows read, 8 kept, dropped: empty response: 1." in text
    assert "| accuracy | 0.750 [0.500, 1.000] | 8 |" in text
    assert "SECRET" not in text


def test_hub_names_are_named_and_odd_names_stay_yaml(tmp_path: Path) -> None:
    """Datasets by their hub names, never a local path; a base model with a colon is quoted; nothing judged is said."""
    local = tmp_path / "ratings.jsonl"
    data = f"data.train=[org/set,{local},./x/y]"
    config = resolve("mmpo_rm", ["model.path='org/a: b'", "target.gamma=0.5", data])
    text = write_card(tmp_path, config, MANIFEST, None).read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---"))
    assert front["datasets"] == ["org/set"]
    assert front["base_model"] == "org/a: b"
    assert "model-index" not in front
    assert "Nothing was judged" in text
    assert str(tmp_path) not in text


def test_the_card_says_whether_its_confidence_can_be_used(tmp_path: Path) -> None:
    """Calibrated or not with both numbers, and the division that repairs it."""
    config = resolve("mmpo_rm", ["model.path=org/base", "target.gamma=0.5"])
    number = {"low": None, "high": None, "n": 100, "clusters": 0}
    found = METRICS | {"ece": number | {"value": 0.11}, "temperature": number | {"value": 1.7}}
    found |= {"length_baseline": number | {"value": 0.6}}
    for calibrated, said in (
        (False, "is not calibrated (ECE 0.110, floor 0.050); dividing rewards by 1.70"),
        (True, "is calibrated as far as"),
    ):
        held = found | {"verdict": {"calibrated": calibrated, "floor": 0.05}}
        assert said in write_card(tmp_path, config, MANIFEST, held).read_text(encoding="utf-8")


def test_a_push_sends_model_card_and_manifest_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is uploaded quotes no row, and a refusal leaves the model where it is."""
    sent: dict[str, object] = {}

    class Hub:
        """Stands for huggingface_hub.HfApi."""

        def create_repo(self, name: str, **_: object) -> SimpleNamespace:
            return SimpleNamespace(repo_id=f"me/{name}")

        def upload_folder(self, **given: object) -> None:
            sent.update(given)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    config = resolve("mmpo_rm", ["model.path=org/base", "target.gamma=0.5", "train.hub_model_id=judge"])
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    write_card(tmp_path, config, MANIFEST, METRICS)
    assert push(tmp_path, config, MANIFEST) == "me/judge"
    assert sent["folder_path"] == tmp_path
    for path in tmp_path.iterdir():
        assert b"SECRET" not in path.read_bytes()
    assert json.loads((tmp_path / "manifest.json").read_text())["data"]["files"][0]["kept"] == 8

    def refuse(*_: object, **__: object) -> None:
        raise OSError("403 Forbidden")

    monkeypatch.setattr(Hub, "upload_folder", refuse)
    with pytest.raises(RunFailed, match="hub: 403 Forbidden; the model is in"):
        push(tmp_path, config, MANIFEST)
