"""A real browser for tests: the Chromium of the system, without a display or a GPU."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

NO_CHROMIUM = "chromium is not installed (apt install chromium)"

ARGUMENTS = (
    "--no-sandbox",  # the tests may run as root, in a container
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)


def find_chromium() -> str | None:
    """Its path, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass
class Page:
    """A page, what its console said, and what it asked the network for."""

    handle: object
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def picture(self, selector: str | None = None) -> NDArray[np.uint8]:
        """What is seen, RGB."""
        target = self.handle.locator(selector).first if selector else self.handle
        data = np.frombuffer(target.screenshot(timeout=120_000), np.uint8)
        return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


@contextlib.contextmanager
def open_page(chromium: str, url: str, *, width: int = 1200, height: int = 900) -> Iterator[Page]:
    """Open a page.

    Args:
        chromium: the browser, from the fixture of that name.
        url: of the page.
        width: of the window, pixels.
        height: of the window, pixels.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS), timeout=120_000)
        try:
            handle = browser.new_page(viewport={"width": width, "height": height})
            page = Page(handle=handle)
            handle.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
            handle.on("pageerror", lambda error: page.errors.append(str(error)))
            handle.on("request", lambda request: page.requests.append(request.url))
            handle.goto(url, timeout=120_000)
            yield page
        finally:
            browser.close()
