"""What every backend gives, beside the module itself in plain torch."""

import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from clipadapter.backends import backend_info, create_backend, list_backends
from clipadapter.errors import InputError, MissingExtraError, UnknownNameError, install_command

KINDS = [(backend, precision) for backend in list_backends() for precision in backend_info(backend).cls.precisions]
CONVERTING = ["onnxruntime", "openvino"]
LEAST = {"bf16": 0.99, "int8": 0.98}
"""Least cosine; the library's own gate asks for more, on a person's pictures."""


def plain(tower, pictures):
    """Features by the formula: values / 255, less the mean, by the deviation, through the module."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (tower.pixels.mean, tower.pixels.std))
    with torch.inference_mode():
        return tower.module(((pixels - mean) / std).float()).numpy()


def cosines(one, two):
    return (one * two).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)


def test_all_backends_are_found():
    assert list_backends() == ["onnxruntime", "openvino", "torch"]
    assert KINDS == [
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
        ("openvino", "fp32"),
        ("openvino", "bf16"),
        ("openvino", "int8"),
        ("torch", "fp32"),
        ("torch", "bf16"),
    ]


@pytest.mark.parametrize(("backend", "precision"), KINDS)
@pytest.mark.parametrize("n", [1, 5, 33])
def test_features_are_those_of_the_module(backend, precision, n, towers, runner, squares):
    pictures = squares(n, 32, seed=2)
    found, wanted = runner("tiny", backend, precision)(pictures), plain(towers["tiny"], pictures)
    assert found.shape == (n, 32)
    assert found.dtype == np.float32
    if precision == "fp32":
        assert (np.linalg.norm(found - wanted, axis=1) < 1e-4 * np.linalg.norm(wanted, axis=1)).all()
    else:
        assert cosines(found, wanted).min() >= LEAST[precision]


@pytest.mark.slow
@pytest.mark.parametrize("backend", list_backends())
def test_features_of_a_convolutional_tower_are_those_of_the_module(backend, runner, towers, squares):
    pictures = squares(6, 224, seed=2)
    found, wanted = runner("lite", backend, "fp32")(pictures), plain(towers["lite"], pictures)
    assert (np.linalg.norm(found - wanted, axis=1) < 1e-4 * np.linalg.norm(wanted, axis=1)).all()


@pytest.mark.parametrize(("backend", "precision"), KINDS)
def test_the_batch_does_not_matter(backend, precision, runner, squares):
    run, pictures = runner("tiny", backend, precision), squares(21, 32, seed=3)
    together, alone = run(pictures), np.concatenate([run(pictures[i : i + 1]) for i in range(21)])
    # Rounding before a step of 1/256 (bf16, int8) can go either way; ranges that followed the batch would differ more.
    assert cosines(together, alone).min() > (1 - 1e-6 if precision == "fp32" else 0.999)


@pytest.mark.parametrize(("backend", "precision"), KINDS)
def test_threads_get_their_own_features(backend, precision, runner, squares):
    run = runner("tiny", backend, precision)
    # OpenVINO works on few in another way than on many, and changes over while others wait.
    batches = [squares(1 + 9 * (i % 3), 32, seed=i) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, batches))
    for found, batch in zip(together, batches, strict=True):
        np.testing.assert_allclose(found, run(batch), atol=1e-5)


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="Did you mean 'openvino'"):
        create_backend("openvin")
    with pytest.raises(InputError, match="ONNX Runtime backend runs fp32, int8, not bf16"):
        backend_info("onnxruntime").cls.check_available("bf16")
    with pytest.raises(InputError, match="LiteRT backend runs exported models only, not fp32"):
        backend_info("litert").cls.check_available("fp32")
    with pytest.raises(InputError, match="Torch backend runs fp32, bf16, not int8"):
        backend_info("torch").cls.check_available("int8")


@pytest.mark.parametrize("backend", CONVERTING)
def test_a_device_that_is_not_its_own(backend):
    with pytest.raises(InputError, match="runs on cpu, not on cuda:0"):
        create_backend(backend, device="cuda:0")


@pytest.mark.parametrize("backend", CONVERTING)
def test_int8_without_pictures(backend, tiny):
    with pytest.raises(InputError, match="tiny in int8 needs pictures to calibrate with"):
        create_backend(backend).prepare(tiny, "int8")


@pytest.mark.parametrize(("backend", "extra"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_missing_packages(backend, extra, tiny, monkeypatch):
    for name in backend_info(backend).cls.packages:
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, name, raising=False)
            patch.setattr("importlib.util.find_spec", lambda wanted, name=name: None if wanted == name else object())
            with pytest.raises(MissingExtraError, match=re.escape(install_command(extra))):
                create_backend(backend).prepare(tiny, "fp32")


def test_a_tower_too_large_for_onnx(tiny, no_cache):
    with torch.device("meta"):
        module = torch.nn.Linear(1 << 15, 1 << 14)
    large = type(tiny)("large", "1" * 32, 32, tiny.pixels, module)
    with pytest.raises(InputError, match="the model has 2.0 GiB of weights"):
        create_backend("onnxruntime").prepare(large, "fp32")
    assert not [path for path in no_cache.iterdir() if path.is_dir()]


def test_a_tower_that_onnx_can_not_say(tiny, no_cache):
    class Odd(torch.nn.Module):
        def forward(self, pixels):
            return torch.linalg.svd(pixels.mean(dim=1))[1]

    odd = type(tiny)("odd", "2" * 32, 32, tiny.pixels, Odd())
    with pytest.raises(InputError, match="odd can't be written as ONNX"):
        create_backend("onnxruntime").prepare(odd, "fp32")
