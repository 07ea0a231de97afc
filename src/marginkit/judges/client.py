"""One request to an OpenAI-compatible endpoint: the key goes nowhere else, what can pass is tried again."""

from __future__ import annotations

import ipaddress
import json
import logging
import math
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from marginkit.errors import BadInput, RunFailed
from marginkit.judges.reading import Answer

if TYPE_CHECKING:
    import httpx2

_LOG = logging.getLogger("marginkit")
_MAX_BYTES = 16 * 2**20  # of one answer
_LONGEST_WAIT = 600.0  # seconds that a server may ask us to wait
_PASSING = {408, 409, 425, 429}
_HIDDEN = "<key>"
_LONG_KEY = 12  # shorter ones are placeholders such as EMPTY, and ordinary words


class RequestFailed(Exception):
    """One request was given up; `reason` is what it is counted under, the message says more."""

    def __init__(self, reason: str, detail: str = "", tried_again: bool = False) -> None:
        super().__init__(detail or reason)
        self.reason, self.tried_again = reason, tried_again


class _Passing(Exception):
    """This try failed, the next may not."""

    def __init__(self, reason: str, detail: str = "", wait: float = 0.0) -> None:
        super().__init__(detail or reason)
        self.reason, self.wait = reason, wait


def completions_url(endpoint: str) -> str:
    """Where requests go: the base URL, with /v1 if it has no path, and /chat/completions.

    Raises:
        BadInput: no http(s) URL, or one that carries a password or a query, which would end up in manifests.

    Example:
        >>> completions_url("http://localhost:8000"), completions_url("https://api.openai.com/v1/")
        ('http://localhost:8000/v1/chat/completions', 'https://api.openai.com/v1/chat/completions')
    """
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise BadInput("endpoint: give the base URL of a server, such as http://localhost:8000/v1")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise BadInput("endpoint: a URL without user, password, query or #; the key comes from the environment")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}/chat/completions"


