"""Fixtures of the report's tests: a browser if one is installed, pages of artificial results, a results folder."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ifloo.store import CORRECTED
from tests.report.browsing import DESKTOP, N, script, wait
from tests.report.html_pages import NASTY, Data, Pictures, T, Words, comparison, written
from tests.verdict.conftest import logs, results

__all__ = ["browser", "logs", "opened", "pages", "results"]
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    reason = "selenium cannot be imported (pip install 'ifloo[test]')"
    webdriver = pytest.importorskip("selenium.webdriver", reason=reason)
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip(f"no browser can be started for the report: chromium {chromium}, chromedriver {driver}")
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages by name: 500 removals, two tests with two methods, hostile texts, scores without refits."""
    folder = tmp_path_factory.mktemp("pages")
    two = [comparison(t=t, other_methods={CORRECTED: comparison(t=t).actual}) for t in (T, 8)]
    long = Words([*NASTY, "w" * 400, "请描述这张图片。" * 30])
    written(folder / "many", [comparison(n=N, k=250)], Data(Pictures(side=64), Pictures()))
    written(folder / "two", two)
    written(folder / "nasty", two, Data(long))
    written(folder / "scores", [], unverified={T: (comparison().stored, 0)})
    return {path.parent.parent.name: path for path in folder.glob("*/exp/report.html")}


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path]) -> Iterator[Callable[..., Any]]:
    """Function that opens a page in a window of a given size; checks at the end that nothing was logged or fetched."""

    def go(name: str, size: tuple[int, int] = DESKTOP, scheme: str = "light", touch: bool = False) -> Any:
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": touch}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch})
        media = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": media})
        browser.get(pages[name].as_uri())
        wait(browser, lambda: script(browser, "return document.documentElement.dataset.ready"))
        return browser

    browser.get_log("browser")
    yield go
    assert browser.get_log("browser") == []
    assert script(browser, "return performance.getEntriesByType('resource').length") == 0
