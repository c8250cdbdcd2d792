"""A head on a device gives the logits that it gives on the CPU; the device is simulated (tests/simulated_device.py)."""

import copy
import pickle

import numpy as np
import pytest
import torch
from tests.heads.estimators import create_short
from tests.simulated_device import DEVICE, DeviceTensor, simulated_device

from clipadapter.backends.pytorch import TorchBackend
from clipadapter.classifier import FewShotClassifier, answers
from clipadapter.devices import current_device
from clipadapter.errors import InputError
from clipadapter.heads import create_head, head_info, list_heads, placement
from clipadapter.heads.estimator import clone
from clipadapter.heads.placement import use_device
from clipadapter.heads.support import SupportSet
from clipadapter.testing.heads import fit_head
from clipadapter.testing.toy import toy_features

HEADS = [name for name in list_heads() if not head_info(name).cls.tunes_encoder and not head_info(name).cls.needs_tower]
"""Tuners train on the device of the encoder; see tests/tuners/test_devices.py."""
FURTHER = (
    ("linear-probe", {"solver": "sklearn", "C": 1.0}),
    ("clip-adapter", {"branch": "both", "alpha": "dynamic", "epochs": 2}),
    ("taskres", {"gce_q": "auto", "epochs": 1}),
)
"""Other paths of heads: scikit-learn, gates, and the search for a robust loss."""
X, Y, TEXT = toy_features()
TARGETS = np.stack([Y == "cat", Y != "owl", Y == "owl"], axis=1).astype(np.float32)
BLOCKS = [("final", 16), ("inner", 16)]


def equal(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("name", "params"), [*((name, {}) for name in HEADS), *FURTHER])
def test_a_head_fits_and_predicts_on_a_device_as_on_the_cpu(name, params, monkeypatch):
    expected = fit_head(create_short(name).set_params(**params), X, Y, TEXT)
    fitted_on = []
    fit = type(expected)._fit
    monkeypatch.setattr(type(expected), "_fit", lambda head, shots: (fitted_on.append(shots.X), fit(head, shots))[1])
    with simulated_device() as device:
        head = fit_head(create_short(name).set_params(**params).to(device), X, Y, TEXT)
        on_device = head.logits(X)
        part = head.text_logits(X)
    assert all(isinstance(features, DeviceTensor) for features in fitted_on)
    equal(on_device, expected.logits(X))
    assert (part is None) == (expected.text_logits(X) is None)
    # What was learned is on the CPU: the head needs no such device to be copied, stored and used.
    loaded = create_short(name).set_params(**params).load_state(head.state(), head.classes_, X.shape[1])
    equal(loaded.logits(X), expected.logits(X))
    assert not any(isinstance(value, DeviceTensor) for value in vars(copy.deepcopy(head)).values())


@pytest.mark.parametrize("name", [name for name in HEADS if head_info(name).cls.multilabel])
def test_a_multilabel_head_fits_on_a_device_as_on_the_cpu(name):
    text = TEXT.arranged(("cat", "dog", "owl"))
    expected = create_short(name).fit(X, TARGETS, text=text).logits(X)
    with simulated_device() as device:
        equal(create_short(name).to(device).fit(X, TARGETS, text=text).logits(X), expected)


@pytest.mark.parametrize("name", [name for name in HEADS if hasattr(head_info(name).cls, "partial_fit")])
def test_an_incremental_head_learns_further_shots_on_a_device(name):
    early = Y != "owl"
    unfitted = create_short(name)
    if "stream" in unfitted.get_params():
        unfitted.set_params(stream=True)
    expected = clone(unfitted).fit(X[early], Y[early], text=TEXT).partial_fit(X[~early], Y[~early], text=TEXT)
    with simulated_device() as device:
        head = clone(unfitted).fit(X[early], Y[early], text=TEXT).to(device)
        equal(head.partial_fit(X[~early], Y[~early], text=TEXT).logits(X), expected.logits(X))
        if head.exact:
            equal(head.unlearn(X[:1], Y[:1], text=TEXT).logits(X), expected.unlearn(X[:1], Y[:1], text=TEXT).logits(X))
    assert not any(isinstance(value, DeviceTensor) for value in vars(head).values())


@pytest.mark.parametrize("name", [name for name in HEADS if head_info(name).cls.supports_warm_start])
def test_a_warm_start_and_a_fit_without_some_shots_run_on_a_device(name):
    many, labels, text = toy_features((10, 10, 10))
    expected = create_short(name).fit(many[1:], labels[1:], text=text)
    warm = create_short(name).fit_from(expected, many, labels, text=text)
    with simulated_device() as device:
        head = create_short(name).to(device).fit(many[1:], labels[1:], text=text)
        equal(create_short(name).to(device).fit_from(head, many, labels, text=text).logits(many), warm.logits(many))
        left_out = many[1:], labels[1:], np.array([0, 12]), text
        equal(head.refit_without(*left_out).logits(many), expected.refit_without(*left_out).logits(many))


