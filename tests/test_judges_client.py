"""One request: tried again where that helps, given up where it does not."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from judge_stub import KEY, Reply, Stub, asked, completion, error, replies
from marginkit.errors import RunFailed
from marginkit.judges.client import Client, RequestFailed

BODY = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
OPENAI = {"choices": [{"message": {"content": "x"}}]}


def test_an_answer_is_read_whole() -> None:
    """Text, first tokens, finish and the server's count; the request goes to /v1/chat/completions with the key."""
    with Stub(replies(completion("A", {"A": -0.1, "B": -2.5}, (12, 1), "length"))) as stub:
        client, waits = asked(stub)
        with client:
            answer = client.ask(BODY)
        assert (answer.text, answer.first, answer.finish) == ("A", {"A": -0.1, "B": -2.5}, "length")
        assert (answer.tokens_in, answer.tokens_out) == (12, 1)
        assert stub.bodies == [BODY]
        assert stub.paths == ["/v1/chat/completions"]
        assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"
        assert waits == []


def test_without_a_key_no_header_is_sent() -> None:
    """A server on one's own machine needs none."""
    with Stub(replies(completion("x"))) as stub, asked(stub, key=None)[0] as client:
        client.ask(BODY)
        assert "Authorization" not in stub.headers[0]


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 529])
def test_what_can_pass_is_tried_again(status: int) -> None:
    """With a pause that doubles, times 0.5 to 1."""
    with Stub(replies(error(status), error(status), error(status), completion("x"))) as stub:
        client, waits = asked(stub, backoff=2.0)
        with client:
            assert client.ask(BODY).text == "x"
    assert stub.requests == 4
    assert [1 <= waits[0] <= 2, 2 <= waits[1] <= 4, 4 <= waits[2] <= 8] == [True] * 3


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("7", 7, 7),
        ("0.25", 0.25, 1),
        ("0", 0, 1),
        ("soon", 0, 1),
        ("nan", 0, 1),
        ("-5", 0, 1),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0, 1),
        ("in five minutes", 200, 301),
    ],
)
def test_a_server_is_given_the_time_it_asks_for(header: str, low: float, high: float) -> None:
    """Retry-After as a number or a date is the least we wait; what is neither is nothing."""
    if header == "in five minutes":  # as a date, made when the test runs: collecting all tests may be long ago
        header = format_datetime(datetime.now(UTC) + timedelta(seconds=300), usegmt=True)
    with Stub(replies(error(429, Retry_After=header), completion("x"))) as stub:
        client, waits = asked(stub)
        with client:
            client.ask(BODY)
    assert len(waits) == 1
    assert low <= waits[0] <= high


def test_a_server_that_asks_for_an_hour_is_not_waited_for() -> None:
    """The run stops and says when to come back."""
    with Stub(replies(error(429, Retry_After="3600"))) as stub, asked(stub)[0] as client:
        with pytest.raises(RunFailed, match="asks to wait 3600 s; run again later"):
            client.ask(BODY)
        assert stub.requests == 1


def test_tries_come_to_an_end() -> None:
    """With the reason and what the server said."""
    with Stub(replies(error(503, "overloaded"))) as stub, asked(stub, retries=2)[0] as client:
        with pytest.raises(RequestFailed, match="HTTP 503: overloaded") as failure:
            client.ask(BODY)
        assert (failure.value.reason, failure.value.tried_again, stub.requests) == ("HTTP 503", True, 3)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ((200, {}, b"<html><body>Bad gateway"), "not JSON"),
        ((200, {}, b'{"choices": [{"message"'), "not JSON"),
        ((200, {}, b"[" * 100_000), "not JSON"),
        ((200, {}, b""), "not JSON"),
        ((200, {}, b"\xff\xfe"), "not JSON"),
        ((200, {}, b'{"choices": []}'), "no choices"),
        ((200, {}, b'{"error": {"message": "busy"}}'), "no choices"),
        ((200, {}, b"[1]"), "no choices"),
        ((200, {}, b'{"choices": [{"message": null}]}'), "no choices"),
        ((200, {}, b'{"choices": {"a": 1}}'), "no choices"),
        ((200, {"Content-Encoding": "gzip"}, b"not gzip"), "no connection"),
    ],
)
def test_what_is_no_completion_is_tried_again(reply: Reply, reason: str) -> None:
    """A gateway's page under status 200 is one line, never a traceback."""
    with Stub(replies(reply, completion("x"))) as stub, asked(stub)[0] as client:
        assert client.ask(BODY).text == "x"
    with Stub(replies(reply)) as stub, asked(stub, retries=1)[0] as client:
        with pytest.raises(RequestFailed) as failure:
            client.ask(BODY)
        assert failure.value.reason == reason
        assert "\n" not in str(failure.value)
        assert stub.requests == 2


@pytest.mark.parametrize(
    "content",
    [
        OPENAI | {"usage": {"prompt_tokens": "many", "completion_tokens": -1}},
        OPENAI | {"usage": None},
        {"choices": [{"message": {"content": [{"type": "text", "text": "x"}, {"type": "image"}, 3]}}]},
        {"choices": [{"message": {"content": "x"}, "finish_reason": 3, "logprobs": {"content": []}}]},
        {"choices": [{"message": {"content": "x"}, "logprobs": {"content": ["?"]}}]},
        {"choices": [{"message": {"content": "x"}, "logprobs": "yes"}]},
    ],
)
def test_odd_fields_of_a_completion_are_absent(content: dict[str, Any]) -> None:
    """What is not what it should be is None."""
    with Stub(replies((200, {}, json.dumps(content).encode()))) as stub, asked(stub)[0] as client:
        answer = client.ask(BODY)
    assert (answer.text, answer.first, answer.finish, answer.tokens_in) == ("x", None, None, None)


