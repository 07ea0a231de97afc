"""A judge on 127.0.0.1: a chat-completions server of the standard library that answers as it is told and counts."""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from marginkit.groups import Groups
from marginkit.judges.client import Client
from marginkit.judges.judging import JudgeReport, judge
from marginkit.records import Group, Response, group_to_json

KEY = "sk-secret-0123456789abcdef"

Reply = tuple[int, dict[str, str], bytes]
Behaviour = Callable[[dict[str, Any], int], Reply]

_BLOCK = re.compile(r"<<<(PROMPT|ANSWER(?: [AB])?) (\w+)>>>\n(.*?)\n<<<END \1 \2>>>", re.DOTALL)


def texts(body: dict[str, Any]) -> dict[str, str]:
    """What stands between the marks: PROMPT, ANSWER A, ANSWER B or ANSWER."""
    return {name: text for name, _, text in _BLOCK.findall(body["messages"][-1]["content"])}


def completion(
    text: str = "",
    first: dict[str, float] | None = None,
    usage: tuple[int, int] | None = (100, 10),
    finish: str = "stop",
) -> Reply:
    """A chat completion."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if first is not None:
        entries = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in first.items()]
        choice["logprobs"] = {"content": [{**entries[0], "top_logprobs": entries}]}
    content: dict[str, Any] = {"object": "chat.completion", "choices": [choice]}
    if usage is not None:
        content["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def error(status: int, message: str = "no", **headers: str) -> Reply:
    """An error of the server, in OpenAI's form; `Retry_After="1"` is a header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, named, json.dumps({"error": {"message": message}}).encode()


def preference(gap: Callable[[str, str], float], bias: float = 0.0) -> Behaviour:
    """A judge whose logit for the first answer is gap(first, second) + bias."""

    def answer(body: dict[str, Any], number: int) -> Reply:
        shown = texts(body)
        logit = gap(shown["ANSWER A"], shown["ANSWER B"]) + bias
        return completion("A", {"A": -math.log1p(math.exp(-logit)), "B": -math.log1p(math.exp(logit)), "C": -30.0})

    return answer


class Stub:
    """A server while a block runs.

    Args:
        behaviour: the reply to (body, number of the request from 0).
    """

    def __init__(self, behaviour: Behaviour) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.most_at_once = 0
        lock, inside = threading.Lock(), [0]
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each reply waits 40 ms for an acknowledgement

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(stub.bodies)
                    stub.bodies.append(body)
                    stub.headers.append(dict(self.headers))
                    stub.paths.append(self.path)
                    inside[0] += 1
                    stub.most_at_once = max(stub.most_at_once, inside[0])
                try:
                    status, headers, content = behaviour(body, number)
                finally:
                    with lock:
                        inside[0] -= 1
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    self.close_connection = True  # the client did not wait

            def log_message(self, *arguments: Any) -> None:
                """Nothing on stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def requests(self) -> int:
        """How many requests have come."""
        return len(self.bodies)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def slow(behaviour: Behaviour, seconds: float) -> Behaviour:
    """The same, after a while."""

    def answer(body: dict[str, Any], number: int) -> Reply:
        time.sleep(seconds)
        return behaviour(body, number)

    return answer


def asked(stub: Stub, **options: Any) -> tuple[Client, list[float]]:
    """A client of a stub, and the waits between its tries."""
    waits: list[float] = []
    options = {"key": KEY, "timeout": 5.0, "sleep": waits.append} | options
    return Client(stub.url, **options), waits


def replies(*given: Reply) -> Callable[[dict[str, Any], int], Reply]:
    """One reply after the other, the last one for good."""
    return lambda _, number: given[min(number, len(given) - 1)]


def value(text: str) -> float:
    """The true utility of a text such as `number 3: 1.25`."""
    return float(text.rpartition(" ")[2])


def some_groups(n: int = 4, k: int = 3) -> Groups:
    """Groups whose responses say how good they are."""
    return Groups.from_iterable(
        Group(f"g{g}", f"Question {g}?", tuple(Response(f"{g}.{r}: {((g * 7 + r * 5) % 11) / 4}") for r in range(k)))
        for g in range(n)
    )


def run(stub: Stub, tmp_path: Path, groups: Groups, **options: Any) -> tuple[Groups, JudgeReport]:
    """Judge with quick retries, the store in the test's folder."""
    defaults = {"store": tmp_path / "store", "backoff": 0.001, "timeout": 10.0, "pairs": "all"}
    return judge(groups, endpoint=stub.url, model="stub/judge", **(defaults | options))


def same_groups(one: Groups, other: Groups) -> bool:
    """Equal in everything."""
    return [group_to_json(g) for g in one] == [group_to_json(g) for g in other]


def true_gap(first: str, second: str) -> float:
    """A judge that knows the truth."""
    return value(first) - value(second)


def by_truth(bias: float = 0.0) -> Behaviour:
    """Log-probabilities from the truth."""
    return preference(true_gap, bias)


def verdicts(bias_every: int = 0) -> Behaviour:
    """A judge that writes, and now and then prefers the first place."""

    def answer(body: dict[str, Any], number: int) -> Reply:
        shown = texts(body)
        gap = true_gap(shown["ANSWER A"], shown["ANSWER B"])
        place = int(hashlib.sha256("".join(sorted(shown.values())).encode()).hexdigest(), 16)
        if bias_every and place % bias_every == 0:
            gap = 1.0
        return completion(f"So. [[{'A' if gap > 0 else 'B' if gap < 0 else 'C'}]]")

    return answer
