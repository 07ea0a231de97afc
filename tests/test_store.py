"""The score store: computed once, kept through anything, never mixed up."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

import marginkit.frozen_scores
import marginkit.scoring
import tiny
from marginkit.config import ModelConfig
from marginkit.errors import RunFailed
from marginkit.frozen_scores import kept_scores, score_settings
from marginkit.models.rungs import choose_rung
from marginkit.run import train
from marginkit.scoring import score_batches
from marginkit.store import ScoreStore, file_fingerprint, folder_fingerprint

SETTINGS = {"quantity": "logp", "weights": "float32"}
GROUPS = tiny.world(train=8, dev=0, test=4)
HELD_OUT = sum(len(group.responses) for group in GROUPS if group.split == "test")
RESPONSES = sum(len(group.responses) for group in GROUPS)


def opened(folder: Path, model: str = "m", **changes: Any) -> ScoreStore:
    """A store of one model under some settings."""
    return ScoreStore(folder, model, SETTINGS | changes)


# ---------------------------------------------------------------------------------------------------- the file alone


def test_a_score_is_found_by_what_decides_it(tmp_path: Path) -> None:
    """Prompt, response, settings and model each change the key; where prompt ends and response begins, too."""
    with opened(tmp_path) as store:
        store.add([(store.key([1, 2], [3]), -4.5), (store.key([1, 2], [4]), 0.0)])
        keys = [store.key(*both) for both in (([1, 2], [3]), ([1, 2], [4]), ([1], [2, 3]), ([1, 2, 3], []))]
        assert store.get(keys) == [-4.5, 0.0, None, None]
    with opened(tmp_path, weights="bfloat16") as other:
        assert other.get([other.key([1, 2], [3])]) == [None]
    with opened(tmp_path, model="another") as other:
        assert other.get([other.key([1, 2], [3])]) == [None]


def test_scores_keep_all_their_digits(tmp_path: Path) -> None:
    """A double goes in and the same double comes out."""
    values = [-1234.000000000123, 1e-300, -0.1, 3.0]
    with opened(tmp_path) as store:
        store.add((store.key([1], [k]), value) for k, value in enumerate(values))
    with opened(tmp_path) as store:
        assert store.get([store.key([1], [k]) for k in range(4)]) == values


def test_many_keys_are_asked_at_once(tmp_path: Path) -> None:
    """More keys than SQLite takes in one statement, with repeats, come back in order."""
    with opened(tmp_path) as store:
        store.add((store.key([k], [k]), float(k)) for k in range(3000))
        wanted = [*range(2999, -1, -1), 5, 5, 4000]
        assert store.get([store.key([k], [k]) for k in wanted]) == [*map(float, wanted[:-1]), None]


def test_two_writers_at_once_write_two_files_and_read_each_other(tmp_path: Path) -> None:
    """One writer a file; what the other has committed is there at once; a freed file is taken again."""
    with opened(tmp_path) as first:
        first.add([(first.key([1], [1]), -1.0)])
        with opened(tmp_path) as second:
            assert first._path != second._path
            second.add([(second.key([2], [2]), -2.0)])
            first.add([(first.key([3], [3]), -3.0)])
            assert second.get([second.key([k], [k]) for k in (1, 2, 3)]) == [-1.0, -2.0, -3.0]
    assert len(list((tmp_path / "m").glob("*.sqlite"))) == 2
    with opened(tmp_path) as third:
        assert third.get([third.key([k], [k]) for k in (1, 2, 3)]) == [-1.0, -2.0, -3.0]
    assert len(list((tmp_path / "m").glob("*.sqlite"))) == 2


def test_vectors_live_beside_scores(tmp_path: Path) -> None:
    """Float32 bit for bit, by the same keys and settings, in a table of their own; more than one statement takes."""
    vectors = np.random.default_rng(0).normal(size=(1200, 7)).astype(np.float32)
    with opened(tmp_path) as store:
        keys = [store.key([k], [k]) for k in range(1201)]
        store.add_vectors(zip(keys[:1200], vectors, strict=True))
        store.add([(keys[3], -1.0), (keys[1200], -2.0)])
        assert store.added == 1202
    with opened(tmp_path) as store:
        *found, absent = store.get_vectors(keys)
        assert absent is None
        assert np.stack([vector for vector in found if vector is not None]).tobytes() == vectors.tobytes()
        assert store.get([keys[3], keys[4], keys[1200]]) == [-1.0, None, -2.0]
    with opened(tmp_path, weights="bfloat16") as other:
        assert other.get_vectors([other.key([3], [3])]) == [None]


def test_vectors_of_two_writers_are_read_by_both(tmp_path: Path) -> None:
    """One writer a file; a file from before there were vectors has none, and no harm is done."""
    with opened(tmp_path) as first, opened(tmp_path) as second:
        first.add_vectors([(first.key([1], [1]), np.ones(2))])
        first.add([(first.key([9], [9]), -9.0)])
        second.add_vectors([(second.key([2], [2]), np.zeros(2))])
        found = second.get_vectors([second.key([k], [k]) for k in (1, 2, 3)])
        assert [None if vector is None else vector.tolist() for vector in found] == [[1.0, 1.0], [0.0, 0.0], None]
    old = tmp_path / "m" / "writer-000.sqlite"
    with sqlite3.connect(old) as connection:
        connection.execute("DROP TABLE vectors")
    with FileLock(old.with_suffix(".lock")), opened(tmp_path) as third:
        assert third.get_vectors([third.key([1], [1])]) == [None]
        assert third.get([third.key([9], [9])]) == [-9.0]
    with opened(tmp_path) as again:
        again.add_vectors([(again.key([1], [1]), np.ones(2))])
        assert again.get_vectors([again.key([1], [1])])[0] is not None


def test_a_batch_of_vectors_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    """A full disk in the middle of it leaves what was kept before."""
    with opened(tmp_path) as store:
        store.add_vectors([(store.key([1], [1]), np.ones(4))])
        store._writer.execute("PRAGMA max_page_count=8")
        with pytest.raises(RunFailed, match="database or disk is full; what was kept before stays usable"):
            store.add_vectors((store.key([k], [k]), np.ones(100)) for k in range(2, 500))
        store._writer.execute("PRAGMA max_page_count=100000")
        assert [vector is None for vector in store.get_vectors([store.key([k], [k]) for k in (1, 2)])] == [False, True]


def test_scores_under_other_settings_are_named_and_not_used(tmp_path: Path) -> None:
    """The count and the settings they were made under."""
    with opened(tmp_path, weights="bfloat16") as store:
        store.add((store.key([k], [k]), -1.0) for k in range(3))
    with opened(tmp_path) as store:
        assert store.under_other_settings() == [(3, {"quantity": "logp", "weights": "bfloat16"})]
        store.add([(store.key([9], [9]), -1.0)])
        assert store.under_other_settings() == [(3, {"quantity": "logp", "weights": "bfloat16"})]
    with opened(tmp_path, weights="bfloat16") as store:
        assert store.under_other_settings() == [(1, {"quantity": "logp", "weights": "float32"})]


@pytest.mark.parametrize(
    "damage", ["no database at all", "empty", "cut short", "pages overwritten", "last pages overwritten"]
)
def test_another_writers_broken_file_is_passed_over(damage: str, tmp_path: Path) -> None:
    """What is readable is read, what is broken is computed again."""
    with opened(tmp_path) as first, opened(tmp_path) as second:
        first.add([(first.key([1], [1]), -1.0)])
        second.add((second.key([k], [k]), -2.0) for k in range(2, 3000))
        broken = second._path
    whole = broken.read_bytes()
    changed = {
        "no database at all": b"what is this?" * 100,
        "empty": b"",
        "cut short": whole[: len(whole) // 2],
        "pages overwritten": whole[:8192] + b"\xff" * (len(whole) - 8192),
        "last pages overwritten": whole[:-40960] + b"\xff" * 40960,
    }
    broken.write_bytes(changed[damage])
    with opened(tmp_path) as store:
        values = store.get([store.key([k], [k]) for k in range(1, 3000)])
        assert values[0] == -1.0
        assert set(values[1:]) <= {-2.0, None}
        store.under_other_settings()
        store.add([(store.key([7], [7]), -7.5)])


def test_a_full_disk_is_one_line_and_leaves_what_was_kept(tmp_path: Path) -> None:
    """SQLite's own "database or disk is full" becomes RunFailed with the file and the way on; nothing half-written."""
    with opened(tmp_path) as store:
        store.add([(store.key([1], [1]), -1.0)])
        store._writer.execute("PRAGMA max_page_count=6")
        with pytest.raises(
            RunFailed, match=r"score store .*writer-000.sqlite: database or disk is full; what was kept"
        ) as e:
            store.add((store.key([k], [k]), -2.0) for k in range(2, 5000))
        assert "\n" not in str(e.value)
        store._writer.execute("PRAGMA max_page_count=100000")
        assert store.get([store.key([k], [k]) for k in (1, 2, 3)]) == [-1.0, None, None]
        assert store.added == 1


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """A file stands where the store should be."""
    (tmp_path / "store").write_text("in the way")
    with pytest.raises(RunFailed, match=r"score store .*; choose another with store.path=FOLDER"):
        opened(tmp_path / "store")


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    """The first free file is broken: the message names it and the way out."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "writer-000.sqlite").write_bytes(b"not a database, but long enough to be read as one" * 50)
    with pytest.raises(RunFailed, match=r"file is not a database; choose another with store.path=FOLDER"):
        opened(tmp_path)


# ----------------------------------------------------------------------------------------------------- fingerprints


def test_a_changed_weight_changes_the_fingerprint(tmp_path: Path) -> None:
    """Weights, adapter and configuration count; tokenizer, logs and training arguments do not."""
    folder = Path(tiny.save(tmp_path / "model", "llama"))
    before = folder_fingerprint(folder)
    assert folder_fingerprint(folder) == before
    (folder / "training_args.bin").write_bytes(b"x")
    (folder / "README.md").write_text("x")
    assert folder_fingerprint(folder) == before
    for name in ("model.safetensors", "config.json"):
        held = (folder / name).read_bytes()
        (folder / name).write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
        assert folder_fingerprint(folder) != before, name
        (folder / name).write_bytes(held)
    assert folder_fingerprint(folder) == before
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    assert folder_fingerprint(folder) != before


def test_an_adapter_stands_for_its_base_too(tmp_path: Path) -> None:
    """The same adapter on another base is another model."""
    base = Path(tiny.save(tmp_path / "base", "llama"))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (adapter / "adapter_model.safetensors").write_bytes(b"x")
    before = folder_fingerprint(adapter)
    tiny.model("llama", seed=5).save_pretrained(base)
    assert folder_fingerprint(adapter) != before


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Size and mtime are remembered with the hash."""
    path, memory = tmp_path / "weights.safetensors", tmp_path / "memory" / "files.json"
    path.write_bytes(b"one")
    first = file_fingerprint(path, memory)
    with monkeypatch.context() as patched:
        patched.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
        assert file_fingerprint(path, memory) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert file_fingerprint(path, memory) != first
    memory.write_text("not JSON")
    assert file_fingerprint(path, memory) != first


