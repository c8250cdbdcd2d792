"""Make the pictures of README.md in docs/images/: the demo, a learning curve, a report and the studio.

    python scripts/make_readme_pictures.py CLOTHES
    python scripts/make_readme_pictures.py CLOTHES --only studio

The learning curve is drawn from committed records, those of the table in README.md: published CLIP ViT-B/32 features of
nine Food-101 classes, five seeds, made by `clipadapter.bench.few_shot`. The demo has pictures of fabric, whose licence
is MIT (package conformal-clip-data). The report and the studio are pages about a
model of ``lite`` and photographs of clothes, which are not in this repository: CLOTHES is a folder with ``train/`` and
``test/`` of https://github.com/alexeygrigorev/clothing-dataset-small, whose licence is CC0 1.0. A headless Chromium
photographs the pages. That needs the extras demo, doctor and studio, selenium, chromium and chromedriver, and takes
some minutes.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import lzma
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from clipadapter.bench.plots import draw_learning_curve
from clipadapter.bench.run import read_runs
from clipadapter.bench.study import pivot_runs
from clipadapter.classifier import FewShotClassifier
from clipadapter.data import load_dataset
from clipadapter.report import make_report

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
RECORDS = ROOT / "benchmarks" / "results" / "food10-clip" / "learning-curve.jsonl.xz"
STUDIO_CLASSES = ("dress", "hat", "pants", "shoes", "t-shirt")
STUDIO_SHOTS, STUDIO_QUEUE = 11, 3
"""Labelled and unlabelled pictures per class."""
TRIED_PICTURE = "shoes/00.jpg"
DEMO_ROWS = (0.3, 0.756)
"""Top and bottom of these rows, as shares of the height of the sheet."""
CURVE_INCHES, CURVE_DPI = (5.0, 3.45), 260
"""Small, so that its letters are large where README.md shows it on half a page."""
REPORT_SIZE, STUDIO_SIZE = (820, 566), (1280, 800)
"""Width and height of photographed pages in points; a picture has twice as many pixels."""
MAX_BYTES = 300_000
WAIT_SECONDS = 180


def main() -> None:
    """Make the pictures that are asked for."""
    makers = {"demo": crop_demo, "learning-curve": draw_curve, "report": photograph_report, "studio": photograph_studio}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clothes", type=Path, help="folder with train/ and test/, one folder per class in each")
    parser.add_argument("--only", nargs="+", choices=list(makers), default=list(makers), help="pictures to make")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder of the pictures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            image = makers[name](Path(folder), options.clothes)
        path = options.out / f"{name}.png"
        path.write_bytes(compress(image))
        sys.stdout.write(f"{path}: {path.stat().st_size // 1000} kB\n")


def crop_demo(folder: Path, _: Path) -> Image.Image:
    """The second and third of the four rows of the sheet of `clipadapter demo`: local defects, and flawless fabric."""
    subprocess.run([sys.executable, "-m", "clipadapter", "demo", "--out", str(folder / "demo")], check=True)
    sheet = Image.open(folder / "demo" / "answers.png").convert("RGB")
    top, bottom = (round(share * sheet.height) for share in DEMO_ROWS)
    return sheet.crop((0, top, sheet.width, bottom))


def draw_curve(folder: Path, _: Path) -> Image.Image:
    """The learning curve of four heads, from records."""
    path = folder / "runs.jsonl"
    path.write_bytes(lzma.decompress(RECORDS.read_bytes()))
    title = "CLIP ViT-B/32, nine classes of Food-101"
    figure = draw_learning_curve(pivot_runs(read_runs(path)), title, size=CURVE_INCHES)
    data = io.BytesIO()
    figure.savefig(data, dpi=CURVE_DPI)
    return open_png(data.getvalue())


def photograph_report(folder: Path, clothes: Path) -> Image.Image:
    """The worst mistakes on the page of `clipadapter report`, with the most similar shots."""
    shots = load_dataset(clothes / "train")
    model = FewShotClassifier(encoder="lite", progress=True)
    model.fit(shots.paths, shots.labels, shots.class_names)
    page = make_report(model, load_dataset(clothes / "test"), curve=False).write(folder / "report.html")
    with open_browser(folder / "profile", REPORT_SIZE) as browser:
        browser.get(page.as_uri())
        wait(lambda: browser.find_elements("css selector", "#worst img[src]"))
        top = browser.execute_script("return document.querySelector('#mistakes-title').getBoundingClientRect().top")
        return photograph(browser, REPORT_SIZE, top - 24)


def photograph_studio(folder: Path, clothes: Path) -> Image.Image:
    """The page of `clipadapter studio`, with pictures, accuracy and a prediction."""
    project, queue = folder / "clothes", folder / "unlabelled"
    tried = str((clothes / "test" / TRIED_PICTURE).resolve())
    for name in STUDIO_CLASSES:
        pictures = sorted((clothes / "train" / name).iterdir())
        for picture in pictures[:STUDIO_SHOTS]:
            copy_picture(picture, project / name, picture.name)
        for picture in pictures[-STUDIO_QUEUE:]:
            copy_picture(picture, queue, f"{name}-{picture.name}")
    command = [
        sys.executable,
        "-m",
        "clipadapter",
        "studio",
        str(project),
        "--encoder",
        "lite",
        "--no-browser",
        "--json",
    ]
    with subprocess.Popen([*command, "--unlabelled", str(queue)], stdout=subprocess.PIPE, text=True) as server:
        try:
            text = ""
            assert server.stdout is not None
            while not text.endswith("}\n"):
                text += server.stdout.readline()
            with open_browser(folder / "profile", STUDIO_SIZE) as browser:
                browser.get(json.loads(text)["url"])
                wait(lambda: browser.find_elements("css selector", "#cs-try input[type=file]"))
                wait(lambda: browser.find_elements("css selector", ".cs-accuracy svg"))  # measured
                browser.find_element("css selector", "#cs-try input[type=file]").send_keys(tried)
                wait(lambda: browser.find_elements("css selector", ".cs-top li"))
                time.sleep(1)  # until the pictures are drawn
                return photograph(browser, STUDIO_SIZE, 0)
        finally:
            server.terminate()


def copy_picture(source: Path, folder: Path, name: str) -> None:
    """Copy a picture into a folder, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, folder / name)


