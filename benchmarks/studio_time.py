"""How long from an empty page to a working model of three classes: the studio, used by a scripted browser.

    python benchmarks/studio_time.py [--encoder lite] [--pictures 5] [--runs 3]

Drops pictures of fabric (extra ``demo``) into three classes named by typing, asks for one more of each, and prints the
seconds since the page was asked for. The server is started before and is not counted; features are kept nowhere.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from selenium import webdriver
from selenium.webdriver import ActionChains, Keys

from clipadapter.data import textiles

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--pictures", type=int, default=5, help="of each class")
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    data = textiles()
    pictures = {name: [str(s.path) for s in data.samples if s.label == name] for name in data.class_names[:3]}
    runs = [once(asked.encoder, pictures, asked.pictures) for _ in range(asked.runs)]
    for name in runs[0]:
        values = [run[name] for run in runs]
        print(f"{name:55} {statistics.median(values):6.2f} s   ({min(values):.2f} to {max(values):.2f})")


def once(encoder: str, pictures: dict[str, list[str]], count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        words = ["studio", f"{folder}/project", "--encoder", encoder, "--no-browser", "--no-cache", "--json"]
        command = [sys.executable, "-m", "clipadapter", *words]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            text = ""
            while not text.endswith("}\n"):
                text += server.stdout.readline()
            browser = opened(Path(folder) / "profile")
            try:
                return used(browser, json.loads(text)["url"], pictures, count)
            finally:
                browser.quit()
        finally:
            server.kill()
            server.wait()


def opened(profile: Path) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium") or ""
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def used(browser: webdriver.Chrome, url: str, pictures: dict[str, list[str]], count: int) -> dict[str, float]:
    def see(selector: str, fits: Callable[[str], bool] = bool) -> None:
        end = time.monotonic() + 120
        script = f"return [...document.querySelectorAll({selector!r})].map((one) => one.innerText || 'there')"
        while not any(fits(text) for text in browser.execute_script(script)):
            assert time.monotonic() < end, selector
            time.sleep(0.01)

    told, start = {}, time.perf_counter()

    def note(what: str) -> None:
        told[what] = time.perf_counter() - start

    browser.get(url)
    see("textarea, input[type=text]")
    note("the page is there")
    browser.find_element("css selector", "textarea, input[type=text]").click()
    for name in pictures:
        ActionChains(browser).send_keys(name, Keys.ENTER).perform()
        see(".cs-card h3", lambda text, name=name: text == name)
    note("three classes are named")
    for name, paths in pictures.items():
        browser.find_element("css selector", f'input[data-upload="{name}"]').send_keys("\n".join(paths[:count]))
        see(f'[data-drop="{name}"] .cs-count', lambda text: text == str(count))
    note("their pictures are on the disk")
    see(".cs-accuracy b", lambda text: text.endswith("%"))
    note("a model is fitted and measured")
    browser.find_element("css selector", "#cs-try input[type=file]").send_keys(next(iter(pictures.values()))[count])
    see(".cs-nearest img")
    note("it has answered for a new picture, and said why")
    return told


if __name__ == "__main__":
    main()