# ------------------------------------------------------------------------------------------- behind a model and a run


def test_the_second_time_nothing_is_computed(tmp_path: Path, passes: list[int]) -> None:
    """All scores, then none, then only those of what is new; the model is not even loaded."""
    own, encoded = tiny.model("llama"), tiny.encode(tiny.graded_groups(8))
    make: dict[str, Any] = {"quantity": "logp", "role": "reference", "pad_id": 0, "tokens": 300, "precision": tiny.CPU}
    with opened(tmp_path) as store:
        first = kept_scores(lambda: (own, "rows"), encoded[:6], store, **make)
    responses = [len(group.response_ids) for group in encoded]
    assert sum(passes) == sum(responses[:6])
    assert first == [pytest.approx(row, rel=1e-6) for row in tiny.logps(own, encoded[:6])]
    passes.clear()
    with opened(tmp_path) as store:
        again = kept_scores(lambda: pytest.fail("the model was loaded"), encoded[:6], store, **make)
        assert again == first
        assert store.added == 0
    with opened(tmp_path) as store:
        kept_scores(lambda: (own, "rows"), encoded, store, **make)
        assert store.added == sum(passes) == sum(responses[6:])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_ranks_share_the_work_and_leave_nothing_over(order: tuple[int, ...], tmp_path: Path) -> None:
    """Each of three ranks computes its part, also one that starts when others have finished; all can then be read."""
    own, encoded = tiny.model("llama"), tiny.encode(tiny.graded_groups(7))
    make: dict[str, Any] = {"quantity": "logp", "role": "reference", "pad_id": 0, "tokens": 300, "precision": tiny.CPU}
    assert choose_rung(own, "segments", longest=50) == "segments"
    for rank in order:
        with opened(tmp_path) as store:
            assert kept_scores(lambda: (own, "segments"), encoded, store, **make, share=(rank, 3)) is None
            assert store.added == sum(len(group.response_ids) for group in list(encoded)[rank::3])
    with opened(tmp_path) as store:
        whole = kept_scores(lambda: pytest.fail("the model was loaded"), encoded, store, **make)
    assert whole == [pytest.approx(row, rel=1e-6) for row in tiny.logps(own, encoded)]