@contextmanager
def open_browser(profile: Path, size: tuple[int, int]) -> Iterator[Any]:
    """A headless Chromium with two pixels per point."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}")
    for flag in flags:
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 2, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    light = [{"name": "prefers-color-scheme", "value": "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": light})
    try:
        yield browser
    finally:
        browser.quit()


def photograph(browser: Any, size: tuple[int, int], top: float) -> Image.Image:
    """A part of the page, from a height on."""
    clip = {"x": 0, "y": max(top, 0), "width": size[0], "height": size[1], "scale": 1}
    options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    return open_png(base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", options)["data"]))


def wait(is_there: Callable[[], object]) -> None:
    """Wait for something on a page.

    Raises:
        TimeoutError: if it does not come.
    """
    end = time.monotonic() + WAIT_SECONDS
    while not is_there():
        if time.monotonic() > end:
            raise TimeoutError("the page did not show what was expected: see its elements in this script")
        time.sleep(0.1)


def open_png(data: bytes) -> Image.Image:
    """The picture in a PNG file."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def compress(image: Image.Image) -> bytes:
    """A PNG file of 256 colours below the limit, scaled down where it is too large."""
    scaled = image
    for factor in (1.0, 0.85, 0.7, 0.6, 0.5):
        scaled = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        scaled.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        if file.tell() <= MAX_BYTES:
            break
    return file.getvalue()


if __name__ == "__main__":
    main()
