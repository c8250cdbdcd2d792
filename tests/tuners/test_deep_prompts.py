"""Tuners of prompts inside both towers: where prompts stand, and from pictures to files and back."""

import numpy as np
import pytest
import torch

from clipadapter import FewShotClassifier
from clipadapter.encoders import open_tunable_copy
from clipadapter.encoders.layers import FixedPrompts
from clipadapter.errors import InputError
from clipadapter.features import encode_classes
from clipadapter.runtime import Predictor
from clipadapter.runtime.engines.formats import get_format
from clipadapter.runtime.export import export_model
from clipadapter.testing import TOWER_CHECKS
from clipadapter.tuners.maple import Maple, initial_coupling
from clipadapter.tuners.prompt_src import PromptSrc

from .coloured_squares import picture, squares

TUNERS = {"maple": Maple, "prompt-src": PromptSrc}


@pytest.fixture(params=TUNERS)
def method(request):
    return request.param


@pytest.fixture
def tuner(method):
    return TUNERS[method]


@pytest.fixture
def create_fast(tuner):
    return lambda: tuner(lr=0.03, epochs=30, checkpoint=None)


# --- where prompts stand, in plain loops


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inserted(encoder, text, image, words="a photo of a"):
    """A copy of an encoder with prompts (blocks, n, w) in both towers."""
    copy = open_tunable_copy(encoder)
    places = copy.prompt_places()
    sources = [[FixedPrompts(each) for each in values] for values in (text, image)]
    places.insert(*sources, places.token_ids(words)[: text.shape[1]])
    return copy


def test_prompts_that_are_the_words_change_no_text(opened):
    encoder = opened("ViT-B-32")
    places = open_tunable_copy(encoder).prompt_places()
    words = places.text.embed(torch.tensor(places.token_ids("a photo of a")))[None]
    changed = inserted(encoder, words, noise(1, 4, 128))
    texts = ["a photo of a cat.", "a photo of a dog on a sofa."]
    torch.testing.assert_close(changed.encode_text(texts), encoder.encode_text(texts), rtol=1e-5, atol=1e-6)
    # Words before a text that has others
    torch.testing.assert_close(changed.encode_text(["cat."])[0], encoder.encode_text([texts[0]])[0])
    assert not torch.allclose(changed.encode_images([picture(60, 40)]), encoder.encode_images([picture(60, 40)]))


@pytest.mark.parametrize("check", TOWER_CHECKS, ids=lambda check: check.__name__)
def test_the_text_tower_with_prompts_passes_the_checks(check, opened):
    check(inserted(opened("ViT-B-32"), noise(2, 2, 64), noise(3, 2, 128)))


def test_a_long_text_keeps_its_end_token_and_prompts_are_inserted_once(opened):
    changed = inserted(opened("tiny"), noise(1, 4, 32), noise(1, 4, 32))
    long, longer = changed.encode_text(["word " * 75, "word " * 200])
    assert torch.equal(long, longer)
    tokens = changed._tokenizer(["word " * 200, "cat"])
    assert tokens.shape == (2, 77)
    assert tokens[0, -1] == tokens.max()
    assert changed.prompt_places() is None


def test_patches_of_a_picture_are_without_prompts(opened):
    encoder = opened("ViT-B-32")
    for blocks in (3, 4):  # the last block gets prompts too
        changed = inserted(encoder, noise(2, 3, 64), noise(blocks, 5, 128))
        patches, plain = (each.patch_features(picture(60, 40)) for each in (changed, encoder))
        assert patches.shape == plain.shape
        assert not torch.allclose(patches, plain, rtol=0.01)
    assert set(changed.layers()) == {"final", "unprojected"}


# --- first values


def test_words_and_noise_are_the_first_values(tiny, tuner):
    places = open_tunable_copy(tiny).prompt_places()
    values = tuner(n_ctx=2).initial_text(places, torch.Generator().manual_seed(0))
    torch.testing.assert_close(values[0], places.text.embed(torch.tensor(places.token_ids("a photo of a")))[:2])
    random = tuner(n_ctx=16).initial_text(places, torch.Generator().manual_seed(0))
    assert random.std() == pytest.approx(0.02, rel=0.1)
    assert tuner(ctx_init=None).initial_text(places, torch.Generator().manual_seed(0)).abs().max() < 0.1