def settings_of(start: str, folder: Path, number: int, *more: str) -> list[str]:
    """A one-step run with a store that all runs share."""
    return [
        f"model.path={start}",
        f"store.path={folder / 'store'}",
        f"out={folder / f'run-{number}'}",
        "train.max_steps=1",
        "train.save_strategy=no",
        "train.use_cpu=true",
        *more,
    ]


def test_a_sweep_computes_the_reference_once(tmp_path: Path, passes: list[int]) -> None:
    """Another learning rate, beta, objective or seed asks the reference nothing; another dtype asks all again."""
    start = tiny.save(tmp_path / "start", "llama")
    train("dpo", settings_of(start, tmp_path, 0), train=GROUPS)
    assert sum(passes) == RESPONSES + HELD_OUT, "the reference, and the trained model on the test split"
    counts = []
    sweep: list[tuple[str, tuple[str, ...]]] = [
        ("dpo", ("train.learning_rate=0.1",)),
        ("dpo", ("reward.beta=0.5",)),
        ("cdpo", ()),
        ("mmpo", ("target.gamma=1", "seed=3")),
    ]
    for number, (recipe, more) in enumerate(sweep, start=1):
        passes.clear()
        train(recipe, settings_of(start, tmp_path, number, *more), train=GROUPS)
        counts.append(sum(passes) - HELD_OUT)
    assert counts == [0, 0, 0, 0]
    assert len(rows_kept(tmp_path / "store")) == RESPONSES


