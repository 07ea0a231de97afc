"""From a file without any grade to MMPO: gaps from cross-fitted heads, or from a quality model of a graded subset."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import marginkit as mk
from marginkit.config import resolve
from marginkit.data.grades import pair_evidence
from marginkit.errors import BadInput
from marginkit.groups import Groups, write_groups
from marginkit.kitchen import true_utility
from marginkit.world import make_world, preference_prob

POLICY = ["model.path=fresh", "model.fresh.layers=1", "model.fresh.hidden=16", "model.fresh.vocab=300"]
POLICY += ["train.max_steps=2", "data.test_split=null", "store.use=false"]


@pytest.fixture
def ungraded(tmp_path: Path) -> Path:
    """Prompt, chosen, rejected and nothing more: labels of one fresh rater of the built-in world."""
    rng = np.random.default_rng(0)
    rows = []
    for group in make_world("high", prompts=240, demonstrations=1, dev=1, test=1).graded:
        i, j = rng.choice(len(group.responses), 2, replace=False)
        texts = [group.responses[at].text for at in (i, j)]
        utility = [true_utility(str(group.prompt), text) for text in texts]
        if rng.random() > preference_prob(utility[0], utility[1]):
            texts = texts[::-1]
        rows.append({"prompt": group.prompt, "chosen": texts[0], "rejected": texts[1]})
    path = tmp_path / "ungraded.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def true_gaps(groups: Groups) -> np.ndarray:
    """What only the world knows, of every pair."""
    return np.array(
        [
            true_utility(str(group.prompt), group.responses[pair.chosen].text)
            - true_utility(str(group.prompt), group.responses[pair.rejected].text)
            for group in groups
            for pair in group.pairs
        ]
    )


def estimated(groups: Groups) -> np.ndarray:
    """The target gap of every pair, logits."""
    found = [pair_evidence(group, pair).target_gap for group in groups for pair in group.pairs]
    assert None not in found
    return np.array(found, dtype=float)


def test_without_grades_there_is_no_mmpo(ungraded: Path) -> None:
    """The refusal that sends a user to this page."""
    with pytest.raises(BadInput, match="have no grades, strength, votes or probability"):
        mk.train("mmpo", [*POLICY, f"data.train={ungraded}", "target.gamma=auto"])


def test_by_crossfitting(ungraded: Path, tmp_path: Path) -> None:
    """Every pair gets a gap that says more than its label; what is written trains a policy without a gamma."""
    groups, _ = mk.read_groups(str(ungraded))
    graded = mk.grade(groups, "crossfit", embedder="hash")
    gaps, truth = estimated(graded), true_gaps(graded)
    assert len(gaps) == len(groups)
    assert np.corrcoef(gaps, truth)[0, 1] > 0.15
    assert ((gaps > 0) == (truth > 0)).mean() > 0.55
    write_groups(graded, tmp_path / "graded.jsonl")
    run = mk.train("mmpo", [*POLICY, f"data.train={tmp_path / 'graded.jsonl'}", f"out={tmp_path / 'run'}"])
    manifest = json.loads((run.path / "manifest.json").read_text())
    kept = sum(part["pairs"] for part in manifest["data"]["splits"].values())
    [read] = manifest["data"]["files"]
    assert read["read"] == len(groups)
    assert kept + sum(read["dropped"].values()) >= len(groups) - 30  # the test split is left out here
    assert run.config.target == {}


def test_by_a_quality_model(ungraded: Path, tmp_path: Path) -> None:
    """A head trained on a graded subset, gamma by its raters, grades the rest; a policy trains on that."""
    graded = make_world("high", prompts=120, demonstrations=1, dev=20, test=1, seed=1).graded
    write_groups(graded.map(lambda group: group), tmp_path / "subset.jsonl")
    subset = [f"data.train={tmp_path / 'subset.jsonl'}", "data.pairs=all", "store.use=false", "data.test_split=null"]
    quality = mk.train("mmpo_rm", ["model.kind=embedding", *subset, "target.gamma=auto", f"out={tmp_path / 'quality'}"])
    groups, _ = mk.read_groups(str(ungraded))
    made = mk.grade(groups, "reward", reward=str(quality.path), store=str(tmp_path / "store"))
    gaps, truth = estimated(made), true_gaps(made)
    assert np.corrcoef(gaps, truth)[0, 1] > 0.4
    assert 0.05 < gaps.std() < 10
    right = float(np.logaddexp(0, -gaps).mean())
    assert right < math.log(2)  # the labels agree with it
    write_groups(made, tmp_path / "graded.jsonl")
    run = mk.train("mmpo", [*POLICY, f"data.train={tmp_path / 'graded.jsonl'}", f"out={tmp_path / 'run'}"])
    assert run.checkpoint.is_dir()


@pytest.mark.parametrize("name", ["embedding_models.md", "gamma.md"])
def test_the_pages_can_be_followed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `marginkit train` line names keys that exist, and the Python runs as it stands."""
    text = (Path(__file__).parent.parent / "docs" / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("marginkit train ")]
    assert lines
    for line in lines:
        words = line.split()[2:]
        resolve(words[0], words[1:])
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, name, "exec"), {})
