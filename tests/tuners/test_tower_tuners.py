"""What holds for every method that changes an encoder's towers: from pictures to answers and files, and refusals."""

import json
import re

import numpy as np
import pytest
import torch

from clipadapter import FewShotClassifier
from clipadapter.encoders import open_tunable_copy
from clipadapter.errors import ArtifactError, InputError
from clipadapter.heads import create_head, head_info
from clipadapter.testing import toy_features

from .coloured_squares import TEXTS, picture, squares

SHORT = {
    "clip-lora": {"steps": 4},
    "clip-svd": {"steps": 4},
    "two-stage": {"steps": 6},
    "maple": {"epochs": 2},
    "prompt-src": {"epochs": 2},
}
PARTS = {
    "clip-lora": "attention layers",
    "clip-svd": "attention layers",
    "two-stage": "layer norms in attention blocks",
}
"""What the methods change that can leave a tower out."""
LEARNED = {"clip-lora": "image_b_", "clip-svd": "image_s_"}
"""An array that is zero before training."""


@pytest.fixture(params=SHORT)
def method(request):
    return request.param


@pytest.fixture(params=PARTS)
def part_method(request):
    return request.param


@pytest.fixture
def create_fast():
    """Each test here names its head."""


def learned(fitted):
    return fitted.head_._arrays()


# For `lite`, whose matrices take a second to decompose, and without what is random in training.
AT_FIRST = {"clip-lora": {"dropout": 0.0, "matrices": "qkvo"}, "clip-svd": {"matrices": "qu"}, "two-stage": {}}


@pytest.mark.parametrize("name", ["tiny", "RN50", "SigLIP", "lite"])
def test_nothing_changes_at_first_and_a_merged_encoder_answers_as_the_trained_one(name, opened, part_method):
    encoder, head, generator = opened(name), create_head(part_method, **AT_FIRST[part_method]), torch.Generator()

    def features(of):
        with torch.no_grad():
            return of.encode_images([picture(60, 40)]), of.encode_text(TEXTS)

    def assert_close(found, expected):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.norm()))

    before, trained, merged = features(encoder), open_tunable_copy(encoder), open_tunable_copy(encoder)
    trainable = head._attach(trained, generator.manual_seed(0))
    assert_close(features(trained), before)
    with torch.no_grad():
        for array_name, array in trainable.arrays.items():
            array += 0.1 * torch.randn(array.shape, generator=generator)
            setattr(head, array_name, array.detach())
    head._merge(merged)
    assert_close(features(merged), features(trained))
    assert not torch.allclose(features(merged)[1], before[1], rtol=1e-3)
    assert all(map(torch.equal, features(encoder), before))  # the original has its own weights


def test_colours_are_learned_and_the_encoder_stays_as_it_was(fitted_to_colours, method):
    stream = torch.random.get_rng_state()
    encoder, before, fitted = fitted_to_colours(method)
    assert torch.equal(torch.random.get_rng_state(), stream)
    assert all(torch.equal(value, before[name]) for name, value in encoder._model.state_dict().items())
    queries, truth = squares(seed=1)
    zero_shot = FewShotClassifier(encoder, "zero-shot", cache=None).fit(*squares())
    assert np.mean([a == b for a, b in zip(zero_shot.predict(queries), truth, strict=True)]) < 0.7
    assert fitted.predict(queries) == truth
    if method in PARTS:
        assert getattr(fitted.head_, "head_loss_", fitted.head_.loss_) < 0.1  # two-stage trains a head after the tower
    assert fitted.encoder_.info.fingerprint != encoder.info.fingerprint
    assert fitted.support_.provenance["fingerprint"] == fitted.encoder_.info.fingerprint
    changed = {"two-stage": "2 norms", "maple": "2 prompts", "prompt-src": "4 prompts"}.get(method, "1 of its layers")
    for tower in ("image", "text"):
        assert re.search(f"tuned by {method}: .*{tower} tower \\({changed}", fitted.encoder_.info.note)
    assert not any("bias" in name for name in fitted.head_.state())  # MaPLe's coupling is not needed to predict


