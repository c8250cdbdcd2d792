from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipadapter.classifier import FewShotClassifier
from clipadapter.data import Dataset, Sample
from clipadapter.report import make_report

NAMES = ('</script><b>blau"', "grün & 'gelb'", "red\u2028<!--")
"""Class names that break a page without escaping."""
COLOURS = ("blue", "green", "red")


def paint(path: Path, colour: str, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    plain = np.asarray(Image.new("RGB", (40, 30), colour), np.float32)
    Image.fromarray((0.8 * plain + rng.integers(0, 50, plain.shape)).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def shots(tmp_path_factory):
    """Paths and labels of four shots of each class."""
    root = tmp_path_factory.mktemp("shots")
    order = [(k, i) for k in range(3) for i in range(4)]
    return [(paint(root / f"{COLOURS[k]}-{i}.png", COLOURS[k], 10 * k + i), NAMES[k]) for k, i in order]


@pytest.fixture(scope="session")
def test_part(tmp_path_factory):
    """Five test pictures of each class. Two red ones have the label of the first class, and HTML as name."""
    root = tmp_path_factory.mktemp("test")
    samples = []
    for k, colour in enumerate(COLOURS):
        for i in range(5):
            is_mislabelled = k == 0 and i < 2
            name = f"<i>ü\"'{i}.png" if is_mislabelled else f"{colour}-{i}.png"
            path = paint(root / name, "red" if is_mislabelled else colour, 100 + 10 * k + i)
            samples.append(Sample(path, NAMES[k], "test"))
    return Dataset("<u>colours</u>", root, tuple(samples), NAMES)


@pytest.fixture(scope="session")
def outliers(tmp_path_factory):
    """Three pictures of none of the classes."""
    root = tmp_path_factory.mktemp("outliers")
    return [paint(root / f"{i}.png", colour, i) for i, colour in enumerate(("white", "black", "yellow"))]


@pytest.fixture(scope="session")
def fit():
    """A function that fits a classifier with the toy encoder to some of the shots."""

    def make(shots, head="linear-probe"):
        paths, labels = zip(*shots, strict=True)
        return FewShotClassifier("toy", head, cache=None).fit(paths, labels, NAMES)

    return make


@pytest.fixture(scope="session")
def model(fit, shots):
    """A linear probe of the shots; tests must not change it."""
    return fit(shots)


@pytest.fixture(scope="session")
def report(model, test_part, outliers):
    """A report with all sections."""
    return make_report(model, test_part, outliers=outliers, seeds=(1,))
