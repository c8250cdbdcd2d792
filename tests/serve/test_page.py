"""The page on which a person tries a picture, in a browser."""

import pytest

from ..browser import MARKS, opened
from .colours import BLUE, GREY, RED, write_file
from .test_process import Running

pytestmark = MARKS


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Running(write_file(tmp_path_factory.mktemp("served") / "colours.onnx"), CLIPADAPTER_TOKEN="secret-1")
    yield running
    running.close()


def test_a_picture_is_answered_after_the_token_is_given(server, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait

    for name, data in {"red.png": RED, "blue.png": BLUE, "grey.png": GREY, "bad.png": b"no picture"}.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "profile").mkdir()
    with opened(tmp_path / "profile") as browser:

        def find(selector):
            return browser.find_element("css selector", selector)

        def wait_for(condition):
            return WebDriverWait(browser, 60).until(lambda _: condition())

        browser.get(f"http://127.0.0.1:{server.port}/")
        wait_for(lambda: "the token is missing" in find("#about").text)
        find("#token").send_keys("secret-1\t")
        wait_for(lambda: find("#about").text == "colours knows 3 classes: red, green, blue")
        find("#files").send_keys("\n".join(str(tmp_path / f"{name}.png") for name in ("red", "blue", "grey", "bad")))
        wait_for(lambda: len(browser.find_elements("css selector", "#answers article")) == 4)
        bad, grey, blue, red = (each.text.splitlines() for each in browser.find_elements("css selector", "article"))
        assert (red[:2], blue[:2]) == (["red.png", "red"], ["blue.png", "blue"])
        assert grey[1] in ("red", "green", "blue", "none of these") and any("unlike" in line for line in grey)
        assert bad == ["bad.png", "not an image"]
        log = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        assert [text for text in log if "401" not in text and "favicon" not in text] == []
