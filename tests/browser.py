"""Chromium without a window, driven over its DevTools pipe: what a page logs, requests and shows."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """One tab; `logged` has errors of the console, of scripts and of the security policy,
    `requested` every address but the page's own."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = os.fdopen(read, "rb"), os.fdopen(write, "wb")
        self._count, self._session = 0, ""
        self.logged: list[str] = []
        self.requested: list[str] = []

    def start(self) -> None:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(answer["error"])
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("chromium ended")
            text += byte
        message = json.loads(text)
        told = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.logged.append(json.dumps(told["exceptionDetails"])[:500])
            case "Log.entryAdded" if told["entry"]["level"] == "error":
                self.logged.append(told["entry"]["text"])
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning"):
                self.logged.append(json.dumps(told["args"])[:500])
            case "Network.requestWillBeSent":
                self.requested.append(told["request"]["url"])
        return message

    def open(self, page: Path, fragment: str = "") -> None:
        """Load the page and wait until its script says that all is drawn."""
        self.logged.clear()
        self.requested.clear()
        self.send("Page.navigate", url=page.resolve().as_uri() + fragment)
        while not self.ask("document.documentElement?.dataset.ready === 'yes'"):
            pass
        self.requested = [
            url for url in self.requested if url.split("#")[0] != page.resolve().as_uri()
        ]

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def picture(self, file: Path, width: int, height: int) -> None:
        self.size(width, height)
        shot = self.send("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(shot["data"]))

    def size(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with its profile in `folder`."""
    assert CHROMIUM
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()

    def pipes() -> None:  # DevTools reads descriptor 3 and writes 4
        os.dup2(to_read, 13)
        os.dup2(from_write, 14)
        os.dup2(13, 3)
        os.dup2(14, 4)

    process = subprocess.Popen(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
            f"--user-data-dir={folder}", "--no-first-run", "--disable-dev-shm-usage",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=pipes,
        close_fds=False,
    )  # fmt: skip
    os.close(to_read)
    os.close(from_write)
    found = Browser(from_read, to_write)
    try:
        found.start()
        yield found
    finally:
        process.terminate()
        process.wait()
