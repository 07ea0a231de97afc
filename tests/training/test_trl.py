"""The same data and weights through TRL's own trainers give the same losses, step after step."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

import tiny
from marginkit.data.encoding import CHATML
from marginkit.data.sources import read_groups

STEPS, PAIRS = tiny.TRL_STEPS, tiny.TRL_PAIRS
RATE = 0.01


def ours(
    recipe: str,
    own: Any,
    form: str,
    reference: Any,
    folder: Path,
    *options: str,
    rows: list[dict[str, Any]] | None = None,
) -> list[dict[str, float]]:
    """What marginkit logs for the same rows."""
    groups, findings = read_groups(tiny.preference_rows(form) if rows is None else rows)
    assert findings.kept == PAIRS
    template = CHATML if form == "chat" else None
    encoded = tiny.encode(groups, tiny.tokenizer(chat_template=template), separator="")
    if reference is not None:
        encoded = encoded.with_ref_logp(tiny.logps(reference, encoded))
    config = tiny.configured(
        recipe, f"train.prompts_per_step={PAIRS}", f"train.max_steps={STEPS}", "train.num_train_epochs=3", *options
    )
    return tiny.logged(tiny.trainer(own, config, encoded, folder))


@pytest.mark.parametrize("form", ["chat", "plain"])
def test_dpo_gives_the_losses_of_trl(form: str, tmp_path: Path) -> None:
    """Three SGD steps from a policy that is not its reference: loss and rewards within 1e-4."""
    template = CHATML if form == "chat" else None
    start = tiny.save(tmp_path / "start", "llama", chat_template=template)
    before = tiny.save(tmp_path / "before", "llama", seed=1, chat_template=template)
    dataset = Dataset.from_list(tiny.preference_rows(form)).remove_columns("margin")
    trl = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(start),
        ref_model=AutoModelForCausalLM.from_pretrained(before),
        args=DPOConfig(**tiny.trl_arguments(tmp_path / "trl"), beta=0.3, loss_type="sigmoid"),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(start),
    )
    peer = tiny.logged(trl)
    mine = ours("dpo", tiny.model("llama"), form, tiny.model("llama", seed=1), tmp_path / "ours", "reward.beta=0.3")
    assert len(peer) == len(mine) == STEPS
    assert abs(mine[0]["loss"] - 0.6931) > 0.01, "the policy has moved away from its reference"
    assert abs(mine[0]["loss"] - mine[-1]["loss"]) > 0.05, "and it is trained"
    for step, (left, right) in enumerate(zip(mine, peer, strict=True)):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-4), step
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
            assert left[name] == pytest.approx(right[name], rel=1e-4, abs=1e-4), (step, name)
        for name in ("rewards/accuracies", "logps/chosen", "logps/rejected"):
            assert left[name] == pytest.approx(right[name], rel=1e-5), (step, name)


@dataclass(frozen=True)
class Peer:
    """A recipe and what TRL calls it.

    Args:
        recipe: ours, with `options`.
        trainer: TRL's trainer and `setting`, its arguments.
        times: TRL's loss is so many times ours; the learning rate makes up for it.
        rate: TRL's learning rate.
        even: all chosen responses have as many tokens, because TRL averages the log-likelihood over the tokens of the
            batch, and we over those of a response, then over responses.
        bare: the prompt is the BOS token alone, because TRL counts the tokens of the prompt as well.
    """

    recipe: str
    options: tuple[str, ...]
    trainer: Any
    config: Any
    setting: dict[str, Any] = field(default_factory=dict)
    times: float = 1.0
    rate: float = RATE
    even: bool = False
    bare: bool = False

    def __str__(self) -> str:
        words = self.setting.get("loss_type", "")
        return f"{self.recipe}-{self.trainer.__name__}-{words if isinstance(words, str) else '+'.join(words)}"


def dpo(recipe: str, *options: str, loss: str | list[str], beta: float = 0.1, **more: Any) -> Peer:
    """A loss type of TRL's DPOTrainer."""
    ours_only = {name: more.pop(name) for name in ("times", "rate", "even") if name in more}
    return Peer(recipe, options, DPOTrainer, DPOConfig, {"loss_type": loss, "beta": beta, **more}, **ours_only)


