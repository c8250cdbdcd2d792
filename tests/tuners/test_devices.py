"""Tuners train on the device of the encoder as on the CPU; see tests/simulated_device.py."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from tests.heads.estimators import create_short
from tests.simulated_device import DEVICE, DeviceTensor, simulated_device

from clipadapter import FewShotClassifier
from clipadapter.encoders import create_encoder
from clipadapter.heads import create_head, head_info, list_heads
from clipadapter.runtime.engines.pytorch import TorchBackend
from clipadapter.testing import toy_features
from clipadapter.tuners import clip_lora
from clipadapter.utils.towers import WordTower

from .coloured_squares import squares

X, Y, TEXT = toy_features()
PROMPT_TUNERS = {name: {} for name in list_heads() if head_info(name).cls.needs_tower} | {"cocoop": {"batch_size": 12}}
TOWER_TUNERS = {"clip-lora": {"dropout": 0.0}, "clip-svd": {}, "two-stage": {}, "maple": {}, "prompt-src": {}}


@pytest.fixture(autouse=True)
def torch_knows_the_device(monkeypatch):
    """Mixed precision and generators are for the devices of a list in torch."""
    dropout = clip_lora.SeededDropout
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    monkeypatch.setattr(clip_lora, "SeededDropout", lambda rate, seed, device: dropout(rate, seed, "cpu"))


@pytest.fixture(autouse=True)
def one_thread():
    """The simulated device is known in one thread only, and decompositions run in as many as torch has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TowerOnDevice(WordTower):
    """The tower of the toy texts: it computes on the CPU, and takes and returns tensors of the device."""

    device = DEVICE

    def embed(self, ids):
        return super().embed(ids.cpu()).to(DEVICE)

    def encode(self, embeddings, lengths):
        return super().encode(embeddings.cpu(), lengths.cpu()).to(DEVICE)


@pytest.fixture
def text_on_device():
    tower = TEXT.tower()
    there = TowerOnDevice(dict(zip(tower._ids, tower._vectors, strict=True)), tower.dim)
    return TEXT.with_tower(lambda: there)


@pytest.mark.parametrize(("name", "params"), [*PROMPT_TUNERS.items(), ("coop", {"csc": True})])
def test_a_prompt_tuner_trains_on_the_device_of_its_tower(name, params, text_on_device):
    head = create_short(name).set_params(**params)
    expected = create_short(name).set_params(**head.get_params()).fit(X, Y, text=TEXT)
    with simulated_device():
        head.fit(X, Y, text=text_on_device)
        np.testing.assert_allclose(head.logits(X), expected.logits(X), rtol=1e-4, atol=1e-4)
        assert not any(isinstance(value, DeviceTensor) for value in vars(head).values())
        warm = create_short(name).set_params(**head.get_params()).fit_from(head, X, Y, text=text_on_device)
        assert np.isfinite(warm.logits(X)).all()


@pytest.mark.parametrize(("name", "params"), TOWER_TUNERS.items())
def test_a_tower_tuner_trains_on_the_device_of_its_encoder(name, params, opened, folders, monkeypatch):
    monkeypatch.setattr(TorchBackend, "devices", ("cpu", DEVICE))
    length = {"steps": 2} if "steps" in create_head(name).get_params() else {"epochs": 1}
    head = create_head(name, **params, **length, checkpoint=None)
    images, labels = squares(each=1)
    expected = FewShotClassifier(opened("tiny"), head, cache=None).fit(images, labels)
    again = create_head(name, **head.get_params())
    with simulated_device() as device:
        encoder = create_encoder(f"open_clip:local-dir:{folders['tiny']}", device)
        model = FewShotClassifier(encoder, again, cache=None).fit(images, labels)
        np.testing.assert_allclose(model.predict_proba(images), expected.predict_proba(images), rtol=1e-2, atol=1e-3)
        assert all(isinstance(value, (np.ndarray, float, int)) for value in model.head_.state().values())
    assert not torch.is_inference_mode_enabled()
