"""`FewShotClassifier(device=...)`: the encoder on a device, simulated by tests/simulated_device.py."""

import numpy as np
import pytest
from tests.simulated_device import DEVICE, simulated_device

from clipadapter.classifier import FewShotClassifier
from clipadapter.encoders import create_encoder
from clipadapter.errors import InputError
from clipadapter.runtime.engines.pytorch import TorchBackend


@pytest.fixture(autouse=True)
def backend_of_the_device(monkeypatch):
    monkeypatch.setattr(TorchBackend, "devices", ("cpu", DEVICE))


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    means = np.repeat([[200, 60, 60], [60, 60, 200]], 4, axis=0)[:, None, None]
    return list((means + rng.integers(-60, 55, (8, 8, 8, 3))).astype(np.uint8)), ["red"] * 4 + ["blue"] * 4


def test_a_model_fitted_on_a_device_is_saved_there_and_loaded_on_the_cpu(pictures, tmp_path):
    squares, labels = pictures
    expected = FewShotClassifier("toy", "linear-probe", cache=None).fit(squares, labels).predict_proba(squares)
    with simulated_device() as device:
        model = FewShotClassifier("toy", "linear-probe", cache=None, device=device).fit(squares, labels)
        assert model.encoder_.device == DEVICE
        np.testing.assert_allclose(model.predict_proba(squares), expected, rtol=1e-5)
        model.save(tmp_path / "model")
        there = FewShotClassifier.load(tmp_path / "model", device=device, cache=None)
        assert there.encoder_.device == DEVICE
        np.testing.assert_allclose(there.predict_proba(squares), expected, rtol=1e-5)
    loaded = FewShotClassifier.load(tmp_path / "model", cache=None)
    np.testing.assert_allclose(loaded.predict_proba(squares), expected, rtol=1e-5)


def test_an_encoder_is_not_opened_on_a_device_that_this_machine_lacks():
    with pytest.raises(InputError, match="'meta' can't be used on this machine"):
        create_encoder("toy", DEVICE)