def test_auto_mixes_blocks_and_pictures_without_labels_on_a_device():
    both, pool = np.hstack([X, X[:, ::-1]]), np.repeat(toy_features((9, 9, 9), seed=3)[0], 2, axis=1)
    expected = create_short("auto").fit(both, Y, TEXT, unlabelled=pool, blocks=BLOCKS)
    with simulated_device() as device:
        head = create_short("auto").to(device).fit(both, Y, TEXT, unlabelled=pool, blocks=BLOCKS)
        equal(head.logits(both), expected.logits(both))
        for name, part in head.block_logits(both).items():
            equal(part, expected.block_logits(both)[name])


def test_the_simulated_device_refuses_what_a_gpu_refuses():
    with simulated_device() as device, use_device(device):
        there = torch.ones(2, 2)
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(2, 2, device="cpu")
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        with pytest.raises(RuntimeError, match="not implemented"):
            there.long() @ there.long()
        with pytest.raises(RuntimeError, match="generator"):
            there.normal_(generator=torch.Generator())
        assert (there * torch.tensor(2.0, device="cpu")).tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_random_numbers_are_those_of_the_cpu():
    draws = [
        lambda: torch.randperm(9, generator=torch.Generator().manual_seed(3)),
        lambda: torch.randn(2, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64),
        lambda: torch.randint(5, (4,), generator=torch.Generator().manual_seed(3)),
        lambda: torch.rand(4, generator=torch.Generator().manual_seed(3)),
    ]
    expected = [draw().tolist() for draw in draws]
    with simulated_device() as device, use_device(device):
        drawn = [draw() for draw in draws]
    assert all(tensor.device.type == DEVICE for tensor in drawn)
    assert [tensor.tolist() for tensor in drawn] == expected


def test_tensors_are_created_on_the_cpu_again_after_a_failed_fit():
    with simulated_device() as device:
        with pytest.raises(InputError, match="C must"), use_device(device):
            raise InputError("C must be positive")
        assert current_device() == "cpu"
        assert torch.ones(1).device.type == "cpu"


def test_a_fit_that_needs_too_much_memory_says_so():
    with (
        simulated_device() as device,
        pytest.raises(InputError, match="memory of the device 'meta'"),
        use_device(device),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def test_many_predictions_copy_a_head_to_the_device_once(monkeypatch):
    monkeypatch.setattr(TorchBackend, "devices", ("cpu", DEVICE))
    monkeypatch.setattr(answers, "ROWS_PER_BLOCK", 4)
    pictures = list(np.random.default_rng(0).integers(0, 255, (24, 8, 8, 3)).astype(np.uint8))
    copied = []

    def recorded(head, device, learned_tensors=placement.learned_tensors):
        copied.extend(name for name, value in vars(head).items() if name == "keys_" and value.device.type != device)
        return learned_tensors(head, device)

    expected = FewShotClassifier("toy", "tip-adapter", cache=None).fit(pictures[:8], ["a", "b"] * 4)
    with simulated_device() as device:
        model = FewShotClassifier("toy", "tip-adapter", cache=None, device=device, batch_size=4)
        model.fit(pictures[:8], ["a", "b"] * 4)
        monkeypatch.setattr(placement, "learned_tensors", recorded)
        predictions = list(model.iter_predictions(pictures))
        assert copied == ["keys_"]
        columns = model.classify_features(expected._extract_plain(pictures))
        assert copied == ["keys_"] * 2
    assert [each.label for each in predictions] == expected.predict(pictures)
    assert [expected.class_names_[i] for i in columns.best] == expected.predict(pictures)


def test_the_device_is_no_parameter_and_clones_keep_it():
    with simulated_device() as device:
        head = create_head("zero-shot").to(device)
        copies = clone(head), copy.copy(head), copy.deepcopy(head), pickle.loads(pickle.dumps(head))
    assert "device" not in str(head.get_params())
    assert [each.device for each in copies] == [DEVICE] * 4


def test_a_pickle_of_a_head_on_a_device_predicts_on_a_machine_without_it():
    with simulated_device() as device:
        pickled = pickle.dumps(create_head("tip-adapter").to(device).fit(X, Y, text=TEXT))
    read = pickle.loads(pickled)
    assert read.device is None
    equal(read.logits(X), create_head("tip-adapter").fit(X, Y, text=TEXT).logits(X))


def test_a_device_that_this_machine_lacks_is_refused():
    with pytest.raises(InputError, match="'meta' can't be used"):
        create_head("zero-shot").to("meta")


def test_shots_move_with_all_their_tensors():
    shots = SupportSet(torch.ones(2, 1, 3), torch.arange(2), 2, torch.ones(2, 3), 1.0, prompts=(torch.ones(1, 3),) * 2)
    with simulated_device() as device:
        moved = shots.to(device)
    tensors = [moved.views, moved.labels, moved.text, *moved.prompts]
    assert all(tensor.device.type == DEVICE for tensor in tensors)
    assert shots.to("cpu") is shots