def test_deeper_couplings_begin_alike_within_the_bounds_of_a_linear_layer():
    weight, bias = initial_coupling(4, 12, 16, torch.Generator().manual_seed(0))
    assert weight.shape == (4, 12, 16)
    assert bias.shape == (4, 12)
    assert torch.equal(weight[1], weight[3])
    assert not torch.equal(weight[0], weight[1])
    assert 0.2 < weight.abs().max() <= 0.25


@pytest.mark.parametrize(("depth", "text", "image"), [(1, 1, 1), (3, 2, 3), (9, 2, 4)])
def test_a_tower_gets_prompts_before_as_many_blocks_as_it_has(depth, text, image, opened):
    tunable = open_tunable_copy(opened("ViT-B-32"))
    arrays = PromptSrc(depth=depth)._attach(tunable, torch.Generator()).arrays
    assert (len(arrays["text_prompts_"]), len(arrays["image_prompts_"])) == (text, image)
    coupled = Maple(depth=depth)._attach(open_tunable_copy(opened("ViT-B-32")), torch.Generator()).arrays
    assert {len(array) for array in coupled.values()} == {min(text, image)}


def test_the_gradient_of_an_image_reaches_the_text_prompts_by_the_coupling_alone(opened):
    for method, reaches in ((Maple, True), (PromptSrc, False)):
        tunable = open_tunable_copy(opened("ViT-B-32"))
        arrays = method()._attach(tunable, torch.Generator()).arrays
        tunable.tower().module(noise(1, 3, 224, 224)).sum().backward()
        assert (arrays["text_prompts_"].grad is not None) == reaches


# --- from pictures to answers


@pytest.mark.parametrize(("format", "method"), [("onnx", "maple"), ("openvino", "prompt-src")])
def test_an_exported_model_has_the_prompts(format, method, fitted_to_colours, tmp_path):
    (*_, fitted), path = fitted_to_colours(method), tmp_path / f"model{get_format(format).suffix}"
    export_model(fitted, path, format=format)
    queries = squares(seed=1)[0]
    for n in (1, 5):
        found = Predictor(path).predict_proba(queries[:n])
        np.testing.assert_allclose(found, fitted.predict_proba(queries[:n]), atol=1e-5)


def test_new_classes_are_answered_by_the_prompted_text_tower(model, tuner):
    fitted = model(tuner(epochs=2)).fit(*squares())
    text = encode_classes(fitted.encoder_, {"owl": ["a photo of a owl."], "red": ["a photo of a red."]})
    features = fitted.extract_features(*squares(seed=1), ["blue", "green", "red"]).plain
    logits = fitted.head_.for_classes(text).logits(features)
    known = list(fitted.head_.classes_).index("red")
    np.testing.assert_allclose(logits[:, 1], fitted.head_.logits(features)[:, known], rtol=1e-4)
    cosines = features @ text.embeddings.T / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(logits, fitted.encoder_.info.logit_scale * cosines, rtol=1e-4, atol=1e-4)


def test_few_shots_are_trained_for_as_many_steps_as_the_recipe_has():
    for tuner, one_shot, official in ((Maple, 500, 5), (PromptSrc, 625, 50)):
        assert tuner()._train_config(1).count_epochs(10) == one_shot
        assert tuner()._train_config(16).count_epochs(1600) == official
        assert tuner.official()._train_config(1).count_epochs(10) == official


# --- what is refused


@pytest.mark.parametrize("name", ["RN50", "SigLIP", "lite", "toy"])
def test_other_encoders_are_refused_before_a_picture_is_read(name, opened, tuner, tmp_path):
    classifier = FewShotClassifier(opened(name), tuner(), cache=None)
    words = "can't be tuned" if name == "toy" else "other than hf-hub, open_clip.*take the head coop"
    with pytest.raises(InputError, match=words):
        classifier.fit([tmp_path / "missing.jpg"] * 2, ["a", "b"])