def test_a_saved_model_answers_as_before_from_the_plain_encoder_or_does_not_fit_it(model, tiny, method, tmp_path):
    fitted = model(create_head(method, **SHORT[method])).fit(*squares())
    folder = fitted.save(tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["encoder"]["fingerprint"] == tiny.info.fingerprint
    again = FewShotClassifier.load(folder, cache=None)
    queries = squares(seed=1)[0]
    # the same sums in the same order
    np.testing.assert_array_equal(again.predict_proba(queries), fitted.predict_proba(queries))
    assert again.encoder_.info.fingerprint == fitted.encoder_.info.fingerprint
    for tower in ("image", "text"):
        name = next(name for name in learned(fitted) if name.startswith(tower))
        array = getattr(fitted.head_, name)
        setattr(fitted.head_, name, array[..., :-1])
        with pytest.raises(ArtifactError, match=f"{method} has learned does not fit the {tower} tower"):
            FewShotClassifier.load(fitted.save(tmp_path / tower), cache=None)
        setattr(fitted.head_, name, array)


@pytest.mark.parametrize(("name", "params"), [("clip-lora", {}), ("clip-svd", {"lr": 0.01})])
def test_mixed_precision_learns_almost_the_same(model, name, params):
    heads = (create_head(name, steps=6, precision=precision, **params) for precision in ("fp32", "bf16"))
    full, mixed = (model(head).fit(*squares()).head_ for head in heads)
    exact, rounded = (getattr(head, LEARNED[name]) for head in (full, mixed))
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).norm() < 0.2 * exact.norm()
    assert mixed.loss_ == pytest.approx(full.loss_, rel=0.05)


def test_an_interrupted_training_continues_to_the_same_result(model, method, monkeypatch):
    """After 7 of 12 steps through the towers, of batches of 6 of 12 pictures."""
    length = {"two-stage": {"steps": 20}, "maple": {"epochs": 6, "lr": 0.1}, "prompt-src": {"epochs": 6, "lr": 0.1}}

    def fit():
        return model(create_head(method, batch_size=6, checkpoint=0.0, **length.get(method, {"steps": 12}))).fit(
            *squares()
        )

    uninterrupted, tuner, calls = fit().head_.state(), head_info(method).cls, []
    make_loss = tuner._make_loss

    def stopping(self, *inputs):
        loss_of = make_loss(self, *inputs)

        def loss_or_stop(step):
            calls.append(1)
            if len(calls) == 8:
                raise KeyboardInterrupt
            return loss_of(step)

        return loss_or_stop

    monkeypatch.setattr(tuner, "_make_loss", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit()
    resumed = fit().head_.state()
    assert len(calls) == 8 + 5  # the steps 8 to 12
    # the same sums in the same order
    assert all(np.array_equal(uninterrupted[name], resumed[name]) for name in uninterrupted)


def test_the_seed_says_what_is_learned(model, method):
    heads = (create_head(method, seed=seed, **SHORT[method], batch_size=4) for seed in (1, 1, 2))
    first, again, other = (learned(model(head).fit(*squares())) for head in heads)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(("towers", "kept"), [("image", {"image"}), ("text", {"text"}), ("both", {"image", "text"})])
def test_only_the_towers_that_were_asked_for_change(towers, kept, model, part_method):
    fitted = model(create_head(part_method, towers=towers, steps=4)).fit(*squares())
    assert {name.split("_")[0] for name in learned(fitted)} == kept


@pytest.mark.parametrize("name", ["RN50", "lite"])
def test_a_tower_without_such_parts_is_left_out_or_refused_alone(name, opened, part_method):
    copy = open_tunable_copy(opened(name))
    assert create_head(part_method)._tower_parts(copy).keys() == {"text"}
    with pytest.raises(InputError, match=f"no image tower of .* has {PARTS[part_method]}"):
        create_head(part_method, towers="image")._tower_parts(copy)


def test_features_alone_are_refused_with_the_way_out(method):
    X, y, text = toy_features()
    with pytest.raises(
        InputError, match=f"{head_info(method).cls.__name__} tunes the encoder.*fit it by FewShotClassif"
    ):
        create_head(method).fit(X, y, text=text)
    assert head_info(method).facts["compare"] is False


def test_an_encoder_without_weights_of_its_own_is_refused(method):
    with pytest.raises(InputError, match="can't be tuned"):
        FewShotClassifier("toy", method, cache=None).fit(*squares())


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("clip-lora", {"matrices": "qx"}, "letters of 'qkvo'"),
        ("clip-lora", {"matrices": ""}, "letters of 'qkvo'"),
        ("clip-lora", {"lr": 1e30, "steps": 60}, "diverged.*smaller lr"),
        ("clip-svd", {"matrices": "qx"}, "letters of 'qkvoud'"),
        ("two-stage", {"steps": 1}, "each stage needs a step, but 0.6 of 1 steps leaves one without"),
        ("maple", {"n_ctx": 75}, "takes 77 tokens.*learn fewer"),
    ],
)
def test_bad_parameters_are_named(name, params, words, model):
    with pytest.raises(InputError, match=words):
        model(create_head(name, **params)).fit(*squares())
