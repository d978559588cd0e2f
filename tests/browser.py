"""A page in headless Chromium: the one of the system, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "headless_shell")


def _chromium() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name)) is not None), None)


def why_no_browser() -> str | None:
    """Why no page can be opened here; None if one can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "no playwright (it is among the dependencies for development)"
    return None if _chromium() is not None else "no Chromium (on Debian: apt-get install chromium)"


@contextmanager
def chromium() -> Iterator["Browser"]:
    """A browser.  One at a time: that is how Playwright works within one thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def open_page(
    browser: "Browser",
    path: Path,
    theme: Literal["light", "dark"] = "light",
    size: tuple[int, int] = (1440, 1200),
) -> Iterator["Page"]:
    """A page that has been opened without a network, and drawn.  What it logs and asks for is an error at the end."""
    wrong: list[str] = []

    def refuse(dialog: "Dialog") -> None:
        wrong.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=theme, offline=True, bypass_csp=False
    )
    page = context.new_page()
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", refuse)
    page.on("request", lambda request: wrong.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready=whole]", timeout=60_000)
    yield page
    context.close()
    assert wrong == []
