"""A headless Chromium, driven through the DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

SECONDS = 60.0  # for anything; a busy machine is no failure
WIDTH, HEIGHT = 1280, 800

_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-gpu",
    "--disable-sync",
    "--hide-scrollbars",
    "--mute-audio",
    f"--window-size={WIDTH},{HEIGHT}",
)
# It reads commands from descriptor 3 and writes to 4.
_LAUNCH = """import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowLeft": 37, "ArrowRight": 39, "End": 35}


def find() -> str | None:
    """The browser's path."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    return None


class Page:
    """One tab. Everything waits for what it needs and fails after SECONDS.

    `problems` collects what a page must not have: console errors, uncaught exceptions, refused by
    policy. `requested` has the URL of every request, `posted` the body of every POST.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = commands
        self._answers = answers
        self._buffer = bytearray()
        self._number = 0
        self._session: str | None = None
        self.problems: list[str] = []
        self.requested: list[str] = []
        self.posted: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while True:
            answer = self._next(deadline)
            if answer.get("id") != self._number:
                self._note(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            else:
                return answer["result"]  # type: ignore[no-any-return]

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                raise TimeoutError("the browser does not answer")
            data = os.read(self._answers, 1 << 20)
            if not data:
                raise RuntimeError("the browser has gone")
            self._buffer += data
        line, _, rest = self._buffer.partition(b"\0")
        self._buffer = bytearray(rest)
        return json.loads(line)  # type: ignore[no-any-return]

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        method = event.get("method")
        if method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
            if body := params["request"].get("postData"):
                self.posted.append(json.loads(body))
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.problems.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            entry = params["entry"]
            self.problems.append(f"{entry['text']} {entry.get('url', '')}".strip())

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, or what its promise comes to."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Its value, as soon as that is true."""
        deadline = time.monotonic() + SECONDS
        while not (value := self.evaluate(expression)):
            if time.monotonic() > deadline:
                seen = self.evaluate("document.body.innerText")
                raise TimeoutError(f"never true: {expression}; the page says: {seen}")
            time.sleep(0.05)
        return value

    def forgive(self, text: str) -> None:
        """At least one problem with this text was expected."""
        others = [problem for problem in self.problems if text not in problem]
        assert len(others) < len(self.problems), f"{text!r} never happened: {others}"
        self.problems = others

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait(
            f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'"
        )

    def text(self, selector: str) -> str:
        """What is written in an element that the page has."""
        node = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"{node} !== null")
        return str(self.evaluate(f"{node}.innerText"))

    def hover(self, selector: str) -> tuple[float, float]:
        x, y = self._center(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        return x, y

    def click(self, selector: str) -> None:
        x, y = self.hover(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Into the element that has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        code = _KEYS[key]
        text = {"text": "\r"} if key == "Enter" else {}
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call(
            "Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **common, **text
        )
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self) -> bytes:
        """What is seen, as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def emulate(self, *, dark: bool = False, width: int = WIDTH, height: int = HEIGHT) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def _center(self, selector: str) -> tuple[float, float]:
        """Where a click hits the element, once the frames that may still move it are over."""
        name = json.dumps(selector)
        x, y = self.wait(
            f"(async () => {{ const node = document.querySelector({name});"
            " if (!node?.getClientRects().length) return null;"
            " node.scrollIntoView({block: 'nearest'});"
            " for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);"
            " const box = node.getClientRects()[0]; if (!box) return null;"
            " const at = [box.x + box.width / 2, box.y + box.height / 2];"
            " return node.contains(document.elementFromPoint(...at)) ? at : null; })()"
        )
        return x, y


@contextlib.contextmanager
def browse() -> Iterator[Page]:
    """A fresh browser with nothing in its profile; it ends with the block."""
    path = find()
    if path is None:
        raise RuntimeError("there is no Chromium")
    command_out, command_in = os.pipe()
    answer_out, answer_in = os.pipe()
    theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (command_out, answer_in)]
    flags = [*_FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        flags += [f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _LAUNCH, *map(str, theirs), path, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": profile},
            pass_fds=theirs,
        )
        for fd in (command_out, answer_in, *theirs):
            os.close(fd)
        try:
            yield Page(command_in, answer_out)
        finally:
            os.close(command_in)  # it ends when nobody commands it any more
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(answer_out)