def test_other_settings_are_named_and_other_weights_are_another_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """bfloat16 weights: the log names the float32 scores that are not used. Other weights: another folder."""
    start = tiny.save(tmp_path / "start", "llama")
    train("dpo", settings_of(start, tmp_path, 0), train=GROUPS)
    with caplog.at_level(logging.INFO, logger="marginkit"):
        train("dpo", settings_of(start, tmp_path, 1, "model.dtype=bfloat16", "train.force=true"), train=GROUPS)
    assert f"store: {RESPONSES} scores of this model are kept under weights=float32; not used" in caplog.text
    assert f"reference: {RESPONSES} scores computed, 0 kept before" in caplog.text
    assert len(rows_kept(tmp_path / "store")) == 2 * RESPONSES
    assert len(list((tmp_path / "store").glob("*/"))) == 1
    tiny.model("llama", seed=3).save_pretrained(start)
    train("dpo", settings_of(start, tmp_path, 2), train=GROUPS)
    assert len(list((tmp_path / "store").glob("*/"))) == 2
    assert len(rows_kept(tmp_path / "store")) == 3 * RESPONSES


def test_settings_name_what_decides_a_number() -> None:
    """Weights, quantisation, autocast, device, attention, layout and versions are all in the key."""
    names = score_settings("logp", ModelConfig(attention="eager"), tiny.CPU, "segments")
    assert set(names) == {
        "quantity", "weights", "quantization", "autocast", "device", "attention", "layout", "torch", "transformers",
    }  # fmt: skip


def rows_kept(folder: Path) -> list[bytes]:
    """All keys in all files of a store."""
    keys: list[bytes] = []
    for path in folder.glob("*/*.sqlite"):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            keys += [row[0] for row in connection.execute("SELECT key FROM scores")]
    return keys


# --------------------------------------------------------------------------------------------------------- kill -9


def slow_run(start: str, folder: str) -> None:
    """A run whose reference scoring takes its time, and says which batches it has computed."""

    def slow(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for indices, scores in score_batches(*args, **kwargs):
            with open(Path(folder) / "computed", "a") as sink:
                sink.write(f"{len(scores.length)}\n")
            yield indices, scores
            time.sleep(0.15)

    marginkit.frozen_scores.score_batches = slow
    train("dpo", killed_settings(start, Path(folder)), train=GROUPS)


def killed_settings(start: str, folder: Path) -> list[str]:
    """Small batches, so that there are many."""
    return settings_of(start, folder, 0, "train.tokens_per_micro_batch=100")


def test_a_kill_during_reference_scoring_loses_at_most_one_batch(tmp_path: Path, passes: list[int]) -> None:
    """SIGKILL after some batches; the second run, in the same place, computes only the rest and finishes."""
    start = tiny.save(tmp_path / "start", "llama")
    process = tiny.start(slow_run, start, str(tmp_path))
    computed = tmp_path / "computed"
    end = time.monotonic() + 60
    while time.monotonic() < end and (not computed.is_file() or len(computed.read_text().splitlines()) < 5):
        time.sleep(0.02)
    assert process.is_alive()
    tiny.kill(process)
    batches = [int(line) for line in computed.read_text().splitlines()]
    kept = len(rows_kept(tmp_path / "store"))
    assert len(batches) >= 5
    assert sum(batches[:-1]) <= kept <= sum(batches) < RESPONSES
    run = train("dpo", killed_settings(start, tmp_path), train=GROUPS)
    assert sum(passes) - HELD_OUT == RESPONSES - kept
    assert len(rows_kept(tmp_path / "store")) == RESPONSES
    assert run.metrics is not None
