"""Pages of runs: one real run that is looked at from all sides, and made-up folders for what one run does not have."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import marginkit as mk
import pair_tables
import tiny
from commands import call
from marginkit.errors import BadInput
from marginkit.reporting.blocks import Chart, Page, PairText, PairTexts, Prose, Section, Table
from marginkit.reporting.comparison_page import comparison_page
from marginkit.reporting.html import render_html
from marginkit.reporting.judged import density
from marginkit.reporting.reports import page_of, report
from marginkit.reporting.runs import RunRecord, named, read_record
from marginkit.run import Run
from marginkit.tables import Scores
from page_reading import write_run

ALL = ("Numbers", "Is its confidence right?", "How far apart?", "Slices", "How training went", "Sure and wrong", "Data")
ALL += ("Settings", "Cost and speed", "How to repeat it")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small dpo-like run with a twin and a dev split."""
    folder = tmp_path_factory.mktemp("page")
    start = tiny.save(folder / "start", "llama")
    options = [f"model.path={start}", f"out={folder / 'run'}", "store.use=false", "train.use_cpu=true"]
    options += [
        "train.prompts_per_step=4",
        "train.logging_steps=1",
        "train.num_train_epochs=3",
        "train.learning_rate=0.003",
    ]
    options += ["train.save_strategy=no", "target.gamma=0.5", "train.control=dpo"]
    return mk.train("mmpo", options, train=tiny.world(train=24, dev=12, test=30))


def section(page: Page, title: str) -> Section:
    """The section with this title."""
    return next(one for one in page.sections if one.title == title)


def words(page: Page) -> str:
    """Everything a page says outside its tables and figures."""
    texts = [one.says for one in page.verdicts]
    texts += [block.text for one in page.sections for block in one.blocks if isinstance(block, Prose)]
    return "\n".join(texts)


