"""The report in a browser: dark, on a phone, on paper, and with text that would like to be more than text."""

import base64

import numpy as np
import pytest

from tests.report.browsing import KEYS, PHONE, N, colours, find, place, script, to_plot, wait
from tests.report.html_pages import NASTY, comparison


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_until_the_button_is_pressed(opened, scheme):
    browser = opened("two", scheme=scheme)
    paper, ink = colours(browser)
    assert (paper > 200 and ink < 60) if scheme == "light" else (paper < 60 and ink > 200)
    line = "return document.getElementById('plot').data.find((one) => one.name === 'y = x').line.color"
    before = script(browser, line)
    find(browser, "#theme").click()
    changed, _ = colours(browser)
    assert (changed < 60) == (scheme == "light")
    assert script(browser, line) != before  # the picture goes with it
    find(browser, "#theme").click()
    assert colours(browser) == (paper, ink)


def test_a_change_of_the_system_is_followed(opened):
    browser = opened("two", scheme="light")
    media = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": media})
    wait(browser, lambda: colours(browser)[0] < 60)


@pytest.mark.parametrize("name", ["many", "two", "nasty", "scores"])
def test_a_phone_needs_no_sideways_scrolling(opened, name):
    browser = opened(name, PHONE, touch=True)
    script(browser, "for (const one of document.querySelectorAll('details')) one.open = true")
    assert script(browser, "return document.documentElement.scrollWidth") == PHONE[0]
    wide = """
        return [...document.querySelectorAll("main *")].filter((one) => {
            const box = one.getBoundingClientRect();
            return box.width && box.right > innerWidth + 1 && !one.closest("svg, .table, .rows, .unseen, #plot");
        }).map((one) => one.className || one.tagName);
    """
    assert script(browser, wide) == []


def test_a_finger_on_a_point_shows_its_sample_below_the_picture(opened):
    browser, one = opened("many", PHONE, touch=True), comparison(n=N, k=250)
    to_plot(browser)
    far = int(np.argmax(one.actual))
    x, y = place(browser, one.predicted[far], one.actual[far])
    for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    wait(browser, find(browser, "#tip").is_displayed)
    assert find(browser, "#tip .title").text == f"training id {far}"
    plot, tip = find(browser, "#plot").rect, find(browser, "#tip").rect
    assert tip["y"] >= plot["y"] + plot["height"] - 1


def test_text_stays_text(opened):
    browser = opened("nasty")
    assert len(browser.find_elements("css selector", "script")) == 3
    assert not browser.find_elements("css selector", "main b, main iframe, main img:not([data-sample]):not([alt=''])")
    seen = set()  # with a dialog open, no line from here on would be carried out
    frame = find(browser, "#frame")
    for _ in range(60):
        frame.send_keys(KEYS.RIGHT)
        # A lone surrogate is text to a page, but none that a driver can pass on.
        said = script(browser, "return document.querySelector('#tip .what').textContent.toWellFormed()")
        seen.add(said.partition(" → ")[0])
    for text in NASTY[:4]:
        assert text in seen
    assert len(browser.find_elements("css selector", "script")) == 3
    assert not browser.find_elements("css selector", "#tip script, #tip svg, #tip style, #rows script, #rows svg")


def test_a_page_refuses_scripts_and_pictures_that_are_not_its_own(opened, browser):
    opened("two")
    script(
        browser,
        "const added = document.createElement('div');"
        'added.innerHTML = \'<img src="x.png" onerror="window.ran = true">\';'
        "document.body.append(added)",
    )
    # The console says what was refused; that is what this test is about.
    said = wait(browser, lambda: browser.get_log("browser"))
    assert all("Content Security Policy" in one["message"] for one in said)
    assert script(browser, "return window.ran") is None
    script(browser, "performance.clearResourceTimings()")  # what was refused stands there too


def test_paper_is_light_and_whole(opened):
    browser = opened("two", scheme="dark")
    script(browser, "addEventListener('afterprint', () => (window.printed = [...(window.printed || []), 1]))")
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    wait(browser, lambda: script(browser, "return window.printed"))
    assert colours(browser)[0] < 60  # and the screen is as it was
    assert not browser.find_elements("css selector", "details[open]")
    script(browser, "dispatchEvent(new Event('beforeprint'))")
    assert colours(browser)[0] > 200
    assert not browser.find_elements("css selector", "details:not([open])")
    width = script(browser, "return document.getElementById('plot')._fullLayout.width")
    assert width <= 650  # pixels between the margins of a sheet of A4 or letter size
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not find(browser, ".bar").is_displayed()
    assert find(browser, "#headline").is_displayed()


def test_scores_without_refits_make_a_page_without_a_picture(opened):
    browser = opened("scores")
    assert find(browser, "#headline").text == "Nothing has been verified yet."
    assert not browser.find_elements("css selector", "#plot")
    assert len(browser.find_elements("css selector", ".cards .card")) == 16
    wait(browser, lambda: script(browser, "return [...document.images].every((one) => one.naturalWidth === 28)"))
