"""The command line as its user meets it: what it prints where, its exit codes, its messages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from commands import call
from marginkit.errors import RunFailed

FRESH = [
    "model.path=fresh",
    "model.fresh.layers=1",
    "model.fresh.hidden=16",
    "model.fresh.heads=2",
    "model.fresh.vocab=300",
    "train.use_cpu=true",
    "train.save_strategy=no",
]


def rows(count: int = 24) -> list[dict[str, object]]:
    """Graded pairs of two words."""
    return [
        {
            "prompt": f"question {number}",
            "chosen": f"good answer {number}",
            "rejected": f"bad {number}",
            "score_chosen": 4 + number % 2,
            "score_rejected": 1,
            "split": ("train", "train", "dev", "test")[number % 4],
        }
        for number in range(count)
    ]


@pytest.fixture
def ratings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file of graded pairs, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "ratings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["list", "mmpo"], 0),
        (["train", "mmpo", "train.learnin_rate=1"], 2),
        (["train", "mmop"], 2),
    ],
)
def test_help_lists_and_typos_answer_without_torch(words: list[str], code: int) -> None:
    """What needs no model imports neither torch, transformers nor datasets: it answers in a fraction of a second."""
    program = (
        "import sys\nfrom marginkit.cli import main\n"
        f"sys.argv = ['marginkit', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit as leave:\n    code = leave.code or 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'numpy', 'scipy'} & set(sys.modules)\n"
        "print(code, sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == f"{code} []"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "mmop"], "recipe 'mmop' is not in the catalogue; did you mean mmpo?"),
        (["train", "mmpo", "train.learnin_rate=1"], "train.learnin_rate: unknown key; did you mean learning_rate?"),
        (["train", "mmpo", "target.gama=1"], "target.gama: recipe mmpo has no such option; did you mean gamma?"),
        (["train", "mmpo", "reward.beta=-1"], "reward.beta: must be > 0, got -1"),
        (["train", "mmpo", "gamma"], "'gamma': write overrides as key.sub=value"),
        (["train", "bt", "data.train=ratings.jsonl"], "model.path is missing"),
        (["train", "bt", "model.path=fresh"], "data.train is missing"),
        (["train", "bt", "model.path=fresh", "data.train=rating.jsonl"], "did you mean ratings.jsonl?"),
        (["train", "bt", "model.path=nowhere/at/all", "data.train=ratings.jsonl"], "nowhere/at/all"),
        (["train", "mmpo_rm", *FRESH, "data.train=ratings.jsonl"], "target.gamma is missing: 12 of 12 pairs"),
        (["train", "bt", *FRESH, "data.train=ratings.jsonl", "train.control=bt"], "the recipe is its own control"),
        (["train", "bt", *FRESH, "data.train=ratings.jsonl", "data.train_split=demo"], "'demo'"),
        (["check", "nothing.jsonl"], "nothing.jsonl: no such file"),
        (["evaluate", "nowhere"], "nowhere: no such run, folder of tables or Parquet file"),
        (["score", "nowhere", "ratings.jsonl"], "nowhere: no such run or model"),
        (["list", "--yaml"], "name the recipe"),
        (["train", "bt", *FRESH, "data.train=ratings.jsonl", "out=ratings.jsonl"], "out=ratings.jsonl: is a file"),
        (["check", "ratings.jsonl", "--column", "x"], "write NAME=MEANING"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], message: str, ratings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line on stderr says what is wrong and what to do; stdout stays empty; no run directory is left."""
    code, out, err = call(monkeypatch, capsys, *words)
    last = err.strip().splitlines()[-1]
    assert code == 2
    assert out == ""
    assert last.startswith("marginkit: ")
    assert message in last
    assert not (ratings.parent / "runs").exists() or "nowhere" in message


