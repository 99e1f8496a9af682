"""A headless Chromium with the network cut, driven over its DevTools protocol."""

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-port=0",
    # No name leads anywhere: a page that asks the network for something sees it fail.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)

# A page is there when it is loaded and its mathematics, if it has any, is set.
SETTLED = (
    "document.readyState === 'complete'"
    " && (window.MathJax?.startup?.promise?.then(() => true) ?? true)"
)
# What the browser says of a question whose page has gone in the meantime.
LEFT = "navigated or closed|context was destroyed|Cannot find context"


def find_chromium() -> str:
    """The path of an installed Chromium or Chrome; $CHROMIUM names another one."""
    for name in filter(None, (os.environ.get("CHROMIUM"), *NAMES)):
        if path := shutil.which(name):
            return path
    raise RuntimeError(
        "no Chromium found: `apt-get install chromium`, or set CHROMIUM to its path"
    )


class PageLeft(RuntimeError):
    """The page led on to another one while it was being asked."""


class Browser:
    """One tab; `complaints` collects what went wrong on the page it shows."""

    def __init__(self, profile: Path, timeout: float = 30.0):
        self.timeout = timeout
        self.complaints: list[str] = []
        self._urls: dict[str, str] = {}
        self._session: str | None = None
        self._ids = itertools.count(1)
        self._process = subprocess.Popen(
            [find_chromium(), *FLAGS, f"--user-data-dir={profile}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._socket = websocket.create_connection(
            self._address(profile), suppress_origin=True, timeout=timeout
        )
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _address(self, profile: Path) -> str:
        """Where the browser listens: it writes that into its profile when it is up."""
        note, deadline = profile / "DevToolsActivePort", time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            if note.exists() and len(lines := note.read_text().splitlines()) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            if self._process.poll() is not None:
                raise RuntimeError(f"Chromium ended with {self._process.returncode}")
            time.sleep(0.05)
        raise RuntimeError(f"Chromium did not start within {self.timeout:.0f} s")

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(timeout=self.timeout)

    def call(self, method: str, **params) -> dict:
        """One command of the protocol, and its result."""
        question = {"id": next(self._ids), "method": method, "params": params}
        if self._session:
            question["sessionId"] = self._session
        self._socket.send(json.dumps(question))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == question["id"]:
                if "error" in answer:
                    message = answer["error"]["message"]
                    kind = PageLeft if re.search(LEFT, message) else RuntimeError
                    raise kind(f"{method}: {message}")
                return answer["result"]
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _note(self, event: str, params: dict) -> None:
        """Keeps from the stream of events what a reader would trip over."""
        if event == "Network.requestWillBeSent":
            url = params["request"]["url"]
            self._urls[params["requestId"]] = url
            if not url.startswith(("file:", "data:", "blob:", "about:")):
                self.complaints.append(f"asked the network for {url}")
        elif event == "Network.loadingFailed" and not params.get("canceled"):
            url = self._urls.get(params["requestId"], "?")
            self.complaints.append(f"{params['errorText']} for {url}")
        elif event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            what = details.get("exception", {}).get("description", details["text"])
            self.complaints.append(f"exception: {what}")
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(f"log: {params['entry']['text']}")

    def resize(self, width: int, height: int = 900) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def visit(self, url: str) -> None:
        """Opens a page and waits until it and its mathematics are there."""
        self.complaints.clear()
        self.call("Page.navigate", url=url)
        self.wait_for(SETTLED, f"{url} to load")

    def wait_for(self, condition: str, what: str) -> None:
        """Waits until a JavaScript condition holds, on whichever page is then shown."""
        deadline = time.monotonic() + self.timeout
        while not self._holds(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {self.timeout:.0f} s for {what}")
            time.sleep(0.02)

    def _holds(self, condition: str) -> bool:
        try:
            return bool(self.run(condition))
        except PageLeft:  # the next page is asked next
            return False

    def run(self, expression: str):
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def screenshot(self, path: Path, full: bool = False) -> None:
        """What a reader sees, as a PNG: for an author's eyes."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(shot["data"]))
