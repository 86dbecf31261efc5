"""A real browser without a window, for pages: Chromium by Selenium, where a machine has both."""

import base64
import contextlib
import importlib.util
import shutil

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
TAB, SPACE, RIGHT = "\ue004", " ", "\ue014"


def missing() -> str:
    """Why there is none; "" where there is one."""
    there = {
        "chromium": _chromium(),
        "chromedriver": shutil.which("chromedriver"),
        "Selenium (extra test-browser)": importlib.util.find_spec("selenium"),
    }
    lacking = [name for name, found in there.items() if not found]
    return f"no {' and no '.join(lacking)} on this machine" if lacking else ""


def _chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A page that is open in a Selenium driver."""

    def __init__(self, driver):
        self.driver = driver

    def run(self, script: str):
        """What a script returns; it sees the page's document."""
        return self.driver.execute_script(script)

    def devtools(self, command: str, **params):
        """A command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, params)

    def open(self, url: str) -> None:
        """Loads a page."""
        self.driver.get(url)

    def press(self, *keys: str) -> None:
        """Keys, one after the other, on whatever has the focus."""
        self._actions().send_keys(*keys).perform()

    def chord(self, *keys: str) -> None:
        """Keys that are held together."""
        actions = self._actions()
        for key in keys:
            actions.key_down(key)
        for key in reversed(keys):
            actions.key_up(key)
        actions.perform()

    def _actions(self):
        from selenium.webdriver import ActionChains

        return ActionChains(self.driver)

    def type(self, selector: str, text: str) -> None:
        """Types into an element."""
        self.run(f"document.querySelector({selector!r}).focus()")
        self.press(text)

    def click(self, selector: str) -> None:
        """Clicks an element."""
        self.run(f"document.querySelector({selector!r}).click()")

    def until(self, expression: str, seconds: float = 60.0):
        """What an expression is, once that is true."""
        from selenium.common.exceptions import TimeoutException
        from selenium.webdriver.support.wait import WebDriverWait

        wait = WebDriverWait(self.driver, seconds, poll_frequency=0.05)
        try:
            return wait.until(lambda _: self.run(f"return {expression}"))
        except TimeoutException:
            shown = self.run("return document.body.innerText")
            raise AssertionError((expression, shown)) from None

    def messages(self) -> list[str]:
        """What the browser complained of since it was last asked."""
        return [line["message"] for line in self.driver.get_log("browser")]

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
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = _chromium()
    for argument in (*ARGUMENTS, f"--window-size={max(width, 500)},{height}"):
        options.add_argument(argument)
    if width < 500:  # a window is not made smaller
        metrics = {"width": width, "height": height, "pixelRatio": 2}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # The driver's path is given, so that Selenium does not look for one on the network.
    driver = Chrome(options, Service(shutil.which("chromedriver")))
    page = Page(driver)
    try:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.devtools("Emulation.setEmulatedMedia", features=[scheme])
        page.devtools("Emulation.setScriptExecutionDisabled", value=not script)
        yield page
    finally:
        driver.quit()
