import numpy as np
import pytest
from PIL import Image

from clipadapter.bench import FEATURES
from clipadapter.bench.bundle import Bundle, TestPart, save_bundle
from clipadapter.bench.run import Machine, Metrics, Run, RunData, RunEncoder, Seconds
from clipadapter.features import FeatureSet
from clipadapter.heads import TextFeatures
from clipadapter.testing import toy_features

PUBLISHED = {"centre": False, "noise": 0.0, "temperature": 1.0, "logit_adjustment": 0.0}
"""What the recipes of CLIP-Adapter's paper and code have in common."""
COLOURS = {"blue": (20, 20, 235), "green": (20, 235, 20), "red": (235, 20, 20)}


@pytest.fixture
def text():
    """Two classes along the axes."""
    return TextFeatures(["cat", "dog"], [[1.0, 0.0], [0.0, 1.0]], logit_scale=10.0)


@pytest.fixture
def support():
    """Ten rows of two classes, in turns; every row differs."""
    X = [[10 + i, i] if i % 2 == 0 else [i, 10 + i] for i in range(10)]
    return FeatureSet(X, ("cat", "dog") * 5, ("cat", "dog"), {"encoder": "made up", "data": "pets"})


@pytest.fixture
def test_part():
    """Four rows; by their direction the third looks like a dog, but is a cat."""
    return FeatureSet([[2, 1], [3, 1], [1, 2], [1, 3]], ("cat", "cat", "cat", "dog"), ("cat", "dog"))


@pytest.fixture(scope="session")
def make_run():
    """Function that makes a record by hand."""

    def make(head="zero-shot", shots=1, seed=1, accuracy=0.5, error=None, **changes):
        values = {
            "head": head,
            "method": head,
            "params": {"alpha": 0.2, "seed": seed, **PUBLISHED},
            "encoder": RunEncoder(name="toy", fingerprint="f"),
            "data": RunData(support="pets", test="pets", protocol="given", digest="d"),
            "templates": ["a photo of a {}."],
            "text": "t",
            "shots": shots,
            "seed": seed,
            "rows": [0, 1],
            "code": "c",
            "versions": {"torch": "1"},
            "n_classes": 2,
            "n_test": 40,
            "seconds": None if error else Seconds(fit=0.25, predict=0.01),
            "metrics": None if error else Metrics(accuracy=accuracy, macro_f1=accuracy / 2, log_loss=1 - accuracy),
            "error": error,
            "machine": Machine(cpus=2, platform="here"),
            "created": "2026-01-01T00:00:00Z",
        }
        return Run(**{**values, **changes})

    return make


@pytest.fixture
def colour_folder(tmp_path):
    """Function that writes n noisy squares of each of three colours below a folder, every one different."""

    def write(where, n, seed=0):
        rng = np.random.default_rng(seed)
        for name, colour in COLOURS.items():
            folder = tmp_path / where / name
            folder.mkdir(parents=True)
            for i in range(n):
                noise = rng.integers(-20, 20, (12, 12, 3))
                Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(folder / f"{i:02}.png")
        return tmp_path / where

    return write


@pytest.fixture
def source(tmp_path):
    """Features of three classes, as ``features:FOLDER``."""
    X, y, text = toy_features((6, 6, 6), noise=1.0)
    Q, truth, _ = toy_features((4, 4, 4), noise=1.0, seed=7)
    provenance = {"encoder": "toy", "fingerprint": "f", "data": "toys"}
    support, test = (FeatureSet(a, tuple(map(str, b)), tuple(text.labels), provenance) for a, b in ((X, y), (Q, truth)))
    return f"{FEATURES}{save_bundle(Bundle(support, text, {'test': TestPart(test)}), tmp_path / 'f')}"


@pytest.fixture
def pictures(colour_folder, tmp_path):
    """Three colours, in parts."""
    colour_folder("pictures/train", 4)
    colour_folder("pictures/test", 3, seed=1)
    return tmp_path / "pictures"
