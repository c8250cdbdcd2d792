"""What every backend gives, beside the module itself in plain torch."""

import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from clipadapter.errors import InputError, MissingExtraError, UnknownNameError, install_command
from clipadapter.runtime.engines import backend_info, create_backend, list_backends

KINDS = [(backend, precision) for backend in list_backends() for precision in backend_info(backend).cls.precisions]
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
    precisions = {name: backend_info(name).cls.precisions for name in list_backends()}
    assert list(precisions.values()) == [("fp32", "int8"), ("fp32", "bf16", "int8"), ("fp32", "bf16")]


@pytest.mark.parametrize(
    ("tower", "backend", "precision"),
    [*(("tiny", *kind) for kind in KINDS), *(("convolutions", backend, "fp32") for backend in list_backends())],
)
def test_features_are_those_of_the_module_in_batches_of_any_size(tower, backend, precision, towers, runner, squares):
    run, pictures = runner(tower, backend, precision), squares(33, 32, seed=2)
    wanted, together = plain(towers[tower], pictures), run(pictures)
    assert together.shape == (33, towers[tower].dim) and together.dtype == np.float32
    alone = np.concatenate([run(pictures[:5]), *(run(pictures[i : i + 1]) for i in range(5, 33))])
    for found in (together, alone):
        if precision == "fp32":
            assert (np.linalg.norm(found - wanted, axis=1) < 1e-4 * np.linalg.norm(wanted, axis=1)).all()
        else:
            assert cosines(found, wanted).min() >= LEAST[precision]
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


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_what_a_converting_backend_refuses(backend, tiny):
    with pytest.raises(InputError, match="runs on cpu, not on cuda:0"):
        create_backend(backend, device="cuda:0")
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