PEERS = [
    dpo("rso_hinge", "reward.beta=0.1", loss="hinge"),
    dpo("ipo_mean", "reward.tau=0.1", loss="ipo"),
    dpo("rdpo", "reward.beta=0.1", "objective.eps=0.15", loss="robust", label_smoothing=0.15),
    dpo("dpo", "reward.name=implicit_mean", "reward.beta=2.0", loss="sigmoid_norm", beta=2.0, rate=0.1),
    dpo("bco", "reward.beta=0.1", loss="bco_pair"),
    dpo("nca", "reward.beta=0.1", loss="nca_pair"),
    dpo("sppo", "objective.eta=10.0", loss="sppo_hard", times=2.0, rate=1e-4),
    dpo("apo_zero", "reward.beta=0.1", loss="apo_zero", rate=0.03),
    dpo("wpo", "reward.beta=0.1", "target.clamp=false", loss="sigmoid", use_weighting=True),
    dpo(
        *("dpo", "reward.beta=0.1", "objective.sft_weight=0.5"),
        loss=["sigmoid", "sft"],
        loss_weights=[1.0, 0.5],
        even=True,
    ),
    Peer(
        *("kto_pair", ("reward.beta=0.1", "objective.lam_d=1.2", "objective.lam_u=0.8", "target.z0=0.0")),
        *(KTOTrainer, KTOConfig, {"beta": 0.1, "desirable_weight": 1.2, "undesirable_weight": 0.8}),
        times=0.5,
        rate=0.03,
    ),
    Peer(
        *("simpo", ("reward.beta=2.0", "target.gamma=1.6"), CPOTrainer, CPOConfig),
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.6, "cpo_alpha": 0.0},
        rate=0.1,
    ),
    Peer(
        *("cpo", ("reward.beta=0.1", "objective.lam=0.7", "objective.sft_per=token"), CPOTrainer, CPOConfig),
        {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 0.7},
        even=True,
    ),
    Peer("orpo", ("target.lam=0.6",), ORPOTrainer, ORPOConfig, {"beta": 0.6}, rate=0.03, even=True, bare=True),
]


@pytest.mark.parametrize("peer", PEERS, ids=str)
def test_recipes_give_the_losses_of_trl(peer: Peer, tmp_path: Path) -> None:
    """Three SGD steps on plain text: loss within 1e-5."""
    rows = tiny.preference_rows("plain", even=peer.even)
    tokenizer = tiny.tokenizer()
    for row in rows:
        del row["margin"]
        if peer.bare:
            row["prompt"] = tokenizer.bos_token
    given = tiny.trl_arguments(tmp_path / "trl") | {"learning_rate": peer.rate} | peer.setting
    peculiar: dict[str, Any] = {}
    if peer.trainer in (DPOTrainer, KTOTrainer):
        peculiar["ref_model"] = tiny.model("llama", seed=1)
    theirs = rows
    if peer.trainer is KTOTrainer:  # unpaired
        given["per_device_train_batch_size"] = 2 * PAIRS
        theirs = [
            {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
            for name in ("chosen", "rejected")
            for row in rows
        ]
    trl = tiny.logged(
        peer.trainer(
            model=tiny.model("llama"),
            args=peer.config(**given),
            train_dataset=Dataset.from_list(theirs),
            processing_class=tokenizer,
            **peculiar,
        )
    )
    if peer.trainer is KTOTrainer:
        assert all(entry["kl"] == 0.0 for entry in trl), "TRL's level, from mismatched responses, is our z0"
    mine = ours(
        *(peer.recipe, tiny.model("llama"), "plain", tiny.model("llama", seed=1), tmp_path / "ours"),
        *peer.options,
        f"train.learning_rate={peer.rate * peer.times}",
        rows=rows,
    )
    assert len(trl) == len(mine) == STEPS
    assert abs(mine[0]["loss"] - mine[-1]["loss"]) > 0.01 * abs(mine[0]["loss"]), "the loss moves"
    for step, (left, right) in enumerate(zip(mine, trl, strict=True)):
        assert peer.times * left["loss"] == pytest.approx(right["loss"], rel=1e-5), step


@pytest.mark.parametrize(
    ("recipe", "form"), [("bt", "chat"), ("bt", "plain"), ("bt_margin", "chat"), ("bt_centered", "plain")]
)
def test_a_reward_model_gives_the_losses_of_trl(recipe: str, form: str, tmp_path: Path) -> None:
    """Three SGD steps, without and with a `margin` column, and with rewards pulled to 0: loss within 1e-5."""
    template = CHATML if form == "chat" else None
    start = tiny.save(tmp_path / "start", "llama_rm", chat_template=template)
    dataset = Dataset.from_list(tiny.preference_rows(form))
    if recipe != "bt_margin":
        dataset = dataset.remove_columns("margin")
    pull = 0.2 if recipe == "bt_centered" else None
    trl = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(start, num_labels=1),
        args=RewardConfig(**tiny.trl_arguments(tmp_path / "trl"), center_rewards_coefficient=pull),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(start),
    )
    peer = tiny.logged(trl)
    options = [] if pull is None else [f"objective.c={pull}"]
    mine = ours(recipe, tiny.model("llama_rm"), form, None, tmp_path / "ours", *options)
    assert len(peer) == len(mine) == STEPS
    assert abs(mine[0]["loss"] - 0.6931) > 0.01
    for step, (left, right) in enumerate(zip(mine, peer, strict=True)):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5), step
        assert left["rewards/margins"] == pytest.approx(right["margin"], rel=1e-4, abs=1e-5), step
