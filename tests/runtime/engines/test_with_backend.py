"""Encoders whose image tower a backend runs."""

import numpy as np
import pytest
import torch

from clipadapter.encoders import create_encoder, with_backend
from clipadapter.errors import EncoderUnavailableError, InputError, UnknownNameError
from clipadapter.runtime.engines import calibration_digest
from clipadapter.testing import check_encoder


@pytest.fixture(scope="module")
def plain(opened):
    return opened("tiny")


@pytest.fixture(scope="module")
def fast(plain):
    return with_backend(plain, "openvino")


def test_it_keeps_every_rule_of_encoders(fast):
    check_encoder(fast)


def test_an_encoder_without_a_tower_is_left_as_it_is():
    toy = create_encoder("toy")
    assert with_backend(toy) is toy
    check_encoder(with_backend(toy))
    for backend, precision in (("openvino", "fp32"), ("torch", "bf16")):
        with pytest.raises(InputError, match="the image tower of toy can't be converted: use backend 'torch' and fp32"):
            with_backend(toy, backend, precision)


def test_the_fingerprint_says_what_shapes_the_features(plain, fast, squares, monkeypatch):
    for backend in ("base.Backend", "pytorch.TorchBackend"):
        monkeypatch.setattr(f"clipadapter.runtime.engines.{backend}.prepare", lambda *_: None)
    two = [squares(2, 8, seed=seed) for seed in (0, 1)]
    made = [with_backend(plain, "openvino", "bf16"), *(with_backend(plain, "openvino", "int8", each) for each in two)]
    prints = {encoder.info.fingerprint for encoder in (plain, *made)}
    assert len(prints) == 4
    assert fast.info.fingerprint == plain.info.fingerprint
    assert with_backend(plain, "onnxruntime").info.fingerprint == plain.info.fingerprint
    assert with_backend(plain, "torch", "bf16").info.fingerprint in prints
    assert with_backend(plain, "onnxruntime", "int8", two[0]).info.fingerprint not in prints
    assert [encoder.info.precision for encoder in made] == ["bf16", "int8", "int8"]
    assert made[1].info.int8_calibration_digest == calibration_digest(two[0])
    assert made[0].info.int8_calibration_digest == ""


def test_a_backend_on_a_backend_is_one_backend_and_texts_are_the_encoder_s_own(plain, fast):
    again = with_backend(fast, "torch", "fp32")
    assert (again.plain, again.info.backend) == (plain, "torch")
    assert torch.equal(fast.encode_text(["a cat"]), plain.encode_text(["a cat"]))


def test_wrong_names(plain):
    with pytest.raises(UnknownNameError, match="'onnx'. Known: litert, onnxruntime, openvino, torch"):
        with_backend(plain, "onnx")
    with pytest.raises(InputError, match="precision must be one of fp32, bf16, int8, but is 'fp16'"):
        with_backend(plain, "openvino", "fp16")
    with pytest.raises(EncoderUnavailableError, match="not on this machine"):
        with_backend(plain, "openvino", "int8", "0123456789abcdef")


def test_calibration_is_named_by_its_pictures(squares):
    one, two = squares(2, 8), squares(2, 8).copy()
    two[1, 7, 7, 2] ^= 1
    assert calibration_digest(one) == calibration_digest(np.asfortranarray(one))
    assert calibration_digest(one) != calibration_digest(two)
    assert calibration_digest(calibration_digest(one)) == calibration_digest(one) and calibration_digest(None) == ""