def test_log_probabilities_that_are_no_numbers_are_left_out() -> None:
    """NaN, minus infinity, true, a string; the drawn token counts where the list lacks it."""
    entry = {
        "token": "B",
        "logprob": -3.0,
        "top_logprobs": [
            {"token": "A", "logprob": -0.1},
            {"token": "x", "logprob": float("nan")},
            {"token": "y", "logprob": float("-inf")},
            {"token": "z", "logprob": "low"},
            {"token": 5, "logprob": -1.0},
            {"token": "v", "logprob": True},
            None,
        ],
    }
    content = {"choices": [{"message": {"content": None}, "logprobs": {"content": [entry]}}]}
    with Stub(replies((200, {}, json.dumps(content).encode()))) as stub, asked(stub)[0] as client:
        answer = client.ask(BODY)
    assert (answer.text, answer.first) == ("", {"A": -0.1, "B": -3.0})


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (error(401, "bad key"), r"no access \(HTTP 401: bad key\); put a valid key into the environment"),
        (error(403, "not you"), "no access"),
        (error(404, "no such model"), "HTTP 404: no such model; check the address and the name of the model"),
        ((404, {}, b"<html><h1>Not\n Found</h1></html>"), "HTTP 404: Not Found; check"),
        (error(402, "pay"), "no money left there"),
        (error(302, "moved", Location="https://elsewhere.example/v1"), "redirects to elsewhere.example, not followed"),
        (error(307, "moved", Location="/other"), "redirects to another path"),
        ((429, {}, b'{"error": {"code": "insufficient_quota", "message": "empty"}}'), "no money left there"),
    ],
)
def test_what_no_request_will_survive_ends_the_run(reply: Reply, said: str) -> None:
    """One line with the way out, after one request."""
    with Stub(replies(reply)) as stub, asked(stub)[0] as client:
        with pytest.raises(RunFailed, match=said) as failure:
            client.ask(BODY)
        assert "\n" not in str(failure.value)
        assert stub.requests == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_is_wrong_with_one_request_is_its_own_failure(status: int) -> None:
    """Not tried again: too long for the model, an unknown field."""
    with Stub(replies(error(status, "context length exceeded"))) as stub, asked(stub)[0] as client:
        with pytest.raises(RequestFailed, match="context length exceeded") as failure:
            client.ask(BODY)
        assert (failure.value.reason, failure.value.tried_again) == (f"HTTP {status}", False)
        assert stub.requests == 1


def test_a_server_that_hangs_is_left() -> None:
    """After the timeout, and tried again."""
    release = threading.Event()

    def hang(body: dict[str, Any], number: int) -> Reply:
        if number == 0:
            release.wait(10)
        return completion("x")

    with Stub(hang) as stub, asked(stub, timeout=0.2)[0] as client:
        start = time.monotonic()
        assert client.ask(BODY).text == "x"
        assert time.monotonic() - start < 5
        release.set()


@pytest.fixture
def dripping() -> Iterator[tuple[str, list[bytes]]]:
    """A server that sends its answer byte by byte and never ends it, and what it was sent."""
    server = socket.create_server(("127.0.0.1", 0))
    seen: list[bytes] = []
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                seen.append(connection.recv(65536))
                try:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                    while not done.wait(0.02):
                        connection.sendall(b" ")
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}/v1", seen
    done.set()
    server.close()


def test_a_server_that_drips_is_left_too(dripping: tuple[str, list[bytes]]) -> None:
    """The timeout is for the whole answer, not for each byte of it."""
    with Client(dripping[0], timeout=0.3, retries=0) as client:
        start = time.monotonic()
        with pytest.raises(RequestFailed) as failure:
            client.ask(BODY)
        assert failure.value.reason == "timeout"
        assert time.monotonic() - start < 3


def test_an_endless_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by one answer's limit."""
    monkeypatch.setattr("marginkit.judges.client._MAX_BYTES", 1000)
    with Stub(replies(completion("x" * 5000))) as stub, asked(stub)[0] as client:
        with pytest.raises(RequestFailed) as failure:
            client.ask(BODY)
        assert failure.value.reason == "answer too long"


def test_nobody_there_is_one_line() -> None:
    """A refused connection is tried again, then given up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    waits: list[float] = []
    client = Client(f"http://127.0.0.1:{port}", retries=1, sleep=waits.append)
    with client, pytest.raises(RequestFailed, match="ConnectError"):
        client.ask(BODY)
    assert len(waits) == 1


def test_stopping_ends_the_wait_for_another_try() -> None:
    """An interrupted run does not wait a minute for the server."""
    with Stub(replies(error(429, Retry_After="300"))) as stub, asked(stub, sleep=None)[0] as client:
        failures: list[BaseException] = []

        def ask() -> None:
            try:
                client.ask(BODY)
            except RequestFailed as failure:
                failures.append(failure)

        thread = threading.Thread(target=ask)
        thread.start()
        while not stub.requests:
            time.sleep(0.01)
        time.sleep(0.05)
        client.stop()
        thread.join(5)
        assert not thread.is_alive()
        assert len(failures) == 1
