"""The page in a browser: one session of headless Chromium for all tests."""

import time
from itertools import pairwise

import pytest

from ..browser import MARKS, opened

pytestmark = MARKS


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with opened(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def address(report, tmp_path_factory):
    return report.write(tmp_path_factory.mktemp("page") / "report.html").as_uri()


@pytest.fixture
def page(browser, address):
    """The page, opened anew at 1280 pixels."""
    resize(browser, 1280)
    browser.get("about:blank")
    browser.get(address)
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def resize(browser, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def find(page, selector):
    return page.find_element("css selector", selector)


def press(page, *keys):
    from selenium.webdriver import ActionChains

    ActionChains(page).send_keys(*keys).perform()


def focused(page, name):
    return page.execute_script("return document.activeElement.getAttribute(arguments[0])", name)


def shown(page, selector):
    """Names of the pictures in a list."""
    return {image.get_attribute("alt").split("/")[1] for image in page.find_elements("css selector", f"{selector} img")}


def test_everything_is_drawn_zero_shot_as_a_star_and_lines_named_at_their_end(page):
    assert page.execute_script("return location.protocol") == "file:"
    assert len(page.find_elements("css selector", "figure.chart svg")) == 3
    assert len(page.find_elements("css selector", "#map-plot .point")) == 27
    assert len(page.find_elements("css selector", "#class-table tbody tr")) == 3
    # Those of the doctor are loaded when they are scrolled to.
    images = page.find_elements("css selector", "img:not([loading])")
    assert images and all(image.get_property("naturalWidth") for image in images)
    assert not page.find_elements("css selector", "#class-table b, h1 u")
    names = {text.text.split("  ")[0] for text in page.find_elements("css selector", "#curve svg .name")}
    assert len(page.find_elements("css selector", "#curve svg .star")) == 1
    assert len(names) == 2 and not page.find_elements("css selector", "#curve .key")


def test_a_click_on_a_cell_shows_its_pictures(page):
    find(page, '.cell[data-cell="1,1"]').click()
    assert find(page, "#cell-title").text == "grün & 'gelb', classified correctly: 5 pictures"
    assert shown(page, "#cell-pictures") == {f"green-{i}.png" for i in range(5)}
    find(page, '.cell[data-cell="0,2"]').click()
    assert find(page, "#cell-title").text.endswith("2 pictures")
    assert shown(page, "#cell-pictures") == {"<i>ü\"'0.png", "<i>ü\"'1.png"}


def test_the_matrix_fills_its_part_of_the_page_at_every_width(page):
    size = "const svg = document.querySelector('#matrix-plot svg').getBoundingClientRect();"
    size += "return [svg.width, document.querySelector('#matrix .wide').clientWidth]"
    for width in (1920, 800):
        resize(page, width)
        end = time.monotonic() + 60
        while time.monotonic() < end and page.execute_script(size)[0] < page.execute_script(size)[1] - 20:
            time.sleep(0.05)  # it is drawn again if the width changes
        drawn, available = page.execute_script(size)
        assert available - 20 <= drawn <= available + 1


def test_the_matrix_and_the_dialog_can_be_used_by_keyboard(page):
    from selenium.webdriver import Keys

    page.execute_script("document.querySelector('.cell[tabindex=\"0\"]').focus()")
    assert focused(page, "data-cell") == "0,0"
    press(page, Keys.ARROW_RIGHT)
    assert focused(page, "data-cell") == "0,2"
    press(page, Keys.ARROW_DOWN)
    assert focused(page, "data-cell") == "2,2"
    press(page, Keys.ENTER)
    assert find(page, "#cell-title").text.endswith("classified correctly: 5 pictures")
    press(page, Keys.TAB)
    assert focused(page, "data-picture") is not None
    press(page, Keys.SPACE)
    assert find(page, "#dialog").get_attribute("open") and "red-" in find(page, "#dialog-title").text
    assert len(page.find_elements("css selector", "#dialog .gallery img")) == 3  # the nearest shots
    press(page, Keys.ESCAPE)
    assert not find(page, "#dialog").get_attribute("open")
    assert focused(page, "data-picture") is not None  # the focus returns to the picture


def test_a_class_opens_its_pictures_and_has_a_back_button(page):
    find(page, '[data-gallery="0"]').click()
    assert find(page, "#dialog-title").text == '</script><b>blau": 5 pictures'
    find(page, "#dialog .gallery .picture").click()
    assert "<i>ü\"'" in find(page, "#dialog-title").text  # mistakes come first
    find(page, "#dialog .link").click()
    assert find(page, "#dialog-title").text.endswith("5 pictures")
    find(page, "#dialog-close").click()
    assert not find(page, "#dialog").get_attribute("open")


def test_classes_are_sorted_and_filtered(page):
    def names():
        found = page.find_elements("css selector", "#class-table [data-gallery]")
        return [one.text for one in found if one.is_displayed()]

    find(page, "#class-table th:first-child .sort").click()
    first = names()
    find(page, "#class-table th:first-child .sort").click()
    assert names() == first[::-1] and len(first) == 3
    find(page, "#class-filter").send_keys("GRÜN")
    assert names() == ["grün & 'gelb'"]


def test_the_map_is_filtered_and_its_points_open(page):
    from selenium.webdriver import Keys

    find(page, '#map-legend [data-k="1"]').click()
    assert len(page.find_elements("css selector", "#map-plot .point:not(.faded)")) == 9
    find(page, "#map-shots").click()
    page.execute_script("document.querySelector('#map-plot circle:not(.faded)').focus()")
    press(page, Keys.ARROW_RIGHT)
    assert "grün & 'gelb'" in find(page, "#map-reading").text
    press(page, Keys.ENTER)
    assert "green-" in find(page, "#dialog-title").text
    press(page, Keys.ESCAPE)
    find(page, "#map-all").click()
    assert len(page.find_elements("css selector", "#map-plot .point:not(.faded)")) == 27


def test_dark_and_light_follow_the_system_and_the_button(page):
    def background():
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    def prefer(scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    prefer("dark")
    dark = background()
    prefer("light")
    light = background()
    assert dark != light
    find(page, "#theme").click()
    assert background() == dark
    page.refresh()
    assert background() == dark  # it is stored
    find(page, "#theme").click()
    assert background() == light


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_does_not_scroll_sideways(page, width):
    resize(page, width)
    page.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    over = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    end = time.monotonic() + 60
    while time.monotonic() < end and page.execute_script(over) > 0:
        time.sleep(0.05)  # charts are drawn again if the width changes
    assert page.execute_script(over) == 0
    assert page.execute_script("return document.documentElement.clientWidth") in range(width - 20, width + 1)
    cut = "[...document.querySelectorAll('.wide:has(table)')].filter((e) => e.scrollWidth > e.clientWidth).length"
    assert page.execute_script(f"return {cut}") == 0


def test_labels_of_an_axis_do_not_touch(browser, report, tmp_path):
    text = report.to_html()
    assert text.count('"curve":{"shots":[1,2,4]') == 1
    near = tmp_path / "report.html"
    near.write_text(text.replace('"curve":{"shots":[1,2,4]', '"curve":{"shots":[1,2,3.7,4]'), encoding="utf-8")
    resize(browser, 390)
    browser.get(near.as_uri())
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('[data-chart=curve] text[text-anchor=middle]:not(.star)')]"
        ".map((e) => e.getBoundingClientRect()).map((box) => [box.left, box.right])"
    )
    gaps = [left - right for (_, right), (left, _) in pairwise(sorted(boxes))]
    assert len(boxes) == 4 and min(gaps) > 3  # of 0, 1, 2 and 4 shots
