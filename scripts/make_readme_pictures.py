"""Make the pictures of README.md in docs/images/: a learning curve, a report and the studio.

    python scripts/make_readme_pictures.py
    python scripts/make_readme_pictures.py --only studio

The learning curve is drawn from committed records, those of the table in README.md: published CLIP ViT-B/32 features of
nine Food-101 classes, five seeds, made by benchmarks/few_shot_features.py. The report and the studio are pages about a
model of ``lite`` and pictures of fabric, whose licence is MIT (package conformal-clip-data). A headless Chromium
photographs them. That needs the extras lite, demo, doctor and studio, selenium, chromium and chromedriver, and takes
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
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from clipadapter.bench.plots import learning_curve_figure
from clipadapter.bench.run import read_runs
from clipadapter.classifier import FewShotClassifier
from clipadapter.data import Dataset, textiles
from clipadapter.report import make_report

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
RECORDS = ROOT / "benchmarks" / "results" / "food10-clip" / "learning-curve.jsonl.xz"
SHORT_NAMES = {
    "fabric with a global defect": "weave",
    "fabric with a local defect": "spot",
    "flawless fabric": "flawless",
}
"""Names of the classes as folders: a person who makes classes in the studio would name them like this."""
REPORT_SHOTS, STUDIO_SHOTS, TEST_PICTURES = 32, 12, 60
"""Pictures per class."""
CURVE_INCHES, CURVE_DPI = (5.0, 3.45), 260
"""Small, so that its letters are large where README.md shows it on half a page."""
REPORT_SIZE, STUDIO_SIZE = (760, 524), (1280, 800)
"""Width and height of photographed pages in points; a picture has twice as many pixels."""
MAX_BYTES = 300_000
WAIT_SECONDS = 180


def main() -> None:
    """Make the pictures that are asked for."""
    makers = {"learning-curve": draw_curve, "report": photograph_report, "studio": photograph_studio}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(makers), default=list(makers), help="pictures to make")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder of the pictures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            image = makers[name](Path(folder))
        path = options.out / f"{name}.png"
        path.write_bytes(compress(image))
        sys.stdout.write(f"{path}: {path.stat().st_size // 1000} kB\n")


def draw_curve(folder: Path) -> Image.Image:
    """The learning curve of four heads, from records."""
    path = folder / "runs.jsonl"
    path.write_bytes(lzma.decompress(RECORDS.read_bytes()))
    figure = learning_curve_figure(read_runs(path), "CLIP ViT-B/32, nine classes of Food-101", size=CURVE_INCHES)
    data = io.BytesIO()
    figure.savefig(data, dpi=CURVE_DPI)
    return open_png(data.getvalue())


def photograph_report(folder: Path) -> Image.Image:
    """The confusion matrix on the page of `clipadapter report`, with the pictures of one cell."""
    shots, test = split_textiles(REPORT_SHOTS)
    # Spots of a few pixels: the second size sees them.
    model = FewShotClassifier(encoder="lite", quality="best", progress=True)
    model.fit(shots.paths, shots.labels, shots.class_names)
    page = make_report(model, test).write(folder / "report.html")
    with open_browser(folder / "profile", REPORT_SIZE) as browser:
        browser.get(page.as_uri())
        wait(lambda: browser.find_elements("css selector", "#matrix .cell"))
        top = browser.execute_script("return document.querySelector('#matrix-title').getBoundingClientRect().top")
        return photograph(browser, REPORT_SIZE, top - 24)


def photograph_studio(folder: Path) -> Image.Image:
    """The page of `clipadapter studio`, with pictures, accuracy and a prediction."""
    shots, test = split_textiles(STUDIO_SHOTS)
    project, queue = folder / "fabric", folder / "unlabelled"
    for sample in shots.samples:
        copy_picture(sample.path, project / str(sample.label), f"{sample.path.parent.name}-{sample.path.name}")
    tried, *others = sorted(test.samples, key=lambda sample: sample.path.stem)
    for sample in others[:20]:
        copy_picture(sample.path, queue, f"{sample.path.parent.name}-{sample.path.name}")
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
                wait(lambda: browser.find_elements("css selector", ".cs-accuracy, #cs-accuracy"))
                browser.find_element("css selector", "#cs-try input[type=file]").send_keys(str(tried.path))
                wait(lambda: browser.find_elements("css selector", ".cs-top li"))
                time.sleep(5)  # until the curve is drawn
                return photograph(browser, STUDIO_SIZE, 0)
        finally:
            server.terminate()


def split_textiles(n_shots: int) -> tuple[Dataset, Dataset]:
    """Shots and test pictures of fabric, the same number of each class."""
    data = textiles().rename(SHORT_NAMES)
    of_class = {name: [s for s in data.samples if s.label == name] for name in data.class_names}
    # Pictures of one number are of the same cloth, so that shots and test pictures have different numbers.
    shots = [s for samples in of_class.values() for s in samples[:n_shots]]
    test = [s for samples in of_class.values() for s in samples[-TEST_PICTURES:]]
    return replace(data, samples=tuple(shots)), replace(data, samples=tuple(test), name="fabric")


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
