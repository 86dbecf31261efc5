"""A real browser without a window, for pages: Chromium by its driver, where a machine has both."""

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
TAB, SPACE, RIGHT = "\ue004", " ", "\ue014"


def missing() -> str:
    """Why there is none; "" where there is one."""
    lacking = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return f"no {' and no '.join(lacking)} on this machine" if lacking else ""


class Page:
    """A page that is open."""

    def __init__(self, session: str):
        self.session = session

    def run(self, script: str):
        """What a script returns; it sees the page's document."""
        return _ask(f"{self.session}/execute/sync", {"script": script, "args": []})

    def devtools(self, command: str, **params):
        """A command of the DevTools protocol."""
        return _ask(f"{self.session}/goog/cdp/execute", {"cmd": command, "params": params})

    def open(self, url: str) -> None:
        """Loads a page."""
        _ask(f"{self.session}/url", {"url": url})

    def press(self, *keys: str) -> None:
        """Keys, one after the other, on whatever has the focus."""
        pressed = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        _ask(
            f"{self.session}/actions", {"actions": [{"type": "key", "id": "k", "actions": pressed}]}
        )

    def chord(self, *keys: str) -> None:
        """Keys that are held together."""
        down = [{"type": "keyDown", "value": key} for key in keys]
        up = [{"type": "keyUp", "value": key} for key in reversed(keys)]
        _ask(
            f"{self.session}/actions",
            {"actions": [{"type": "key", "id": "k", "actions": down + up}]},
        )

    def type(self, selector: str, text: str) -> None:
        """Types into an element."""
        self.run(f"document.querySelector({selector!r}).focus()")
        self.press(*text)

    def click(self, selector: str) -> None:
        """Clicks an element."""
        self.run(f"document.querySelector({selector!r}).click()")

    def until(self, expression: str, seconds: float = 60.0):
        """What an expression is, once that is true."""
        limit = time.monotonic() + seconds
        while not (found := self.run(f"return {expression}")):
            shown = self.run("return document.body.innerText")
            assert time.monotonic() < limit, (expression, shown)
            time.sleep(0.05)
        return found

    def messages(self) -> list[str]:
        """What the browser complained of since it was last asked."""
        return [line["message"] for line in _ask(f"{self.session}/se/log", {"type": "browser"})]

    def screenshot(self, path, height: int = 0) -> None:
        """A PNG of the window, or of the first `height` pixels of the page."""
        width = self.run("return innerWidth")
        clip = {"clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}}
        more = clip | {"captureBeyondViewport": True} if height else {}
        found = self.devtools("Page.captureScreenshot", format="png", **more)
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def browser(width: int, height: int = 800, *, dark: bool = False, script: bool = True):
    """A Page of a window of that size; `script`: whether pages may run any."""
    with _driver() as address:
        options = {"args": [*ARGUMENTS, f"--window-size={max(width, 500)},{height}"]}
        if width < 500:  # a window is not made smaller
            metrics = {"width": width, "height": height, "pixelRatio": 2}
            options["mobileEmulation"] = {"deviceMetrics": metrics}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options}
        wanted["goog:loggingPrefs"] = {"browser": "ALL"}
        made = _ask(f"{address}/session", {"capabilities": {"alwaysMatch": wanted}})
        page = Page(f"{address}/session/{made['sessionId']}")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.devtools("Emulation.setEmulatedMedia", features=[scheme])
        page.devtools("Emulation.setScriptExecutionDisabled", value=not script)
        try:
            yield page
        finally:
            _ask(page.session, method="DELETE")


@contextlib.contextmanager
def _driver() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                _ask(f"{address}/status")
                break
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def _ask(url: str, body: dict | None = None, method: str | None = None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as reply:
            return json.load(reply)["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{url}: {error.read().decode()[:600]}") from error