def read_key(variable: str) -> str | None:
    """The key in an environment variable; None where there is none.

    Raises:
        BadInput: it holds blanks or characters that a header cannot carry; the message does not show it.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise BadInput(f"{variable}: holds blanks or characters that no key has; set it again")
    return key


class Client:
    """Asks one endpoint, from several threads.

    Redirects are not followed. Proxies of the environment are used for https alone, where they see no content: over
    http a proxy would be handed the key. What a server sends back never carries the key on: it is blanked out.

    Args:
        endpoint: base URL.
        key: sent as a bearer token; None for none.
        timeout: seconds for one try, to its last byte.
        retries: tries after the first.
        backoff: seconds before the second try; doubles with each, times 0.5 to 1 by chance, never under what the
            server asks for (Retry-After).
        concurrency: connections at once.
        admit_retry: asked before each further try.
        sleep: waits so many seconds; None for a wait that `stop` ends.
    """

    def __init__(
        self,
        endpoint: str,
        key: str | None = None,
        *,
        timeout: float = 120.0,
        retries: int = 5,
        backoff: float = 1.0,
        concurrency: int = 8,
        admit_retry: Callable[[], bool] = lambda: True,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        import httpx2

        self.url = completions_url(endpoint)
        host = urlsplit(self.url).hostname or ""
        plain = self.url.startswith("http:")
        if key and plain and not _is_local(host):
            _LOG.warning("the key goes to %s unencrypted: the endpoint is http, not https", host)
        self._key, self._timeout, self._retries, self._backoff = key, timeout, retries, backoff
        self._admit_retry = admit_retry
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=timeout,
            follow_redirects=False,
            trust_env=not plain,
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else True,  # trusts nobody, and is made at once
            limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
        )

    def ask(self, body: Mapping[str, Any]) -> Answer:
        """Send one request until it is answered.

        Raises:
            RequestFailed: this one is given up: the tries are used up, or the server refuses it for good.
            RunFailed: none will be answered: no access, no such model or address, a redirect, no money left.
        """
        content = json.dumps(dict(body)).encode()
        for attempt in range(self._retries + 1):
            try:
                return self._try(content)
            except _Passing as failure:
                if failure.wait > _LONGEST_WAIT:
                    raise RunFailed(f"{self.url}: asks to wait {failure.wait:.0f} s; run again later") from None
                if attempt == self._retries or self._stopped.is_set() or not self._admit_retry():
                    raise RequestFailed(failure.reason, str(failure), tried_again=True) from None
                pause = min(self._backoff * 2.0**attempt, 60.0) * random.uniform(0.5, 1.0)
                self._sleep(max(pause, failure.wait))
        raise AssertionError("unreachable")

    def _try(self, content: bytes) -> Answer:
        import httpx2

        start = time.monotonic()
        received = bytearray()
        try:
            with self._http.stream(
                "POST", self.url, content=content, headers={"Content-Type": "application/json"}
            ) as response:
                for piece in response.iter_bytes():
                    received += piece
                    if time.monotonic() - start > self._timeout:
                        raise _Passing("timeout", f"no whole answer in {self._timeout:g} s")
                    if len(received) > _MAX_BYTES:
                        raise RequestFailed("answer too long", f"over {_MAX_BYTES // 2**20} MB")
        except httpx2.TimeoutException:
            raise _Passing("timeout", f"no answer in {self._timeout:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, RuntimeError) as error:
            raise _Passing("no connection", self._hide(f"{self.url}: {type(error).__name__}: {error}")) from None
        text = self._hide(received.decode("utf-8", "replace"))
        if response.status_code != 200:
            self._refused(response, text)
        return _answer(text)

    def _refused(self, response: httpx2.Response, text: str) -> None:
        status = response.status_code
        said = _message(text)
        if status in (401, 403):
            raise RunFailed(f"{self.url}: no access (HTTP {status}: {said}); put a valid key into the environment")
        if status == 404:
            raise RunFailed(f"{self.url}: HTTP 404: {said}; check the address and the name of the model")
        if 300 <= status < 400:
            where = urlsplit(self._hide(response.headers.get("location", ""))).netloc
            raise RunFailed(f"{self.url}: redirects to {where or 'another path'}, not followed; give that address")
        if status == 402 or (status == 429 and "insufficient_quota" in text):
            raise RunFailed(f"{self.url}: no money left there (HTTP {status}: {said}); what is done is kept")
        if status in _PASSING or status >= 500:
            raise _Passing(f"HTTP {status}", f"HTTP {status}: {said}", _retry_after(response.headers))
        raise RequestFailed(f"HTTP {status}", f"HTTP {status}: {said}")

    def _hide(self, text: str) -> str:
        return text if not self._key or len(self._key) < _LONG_KEY else text.replace(self._key, _HIDDEN)

    def stop(self) -> None:
        """No further tries; those that wait for one give up."""
        self._stopped.set()

    def close(self) -> None:
        """Stop, and end the connections."""
        self.stop()
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds the server asks to wait: a number or a date; 0 where it says nothing readable."""
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _message(text: str) -> str:
    """What an error page says, in one short line."""
    try:
        error = json.loads(text)
        if isinstance(error, dict):
            error = error.get("error", error)
        said = error.get("message", error) if isinstance(error, dict) else error
        text = said if isinstance(said, str) else json.dumps(said)
    except (ValueError, RecursionError):
        text = re.sub(r"<[^>]*>", " ", text)
    line = " ".join(text.split())
    return line[:200] or "no message"


def _answer(text: str) -> Answer:
    """Read a chat completion; what is not one may be a page of a gateway, and is worth another try."""
    try:
        content = json.loads(text)
        choice = content["choices"][0]
        said = choice["message"].get("content")
    except (ValueError, RecursionError):
        raise _Passing("not JSON", f"the answer is not JSON: {_message(text)}") from None
    except (KeyError, IndexError, TypeError, AttributeError):
        raise _Passing("no choices", f"the answer holds no choices: {_message(text)}") from None
    if isinstance(said, list):
        said = "".join(part["text"] for part in said if isinstance(part, dict) and isinstance(part.get("text"), str))
    usage = content.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    finish = choice.get("finish_reason")
    return Answer(
        text=said if isinstance(said, str) else "",
        first=_first(choice.get("logprobs")),
        finish=finish if isinstance(finish, str) else None,
        tokens_in=_count(counts.get("prompt_tokens")),
        tokens_out=_count(counts.get("completion_tokens")),
    )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _first(logprobs: object) -> dict[str, float] | None:
    """Log-probabilities of the first token: the most likely ones, and the one that was drawn."""
    positions = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(positions, list) or not positions or not isinstance(positions[0], dict):
        return None
    entries = positions[0].get("top_logprobs")
    found: dict[str, float] = {}
    for entry in [*(entries if isinstance(entries, list) else []), positions[0]]:
        if isinstance(entry, dict) and isinstance(entry.get("token"), str):
            value = entry.get("logprob")
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                found.setdefault(entry["token"], float(value))
    return found
