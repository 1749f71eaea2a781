"""A headless Chromium, driven over its DevTools protocol: https://chromedevtools.github.io/devtools-protocol."""

import base64
import itertools
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from httpx_ws import WebSocketSession, connect_ws

__all__ = ["Browser", "Tab", "running"]

_PATIENCE_S = 60
_SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-port=0",
)


class Browser:
    """The connection to a running browser; one thread may use it."""

    def __init__(self, socket: WebSocketSession) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._tabs: dict[str, Tab] = {}
        self.agent = str(self.call("Browser.getVersion")["userAgent"])

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """What a command answers; the events before it go to their tabs."""
        number = next(self._ids)
        addressed = {"sessionId": session} if session else {}
        self._socket.send_json({"id": number, "method": method, "params": parameters, **addressed})
        while True:
            message = self._socket.receive_json(timeout=_PATIENCE_S)
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return dict(message["result"])
            if message.get("sessionId") in self._tabs:
                self._tabs[message["sessionId"]].notice(message["method"], message["params"])

    @contextmanager
    def tab(self, language: str = "en-US") -> Iterator["Tab"]:
        """A tab with nothing remembered from others."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = self._tabs[session] = Tab(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            tab.call(f"{domain}.enable")
        tab.call("Emulation.setUserAgentOverride", userAgent=self.agent, acceptLanguage=language)
        yield tab
        self.call("Target.disposeBrowserContext", browserContextId=context)


class Tab:
    """A tab.

    Attributes:
        requests: addresses that it asked for.
        complaints: errors of its scripts, and of its policies.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def notice(self, event: str, values: dict[str, Any]) -> None:
        """Keeps what an event says."""
        if event == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(values["exceptionDetails"]))
        elif event == "Log.entryAdded" and values["entry"]["source"] != "network":
            self.complaints.append(values["entry"]["text"])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What a command answers."""
        return self._browser.call(method, self._session, **parameters)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """The value of an expression, as soon as it is true."""
        deadline = time.monotonic() + _PATIENCE_S
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, (expression, self.complaints, self.text("body"))
            time.sleep(0.05)
        return value

    def open(self, url: str) -> None:
        """Goes to a page; it may still load."""
        self.call("Page.navigate", url=url)

    def text(self, selector: str) -> str:
        """The text of the first element."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def texts(self, selector: str) -> list[str]:
        """The text of each element, folded ones too."""
        found = f"Array.from(document.querySelectorAll({json.dumps(selector)}), (one) => one.textContent)"
        return [str(one) for one in self.evaluate(found)]

    def type(self, selector: str, text: str) -> None:
        """Replaces what stands in a field as a keyboard or a paste does."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        self.evaluate("document.activeElement.select()")
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, control: bool = False) -> None:
        """A key, perhaps with Ctrl."""
        held = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 2 if control else 0}
        self.call("Input.dispatchKeyEvent", type="rawKeyDown", **held)
        self.call("Input.dispatchKeyEvent", type="keyUp", **held)

    def click(self, selector: str) -> None:
        """Clicks on an element."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def prefer(self, scheme: str) -> None:
        """Makes the user prefer light or dark."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def resize(self, width: int, height: int) -> None:
        """Gives the window a size."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def screenshot(self) -> bytes:
        """PNG of the whole page."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])


@contextmanager
def running(program: str, folder: Path) -> Iterator[Browser]:
    """Starts a browser that reaches 127.0.0.1 only, with its profile in the folder."""
    command = [program, *_SWITCHES, f"--user-data-dir={folder / 'profile'}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        address = _address(process, folder)
        client = httpx.Client(timeout=None, trust_env=False)
        with client, connect_ws(address, client, keepalive_ping_interval_seconds=None) as socket:
            browser = Browser(socket)
            yield browser
            browser.call("Browser.close")
    finally:
        process.terminate()
        process.wait(_PATIENCE_S)


def _address(process: "subprocess.Popen[bytes]", folder: Path) -> str:
    """Of the browser's own socket, which it writes into its profile."""
    written = folder / "profile" / "DevToolsActivePort"
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        lines = written.read_text().split() if written.exists() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.05)
    raise AssertionError(f"the browser did not start:\n{(folder / 'log').read_text()}")
