"""Recipes that look at other pairs: a window makes them independent of layout and ranks; their state is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import test_resume
import torch
from safetensors.torch import load_file

import marginkit.training
import tiny
from marginkit.data.encoded import EncodedGroups
from marginkit.errors import BadInput
from marginkit.run import Run, train

COUPLED: dict[str, tuple[str, ...]] = {
    "gamma_simpo": ("reward.beta=2.0", "target.gamma=1.0", "target.tau=0.5"),
    "gamma_dpo": ("reward.beta=0.5", "target.gamma=1.0", "target.tau=0.5"),
    "amapo": ("reward.beta=2.0",),
    "beta_dpo": ("reward.beta=0.3", "target.a=0.6", "target.rho=0.3"),
    "alpha_dpo": ("reward.beta=2.0", "target.gamma=0.5", "target.alpha=0.4"),
    "kto_pair": ("reward.beta=0.3",),
}
WINDOW = ("train.population=window", "train.population_window=40")
LAYOUTS: dict[str, tuple[str, ...]] = {
    "8x1": ("train.per_device_train_batch_size=8", "train.gradient_accumulation_steps=1"),
    "1x8": ("train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=8"),
    "tokens": ("train.prompts_per_step=8", "train.tokens_per_micro_batch=90"),
}


def groups(count: int = 12) -> EncodedGroups:
    """Pairs of mixed numbers a group, some of them ties, with a reference that is not the policy."""
    encoded = tiny.encode(tiny.graded_groups(count, seed=3), tiny.tokenizer())
    logps = tiny.logps(tiny.model("llama", seed=1), encoded)
    # 5 nats lower than that: rewards above 0 on average, where KTO's levels are not cut off
    return encoded.with_ref_logp([[value - 5.0 for value in group] for group in logps])


def fit(recipe: str, options: tuple[str, ...], folder: Path, *, held: bool = False) -> Any:
    """A trained trainer: two epochs of two steps."""
    config = tiny.configured(recipe, *COUPLED[recipe], *options, "train.num_train_epochs=2")
    data = groups()
    trainer = tiny.trainer(tiny.model("llama"), config, data, folder, held=data if held else None)
    trainer.train()
    return trainer


def quick(*recipes: str) -> list[Any]:
    """Every coupled recipe; only these in the quick suite."""
    return [name if name in recipes else pytest.param(name, marks=pytest.mark.slow) for name in COUPLED]


@pytest.mark.parametrize("recipe", quick("gamma_simpo", "beta_dpo"))
def test_with_a_window_the_layout_of_a_step_changes_nothing(recipe: str, tmp_path: Path) -> None:
    """8x1 == 1x8 == token bins: losses 1e-6, gradients and state 1e-5; and the window has an effect."""
    whole = fit(recipe, (*LAYOUTS["8x1"], *WINDOW), tmp_path / "whole")
    assert len(whole.losses) == 4
    for name, layout in LAYOUTS.items():
        other = fit(recipe, (*layout, *WINDOW), tmp_path / name)
        assert other.losses == pytest.approx(whole.losses, rel=1e-6, abs=1e-6), name
        for left, right in zip(whole.gradients, other.gradients, strict=True):
            assert tiny.worst_gradient(left, right) <= 1e-5, name
        for key, value in whole.recipe.state_dict().items():
            assert torch.allclose(value.double(), other.recipe.state_dict()[key].double(), atol=1e-5), (name, key)
    assert 0 < len(whole.recipe.state_dict()["rewards"]) <= 40
    short = fit(recipe, (*LAYOUTS["8x1"], "train.population=window", "train.population_window=2"), tmp_path / "short")
    assert short.losses[0] == pytest.approx(whole.losses[0], abs=1e-6), "the first step has seen nothing yet"
    assert short.losses[1:] != pytest.approx(whole.losses[1:], abs=1e-6), "the window is looked at"


@pytest.mark.parametrize("recipe", ["gamma_simpo", "amapo", "alpha_dpo", "kto_pair"])
def test_as_released_the_layout_matters(recipe: str, tmp_path: Path) -> None:
    """The default is what the authors released: the pairs of one pass, so a smaller pass is another loss."""
    whole = fit(recipe, LAYOUTS["8x1"], tmp_path / "whole")
    apart = fit(recipe, LAYOUTS["1x8"], tmp_path / "apart")
    assert whole.losses != pytest.approx(apart.losses, abs=1e-6)


@pytest.mark.parametrize("mode", [(), WINDOW], ids=["microbatch", "window"])
@pytest.mark.parametrize("recipe", ["gamma_simpo", "alpha_dpo"])
def test_evaluation_moves_nothing(recipe: str, mode: tuple[str, ...], tmp_path: Path) -> None:
    """Training with evaluations in between is training without."""
    plain = fit(recipe, (*LAYOUTS["8x1"], *mode), tmp_path / "plain")
    looked = fit(recipe, (*LAYOUTS["8x1"], *mode, "train.eval_strategy=epoch"), tmp_path / "looked", held=True)
    assert any("eval_loss" in entry for entry in looked.state.log_history)
    assert looked.losses == plain.losses
    before = {name: value.clone() for name, value in looked.recipe.state_dict().items()}
    looked.evaluate()
    for name, value in looked.recipe.state_dict().items():
        assert torch.equal(value, before[name]), name


def on_rank(recipe: str, mode: list[str], folder: str) -> dict[str, Any]:
    """What a rank saw."""
    trainer = fit(recipe, ("train.prompts_per_step=5", "train.tokens_per_micro_batch=60", *mode), Path(folder))
    return {
        "losses": trainer.losses,
        "gradients": trainer.gradients,
        "state": trainer.recipe.state_dict(),
        "ranks": trainer.args.world_size,
    }


@pytest.mark.parametrize("recipe", quick("beta_dpo"))
def test_with_a_window_two_ranks_give_what_one_gives(recipe: str, tmp_path: Path) -> None:
    """Losses, gradients and state, with fillers in some steps."""
    alone = on_rank(recipe, list(WINDOW), str(tmp_path / "one"))
    ranks = tiny.on_ranks(on_rank, tmp_path / "ranks", recipe, list(WINDOW), str(tmp_path / "two"))
    for rank in ranks:
        assert "error" not in rank, rank
        value = rank["value"]
        assert value["ranks"] == 2
        assert value["losses"] == pytest.approx(alone["losses"], rel=1e-6, abs=1e-6)
        for left, right in zip(alone["gradients"], value["gradients"], strict=True):
            assert tiny.worst_gradient(left, right) <= 1e-5
        for name, kept in alone["state"].items():
            assert torch.allclose(kept.double(), value["state"][name].double(), atol=1e-5), name


def evaluated(folder: str) -> dict[str, float]:
    """Metrics of five groups, one a pass, so that a rank has a filler."""
    config = tiny.configured("gamma_simpo", *COUPLED["gamma_simpo"], "train.tokens_per_micro_batch=1")
    data = groups(5)
    metrics = tiny.trainer(tiny.model("llama"), config, data, Path(folder), held=data).evaluate()
    return {name: value for name, value in metrics.items() if isinstance(value, float)}


def test_a_rank_without_pairs_of_its_own_takes_part_in_evaluation(tmp_path: Path) -> None:
    """What is gathered is gathered from all: a filler has to come, with nothing."""
    for rank in tiny.on_ranks(evaluated, tmp_path / "r", str(tmp_path / "two")):
        assert "error" not in rank, rank
        assert rank["value"]["eval_loss"] > 0


def test_rounding_is_no_spread(tmp_path: Path) -> None:
    """A step at rate 0 leaves gaps of rounding; the margins of the next are not measured against them."""
    data = tiny.encode(tiny.graded_groups(12, seed=3), tiny.tokenizer())
    data = data.with_ref_logp(tiny.logps(tiny.model("llama"), data))
    config = tiny.configured(
        "alpha_dpo", "train.warmup_steps=2", "train.max_steps=5", "train.prompts_per_step=4", "train.population=window"
    )
    trainer = tiny.trainer(tiny.model("llama"), config, data, tmp_path)
    trainer.train()
    margins = [entry["target/margin"] for entry in trainer.state.log_history if "target/margin" in entry]
    assert margins[:2] == [4.0, 4.0]
    assert all(abs(margin - 4.0) < 40.0 for margin in margins), margins


def test_as_released_the_population_is_that_of_all_ranks(tmp_path: Path) -> None:
    """Every rank keeps the same state, and the pairs of both are in it."""
    ranks = [rank["value"] for rank in tiny.on_ranks(on_rank, tmp_path / "r", "gamma_simpo", [], str(tmp_path / "two"))]
    left, right = (rank["state"] for rank in ranks)
    assert torch.equal(left["past"], right["past"])
    pairs = sum(not tie for group in groups() for tie in group.tie)
    assert len(left["past"]) == 8 + 2 * pairs, "8 draws, and every pair that is no tie in both epochs"


@pytest.fixture(scope="module", params=["gamma_simpo", pytest.param("beta_dpo", marks=pytest.mark.slow)])
def straight(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Run]:
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp(request.param)
    start = tiny.save(folder / "start", "llama", attention_dropout=0.1)
    own = test_resume.overrides(start, folder / "out", *COUPLED[request.param])
    return request.param, start, train(request.param, own, train=test_resume.GROUPS)


@pytest.mark.parametrize("mode", [(), WINDOW], ids=["microbatch", "window"])
@pytest.mark.parametrize("after", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_that_was_cut_off_goes_on_to_the_same_state(
    straight: tuple[str, str, Run], after: int, mode: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and state bit for bit, in the middle of an epoch and after it."""
    recipe, start, whole = straight
    own = test_resume.overrides(start, tmp_path / "out", *COUPLED[recipe], *mode)
    if mode:
        other = test_resume.overrides(start, tmp_path / "whole", *COUPLED[recipe], *mode)
        whole = train(recipe, other, train=test_resume.GROUPS)
    test_resume.interrupted(monkeypatch, after)
    with pytest.raises(test_resume.PlugPulled):
        train(recipe, own, train=test_resume.GROUPS)
    monkeypatch.undo()
    resumed = train(recipe, own, train=test_resume.GROUPS)
    assert tiny.weights_digest(resumed.checkpoint) == tiny.weights_digest(whole.checkpoint)
    last = sorted((whole.path / "checkpoints").iterdir())[-1].name
    left, right = (load_file(run.path / "checkpoints" / last / "population.safetensors") for run in (whole, resumed))
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_without_its_state_a_run_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint whose state is gone is refused, not continued from nothing."""
    start = tiny.save(tmp_path / "start", "llama")
    own = test_resume.overrides(start, tmp_path / "out", *COUPLED["gamma_simpo"])
    test_resume.interrupted(monkeypatch, 2)
    with pytest.raises(test_resume.PlugPulled):
        train("gamma_simpo", own, train=test_resume.GROUPS)
    monkeypatch.undo()
    for path in (tmp_path / "out").rglob("population.safetensors"):
        path.unlink()
    with pytest.raises(marginkit.training.RunFailed, match=r"population\.safetensors: missing"):
        train("gamma_simpo", own, train=test_resume.GROUPS)


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("dpo", ["train.population=window"], "train.population: recipe dpo looks at no other pairs; leave it out"),
        ("amapo", ["train.population_window=9"], "train.population_window: is the size of a window"),
        ("aplot", ["train.population=window"], "train.population: recipe aplot transports between the pairs of one"),
    ],
)
def test_a_population_that_means_nothing_is_refused(
    recipe: str, overrides: list[str], message: str, tmp_path: Path
) -> None:
    """Before data or model are read."""
    with pytest.raises(BadInput) as refusal:
        train(recipe, ["model.path=fresh", f"out={tmp_path / 'out'}", *overrides], train=test_resume.GROUPS)
    assert str(refusal.value).startswith(message)
    assert not (tmp_path / "out").exists()


def test_the_schedule_of_repo_runs_from_its_first_to_its_last_step(tmp_path: Path) -> None:
    """The margin that is logged: 1.0 in the first step, 0.2 in the last, a line between."""
    config = tiny.configured(
        "repo", "target.gamma=1.0", "target.gamma_end=0.2", "train.prompts_per_step=4", "train.num_train_epochs=2"
    )
    trainer = tiny.trainer(tiny.model("llama"), config, groups(), tmp_path)
    trainer.train()
    margins = [entry["target/margin"] for entry in trainer.state.log_history if "target/margin" in entry]
    assert margins == pytest.approx([1.0 - 0.8 * step / 5 for step in range(6)], abs=1e-6)


def test_the_state_of_a_run_is_plain_tensors(tmp_path: Path) -> None:
    """No pickle; small."""
    start = tiny.save(tmp_path / "start", "llama")
    run = train("gamma_simpo", test_resume.overrides(start, tmp_path / "out"), train=test_resume.GROUPS)
    found = sorted((run.path / "checkpoints").rglob("population.safetensors"))
    assert found
    assert set(load_file(found[-1])) == {"passes", "past"}
    assert json.loads((run.path / "manifest.json").read_text())["recipe"]["name"] == "gamma_simpo"


def test_beta_dpo_draws_its_share_in_a_window_too(tmp_path: Path) -> None:
    """Pairs of the window keep the chance they were drawn with; the next ones are drawn against those."""
    config = tiny.configured(
        "beta_dpo", "target.a=0", "target.rho=0.4", "train.learning_rate=0", "train.prompts_per_step=6", *WINDOW,
        "train.num_train_epochs=12", "train.population_window=400",
    )  # fmt: skip
    trainer = tiny.trainer(tiny.model("llama"), config, groups(), tmp_path)
    trainer.train()
    kept = [entry["target/kept"] for entry in trainer.state.log_history if "target/kept" in entry]
    assert sum(kept[6:]) / len(kept[6:]) == pytest.approx(0.6, abs=0.08)
    trainer.sampler.epoch = 0
    first = trainer._chance(list(groups()))
    trainer.sampler.epoch = 1
    assert not torch.equal(first, trainer._chance(list(groups()))), "another epoch draws other pairs"


def test_an_evaluation_is_of_all_pairs_whatever_was_drawn(tmp_path: Path) -> None:
    """The same weights give the same loss in every epoch."""
    config = tiny.configured("beta_dpo", "target.rho=0.5", "train.prompts_per_step=6")
    data = groups()
    trainer = tiny.trainer(tiny.model("llama"), config, data, tmp_path, held=data)
    trainer.train()
    first = trainer.evaluate()["eval_loss"]
    trainer.sampler.epoch = 7
    assert trainer.evaluate()["eval_loss"] == first


def test_with_the_best_weights_comes_the_state_they_were_trained_with(tmp_path: Path) -> None:
    """`load_best_model_at_end` goes back to a checkpoint: to its population too."""
    start = tiny.save(tmp_path / "start", "llama")
    own = [
        f"model.path={start}", "train.learning_rate=0.3", "train.num_train_epochs=4", "train.prompts_per_step=4",
        "train.use_cpu=true", "store.use=false", "train.load_best_model_at_end=true", f"out={tmp_path / 'out'}",
        "train.metric_for_best_model=eval_rewards/chosen", "train.save_total_limit=9",
    ]  # fmt: skip
    seen: dict[str, Any] = {}

    class Watched(marginkit.training.MarginTrainer):
        def _load_best_model(self) -> None:
            seen["last"] = len(self.recipe.state_dict()["past"])
            super()._load_best_model()
            seen["best"], seen["now"] = self.state.best_model_checkpoint, self.recipe.state_dict()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(marginkit.training, "MarginTrainer", Watched)
        train("gamma_simpo", own, train=tiny.world(train=12, dev=6, test=3))
    kept = load_file(Path(seen["best"]) / "population.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in seen["now"].items())
    assert len(kept["past"]) < seen["last"], "the best was not the last, or this shows nothing"
