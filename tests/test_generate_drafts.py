"""What was drawn before an interruption is not drawn again, whenever it comes; a draft of something else is refused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import marginkit as mk
import tiny
from marginkit import decoding, generate
from marginkit.drafts import Draft, DraftedResponse
from marginkit.errors import BadInput
from marginkit.groups import Groups
from marginkit.policies import open_policy
from marginkit.records import Group, Response

ASKED = Groups.from_iterable(
    Group(f"g{at}", f"the {word} hill", (Response("x"),)) for at, word in enumerate(tiny.WORDS)
)
OPTIONS: dict[str, Any] = {
    "n": 2,
    "temperature": 1.0,
    "max_new_tokens": 6,
    "batch_tokens": 100,
    "overrides": ("train.use_cpu=true",),
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved causal model."""
    return tiny.save(tmp_path_factory.mktemp("policy"), "llama")


def test_an_interrupted_draw_goes_on(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after two batches: the same call draws the rest alone, to the same groups, and takes the draft away."""
    whole = list(mk.sample(policy, ASKED, **OPTIONS))
    draft = tmp_path / "out.draft.jsonl"
    draw, asked = decoding.draw, []

    def counted(model: Any, prompts: list[list[int]], *args: Any, stop_after: int, **kwargs: Any) -> Iterator[Any]:
        for number, (members, made) in enumerate(draw(model, prompts, *args, **kwargs)):
            if number == stop_after:
                raise KeyboardInterrupt
            asked.append(len(members))
            yield members, made

    monkeypatch.setattr(generate, "draw", lambda *a, **k: counted(*a, stop_after=2, **k))
    with pytest.raises(KeyboardInterrupt):
        mk.sample(policy, ASKED, draft=draft, **OPTIONS)
    first = sum(asked)
    assert 0 < first < len(ASKED)
    assert len(draft.read_text().splitlines()) == 1 + first
    monkeypatch.setattr(generate, "draw", lambda *a, **k: counted(*a, stop_after=10**6, **k))
    assert list(mk.sample(policy, ASKED, draft=draft, **OPTIONS)) == whole
    assert sum(asked) == len(ASKED)
    assert not draft.exists()


def test_a_draft_of_something_else_is_refused(policy: str, tmp_path: Path) -> None:
    """Another seed, other prompts, another model: named; a file that is no draft is left alone."""
    draft = tmp_path / "out.draft.jsonl"

    def half() -> None:
        with Draft(None, {}):
            pass
        found = generate.draw_samples(
            open_policy(policy, OPTIONS["overrides"]),
            ASKED[:5],
            decoding.Draws(2, 1.0, 0.95, 6, 0),
            draft=draft,
            keep_draft=True,
        )
        assert len(found.groups) == 5

    half()
    before = draft.read_bytes()
    options = OPTIONS | {"draft": draft}
    for changed, message in (
        ({"seed": 1}, "seed was 0, now 1"),
        ({"temperature": 0.5}, "temperature was 1.0, now 0.5"),
        ({"overrides": (*OPTIONS["overrides"], "encoding.separator=x")}, "encoding was"),
    ):
        with pytest.raises(BadInput, match=f"holds responses drawn otherwise \\({message}"):
            mk.sample(policy, ASKED[:5], **options | changed)
    with pytest.raises(BadInput, match="prompts was"):
        mk.sample(policy, ASKED[:6], **options)
    assert draft.read_bytes() == before
    mk.sample(policy, ASKED[:5], **options | {"batch_tokens": 9999})  # how rows share a batch is no part of it
    other = tmp_path / "notes.jsonl"
    other.write_text('{"mine": 1}\n')
    with pytest.raises(BadInput, match="is no draft of marginkit sample"):
        mk.sample(policy, ASKED[:5], **options | {"draft": other})
    assert other.read_text() == '{"mine": 1}\n'


def test_a_draft_cut_at_any_byte_is_continued(tmp_path: Path) -> None:
    """Whole lines are kept, the rest is drawn again, and the file comes out as if nothing had happened."""
    rows = [
        (at, [DraftedResponse(f"grün\n{at}", at % 2 == 0, at), DraftedResponse("\U0001f34e", True, 1)])
        for at in range(4)
    ]
    identity = {"seed": 1, "policy": "p"}
    path = tmp_path / "whole"
    with Draft(path, identity) as draft:
        for row in rows:
            draft.add([row])
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        cut = tmp_path / "cut"
        cut.write_bytes(whole[:size])
        with Draft(cut, identity) as draft:
            assert draft.found == {at: responses for at, responses in rows if at in draft.found}
            assert len(draft.found) == max(0, whole[:size].count(b"\n") - 1)
            draft.add([rows[at] for at in range(4) if at not in draft.found])
        assert cut.read_bytes() == whole


def test_two_writers_of_one_draft_are_kept_apart(tmp_path: Path) -> None:
    """The second is refused; once the first is done, it may."""
    with Draft(tmp_path / "draft", {"seed": 1}) as first:
        first.add([(0, [DraftedResponse("a", True, 1)])])
        with pytest.raises(BadInput, match="another process is writing it"):
            Draft(tmp_path / "draft", {"seed": 1})
        first.add([(1, [DraftedResponse("b", True, 1)])])
    with Draft(tmp_path / "draft", {"seed": 1}) as second:
        assert sorted(second.found) == [0, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["draft"]


def slow_sample(policy: str, draft: str) -> None:
    """Sample one batch after the other, with a pause between them; runs in a process of its own."""
    draw = decoding.draw

    def slow(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for found in draw(*args, **kwargs):
            yield found
            time.sleep(0.2)

    generate.draw = slow  # type: ignore[attr-defined]
    mk.sample(policy, ASKED, draft=draft, **OPTIONS)


def test_kill_9_loses_at_most_one_batch(policy: str, tmp_path: Path) -> None:
    """Killed between batches: what the draft holds is what an uninterrupted draw gives."""
    draft = tmp_path / "out.draft.jsonl"
    process = tiny.start(slow_sample, policy, str(draft))
    end = time.monotonic() + 60
    while time.monotonic() < end and (not draft.exists() or draft.read_bytes().count(b"\n") < 8):
        time.sleep(0.02)
    tiny.kill(process)
    kept = [json.loads(line) for line in draft.read_bytes().splitlines()[1:]]
    assert 7 <= len(kept) < len(ASKED)
    whole = list(mk.sample(policy, ASKED, **OPTIONS))
    assert list(mk.sample(policy, ASKED, draft=draft, **OPTIONS)) == whole
    said = {group.id: {response.text for response in group.responses} for group in whole}
    for row in kept:
        assert said.get(ASKED[row["prompt"]].id, set()) <= {text for text, _, _ in row["responses"]}
