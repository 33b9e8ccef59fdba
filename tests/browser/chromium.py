"""A real Chromium without a window, in a profile of its own, that notes what it asks the network for."""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

PHONE = (360, 740)
DESKTOP = (1280, 900)


class Browser:
    """One tab."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(
        self, page: Path, size: tuple[int, int] = DESKTOP, *, dark: bool = False, scale: float = 1
    ) -> None:
        """Load a page from the disk as a screen of a size in CSS pixels shows it; forgets what was noted before."""
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": scale, "mobile": size == PHONE}
        self._command("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce"}
        self._command("Emulation.setEmulatedMedia", features=[scheme, motion])
        self.driver.get("about:blank")
        self.messages()
        self.requests()
        self.driver.get(page.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page and return what it returns."""
        return self.driver.execute_script(script, *arguments)  # pyright: ignore[reportUnknownVariableType]

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait for what the page does after the event itself: TimeoutException if it doesn't within ten seconds."""
        WebDriverWait(self.driver, 10, poll_frequency=0.02).until(lambda _: condition())

    def messages(self) -> list[str]:
        """Return what was written to the console since the last call: errors and violated policies among it."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the URLs that were asked for since the last call, but for data that lies in the page itself."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith(("data:", "about:"))]

    def photograph(self, height: int | None = None) -> bytes:
        """Return the page as a PNG from its top down, all of it if no height is given; pictures that load lazily are
        waited for."""
        width, whole = self.run("return [innerWidth, document.documentElement.scrollHeight]")
        height = min(height or whole, whole)
        self.driver.execute_async_script(
            """
            const [height, done] = arguments;
            const frame = () => new Promise((next) => requestAnimationFrame(() => setTimeout(next, 50)));
            (async () => {
              for (let y = 0; y < height; y += innerHeight) { scrollTo(0, y); await frame(); }
              scrollTo(0, 0);
              await Promise.all([...document.images].filter((each) => each.src).map((each) => each.decode()));
              done();
            })();
            """,
            height,
        )
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        return base64.b64decode(
            self._command("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        )

    def _command(self, name: str, **parameters: Any) -> dict[str, Any]:
        return self.driver.execute_cdp_cmd(name, parameters)


@contextmanager
def chromium() -> Generator[Browser]:
    """Start Chromium with its driver, both as Debian packages them, and end them afterwards."""
    binary, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver_path):
        raise FileNotFoundError("there is no chromium with chromedriver: `make test-browser` installs them")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ChromeOptions()
        options.binary_location = binary
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = Chrome(options=options, service=Service(driver_path))
        try:
            yield Browser(driver)
        finally:
            driver.quit()
