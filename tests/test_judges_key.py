"""The key of a judge's endpoint: sent to that endpoint and seen nowhere else."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from judge_stub import KEY, Reply, Stub, asked, completion, error, replies, run, some_groups, texts
from marginkit.data.manifests import write_dataset
from marginkit.errors import BadInput, RunFailed
from marginkit.judges.client import Client, RequestFailed, completions_url, read_key

BODY = {"model": "m", "messages": [{"role": "user", "content": "?"}]}


def test_a_redirect_does_not_take_the_key_along() -> None:
    """The other server sees nothing at all."""
    with Stub(replies(completion("x"))) as other:
        moved = error(307, "moved", Location=f"{other.url}/chat/completions")
        with Stub(replies(moved)) as stub, asked(stub)[0] as client, pytest.raises(RunFailed, match="not followed"):
            client.ask(BODY)
        assert other.requests == 0


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_of_the_environment_is_not_handed_the_key(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over http a proxy would read it."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Stub(replies(completion("x"))) as proxy, Stub(replies(completion("y"))) as stub:
        monkeypatch.setenv(variable, proxy.url.removesuffix("/v1"))
        with asked(stub)[0] as client:
            assert client.ask(BODY).text == "y"
        assert proxy.requests == 0


@pytest.mark.parametrize(
    "reply",
    [
        error(400, f"Incorrect key: {KEY}"),
        error(401, f"Incorrect key: {KEY}"),
        error(404, f"no model for {KEY}"),
        error(500, f"trace: {{'Authorization': 'Bearer {KEY}'}}"),
        error(302, KEY, Location=f"https://{KEY}.example/"),
        (200, {}, f"<html>{KEY}".encode()),
        (200, {}, json.dumps({"error": {"message": KEY}}).encode()),
    ],
)
def test_a_server_that_sends_the_key_back_does_not_get_it_shown(reply: Reply) -> None:
    """In no message, cause or context."""
    with Stub(replies(reply)) as stub, asked(stub, retries=0)[0] as client:
        with pytest.raises((RunFailed, RequestFailed)) as failure:
            client.ask(BODY)
        shown: BaseException | None = failure.value
        while shown is not None:
            assert KEY not in str(shown)
            assert KEY not in repr(shown)
            shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)


def test_an_answer_with_the_key_in_it_is_kept_without() -> None:
    """What is stored never holds it."""
    with Stub(replies(completion(f"You sent {KEY}. [[A]]"))) as stub, asked(stub)[0] as client:
        assert client.ask(BODY).text == "You sent <key>. [[A]]"


def test_a_placeholder_key_does_not_change_answers() -> None:
    """Servers of one's own are often given EMPTY or none."""
    with Stub(replies(completion("none is better"))) as stub, asked(stub, key="none")[0] as client:
        assert client.ask(BODY).text == "none is better"


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks around it are nothing; what no header can carry is refused without being shown."""
    monkeypatch.setenv("MY_KEY", f"  {KEY}\n")
    assert read_key("MY_KEY") == KEY
    monkeypatch.setenv("MY_KEY", "")
    assert read_key("MY_KEY") is None
    monkeypatch.delenv("MY_KEY")
    assert read_key("MY_KEY") is None
    for bad in ("two words", "schlüssel", "a\nb"):
        monkeypatch.setenv("MY_KEY", bad)
        with pytest.raises(BadInput, match="MY_KEY: holds blanks or characters that no key has") as failure:
            read_key("MY_KEY")
        assert bad not in str(failure.value)


def test_an_unencrypted_key_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """To a host that is not this machine; without the key."""
    with caplog.at_level(logging.WARNING, "marginkit"):
        for endpoint in ("http://localhost:1/v1", "http://127.0.0.1:1", "http://[::1]:1", "https://far.example/v1"):
            Client(endpoint, KEY).close()
        assert caplog.messages == []
        Client("http://far.example/v1", KEY).close()
    assert caplog.messages == ["the key goes to far.example unencrypted: the endpoint is http, not https"]


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://h:8000", "http://h:8000/v1/chat/completions"),
        ("http://h:8000/", "http://h:8000/v1/chat/completions"),
        ("https://h/v1/", "https://h/v1/chat/completions"),
        ("https://h/api/openai", "https://h/api/openai/chat/completions"),
        ("https://h/v1/chat/completions", "https://h/v1/chat/completions"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1/chat/completions"),
    ],
)
def test_where_requests_go(endpoint: str, url: str) -> None:
    """The base URL, as the servers' own pages give it."""
    assert completions_url(endpoint) == url


@pytest.mark.parametrize(
    "endpoint",
    [
        "localhost:8000",
        "ftp://h/v1",
        "",
        "http://",
        "http://h:99999999/v1",
        "http://[::1/v1",
        f"https://user:{KEY}@h/v1",
        f"https://h/v1?key={KEY}",
        f"https://h/v1#{KEY}",
    ],
)
def test_other_endpoints_are_refused(endpoint: str) -> None:
    """A key in a URL would end up in manifests; the message does not repeat it."""
    with pytest.raises(BadInput, match=r"^endpoint: ") as failure:
        completions_url(endpoint)
    assert KEY not in str(failure.value)


def test_the_key_is_in_no_file_log_or_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Even from a server that sends it back in every answer and every error."""
    monkeypatch.setenv("MY_KEY", KEY)

    def echo(body: dict[str, Any], number: int) -> Reply:
        if "Question 1" in texts(body)["PROMPT"]:
            return error(400, f"key {KEY} may not ask this")
        return completion(f"Your key is {KEY}. [[A]]", finish=KEY)

    with caplog.at_level(logging.DEBUG), Stub(echo) as stub:
        judged, report = run(stub, tmp_path, some_groups(), ask="verdict", key_variable="MY_KEY")
        path = tmp_path / "out.jsonl"
        write_dataset(judged, path, verb="grade", settings=report.settings, sources=[], facts=report.to_json())
        assert {headers["Authorization"] for headers in stub.headers} == {f"Bearer {KEY}"}
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} >= {".jsonl", ".json", ".sqlite"}
    assert [file for file in files if KEY.encode() in file.read_bytes()] == []
    assert KEY not in caplog.text
    assert KEY not in repr(report) + json.dumps(report.to_json())
    assert report.to_json()["failed"]["HTTP 400"]["such_as"] == "HTTP 400: key <key> may not ask this"
    assert not re.search(r"[Bb]earer", json.dumps(report.to_json()))
