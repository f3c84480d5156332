"""Helpers for tests of the report in a browser: reading the screen, and mouse and keyboard input."""

import time
from types import SimpleNamespace

import numpy as np

N = 500  # points of the page `many`
DESKTOP, PHONE = (1280, 900), (375, 812)  # pixels
SECONDS = 20  # timeout of every wait

# Code points of keys: W3C WebDriver, "Keyboard actions".
KEYS = SimpleNamespace(TAB="\ue004", ESCAPE="\ue00c", END="\ue010", LEFT="\ue012", RIGHT="\ue014", DOWN="\ue015")


def script(browser, code, *arguments):
    return browser.execute_script(code, *arguments)


def find(browser, selector):
    return browser.find_element("css selector", selector)


def words(browser, selector):
    """Reads an element's text in one call: an element found in an earlier call may have been replaced since."""
    return script(browser, "return document.querySelector(arguments[0]).innerText", selector)


def in_sight(browser, selector):
    code = """
        const it = document.querySelector(arguments[0]);
        return it !== null && it.getBoundingClientRect().height > 0 && getComputedStyle(it).visibility === "visible";
    """
    return script(browser, code, selector)


def shown(browser):
    """Counts the points of the plot."""
    return len(browser.find_elements("css selector", "#plot .scatterlayer .points path")) - ring(browser)


def ring(browser):
    return script(browser, "return document.getElementById('plot').data.at(-1).x.length")


def ranges(browser):
    code = "const {xaxis, yaxis} = document.getElementById('plot')._fullLayout; return [xaxis.range, yaxis.range]"
    return np.array(script(browser, code))


def place(browser, x, y):
    """Returns the position of plot coordinates on the screen, pixels."""
    code = """
        const plot = document.getElementById("plot"), box = plot.getBoundingClientRect();
        const { xaxis, yaxis } = plot._fullLayout;
        return [box.x + xaxis._offset + xaxis.d2p(arguments[0]), box.y + yaxis._offset + yaxis.d2p(arguments[1])];
    """
    return script(browser, code, float(x), float(y))


def to_plot(browser):
    script(browser, "document.getElementById('frame').scrollIntoView({block: 'center'})")


def mouse(browser, kind, x, y, **more):
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, "x": x, "y": y, **more})


def point_at(browser, x, y):
    left, top = place(browser, x, y)
    mouse(browser, "mouseMoved", left - 2, top)
    mouse(browser, "mouseMoved", left, top)


def wait(browser, condition):
    """Waits until `condition()` is true and returns its value."""
    end = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {SECONDS} s; browser console: {browser.get_log('browser')}"
        time.sleep(0.02)
    return found


def choose(browser, selector, text):
    """Chooses an option of a list by the beginning of its text."""
    (option,) = [
        one for one in browser.find_elements("css selector", f"{selector} option") if one.text.startswith(text)
    ]
    option.click()


def number(text: str) -> float:
    return float(text.removesuffix(" nats").replace("−", "-").replace("+", ""))


def colours(browser):
    code = "const found = getComputedStyle(document.body); return [found.backgroundColor, found.color]"
    paper, ink = (tuple(map(int, text[4:-1].split(","))) for text in script(browser, code))
    return sum(paper) / 3, sum(ink) / 3
