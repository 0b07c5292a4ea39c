"""A headless Chromium, spoken to over its own debugging protocol: no driver, nothing downloaded.

Knows: how it is started, how a page is opened and asked. Does not know: any page.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--remote-debugging-port=0", "--autoplay-policy=no-user-gesture-required", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip

STATE = """(() => {
  const video = document.querySelector("video");
  const ranges = [...Array(video.buffered.length).keys()].map((i) => [video.buffered.start(i), video.buffered.end(i)]);
  return JSON.stringify({ at: video.currentTime, ranges, paused: video.paused, ready: video.readyState,
    error: video.error?.message, text: document.body.innerText.slice(0, 2000) });
})()"""
"""What is told about a page that does not do what it should."""


class Page:
    """One page, and what went wrong in it; use it as a context."""

    def __init__(self, profile: Path, width: int = 1100, height: int = 900) -> None:
        assert PROGRAM is not None
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._marks = 0
        self._profile, self._size = profile, (width, height)

    def __enter__(self) -> Page:
        self._open = ExitStack()
        self._program = subprocess.Popen(
            [str(PROGRAM), *OPTIONS, f"--user-data-dir={self._profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        told = self._profile / "DevToolsActivePort"
        for _ in range(600):
            if told.is_file() and (port := told.read_text(encoding="utf-8").partition("\n")[0]):
                break
            time.sleep(0.1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=60) as answer:
            [page] = [page for page in json.loads(answer.read()) if page["type"] == "page"]
        self._socket = self._open.enter_context(connect(page["webSocketDebuggerUrl"], max_size=2**26))
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(*self._size)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._program.terminate()
        self._program.wait(30)

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of a method of the protocol; events on the way are noted."""
        self._marks += 1
        self._socket.send(json.dumps({"id": self._marks, "method": method, "params": parameters}))
        while True:
            found = json.loads(self._socket.recv(timeout=60))
            if found.get("id") == self._marks:
                assert "error" not in found, found
                return found["result"]
            self._note(found)

    def _note(self, event: dict[str, Any]) -> None:
        method, told = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.problems.append(str(details.get("exception", {}).get("description", details.get("text"))))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.problems.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])

    def resize(self, width: int, height: int) -> None:
        """Another window."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def open(self, address: str) -> None:
        """Go somewhere."""
        self.call("Page.navigate", url=address)

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 60) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.ask(f"(() => {{ try {{ return {expression} }} catch {{ return null }} }})()"):
                return value
            time.sleep(0.1)
        raise AssertionError(f"never true: {expression}; {self.problems}; {self.ask(STATE)}")

    def press(self, key: str, code: int) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def picture(self, path: Path) -> None:
        """A screenshot."""
        import base64

        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
