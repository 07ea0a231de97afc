"""`marginkit sample` as its user meets it, grading by a stored reward model, and the whole loop by commands alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

import marginkit as mk
from commands import call
from marginkit.config import resolve
from marginkit.data.manifests import manifest_path
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.records import Group, Rating, Response
from marginkit.self_play import grade_by_model, says_logits
from marginkit.world import make_world

QUICK = ["train.use_cpu=true", "train.save_strategy=no", "train.eval_strategy=no"]
FRESH = ["model.path=fresh", "model.fresh.layers=1", "model.fresh.hidden=16", "model.fresh.heads=2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with graded data, prompts alone, a policy and two reward models, all hardly trained."""
    folder = tmp_path_factory.mktemp("place")
    world = make_world("high", prompts=8, demonstrations=12, dev=1, test=2, seed=1)
    mk.write_groups((group for group in world.graded if group.split == "train"), folder / "graded.jsonl")
    rows = [{"prompt": group.prompt} for group in world.graded]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fresh = [*FRESH, "model.fresh.vocab=400", "model.fresh.max_length=128", "train.max_steps=3", *QUICK]
    held = ["data.eval_split=null", "data.test_split=null"]
    mk.train("sft", [*fresh, *held, f"out={folder}/sft", "data.fractions={train: 1.0}"], train=world.demonstrations)
    start = [f"model.path={folder}/sft/model", f"data.train={folder}/graded.jsonl", "train.max_steps=3", *QUICK, *held]
    mk.train("bt", [*start, f"out={folder}/bt"])
    mk.train("regression", [*start, f"out={folder}/regression"])
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new folder to work in, with links to what is there."""
    for name in ("graded.jsonl", "prompts.jsonl", "sft", "bt", "regression"):
        (tmp_path / name).symlink_to(place / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_and_refusals_of_the_command_line_need_no_torch() -> None:
    """`sample --help` has an example and answers at once."""
    program = (
        "import sys\nfrom marginkit.cli import main\nsys.argv = ['marginkit', 'sample', '--help']\n"
        "try:\n    main()\nexcept SystemExit as leave:\n    code = leave.code or 0\n"
        "print(code, sorted({'torch', 'transformers', 'numpy', 'pyarrow'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "0 []"
    assert "Example:" in done.stdout


def test_samples_are_graded_paired_and_accounted_for(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Best against worst by the reward model's logits; the manifest tells how; the same command does nothing more."""
    command = ["sample", "sft", "prompts.jsonl", "-n", "3", "--reward", "bt", "--out", "round1.jsonl", "--json"]
    code, out, err = call(monkeypatch, capsys, *command)
    assert code == 0, err
    result = json.loads(out)
    assert result["groups"] + sum(result["dropped"].values()) == 11
    groups, findings = mk.read_groups("round1.jsonl")
    assert findings.dropped == {}
    assert len(groups) == result["groups"] == result["pairs"] > 0
    scores = mk.score("bt", groups).responses.to_pylist()
    rewards = {(row["group"], row["response"]): row["reward"] for row in scores}
    for group in groups:
        own = [response.utility for response in group.responses]
        assert [response.grade for response in group.responses] == own
        assert own == pytest.approx([rewards[group.id, k] for k in range(len(own))], abs=1e-6)
        (pair,) = group.pairs
        known = [value for value in own if value is not None]
        assert (pair.chosen, pair.rejected) == (known.index(max(known)), known.index(min(known)))
        assert {response.model for response in group.responses} == {"sft"}
    manifest = json.loads(manifest_path("round1.jsonl").read_text())
    assert manifest["verb"] == "sample"
    assert manifest["settings"]["reward"] == "bt"
    assert manifest["facts"]["drawn"] == 33
    assert manifest["facts"]["graded_in"] == "logits"
    assert not Path("round1.draft.jsonl").exists()

    before = Path("round1.jsonl").stat().st_mtime_ns
    monkeypatch.setattr("marginkit.self_play.draw_samples", None)  # nothing is drawn again
    code, out, _ = call(monkeypatch, capsys, *command)
    assert (code, json.loads(out)) == (0, result | {"there_before": True})
    assert Path("round1.jsonl").stat().st_mtime_ns == before
    code, out, err = call(monkeypatch, capsys, *command, "--seed", "1")
    assert (code, out) == (2, "")
    assert "holds a dataset made otherwise (seed was 0, now 1)" in err