def test_check_counts_every_row(
    ratings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--json is one object with read == kept + dropped, reasons and places."""
    bad = [{"prompt": "a", "chosen": "x", "rejected": "x"}, {"prompt": "b", "chosen": "x", "rejected": " "}]
    with ratings.open("a", encoding="utf-8") as sink:
        sink.writelines(json.dumps(row) + "\n" for row in bad)
    code, out, _ = call(monkeypatch, capsys, "check", "ratings.jsonl", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["read"], found["kept"]) == (26, 24)
    assert found["read"] == found["kept"] + sum(found["dropped"].values())
    assert found["findings"][0]["place"] == "ratings.jsonl:25"
    assert found["summary"]["pairs"] == 24
    code, _, err = call(monkeypatch, capsys, "check", "ratings.jsonl", "--strict")
    assert code == 2
    assert "ratings.jsonl:25" in err
    code, out, _ = call(monkeypatch, capsys, "check", "ratings.jsonl")
    assert code == 0
    assert "the longer response" in out


def test_the_whole_way_by_commands(
    ratings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train with a control, score, evaluate, compare: results on stdout, the rest on stderr, the same figures."""
    code, out, err = call(
        monkeypatch,
        capsys,
        *["train", "mmpo_rm", "data.train=ratings.jsonl", "target.gamma=0.5", "train.control=bt", "out=run", *FRESH],
        "--json",
    )
    assert code == 0, err
    result = json.loads(out)
    assert set(result) >= {"run", "checkpoint", "metrics", "control", "differences", "verdict"}
    assert "read 24, kept 24" in err
    assert result["metrics"]["accuracy"]["n"] == 6
    assert (Path(result["checkpoint"]) / "config.json").is_file()

    code, out, _ = call(monkeypatch, capsys, "evaluate", "run", "--against", "run/control", "--json")
    judged = json.loads(out)
    assert code == 0
    assert judged["nll"] == result["metrics"]["nll"]
    assert judged["differences"] == result["differences"]

    code, out, _ = call(
        monkeypatch, capsys, "score", "run", "ratings.jsonl", "--split", "test", "--out", "again", "--json"
    )
    assert code == 0
    assert json.loads(out) == {"out": "again", "responses": 12, "pairs": 6}
    _, out, _ = call(monkeypatch, capsys, "evaluate", "again", "--json")
    assert json.loads(out)["nll"] == judged["nll"]

    code, out, _ = call(monkeypatch, capsys, "evaluate", "run")
    assert code == 0
    assert "accuracy of the longer response" in out

    code, _, err = call(
        monkeypatch,
        capsys,
        *["train", "mmpo_rm", "data.train=ratings.jsonl", "target.gamma=0.5", "train.control=bt", "out=run", *FRESH],
    )
    assert code == 2
    assert "this run is finished" in err
    code, _, err = call(monkeypatch, capsys, "train", "bt", "data.train=ratings.jsonl", "out=run", *FRESH)
    assert code == 2
    assert "recipe was 'mmpo_rm', now 'bt'" in err


def test_a_failed_run_exits_with_1(
    ratings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """RunFailed is one line and exit code 1, apart from bad input."""

    def fail(*_: object) -> None:
        raise RunFailed("step 3: a loss is not finite")

    monkeypatch.setattr("marginkit.run.fit", fail)
    code, _, err = call(monkeypatch, capsys, "train", "bt", "data.train=ratings.jsonl", "out=run", *FRESH)
    assert code == 1
    assert err.strip().splitlines()[-1] == "marginkit: step 3: a loss is not finite"


def test_the_starter_file_trains(
    ratings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`list NAME --yaml` prints a file that `train` takes as it is, overrides included."""
    _, out, _ = call(monkeypatch, capsys, "list", "bt", "--yaml")
    (ratings.parent / "bt.yaml").write_text(out, encoding="utf-8")
    code, _, err = call(monkeypatch, capsys, "train", "bt.yaml", "out=run", *FRESH)
    assert code == 0, err
    assert (ratings.parent / "run" / "metrics.json").is_file()


def test_a_refused_run_leaves_no_folder_behind(
    ratings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The way out that the message names works in the same folder."""
    command = ["train", "bt", "data.train=ratings.jsonl", "out=run", *FRESH]
    code, _, err = call(monkeypatch, capsys, *command, "encoding.max_length=3")
    assert code == 2
    assert "raise encoding.max_length" in err
    assert not (ratings.parent / "run").exists()
    code, _, err = call(monkeypatch, capsys, *command)
    assert code == 0, err


def test_a_single_step_still_trains(
    ratings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One optimizer step in all is not spent on a warm-up at rate 0; the log says so."""
    from safetensors.torch import load_file

    code, _, err = call(monkeypatch, capsys, "train", "bt", "data.train=ratings.jsonl", "out=run", *FRESH)
    assert code == 0, err
    assert "1 optimizer step(s) in all, so the warm-up of 1 is left out" in err
    before = load_file(ratings.parent / "run" / "start" / "model.safetensors")
    after = load_file(ratings.parent / "run" / "model" / "model.safetensors")
    assert any(not before[name].equal(after[name]) for name in before)


def test_a_run_is_not_a_model(
    ratings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's folder given as a model is named for what it is."""
    (ratings.parent / "held").mkdir()
    (ratings.parent / "held" / "config.yaml").write_text("recipe: bt", encoding="utf-8")
    code, _, err = call(monkeypatch, capsys, "train", "bt", "data.train=ratings.jsonl", "model.path=held")
    assert code == 2
    assert "model.path=held: is a run; its model is held/model" in err
