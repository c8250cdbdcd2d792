"""What holds for every tuner of layers: from pictures to answers and files, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from clipadapter import FewShotClassifier
from clipadapter.errors import ArtifactError, InputError
from clipadapter.heads import create_head
from clipadapter.testing import toy_features
from clipadapter.tuners.clip_lora import ClipLora
from clipadapter.tuners.clip_svd import ClipSvd
from clipadapter.tuners.two_stage import TwoStage

from .coloured_squares import TEXTS, squares

TUNERS = {"clip-lora": ClipLora, "clip-svd": ClipSvd, "two-stage": TwoStage}
LEARNED = {"clip-lora": "image_b_", "clip-svd": "image_s_"}
"""An array that is zero before training."""


@pytest.fixture(params=TUNERS)
def method(request):
    return request.param


@pytest.fixture
def tuner(method):
    return TUNERS[method]


@pytest.fixture
def create_fast(tuner):
    return lambda: tuner(lr=0.03, steps=100)


def test_colours_are_learned_and_the_encoder_stays_as_it_was(model, tiny, method):
    images, labels = squares()
    queries, truth = squares(seed=1)
    before = tiny.encode_text(TEXTS), {k: v.clone() for k, v in tiny._model.state_dict().items()}
    stream = torch.random.get_rng_state()
    zero_shot = model("zero-shot").fit(images, labels)
    fitted = model().fit(images, labels)
    assert np.mean([a == b for a, b in zip(zero_shot.predict(queries), truth, strict=True)]) < 0.7
    assert fitted.predict(queries) == truth
    assert getattr(fitted.head_, "head_loss_", fitted.head_.loss_) < 0.1  # two-stage trains a head after the tower
    assert torch.equal(tiny.encode_text(TEXTS), before[0])
    assert all(torch.equal(value, before[1][name]) for name, value in tiny._model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), stream)
    assert fitted.encoder_.info.fingerprint != tiny.info.fingerprint
    assert fitted.support_.provenance["fingerprint"] == fitted.encoder_.info.fingerprint
    changed = "2 norms" if method == "two-stage" else "1 of its layers"
    assert f"tuned by {method}: image tower ({changed}), text tower ({changed[0]}" in fitted.encoder_.info.note


def test_a_saved_model_answers_as_before_from_the_plain_encoder(model, tiny, tmp_path):
    fitted = model().fit(*squares())
    folder = fitted.save(tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["encoder"]["fingerprint"] == tiny.info.fingerprint
    again = FewShotClassifier.load(folder, cache=None)
    queries = squares(seed=1)[0]
    np.testing.assert_array_equal(again.predict_proba(queries), fitted.predict_proba(queries))
    assert again.encoder_.info.fingerprint == fitted.encoder_.info.fingerprint


def test_arrays_that_do_not_fit_the_encoder_are_damage(model, tuner, method, tmp_path):
    fitted = model(tuner(steps=4)).fit(*squares())
    array = {"clip-lora": "image_a_", "clip-svd": "image_s_", "two-stage": "image_norms_"}[method]
    setattr(fitted.head_, array, getattr(fitted.head_, array)[..., :-1])
    with pytest.raises(ArtifactError, match=f"{method} has learned does not fit the image tower"):
        FewShotClassifier.load(fitted.save(tmp_path / "model"), cache=None)


@pytest.mark.parametrize(("method", "params"), [("clip-lora", {}), ("clip-svd", {"lr": 0.01})])
def test_mixed_precision_learns_almost_the_same(model, tuner, method, params):
    full, mixed = (model(tuner(steps=6, precision=name, **params)).fit(*squares()).head_ for name in ("fp32", "bf16"))
    exact, rounded = (getattr(head, LEARNED[method]) for head in (full, mixed))
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).norm() < 0.2 * exact.norm()
    assert mixed.loss_ == pytest.approx(full.loss_, rel=0.05)


def test_an_interrupted_training_continues_to_the_same_result(model, method, tuner, monkeypatch):
    steps = 20 if method == "two-stage" else 12  # 60 % of them tune the encoder

    def head():
        return tuner(steps=steps, batch_size=6, checkpoint=0.0)

    uninterrupted = model(head()).fit(*squares()).head_.state()
    attach, calls = tuner._attach, []

    def attach_and_stop(self, *args):
        trainable = attach(self, *args)

        def start_or_stop():
            calls.append(1)
            if len(calls) == 8:
                raise KeyboardInterrupt
            trainable.start_step()

        return dataclasses.replace(trainable, start_step=start_or_stop)

    monkeypatch.setattr(tuner, "_attach", attach_and_stop)
    with pytest.raises(KeyboardInterrupt):
        model(head()).fit(*squares())
    resumed = model(head()).fit(*squares()).head_.state()
    assert len(calls) == 8 + 5  # the steps 8 to 12
    assert all(np.array_equal(uninterrupted[name], resumed[name]) for name in uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "params", "layers"),
    [
        ("clip-lora", {"steps": 6, "lr": 0.03}, 6),
        ("clip-svd", {"steps": 20, "lr": 0.03, "matrices": "vo"}, 4),  # of six matrices each is decomposed twice
    ],
)
def test_lite_is_tuned_by_its_texts(tuner, params, layers, opened, tmp_path):
    images, labels = squares(each=2)
    fitted = FewShotClassifier(opened("lite"), tuner(**params), cache=None).fit(images, labels)
    assert f"text tower ({layers} of its layers)" in fitted.encoder_.info.note
    again = FewShotClassifier.load(fitted.save(tmp_path / "model"), cache=None)
    np.testing.assert_allclose(again.predict_proba(images), fitted.predict_proba(images), atol=1e-6)
    zero_shot = FewShotClassifier(opened("lite"), "zero-shot", cache=None).fit(images, labels)
    right = [list(fitted.class_names_).index(label) for label in labels]
    gain = [m.predict_proba(images)[np.arange(len(right)), right].mean() for m in (fitted, zero_shot)]
    assert gain[0] > gain[1] + 0.05


def test_features_alone_are_refused_with_the_way_out(method, tuner):
    X, y, text = toy_features()
    with pytest.raises(InputError, match=f"{tuner.__name__} tunes the encoder.*fit it by FewShotClassifier"):
        create_head(method).fit(X, y, text=text)


@pytest.mark.parametrize(
    ("method", "params", "words"),
    [
        ("clip-lora", {"towers": "images"}, "towers must be one of both, image, text"),
        ("clip-lora", {"layers": "last"}, "layers must be one of all, bottom, top"),
        ("clip-lora", {"matrices": "qx"}, "letters of 'qkvo'"),
        ("clip-lora", {"matrices": ""}, "letters of 'qkvo'"),
        ("clip-lora", {"rank": 0}, "rank must be 1 or more"),
        ("clip-lora", {"dropout": 1.0}, "dropout must be"),
        ("clip-lora", {"precision": "int8"}, "precision must be one of fp32, bf16"),
        ("clip-lora", {"lr": -1.0}, "lr must be positive"),
        ("clip-lora", {"lr": 1e30, "steps": 60}, "diverged.*smaller lr"),
        ("clip-svd", {"towers": "images"}, "towers must be one of both, image, text"),
        ("clip-svd", {"layers": "last"}, "layers must be one of all, bottom, top, ends"),
        ("clip-svd", {"matrices": "qx"}, "letters of 'qkvoud'"),
        ("clip-svd", {"precision": "int8"}, "precision must be one of fp32, bf16"),
        ("clip-svd", {"lr": -1.0}, "lr must be positive"),
        ("clip-svd", {"lr": 1e30, "steps": 60}, "diverged.*smaller lr"),
    ],
)
def test_bad_parameters_are_named(tuner, params, words, model):
    with pytest.raises(InputError, match=words):
        model(tuner(**params)).fit(*squares())
