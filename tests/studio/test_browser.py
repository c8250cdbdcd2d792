"""The page in a browser, from an empty project to a model: one session of headless Chromium, and a real server."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from clipadapter.classifier import FewShotClassifier
from clipadapter.studio import Project

from ..browser import MARKS, opened

pytestmark = MARKS
SERVER = """
import socket, sys
inner = socket.socket.connect
def connect(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1"):
        with open(LOG, "a") as file:
            file.write(f"{address}\\n")
        raise OSError("no network")
    return inner(self, address)
LOG = sys.argv.pop(1)
socket.socket.connect = connect
import clipadapter.studio
build = clipadapter.studio.build_page
def build_page(*args, **options):
    import clipadapter.studio.page  # here, after the command has told Gradio where files go
    import clipadapter.heads.auto.head
    clipadapter.heads.auto.head.MAX_REPEATS = 1
    clipadapter.studio.page.POLL_SECONDS, clipadapter.studio.model.DRAWS_PER_POINT = 0.4, 1
    return build(*args, **options)
clipadapter.studio.build_page = build_page
from clipadapter.cli.app import main
main()
"""
COLOURS = ("red", "green", "blue")
POLL_SECONDS = 0.1
TAB, ENTER, ARROW_DOWN = "\ue004", "\ue007", "\ue015"  # as WebDriver names these keys


def squares(folder, colour, count, first=0):
    """Files of noisy squares, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(first, first + count):
        rng = np.random.default_rng([i, COLOURS.index(colour)])
        pixels = np.array(Image.new("RGB", (24, 24), colour), np.int64) + rng.integers(-50, 50, (24, 24, 3))
        paths.append(folder / f"{colour} {i}.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return [str(path) for path in paths]


class Server:
    """The command, as a person would start it."""

    def __init__(self, root):
        self.project, self.log = root / "project", root / "connections.txt"
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        options = ["--encoder", "toy", "--no-browser", "--no-cache", "--json", "--port", self.port]
        code = [sys.executable, "-c", SERVER, self.log, "studio", self.project, *options]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GRADIO_")}
        self.process = subprocess.Popen(
            [str(word) for word in code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def wait_until_ready(self):
        text = ""
        while not text.endswith("}\n"):
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()
            text += line
        assert json.loads(text) == {"url": self.url, "project": str(self.project)}

    def end(self, sign):
        self.process.send_signal(sign)
        self.process.wait(120)
        self.process.stdout.close()
        self.process.stderr.close()

    def files(self, name):
        return sorted(path.name for path in (self.project / name).iterdir())


class Person:
    """Looks at the page and uses it."""

    def __init__(self, driver):
        self.driver = driver

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def see(self, selector, text="", seconds=60):
        """Wait for something, with a text in it."""
        script = """
            const [selector, text] = arguments, visible = {opacityProperty: true, visibilityProperty: true};
            const shown = (e) => e.localName === 'option' || e.checkVisibility(visible);
            const holds = (e) => !text || (shown(e) && e.innerText.replaceAll('\\u00a0', ' ').includes(text));
            return [...document.querySelectorAll(selector)].find(holds)"""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.driver.execute_script(script, selector, text):
                return found
            time.sleep(POLL_SECONDS)
        raise AssertionError(f"{selector} with {text!r} did not come: {[one.text for one in self.all(selector)]}")

    def until(self, holds, seconds=60):
        """Wait for something to hold."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end
            time.sleep(POLL_SECONDS)

    def press(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def undo(self):
        from selenium.webdriver import ActionChains, Keys

        ActionChains(self.driver).key_down(Keys.CONTROL).send_keys("z").key_up(Keys.CONTROL).perform()

    def filled(self):
        """The texts of the filled buttons that can be seen."""
        return self.driver.execute_script(
            "const colour = getComputedStyle(document.body).getPropertyValue('--cs-accent').trim();"
            "const probe = document.createElement('i'); probe.style.color = colour; document.body.append(probe);"
            "const wanted = getComputedStyle(probe).color; probe.remove();"
            "return [...document.querySelectorAll('button, .cs-drop, a')].filter((e) => e.checkVisibility())"
            ".filter((e) => getComputedStyle(e).backgroundColor === wanted).map((e) => e.innerText.trim())"
        )

    def leave(self):
        """Take the focus off everything."""
        self.driver.execute_script("document.activeElement.blur()")

    def drop(self, name, paths):
        self.see(f'input[data-upload="{name}"]').send_keys("\n".join(paths))

    def open(self, url):
        self.driver.get(url)
        self.see(".cs-next")

    def resize(self, width):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.fixture(scope="module")
def person(server, tmp_path_factory):
    server.wait_until_ready()  # before the driver takes its free port
    with opened(tmp_path_factory.mktemp("profile"), performance="ALL") as driver:
        yield Person(driver)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    # A shell that runs the tests in the background has them ignore Ctrl-C, and the server would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    made = Server(tmp_path_factory.mktemp("studio"))
    signal.signal(signal.SIGINT, before)
    yield made
    if made.process.poll() is None:
        made.end(signal.SIGKILL)


def test_from_an_empty_page_to_a_model(person, server, tmp_path):
    person.resize(1280)
    person.open(server.url)
    person.see(".cs-next", "Name your first class")
    person.until(lambda: person.filled() == ["Add class"])

    # Classes, by keyboard.
    person.see("textarea, input[type=text]").click()
    for name in COLOURS:
        person.press(name, ENTER)
        person.see(".cs-card h3", name)
    person.press("red", ENTER)
    person.see(".cs-note", "There is a class 'red' already")
    wanted = "const e = document.activeElement; return e.value.slice(e.selectionStart, e.selectionEnd)"
    person.until(lambda: person.driver.execute_script(wanted) == "red")  # the next name is written over it
    person.see(".cs-next", "Add a few pictures to each class")
    person.until(lambda: [text.endswith("choose pictures") for text in person.filled()] == [True])

    # By the class names alone.
    person.see("#cs-try input[type=file]").send_keys(squares(tmp_path, "green", 1, 900)[0])
    assert person.see(".cs-top li").text.startswith("green")
    person.see(".cs-prediction", "uses the class names alone")

    # Pictures, with a file that is no picture, and a picture of another class.
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    for name in COLOURS:
        person.drop(name, squares(tmp_path, name, 4))
        person.see(f'[data-drop="{name}"] .cs-count', "4")
        assert len(server.files(name)) == 4  # on the disk when the page says so
    person.drop("red", [str(tmp_path / "bad.jpg"), str(tmp_path / "blue 0.png")])
    person.see(".cs-note", "not added: already in 'blue'. Rejected: bad.jpg (not an image).")
    assert server.files("red")[0] == "red 0.png"  # the name that the file had
    person.driver.execute_script("scrollTo(0, document.body.scrollHeight)")
    left, top, right, bottom, width, height = person.driver.execute_script(
        "const box = document.querySelector('.cs-note').getBoundingClientRect();"
        "return [box.left, box.top, box.right, box.bottom, innerWidth, innerHeight]"
    )
    assert 0 <= left < right <= width and 0 <= top < bottom - 20 < bottom <= height
    person.driver.execute_script("scrollTo(0, 0)")
    person.see("[data-close-note]").click()
    person.until(lambda: not person.see(".cs-note").is_displayed())
    sending = "return [...document.querySelectorAll('.cs-sending')].some((e) => e.textContent.startsWith('Sending'))"
    person.until(lambda: not person.driver.execute_script(sending))  # also where nothing was added
    person.see(".cs-accuracy", "of 12 held-out pictures are predicted correctly")
    person.see(".cs-prediction", "most similar pictures are labelled")  # the tried picture is predicted again

    # A small picture is shown in its proportions.
    person.see('[data-drop="red"] .cs-thumb').click()
    assert len(set(person.see(".cs-open-picture img").size.values())) == 1
    person.see(".cs-open-picture button", "Close").click()

    # Why, and a correction.
    person.see('#cs-try button[aria-label="Remove Image"]').click()
    person.see(".cs-prediction", "Choose a picture above")
    person.see("#cs-try input[type=file]").send_keys(squares(tmp_path, "blue", 1, 901)[0])
    assert person.see(".cs-top li").text.startswith("blue")
    person.until(lambda: len(person.all(".cs-nearest img")) == 5)
    person.see(".cs-prediction .cs-button", "red").click()
    person.see(".cs-note", "Added 1 picture to 'red'.")
    assert len(server.files("red")) == 5
    person.leave()
    person.undo()
    person.see(".cs-note", "Undone: adding 1 picture to 'red'.")
    assert len(server.files("red")) == 4

    # Many pictures are assigned to a class at once.
    person.see("[data-select-mode]").click()
    person.see('[data-drop="red"] [data-select-all]').click()
    person.see(".cs-selected-count", "4 selected")
    assert person.filled() == ["Move"]
    person.see(".cs-target option", "green").click()
    person.see(".cs-selection button", "Move").click()
    person.see(".cs-note", "Moved 4 pictures to 'green'.")
    assert len(server.files("green")) == 8 and not person.see(".cs-selection").is_displayed()
    person.leave()
    person.undo()
    person.see(".cs-note", "Undone: labelling 4 pictures 'green'.")
    person.see(".cs-forecast", "It can't be said from these pictures whether 10 more")  # all are right already

    # Selected pictures, labelled by number keys.
    person.drop("", squares(tmp_path, "red", 3, 50) + squares(tmp_path, "green", 3, 50))
    person.see(".cs-current")
    for i in range(2):
        shown = person.see(".cs-current").get_attribute("data-picture")
        guess = person.see(".cs-guess b").text
        person.press(str(sorted(COLOURS).index(guess) + 1))
        person.see(".cs-summary", f"{13 + i} labelled")
        assert person.driver.execute_script(
            "const now = document.querySelector('.cs-current'); return !now || now.dataset.picture !== arguments[0]",
            shown,
        )
    assert len(server.files("red")) + len(server.files("green")) == 10

    # The model, in the folder that the page shows.
    folder = person.see("#cs-folder textarea, #cs-folder input").get_attribute("value")
    person.see("#cs-save").click()
    person.see("#cs-saved", "Saved.")
    assert folder == f"{server.project}-model"
    model = FewShotClassifier.load(folder, cache=None)
    assert model.predict([tmp_path / "green 900.png"]) == ["green"] and len(model.support_) == 14


def test_two_pages_show_the_same(person, server):
    first = person.driver.current_window_handle
    person.driver.switch_to.new_window("tab")
    person.open(server.url)
    person.see(".cs-summary", "14 labelled")
    person.see('[aria-label="Rename blue"]').click()
    person.see(".cs-rename input:focus")
    person.press("sky & <b>sea</b>")  # the name is selected, and is written over
    person.see(".cs-rename .cs-button", "Rename").click()
    person.see(".cs-card h3", "sky & <b>sea</b>")
    person.see('[data-action="learn-unlabelled"]').click()
    person.see(".cs-option:has(:focus):has([type=checkbox][checked])")  # the attribute: the panel was drawn again
    person.see(".cs-option:has(:checked)", "standard")
    person.see('.cs-option input[value="standard"]').send_keys(ARROW_DOWN)
    person.see(".cs-option:has(:focus):has([checked])", "best")
    person.driver.close()
    person.driver.switch_to.window(first)
    person.see(".cs-card h3", "sky & <b>sea</b>")
    person.see(".cs-option:has(:checked)", "best")
    person.see(".cs-option:has([type=checkbox]:checked)")


def test_what_the_page_reports_is_on_the_disk_and_undo_goes_on(person, server, tmp_path):
    before = {name: server.files(name) for name in ("red", "green")}
    person.drop("red", squares(tmp_path, "red", 3, 700))
    person.see(".cs-note", "Added 3 pictures to 'red'.")
    shutil.copytree(server.project, tmp_path / "killed")  # what a server that is killed now would leave
    with Project(tmp_path / "killed") as project:
        assert {"quality": "best", "learn_unlabelled": "yes"}.items() <= project.settings().items()
        assert sum(map(len, project.contents.classes.values())) == 17
        assert project.undo() == "adding 3 pictures to 'red'"
        assert project.undo().startswith("renaming the class 'blue'")
    person.open(server.url)
    person.see(".cs-summary", "17 labelled")
    person.see(".cs-option:has(:checked)", "best")
    person.see(".cs-accuracy", "held-out pictures are predicted correctly")
    person.leave()
    person.undo()
    person.see(".cs-note", "Undone: adding 3 pictures to 'red'.")
    person.undo()
    person.see(".cs-note", "Undone: renaming the class 'blue'")
    assert server.files("red") == before["red"] and len(server.files("blue")) == 4


def test_it_is_used_by_keyboard_and_nothing_hangs_over(person, server):
    person.open(server.url)
    person.see(".cs-current")
    names = []
    for _ in range(70):
        person.press(TAB)
        names.append(
            person.driver.execute_script(
                "const e = document.activeElement, label = e.labels && e.labels[0], image = e.querySelector('img');"
                "return e.getAttribute('aria-label') || (label && label.innerText) || e.innerText"
                " || (image && image.alt) || e.title || e.tagName"
            ).strip()
        )
        if "Export to ONNX" in names:
            break
    order = [names.index(name) for name in ("New class", "Add class", "Rename blue", "Add pictures to blue")]
    assert order == sorted(order) and names[-1] == "Export to ONNX"
    assert not {"INPUT", "TEXTAREA", "BUTTON", ""} & set(names), names  # everything that can be reached has a name
    for width in (1920, 1280, 390):
        person.resize(width)
        over = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        person.until(lambda: person.driver.execute_script(over) == 0)  # noqa: B023
    # On a phone, a picture can be tried without scrolling.
    assert person.see("#cs-try").rect["y"] < 500
    person.see(".cs-help summary").click()
    person.see(".cs-help details[open]", f"{server.project}-model.onnx")


def test_nothing_left_the_machine_and_ctrl_c_ends_the_server(person, server):
    asked = set()
    for entry in person.driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(message["params"]["request"]["url"])
    assert any(url.startswith(server.url) for url in asked)
    near = (server.url, "data:", "blob:", "chrome:", "chrome-untrusted:", "about:")
    assert {url for url in asked if not url.startswith(near)} == set()
    assert not server.log.exists(), server.log.read_text()
    severe = [entry["message"] for entry in person.driver.get_log("browser") if entry["level"] == "SEVERE"]
    # What is under way when a page is left or loaded again fails; Gradio's client closes its stream with an AbortError.
    broken_off = ("net::ERR_", "Failed to fetch", "network error", "Connection errored out", "AbortError: signal is")
    assert [text for text in severe if not any(words in text for words in broken_off)] == []
    server.end(signal.SIGINT)
    assert server.process.returncode == 0 and server.files("red")
