"""What is done very often, timed by pytest-benchmark: a picture, a store's rows, an answer, a step.

pip install pytest-benchmark
python -m pytest benchmarks/small.py -n 0 -p no:cacheprovider
python -m pytest benchmarks/small.py -n 0 --benchmark-autosave      # and later --benchmark-compare
"""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from clipadapter.data import read_image
from clipadapter.features import FeatureStore, feature_key
from clipadapter.functional import ensemble
from clipadapter.heads import TextFeatures, create_head
from clipadapter.pixels import PixelSpec

CLASSES, WIDTH = 100, 512


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def jpeg(tmp_path):
    y, x = np.mgrid[:375, :500]
    waves = np.stack([np.sin(x / 7 + k) * np.cos(y / 11 - k) * 100 + 128 for k in range(3)], axis=-1)
    path = tmp_path / "picture.jpg"
    Image.fromarray(waves.astype(np.uint8)).save(path, quality=90)
    return path


@pytest.fixture(scope="module")
def shots():
    rng = np.random.default_rng(0)
    means = rng.standard_normal((CLASSES, WIDTH))
    names = [f"class {i}" for i in range(CLASSES)]
    labels = np.repeat(np.arange(CLASSES), 16)
    X = (means[labels] + 2 * rng.standard_normal((len(labels), WIDTH))).astype(np.float32)
    return X, [names[i] for i in labels], TextFeatures(names, means + rng.standard_normal(means.shape))


def test_reading_a_jpeg_of_500_by_375(benchmark, jpeg):
    benchmark(read_image, jpeg)


def test_squaring_it(benchmark, jpeg):
    picture, spec = read_image(jpeg), PixelSpec(224, (0.5,) * 3, (0.5,) * 3)
    assert benchmark(spec.square, picture).shape == (224, 224, 3)


def test_decoding_and_squaring_from_memory_with_plain_pillow(benchmark, jpeg):
    data = jpeg.read_bytes()
    benchmark(lambda: Image.open(io.BytesIO(data)).convert("RGB").resize((299, 224)).crop((37, 0, 261, 224)))


def rows():
    rng = np.random.default_rng(0)
    keys = [feature_key(i.to_bytes(32, "big"), "0" * 32, "plain") for i in range(1000)]
    return dict(zip(keys, rng.standard_normal((1000, WIDTH), dtype=np.float32), strict=True))


def test_putting_1000_rows(benchmark, tmp_path):
    features, files = rows(), iter(range(10**6))

    def put():
        with FeatureStore(tmp_path / f"{next(files)}.sqlite") as store:
            store.put_many(features)

    benchmark(put)


def test_looking_1000_rows_up(benchmark, tmp_path):
    features = rows()
    with FeatureStore(tmp_path / "features.sqlite") as store:
        store.put_many(features)
        assert len(benchmark(store.get_many, list(features), WIDTH)) == 1000


def test_the_mean_of_seven_prompts(benchmark):
    benchmark(ensemble, torch.randn(7, WIDTH))


@pytest.mark.parametrize("name", ["zero-shot", "tip-adapter", "gda", "linear-probe"])
def test_fitting_100_classes_of_16_shots(benchmark, shots, name):
    X, y, text = shots
    benchmark(lambda: create_head(name).fit(X, y, text=text))


@pytest.mark.parametrize("name", ["zero-shot", "clip-adapter", "tip-adapter", "gda"])
def test_answering_for_1600_pictures(benchmark, shots, name):
    X, y, text = shots
    head = create_head(name, **({"alpha": 0.2, "epochs": 1} if name == "clip-adapter" else {})).fit(X, y, text=text)
    benchmark(head.logits, X)
