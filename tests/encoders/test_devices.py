"""Encoders on a device give the features that they give on the CPU; see tests/simulated_device.py."""

import numpy as np
import pytest
from tests.simulated_device import DEVICE, DeviceTensor, simulated_device

from clipadapter.encoders import create_encoder, with_backend
from clipadapter.runtime.engines.parity import measure_parity
from clipadapter.runtime.engines.pytorch import TorchBackend

TEXTS = ["a red thing", "a cat", "nothing"]


@pytest.mark.parametrize("name", ["toy", "tiny", "ViT-B-32", "RN50", "SigLIP"])
def test_both_towers_run_on_a_device_as_on_the_cpu(name, opened, folders, picture, monkeypatch):
    monkeypatch.setattr(TorchBackend, "devices", ("cpu", DEVICE))
    plain, images = opened(name), [picture(40, 30), picture(30, 40)]
    expected, texts = plain.encode_images(images), plain.encode_text(TEXTS)
    with simulated_device() as device:
        encoder = create_encoder(f"open_clip:local-dir:{folders[name]}" if name in folders else name, device)
        features = encoder.encode_images(images)
        assert not isinstance(features, DeviceTensor)
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(encoder.encode_text(TEXTS), texts, rtol=1e-4, atol=1e-4)
        if encoder.tower() is not None:
            np.testing.assert_allclose(with_backend(encoder).encode_images(images), expected, rtol=1e-4, atol=1e-4)
            rounded = with_backend(encoder, precision="bf16").encode_images(images)
            assert measure_parity(expected.numpy(), rounded.numpy()).passes("bf16")
