import signal
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageColor

from clipadapter.cli.app import app

COLOURS = ("blue", "green", "red")


@pytest.fixture(scope="session")
def run():
    """A function that runs a command in this process; the result has exit_code, stdout and stderr."""

    def invoke(*args, **options):
        return CliRunner().invoke(app, [str(arg) for arg in args], **options)

    return invoke


@pytest.fixture
def start():
    """A function that starts the installed program's entry point as a process of its own."""
    processes = []

    # A shell that runs the tests in the background has them ignore ctrl-C, and the processes would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def popen(*args):
        code = "from clipadapter.cli.app import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield popen
    signal.signal(signal.SIGINT, before)
    for process in processes:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


@pytest.fixture(scope="session")
def write_squares():
    """A function that writes class folders of coloured squares."""

    def write(root, count=4, classes=COLOURS):
        for name in classes:
            (root / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40 + i, 50), name).save(root / name / f"{i}.png")
        return root

    return write


@pytest.fixture(scope="session")
def squares(tmp_path_factory, write_squares):
    """A folder with four squares of each colour; not to be changed."""
    return write_squares(tmp_path_factory.mktemp("data") / "squares")


@pytest.fixture(scope="session")
def fit_model(tmp_path_factory, run):
    """A function that fits a head to a folder of pictures, and gives the folder of the model."""

    def fit(data, head):
        folder = tmp_path_factory.mktemp("models") / "model"
        result = run("fit", data, "--out", folder, "--encoder", "toy", "--head", head)
        assert result.exit_code == 0, result.stderr
        return folder

    return fit


@pytest.fixture(scope="session")
def model(squares, fit_model):
    """A model of the squares; not to be changed."""
    return fit_model(squares, "zero-shot")


@pytest.fixture(scope="module")
def probe(noisy_squares, fit_model):
    """A linear probe of the noisy squares; not to be changed."""
    return fit_model(noisy_squares, "linear-probe")


@pytest.fixture(scope="session")
def noisy_squares(tmp_path_factory):
    """A folder with train/ and test/ of noisy squares of each colour, four and two, no two alike; not to be changed."""
    root, rng = tmp_path_factory.mktemp("data") / "noisy", np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for name in COLOURS:
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.array(ImageColor.getrgb(name)) * 0.8 + rng.integers(0, 40, (12, 12, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{i}.png")
    return root