def test_ties_go_unless_they_are_kept(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where all rewards are equal, best and worst are the same response: refused, or flagged as ties."""
    from marginkit import self_play

    score = self_play.score  # type: ignore[attr-defined]

    def flat(*args: Any, **kwargs: Any) -> Any:
        scores = score(*args, **kwargs)
        at = scores.responses.schema.get_field_index("reward")
        equal = [0.25] * scores.responses.num_rows
        return replace(scores, responses=scores.responses.set_column(at, scores.responses.schema.field(at), [equal]))

    monkeypatch.setattr(self_play, "score", flat)
    common = ["sample", "sft", "prompts.jsonl", "-n", "2", "--reward", "bt", "--json", "--out", "b.jsonl"]
    code, out, err = call(monkeypatch, capsys, *common)
    assert (code, out) == (2, "")
    counted = re.search(
        r"prompts.jsonl: no prompt has a pair \(.*all ties: (\d+)\); what was drawn lies in b.draft", err
    )
    assert counted is not None
    assert not Path("b.jsonl").exists()
    code, out, _ = call(monkeypatch, capsys, *common, "--keep-ties")  # from what was drawn before
    assert json.loads(out)["groups"] == int(counted.group(1))
    groups, _ = mk.read_groups("b.jsonl")
    assert all(pair.tie for group in groups for pair in group.pairs)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["-n", "1"], "n=1: a pair needs two responses"), (["--how", "given"], "new pairs are made by best_worst")],
)
def test_what_can_give_no_pair_is_refused_before_anything_is_drawn(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    """Not after hours of drawing, with an empty dataset and a code of success."""
    monkeypatch.setattr("marginkit.self_play.draw_samples", None)
    code, out, err = call(monkeypatch, capsys, "sample", "sft", "prompts.jsonl", "--reward", "bt", *words)
    assert (code, out) == (2, "")
    assert said in err


def test_responses_that_the_reward_model_cannot_read_are_refused_and_kept(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it reads none of them there is nothing to pair, and the draws are still there."""
    from marginkit import self_play

    nothing = Groups.from_iterable([])
    monkeypatch.setattr(self_play, "grade_by_model", lambda *args, **kwargs: nothing)
    code, out, err = call(monkeypatch, capsys, "sample", "sft", "prompts.jsonl", "--reward", "bt", "--out", "a.jsonl")
    assert (code, out) == (2, "")
    assert "--reward bt: every prompt with its responses is too long for it" in err
    assert Path("a.draft.jsonl").is_file()


def test_a_failure_of_the_grading_loses_no_draws(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was drawn lies in the draft: the same command grades it, drawing nothing."""
    from marginkit import generate, self_play

    def broken(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    command = ["sample", "sft", "prompts.jsonl", "-n", "2", "--reward", "bt", "--out", "a.jsonl"]
    with monkeypatch.context() as patch:
        patch.setattr(self_play, "score", broken)
        code, _, err = call(patch, capsys, *command)
    assert code == 130
    assert "the same command" in err
    assert Path("a.draft.jsonl").exists()
    assert not Path("a.jsonl").exists()
    monkeypatch.setattr(generate, "draw", broken)
    code, _, err = call(monkeypatch, capsys, *command)
    assert code == 0, err
    assert "11 of 11 prompts were drawn before" in err
    assert not Path("a.draft.jsonl").exists()


def test_pairs_of_highest_dcrm(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """--how dcrm asks the policy for what it needs; the same pairs as `marginkit pair` makes of ungraded samples."""
    common = ["prompts.jsonl", "-n", "4", "--reward", "bt"]
    code, _, err = call(monkeypatch, capsys, "sample", "sft", *common, "--how", "dcrm", "--out", "a.jsonl")
    assert code == 0, err
    code, _, err = call(monkeypatch, capsys, "sample", "sft", *common, "--how", "all", "--out", "b.jsonl")
    assert code == 0, err
    code, _, err = call(monkeypatch, capsys, "pair", "b.jsonl", "--how", "dcrm", "--policy", "sft", "--out", "c.jsonl")
    assert code == 0, err
    one, two = (mk.read_groups(name)[0] for name in ("a.jsonl", "c.jsonl"))
    assert [[(p.chosen, p.rejected) for p in g.pairs] for g in one] == [
        [(p.chosen, p.rejected) for p in g.pairs] for g in two
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sft", "prompts.jsonl", "--temperature", "0"], "would all be the same"),
        (["sft", "prompts.jsonl", "--engine", "vllm"], "pip install marginkit[vllm]"),
        (["sft", "prompts.jsonl", "--how", "best_worst"], "name it with --reward"),
        (["sft", "prompts.jsonl", "--reward-as", "grade"], "name it with --reward"),
        (["sft", "prompts.jsonl", "--reward", "bt", "--how", "worst"], "new pairs are made by best_worst"),
        (["sft", "prompts.jsonl", "--reward", "sft/nothing"], "sft/nothing: no such run or model"),
        (["sft", "prompts.jsonl", "--reward", "some/model"], "e.g. --reward-recipe bt"),
        (["sft", "prompts.jsonl", "--reward", "bt", "--reward-as", "rank"], "auto, grade, utility"),
        (["sft", "prompts.jsonl", "--out", "a.csv"], "name a .jsonl file"),
        (["sft", "prompts.jsonl", "--out", "prompts.jsonl"], "prompts.jsonl: is there already"),
        (["sft", "prompt.jsonl"], "did you mean prompts.jsonl?"),
        (["sft", "prompts.jsonl", "--split", "dev"], "no row of split dev"),
        (["bt", "prompts.jsonl"], "trained a reward model, which writes nothing"),
        (["nothing/here/at", "prompts.jsonl"], "no such run or model"),
        (["sft", "prompts.jsonl", "encoding.max_lenth=9"], "did you mean max_length?"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_drawn(
    words: list[str], message: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2; nothing on stdout; no file is made."""
    monkeypatch.setattr("marginkit.generate.draw", None)
    code, out, err = call(monkeypatch, capsys, "sample", *words)
    assert (code, out) == (2, ""), err
    last = err.strip().splitlines()[-1]
    assert last.startswith("marginkit: ")
    assert message in last
    assert sorted(path.name for path in here.iterdir()) == ["bt", "graded.jsonl", "prompts.jsonl", "regression", "sft"]


def test_a_reward_is_a_utility_where_the_recipe_makes_it_one(here: Path) -> None:
    """Bradley-Terry's gap is a log-odds, a regression's is not; what was graded before is replaced."""
    groups = Groups.from_iterable(
        Group(f"g{k}", f"question {k}", (Response("a", 1.0, (Rating("me", 1.0),), {"style": 1.0}), Response("b", 2.0)))
        for k in range(3)
    )
    logits, units = (grade_by_model(groups, name) for name in ("bt", "regression"))
    for group in logits:
        assert all(r.utility == r.grade is not None and not r.ratings and not r.aspects for r in group.responses)
    assert all(r.utility is None and r.grade is not None for group in units for r in group.responses)
    forced = grade_by_model(groups, "regression", into="utility")
    assert [[r.utility for r in g.responses] for g in forced] == [[r.grade for r in g.responses] for g in units]
    plain = grade_by_model(groups, "bt", into="grade")
    assert all(r.utility is None for group in plain for r in group.responses)
    saved = grade_by_model(groups, "bt/model")  # no run: its maker has not said
    assert all(r.utility is None for group in saved for r in group.responses)
    said = grade_by_model(groups, "bt/model", recipe="bt")
    assert list(said) == list(logits)
    twice = Groups.from_iterable([groups[0], groups[0]])
    with pytest.raises(BadInput, match="two groups have one id"):
        grade_by_model(twice, "bt")
    long = Groups.from_iterable([*groups, Group("long", "word " * 300, (Response("x"), Response("y")))])
    assert grade_by_model(long, "bt").dropped == {"too long for the reward model": 1}


@pytest.mark.parametrize(
    ("recipe", "logits"),
    [
        *[(name, True) for name in ("bt", "mmpo_rm", "bt_centered", "dpo", "mmpo")],
        *[(name, False) for name in ("bt_margin", "bt_scaled", "bt_smooth", "bt_focal", "aplot", "regression")],
        *[(name, False) for name in ("simpo", "ipo", "cdpo", "odpo", "slic")],
    ],
)
def test_which_recipes_speak_in_logits(recipe: str, logits: bool) -> None:
    """Those whose optimum on pairs of probability p is the gap logit(p)."""
    assert says_logits(resolve(recipe)) is logits


def test_the_commands_of_the_page_are_understood() -> None:
    """Every command of docs/self_play.md has known recipes, keys and options."""
    from typer.main import get_command

    from marginkit.cli.app import app

    page = Path(__file__).parents[2] / "docs" / "self_play.md"
    lines = [line.split() for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("marginkit ")]
    assert [words[1] for words in lines] == ["train", "train", *["sample", "select", "train"] * 2]
    for _, verb, *rest in lines:
        get_command(app).commands[verb].make_context(verb, list(rest))  # type: ignore[attr-defined]
        if verb == "train":
            resolve(rest[0], rest[1:])


@pytest.mark.slow
def test_two_rounds_by_commands_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/self_play.md in small: SFT and a reward model, then twice sample, select and train."""
    monkeypatch.chdir(tmp_path)
    world = make_world("high", prompts=120, demonstrations=1200, dev=1, test=40, seed=3)
    mk.write_groups(world.demonstrations, "demonstrations.jsonl")
    mk.write_groups(world.graded, "graded.jsonl")

    def run(*words: str) -> dict[str, Any]:
        code, out, err = call(monkeypatch, capsys, *words, "--json")
        assert code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    held = ["data.eval_split=null", "data.test_split=null"]
    fresh = ["model.path=fresh", "model.fresh.hidden=64", "model.fresh.vocab=1024", "model.fresh.max_length=128"]
    rate, often = "train.learning_rate", "train.prompts_per_step=16"
    sft = ["data.train=demonstrations.jsonl", f"{rate}=1e-2", "train.num_train_epochs=6", "out=runs/sft"]
    run("train", "sft", *fresh, *sft, *QUICK, *held)
    start = ["model.path=runs/sft/model", "train.num_train_epochs=3", often, *QUICK]
    run("train", "bt", *start, "data.train=graded.jsonl", "data.pairs=all", f"{rate}=5e-3", "out=runs/rm")

    def rewarded(name: str) -> float:
        """The mean reward of fresh answers to the test prompts."""
        out = f"test-{Path(name).name}.jsonl"
        test = ["-n", "4", "--split", "test", "--temperature", "1", "--top-p", "1", "--seed", "9"]
        run("sample", name, "graded.jsonl", *test, "--out", out)
        table = mk.score("runs/rm", mk.read_groups(out)[0]).responses
        return float(pc.mean(table["reward"]).as_py())

    policy = "runs/sft"
    rewards = [rewarded(policy)]
    for number in (1, 2):
        sampled, kept = f"round{number}.jsonl", f"round{number}-kept.jsonl"
        draw = ["sample", policy, "graded.jsonl", "-n", "5", "--split", "train", "--seed", str(number)]
        drawn = run(*draw, "--reward", "runs/rm", "--out", sampled)
        assert drawn["pairs"] > 100
        run("select", sampled, "--how", "explicit", "--top", "0.75", "--out", kept)
        step = [f"model.path={policy}/model", f"data.train={kept}", "reward.beta=0.5", f"{rate}=1e-3"]
        step += ["train.num_train_epochs=3", often, *QUICK, *held]
        run("train", "mmpo", *step, f"out=runs/round{number}")
        rewards.append(rewarded(f"runs/round{number}"))
        policy = f"runs/round{number}"
    assert rewards == sorted(rewards), rewards  # what the loop maximises; the truth is benchmarks/self_play.py's
