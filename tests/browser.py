"""Chromium for the tests of pages: driven through two pipes by its own protocol, so that no library is needed."""

import json
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = [
    "--headless=new",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--mute-audio",
]
_PATIENCE = 60.0


def chromium() -> str | None:
    """The browser on this machine."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


needs_browser = pytest.mark.skipif(chromium() is None, reason=f"no browser: none of {', '.join(_NAMES)} is installed")


class Tab:
    """One tab, and everything that happened in it."""

    def __init__(self, to: int, source: int) -> None:
        self._to, self._from, self._number, self._unread = to, source, 0, b""
        self.session: str | None = None
        self.events: list[tuple[str, dict[str, Any]]] = []

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its answer; what happens meanwhile is kept in `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {} if self.session is None else {"sessionId": self.session}
        left = memoryview(json.dumps(message).encode() + b"\0")
        while left:
            left = left[os.write(self._to, left) :]
        while (answer := self._next()).get("id") != self._number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], _PATIENCE)
            part = os.read(self._from, 1 << 16) if ready else b""
            if not part:
                raise RuntimeError("the browser has ended, or says nothing")
            self._unread += part
        one, self._unread = self._unread.split(b"\0", 1)
        message: dict[str, Any] = json.loads(one)
        if "method" in message:
            self.events.append((message["method"], message["params"]))
            if message["method"] == "Page.javascriptDialogOpening":  # it would block everything that follows
                self._number += 1
                answer = {"id": self._number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                os.write(self._to, json.dumps(answer | {"sessionId": self.session}).encode() + b"\0")
        return message

    def open(self, page: Path | str) -> "Tab":
        """Open a page and wait until it is loaded."""
        self.events.clear()
        self.ask("Page.navigate", url=page.resolve().as_uri() if isinstance(page, Path) else page)
        while not any(name == "Page.loadEventFired" for name, _ in self.events):
            self._next()
        return self

    def run(self, script: str) -> Any:
        """The value of an expression; promises are waited for."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def screen(self, width: int, height: int = 900, *, dark: bool = False, media: str = "") -> None:
        """How wide it is, and what the reader prefers."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def seen(self, *names: str) -> list[dict[str, Any]]:
        """The events of these names."""
        self.run("0")  # whatever has happened until now has been told
        return [event for name, event in self.events if name in names]

    def complaints(self) -> list[dict[str, Any]]:
        """Errors of scripts, what the policy of the page refused, dialogs, and requests for anything but the page."""
        asked = [event for event in self.seen("Network.requestWillBeSent") if event.get("type") != "Document"]
        loud = [event for event in self.seen("Log.entryAdded") if event["entry"]["level"] in ("error", "warning")]
        return [*self.seen("Runtime.exceptionThrown", "Page.javascriptDialogOpening"), *loud, *asked]


@contextmanager
def browser() -> Iterator[Tab]:
    """A browser with one tab; gone afterwards."""
    (hears, to), (source, says) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(prefix="marginkit-browser-") as profile:
        flags = [*_FLAGS, f"--user-data-dir={profile}"]
        if os.geteuid() == 0 or "CI" in os.environ:  # where the sandbox of Chromium cannot be made
            flags.append("--no-sandbox")
        command = [chromium() or "chromium", *flags, "about:blank"]
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{hears} 4>&{says}', "bash", *command],
            pass_fds=(hears, says),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(hears), os.close(says)
        try:
            tab = Tab(to, source)
            target = tab.ask("Target.createTarget", url="about:blank")["targetId"]
            tab.session = tab.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                tab.ask(f"{domain}.enable")
            yield tab
            tab.session = None
            tab.ask("Browser.close")
        finally:
            os.close(to), os.close(source)
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
