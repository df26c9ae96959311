"""A real browser, Debian's Chromium without a screen, driven by its own protocol over a websocket."""

import base64
import contextlib
import itertools
import json
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
#: The longest that a browser on a busy machine takes for anything.
PATIENCE_S = 30.0
#: Waits for the next picture that the browser paints: what was begun before is then on the screen.
PAINTED = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"


@dataclass
class Page:
    """One tab. `said` are errors and warnings of its console, `asked` the addresses that it asked for."""

    socket: ClientConnection
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the browser answers to a command; events that come meanwhile are taken in."""
        number = next(self._numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=PATIENCE_S))
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return dict(message["result"])
            self._hear(message)

    def _hear(self, message: dict[str, Any]) -> None:
        found = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled" if found["type"] in ("error", "warning", "assert"):
                self.said.append(str([each.get("value", each.get("description")) for each in found["args"]]))
            case "Runtime.exceptionThrown":
                self.said.append(str(found["exceptionDetails"].get("exception", found["exceptionDetails"])))
            case "Log.entryAdded" if found["entry"]["level"] in ("error", "warning"):
                self.said.append(f"{found['entry']['text']} {found['entry'].get('url', '')}")
            case "Network.requestWillBeSent":
                self.asked.append(found["request"]["url"])

    def run(self, script: str) -> Any:
        """What an expression amounts to; a promise is waited for.

        As if a person had done it: steps that nobody took are none to go back to.
        """
        how = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        done = self.call("Runtime.evaluate", expression=script, **how)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, script: str) -> Any:
        """What an expression amounts to as soon as that is true."""
        ends = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends:
            with contextlib.suppress(AssertionError):
                if found := self.run(script):
                    return found
            self.run(PAINTED)
        raise AssertionError(
            f"never true: {script}; the page says {self.run('document.body.innerText')[:2000]}"
        )

    def go(self, url: str) -> None:
        """Opens an address anew, and waits until the page has its data."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.ready()

    def show(self, address: str) -> None:
        """Goes to another part of the page, as a link does."""
        self.run(f"location.hash = {json.dumps(address)}")
        self.ready()

    def ready(self) -> None:
        """Waits until what the address asks for is shown."""
        self.until(
            "document.readyState === 'complete' && document.querySelector('#main h1') !== null"
            " && !document.querySelector('#main').hasAttribute('aria-busy')"
        )
        self.run(PAINTED)

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """The size of the window in pixels, and whether its reader likes it dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.run(PAINTED)

    def press(self, *keys: str) -> None:
        """Presses keys, one after another, by their names (`Tab`, `Enter`, `ArrowLeft`, `Shift+Tab`)."""
        codes = {
            "Tab": 9,
            "Enter": 13,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
            " ": 32,
        }
        for key in keys:
            name = key.removeprefix("Shift+")
            what = {"key": name, "code": name, "windowsVirtualKeyCode": codes[name]}
            what |= {"modifiers": 8} if key != name else {}
            what |= {"text": "\r"} if name == "Enter" else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", **what)
            self.call("Input.dispatchKeyEvent", type="keyUp", **what)

    def log_in(self, url: str, key: str, address: str = "") -> None:
        """Goes to a part of the dashboard as somebody who has a key, and no session yet."""
        self.call("Network.clearBrowserCookies")
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=f"{url}/dashboard{address}")
        self.until("document.querySelector('#key') !== null")
        self.run(f"document.querySelector('#key').value = {json.dumps(key)}")
        self.run("document.querySelector('button').click()")
        self.ready()
        # That the form comes with a 401 the browser calls an error.
        self.said.clear()

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """What is on the screen as a PNG; the whole page, or what the window shows."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browser(program: str = "chromium") -> Iterator[Callable[[], contextlib.AbstractContextManager[Page]]]:
    """A function that opens a tab with nothing in it; the browser ends with this."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [program, *OPTIONS, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if "DevTools listening on" in line)
            port = line.partition("127.0.0.1:")[2].partition("/")[0]
            yield lambda: _tab(port)
        finally:
            process.terminate()
            process.communicate()


@contextlib.contextmanager
def _tab(port: str) -> Iterator[Page]:
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
    with urllib.request.urlopen(asked) as reply:
        found = json.loads(reply.read())
    with connect(found["webSocketDebuggerUrl"], max_size=2**28) as socket:
        page = Page(socket)
        for part in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{part}.enable")
        yield page
        page.call("Page.close")