def test_a_run_ends_with_its_page(run: Run) -> None:
    """report.html and report.md lie in the run, with every section; the log has what the page draws."""
    assert run.page == run.path / "report.html"
    text = run.page.read_text()
    for title in (*ALL, "Against its hard-label twin"):
        assert f">{title}</h2>" in text, title
    beside = (run.path / "report.md").read_text()
    assert "## How to repeat it" in beside
    names = set().union(*map(set, tiny.log_lines(run.path)))
    assert {"gradient/small_gaps", "pairs/large_gaps", "rewards/margins_std", "eval_rewards/margins_std"} <= names
    first = tiny.log_lines(run.path)[0]
    assert first["step"] == 0  # where training starts from
    assert first["eval_rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert run.to_json()["page"] == str(run.page)


def test_shares_of_the_gradient_add_up(run: Run) -> None:
    """Over small, middle and large gaps: all of the gradient, all of the pairs."""
    for line in tiny.training_lines(run.path):
        for what in ("gradient", "pairs"):
            assert sum(line[f"{what}/{part}_gaps"] for part in ("small", "middle", "large")) == pytest.approx(1.0)


def test_the_page_shows_what_the_tables_say(run: Run) -> None:
    """Numbers of `evaluate`, the ledger, the texts of the mistakes, the snapshots of each evaluation."""
    record = read_record(run.path)
    page = page_of([run.path])
    assert run.metrics is not None
    (numbers,) = (block for block in section(page, "Numbers").blocks if isinstance(block, Table))
    assert numbers.rows[0][:2] == ("accuracy", run.metrics["accuracy"])
    splits = next(
        block for block in section(page, "Data").blocks if isinstance(block, Table) and block.columns[0] == "split"
    )
    assert tuple(splits.rows[-1][:2]) == ("test", "30")
    (texts,) = (block for block in section(page, "Sure and wrong").blocks if isinstance(block, PairTexts))
    wrong = int(((record.columns.gap > 0) != (record.columns.label > 0.5))[record.columns.label != 0.5].sum())
    assert texts.total <= wrong
    assert texts.rows[0].prompt
    charts = [block.caption for block in section(page, "How training went").blocks if isinstance(block, Chart)]
    assert {"Loss", "Log-probabilities", "Gap against target over time, on the dev split"} <= set(charts)
    assert len(record.history.snapshots) == 4  # before training and after each of three epochs
    assert all(abs(gap) < 1e-5 for gap in record.history.snapshots[0].gap)


def test_no_path_of_this_machine_is_on_the_page(run: Run) -> None:
    """The command and the configuration name files, not where they lie."""
    assert str(run.path.parent) not in (run.path / "report.html").read_text()


def test_the_command_writes_the_page_where_it_is_told_to(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Default: into the run; --out elsewhere; --json is one object; a foreign file is left alone."""

    def asked(*words: str) -> tuple[int, str, str]:
        return call(monkeypatch, capsys, "report", *words)

    code, out, _ = asked(str(run.path))
    assert code == 0
    assert "report.html" in out
    told = json.loads(asked(str(run.path), "--out", str(tmp_path / "page.html"), "--json")[1])
    assert told["page"] == str(tmp_path / "page.html")
    assert (tmp_path / "page.md").is_file()
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine</p>")
    assert asked(str(run.path), "--out", str(mine))[0] == 2
    assert mine.read_text() == "<p>mine</p>"
    code, _, err = asked(str(tmp_path))
    assert code == 2
    assert "neither a run (no config.yaml) nor a folder of tables" in err


def copy_of(run: Run, target: Path, *without: str) -> Path:
    """The run without some of its files."""
    shutil.copytree(run.path, target, ignore=shutil.ignore_patterns("checkpoints", "model", "start", *without))
    return target


@pytest.mark.parametrize(
    ("without", "title", "said"),
    [
        ("log.jsonl", "How training went", "Nothing was logged."),
        ("tables", "Numbers", "Nothing was judged"),
        ("mistakes.jsonl", "Sure and wrong", "this folder has none"),
        ("manifest.json", "Settings", "No manifest"),
    ],
)
def test_what_is_missing_is_named(run: Run, tmp_path: Path, without: str, title: str, said: str) -> None:
    """A page is drawn without any one of the files, and says what it lacks."""
    page = page_of([copy_of(run, tmp_path / "run", without, "control")])
    assert [one.title for one in page.sections if one.title in ALL] == list(ALL)
    texts = [block.text for block in section(page, title).blocks if isinstance(block, Prose)]
    assert any(said in text for text in texts), texts


def test_what_was_logged_once_is_a_row_and_no_curve(tmp_path: Path) -> None:
    """A point alone has no course."""
    folder = write_run(tmp_path / "run")
    (folder / "log.jsonl").write_text(
        '{"step": 10, "loss": 0.5}\n{"step": 20, "grad_norm": 2}\n{"step": 30, "grad_norm": 1}\n'
    )
    blocks = section(page_of([folder]), "How training went").blocks
    assert [block.caption for block in blocks if isinstance(block, Chart)] == ["Gradient norm"]
    [table] = [block for block in blocks if isinstance(block, Table)]
    assert table.rows == [("Loss: train", "0.5", "10")]


def test_a_run_that_was_cut_off(run: Run, tmp_path: Path) -> None:
    """Without metrics.json it is not finished, and the page says so."""
    page = page_of([copy_of(run, tmp_path / "run", "metrics.json", "tables")])
    assert "has not come to its end" in page.lead
    assert "has not come to its end" in page.verdicts[0].says
    assert "the same command again" in (page.verdicts[0].advice or "")
    assert "not finished" in words(page)


def test_a_twin_that_was_judged_on_other_pairs(tmp_path: Path) -> None:
    """The page is drawn all the same, and says why the two are not compared."""
    folder = write_run(tmp_path / "run", 60)
    write_run(folder / "control", 40)
    page = page_of([folder])
    [said] = section(page, "Against its hard-label twin").blocks
    assert isinstance(said, Prose)
    assert "They are not compared: the two tables hold different pairs" in said.text


def test_broken_files_are_refused_in_one_line(run: Run, tmp_path: Path) -> None:
    """A manifest that is no JSON, a configuration that is no YAML, texts that were cut off."""
    for name, text, said in (
        ("manifest.json", "{", "not readable as JSON"),
        ("config.yaml", "a: [", "not readable as YAML"),
        ("tables/mistakes.jsonl", '{"mistakes": 3}\n{"group": "a', "not readable as lines of JSON"),
        ("benchmarks/one/result.json", "[]", "is no result of marginkit evaluate; remove it"),
        ("benchmarks/one/result.json", '{"name": "x", "evaluation": {"accuracy": 5}}', "is no result of marginkit"),
        ("tables/mistakes.jsonl", '{"shown": 3}\n', "not readable as lines of JSON"),
        ("tables/mistakes.jsonl", '{"mistakes": 3}\n{"group": "a"}\n', "a row lacks one of chosen"),
    ):
        folder = copy_of(run, tmp_path / f"{len(list(tmp_path.iterdir()))}", "control")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        with pytest.raises(BadInput, match=said) as caught:
            page_of([folder])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("right", "longer_right", "level", "said"),
    [
        (0.8, 0.5, "good", "Better than length"),
        (0.6, 0.6, "warning", "Not distinguishable from length"),
        (0.5, 0.8, "bad", "Worse than length"),
    ],
)
def test_length_is_what_an_accuracy_is_held_against(
    right: float, longer_right: float, level: str, said: str, tmp_path: Path
) -> None:
    """400 pairs, of which the model and the rule of the longer one order so many rightly, but not the same ones."""
    place = np.arange(400)
    gap = np.where(place < 400 * right, 1.0, -1.0)
    longer = np.where(place >= 400 * (1 - longer_right), 20, 5)
    Scores(pair_tables.responses(reward=gap), pair_tables.pairs(gap, length_chosen=longer)).save(tmp_path)
    verdict = page_of([tmp_path]).verdicts[0]
    assert verdict.says.startswith(said)
    assert verdict.level == level
    Scores(pair_tables.responses(reward=gap), pair_tables.pairs(np.ones(400))).save(tmp_path / "always right")
    behind = [one.says for one in page_of([tmp_path / "always right", tmp_path]).verdicts if "longer" in one.says]
    assert bool(behind) == (level != "good")
    assert all(one.startswith(f"{tmp_path.name} cannot be told from the rule") for one in behind)


def test_a_folder_of_tables_has_a_page_too(tmp_path: Path) -> None:
    """What the tables allow, and for the rest why there is nothing."""
    rng = np.random.default_rng(0)
    gap = rng.normal(1, 2, 300)
    label = 1 / (1 + np.exp(-0.5 * gap))  # it is twice as sure as it should be
    turned = rng.uniform(size=300) > label
    pairs = pair_tables.pairs(np.where(turned, -gap, gap), grade_gap=rng.integers(1, 4, 300).astype(float))
    Scores(pair_tables.responses(reward=gap), pairs).save(tmp_path)
    page = page_of([tmp_path])
    assert page.verdicts[0].says.startswith("Better than length") or "coin" in page.verdicts[0].says
    assert any("too sure" in one.says for one in page.verdicts)
    assert "These are score tables" in words(page)


# ---------------------------------------------------------------------------------------------------------- several


def made_up(tmp_path: Path, name: str, gap: np.ndarray, recipe: str, **benchmarks: np.ndarray) -> Path:
    """A folder that looks like a finished run."""
    folder = tmp_path / name
    Scores(pair_tables.responses(reward=gap), pair_tables.pairs(gap)).save(folder / "tables")
    config = {"recipe": recipe, "seed": 0, "train": {"learning_rate": 1e-4 * len(name)}, "target": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    train = {"groups": 10, "pairs": 10, "fingerprint": "x", "left_out": {}}
    manifest = {"data": {"files": [], "splits": {"train": train}, "encoding": {}}, "parts": {}, "versions": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "metrics.json").write_text("{}")
    for one, own in benchmarks.items():
        place = folder / "benchmarks" / one
        scores = Scores(pair_tables.responses(reward=own), pair_tables.pairs(own))
        scores.save(place)
        result = {"name": one, "kind": "pairs", "evaluation": mk.evaluate(scores).to_json()}
        (place / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """A baseline, one that is clearly better, one that cannot be told apart."""
    rng = np.random.default_rng(1)
    base = rng.normal(0.5, 1.0, 400)
    better, same = base + rng.normal(1.0, 0.3, 400), base + rng.normal(0.0, 0.3, 400)
    return [
        made_up(tmp_path, "base", base, "dpo", hard=base[:200]),
        made_up(tmp_path, "better", better, "mmpo", hard=better[:200]),
        made_up(tmp_path, "same", same, "bpo", hard=same[:200]),
    ]


def test_a_comparison_says_which_is_better_and_what_cannot_be_told(three: list[Path], tmp_path: Path) -> None:
    """Paired differences to the first; the intervals are counted; benchmarks side by side with their differences."""
    page = page_of(three)
    said = [one.says for one in page.verdicts]
    assert said[0].startswith("better has better NLL")
    assert said[1].startswith("same and base are not distinguishable")
    assert [one.level for one in page.verdicts[:2]] == ["good", "note"]
    assert page_of([three[1], three[0]]).verdicts[0].level == "warning"
    assert said[-1] == "6 intervals are looked at: about 0.3 would leave 0 out by chance."
    assert "6 intervals in all, not corrected for their number." in words(page)
    judged = section(page, "Benchmarks").blocks[0]
    assert isinstance(judged, Table)
    first = dict(zip(judged.columns, judged.rows[0], strict=True))
    told_of = mk.evaluate(three[0] / "benchmarks" / "hard")
    assert (first["file"], first["model"], first["pairs"]) == ("hard", "base", "200")
    for head, name in (
        ("accuracy", "accuracy"),
        ("longer is better", "length_baseline"),
        ("NLL", "nll"),
        ("ECE", "ece"),
    ):
        assert first[head] == told_of[name]
    (table, told) = section(page, "Benchmarks, differences to base").blocks
    assert isinstance(table, Table)
    assert [row[:2] for row in table.rows] == [("hard", "better"), ("hard", "same")]
    assert isinstance(told, Prose)
    assert told.text.startswith("2 of 4 intervals leave 0 out; about 0.2 would by chance alone")
    settings = section(page, "The models").blocks[1]
    assert isinstance(settings, Table)
    assert [row[0] for row in settings.rows] == ["train.learning_rate"]
    assert report(three, out=tmp_path / "all.html").read_text().count("<svg") > 6


def test_a_file_that_it_was_trained_on_is_named_beside_its_numbers(tmp_path: Path) -> None:
    """They look like those of any other file."""
    folder = made_up(tmp_path, "one", np.linspace(-1, 3, 50), "dpo", seen=np.ones(30))
    held = folder / "benchmarks" / "seen" / "result.json"
    assert "Trained on this very file" not in words(page_of([folder]))
    held.write_text(json.dumps(json.loads(held.read_text()) | {"trained_on": True}))
    assert "Trained on this very file: seen (one)." in words(page_of([folder]))


def test_models_judged_on_other_pairs_stand_side_by_side(three: list[Path], tmp_path: Path) -> None:
    """No difference is made up; the page says why there is none."""
    other = made_up(tmp_path, "other", np.linspace(-1, 3, 50), "dpo")
    page = page_of([three[0], other])
    assert page.verdicts[0].says.startswith("other and base are not compared: the two tables hold different pairs")
    assert "0 intervals" not in words(page)


def test_names_tell_runs_apart_and_a_run_is_not_compared_with_itself(three: list[Path]) -> None:
    """The last parts of the path, as many as it takes."""
    assert named(["x/a/run", "x/b/run"]) == ["a/run", "b/run"]
    with pytest.raises(BadInput, match="named twice"):
        page_of([three[0], three[0]])
    record = read_record(three[0])
    with pytest.raises(BadInput, match="2 to 20"):
        comparison_page([record] * 21)


def test_the_ledger_of_the_data(tmp_path: Path) -> None:
    """Rows read are kept or dropped, by reason; what a split and its encoding leave out stands beside it."""
    folder = write_run(tmp_path / "run")
    read = {"file": "/home/me/a.jsonl", "read": 1010, "kept": 1007, "dropped": {"empty": 3}, "warned": {}}
    train = {"groups": 1007, "pairs": 1007, "left_out": {"ties": 2}}
    encoding = {"train": {"dropped": {"too long": 4}, "prompt_tokens": 1000, "response_tokens": 500}}
    data = {"files": [read], "splits": {"train": train}, "encoding": encoding}
    (folder / "manifest.json").write_text(json.dumps({"data": data}))
    files, reasons, splits = section(page_of([folder]), "Data").blocks
    assert isinstance(files, Table)
    assert isinstance(reasons, Table)
    assert isinstance(splits, Table)
    assert list(files.rows) == [("a.jsonl", "-", "1,010", "1,007", "3")]
    assert list(reasons.rows) == [("a.jsonl", "dropped", "empty", "3")]
    assert list(splits.rows) == [("train", "1,007", "1,007", "1,500", "ties: 2, too long: 4")]


def test_what_lies_outside_of_the_plane_is_counted() -> None:
    """Half a percent at each end of both axes is drawn at the edge: no pair is lost."""
    values = np.linspace(0, 1, 1001)
    found, outside = density(values, values, "x", "y", diagonal=True)
    assert outside == 10
    assert sum(map(sum, found.counts)) == 1001


def test_many_pairs_make_a_small_page(tmp_path: Path) -> None:
    """What is drawn is aggregated first: the page does not grow with the pairs."""
    rng = np.random.default_rng(2)
    sizes = []
    for count in (2_000, 30_000):
        gap = rng.normal(1, 2, count)
        pairs = pair_tables.pairs(
            gap, target_gap=np.abs(gap) + rng.normal(0, 1, count), grade_gap=rng.integers(0, 5, count) * 1.0
        )
        Scores(pair_tables.responses(reward=gap), pairs).save(tmp_path / str(count))
        sizes.append(report(tmp_path / str(count)).stat().st_size)
    assert max(sizes) < 500_000
    assert sizes[1] < 1.5 * sizes[0]


def test_a_record_without_pairs_is_no_number(tmp_path: Path) -> None:
    """SFT: nats a token instead of accuracy."""
    scores = Scores(pair_tables.responses(logp=[-10.0, -20.0], length=[10, 10]), pair_tables.pairs([]))
    scores.save(tmp_path)
    page = page_of([tmp_path])
    assert "nats a token" in page.verdicts[0].says
    assert isinstance(read_record(tmp_path), RunRecord)
    assert not math.isnan(read_record(tmp_path).evaluation["nll_per_token"].value)  # type: ignore[index]


def test_a_handful_of_pairs_gets_no_verdict(tmp_path: Path) -> None:
    """Below twenty pairs that are no ties: a note, and no advice to change anything."""
    Scores(pair_tables.responses(reward=[1.0]), pair_tables.pairs([1.0, -1.0, 2.0])).save(tmp_path)
    (first, *_) = page_of([tmp_path]).verdicts
    assert (first.level, first.advice) == ("note", None)
    assert "3 pairs are too few" in first.says


def test_pairs_beyond_the_first_twenty_unfold() -> None:
    """All are on the page; what is folded says how many it is."""
    rows = [PairText(f"group {at}", "p", "c", "r") for at in range(50)]
    text = render_html(Page("t", "l", [], [Section("Sure and wrong", [PairTexts(rows, 50)])]))
    assert text.count("<article") == 50
    assert text.index("group 19") < text.index("30 more") < text.index("group 20")
