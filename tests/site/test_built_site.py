"""The built site: whole, and without a network."""

import importlib
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

from scripts.site.api_pages import modules
from tests.report.browsing import DESKTOP, PHONE, find, script, wait

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "srcset", "link": "href"}
FROM_A_NETWORK = re.compile(r"^\s*(https?:)?//")


class Page(HTMLParser):
    """What a page loads, where it links to, and the anchors it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.classes: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.classes |= set((values.get("class") or "").split())
        self.anchors |= {values[key] for key in ("id", "name") if values.get(key)}
        if address := values.get(LOADS.get(tag, "")):
            self.loads.append(address)
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])


@pytest.fixture(scope="module")
def read(site) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_nothing_is_loaded_from_a_network(site, read):
    assert len(read) > 20
    assert [address for page in read.values() for address in page.loads if FROM_A_NETWORK.match(address)] == []
    styles = "\n".join(path.read_text() for path in [*site.rglob("*.css"), *read])
    assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']*", styles) == []
    # The theme fetches a program for diagrams from a network when a page has one.
    assert not any("mermaid" in page.classes for page in read.values())


def test_links_and_what_is_loaded_are_there(read):
    wrong = []
    for path, page in read.items():
        if path.name == "404.html":  # its addresses are those of a server
            continue
        for address in [*page.loads, *page.links]:
            if re.match(r"[a-z]+:", address):
                continue
            file, _, anchor = unquote(address).partition("#")
            target = (path.parent / file).resolve() if file else path
            if anchor.startswith(("__", "gh-")):  # of the theme: controls, and pictures for light and dark
                anchor = ""
            if not target.is_file() or (anchor and target in read and anchor not in read[target].anchors):
                wrong.append(f"{path.name}: {address}")
    assert wrong == []


def test_every_public_name_has_its_anchor(site, read):
    for module in modules():
        anchors = read[site / "api" / f"{module.room}.html"].anchors
        assert [name for name in module.names if f"{module.path}.{name}" not in anchors] == []


def test_a_function_with_the_name_of_its_module_is_shown_and_not_the_module(site):
    """The classes of such a module keep their signatures."""
    for module in modules():
        room = importlib.import_module(module.path)
        inside = [name for name in module.names if isinstance(getattr(room, name), ModuleType)]
        page = (site / "api" / f"{module.room}.html").read_text()
        shown = re.findall(r'<h2 id="([\w.]+)" class="doc doc-heading">\s*<code class="[\w -]*doc-symbol-module"', page)
        for name in (name for name in module.names if hasattr(getattr(room, name), "__dataclass_fields__")):
            after = page.partition(f'id="{module.path}.{name}" class="doc doc-heading"')[2]
            assert "doc-signature" in after.partition('class="doc doc-heading"')[0], name
        assert [f"{module.path}.{name}" for name in inside] == [path for path in shown if path.startswith(module.path)]


def test_what_others_made_comes_with_its_licence(site):
    for name in ("katex", "iframe-worker"):
        assert "Permission is hereby granted" in (site / "assets" / name / "LICENSE").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_no_page_is_wider_than_the_screen(browser, read, size):
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    for path in read:
        browser.get(path.as_uri())
        assert script(browser, "return document.documentElement.scrollWidth") <= size[0], path.name
    browser.get_log("browser")


def test_formulas_are_drawn_and_the_search_finds_without_a_server(browser, site):
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get_log("browser")
    browser.get((site / "mathematics.html").as_uri())
    count = "return document.querySelectorAll(arguments[0]).length"
    formulas = script(browser, count, ".arithmatex")
    assert formulas > 100
    assert script(browser, count, ".arithmatex > .katex, .arithmatex > .katex-display") == formulas
    assert script(browser, count, ".katex-error") == 0
    addresses = script(browser, "return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [address for address in addresses if not address.startswith(("file:", "data:", "blob:"))] == []
    script(browser, "document.querySelector('label[for=__search]').click()")
    find(browser, ".md-search__input").send_keys("LiSSA")
    wait(browser, lambda: script(browser, count, ".md-search-result__item") > 0)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
