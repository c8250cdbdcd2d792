"""CoOp against its authors' code, hard prompts, and what it promises as a head."""

import numpy as np
import pytest
import torch

from clipadapter import FewShotClassifier
from clipadapter.errors import InputError
from clipadapter.features import encode_classes
from clipadapter.heads import TextFeatures
from clipadapter.testing import toy_features
from clipadapter.tuners.coop import CoOp
from clipadapter.tuners.prompt_tuner import Prompts, context_from_words

from .coloured_squares import squares
from .golden_figures import golden, text_tower
from .recorded import recorded


@pytest.fixture(scope="module")
def figures():
    return golden("coop")


@pytest.fixture(scope="module")
def tower(figures):
    return text_tower(*figures)


def fitted(figures, tower, token, kind):
    tensors, parameters = figures
    names = parameters["class_names"]
    text = TextFeatures(
        names, tensors["text_plain"].numpy(), parameters["logit_scale"], tower=lambda: tower, order="given"
    )
    asked = {"epochs": 5, "schedule": "constant", "warmup_epochs": 0}
    head = recorded(CoOp)(n_ctx=parameters["M"], class_token=token, csc=kind == "csc", **asked)
    head.given = tensors[f"ctx_{kind}"]
    return head.fit(tensors["image_features"], [names[i] for i in tensors["labels"]], text=text)


@pytest.mark.parametrize("kind", ["shared", "csc"])
@pytest.mark.parametrize("token", ["end", "middle", "front"])
def test_class_vectors_gradient_and_context_after_five_steps_are_the_authors(token, kind, figures, tower):
    tensors, parameters = figures
    prompts = Prompts(tower, parameters["class_names"], parameters["M"], token)
    context = tensors[f"ctx_{kind}"].clone().requires_grad_()
    vectors = prompts.class_vectors(context)
    torch.testing.assert_close(vectors, tensors[f"text_{token}_{kind}"], rtol=0, atol=1e-5)
    features = torch.nn.functional.normalize(tensors["image_features"], dim=1)
    logits = parameters["logit_scale"] * features @ torch.nn.functional.normalize(vectors, dim=1).T
    torch.testing.assert_close(logits, tensors[f"logits_{token}_{kind}"], rtol=1e-5, atol=1e-4)
    torch.nn.functional.cross_entropy(logits, tensors["labels"]).backward()
    torch.testing.assert_close(context.grad, tensors[f"grad_ctx_{token}_{kind}"], rtol=1e-5, atol=1e-5)
    head = fitted(figures, tower, token, kind)
    torch.testing.assert_close(head.context_, figures[0][f"ctx5_{token}_{kind}"], rtol=0, atol=1e-6)


def test_epochs_are_the_papers_by_shots():
    epochs = [CoOp()._train_config(shots).epochs for shots in (1, 2, 4, 8, 16)]
    assert epochs == [50, 100, 100, 200, 200]
    assert CoOp(epochs=3)._train_config(16).epochs == 3


def test_words_set_the_number_of_vectors_and_where_they_initial_prompts():
    X, y, text = toy_features()
    head = CoOp(ctx_init="a photo of a dog", epochs=1, lr=1e-12).fit(X, y, text=text)
    start = context_from_words(text.tower(), "a photo of a dog")
    torch.testing.assert_close(head.context_, start)
    assert len(start) == 5


def test_other_classes_get_the_same_context_before_their_names_but_none_that_is_of_each_class():
    X, y, text = toy_features()
    head = CoOp(epochs=5).fit(X, y, text=text)
    turned = TextFeatures(text.labels[::-1], text.embeddings[::-1], 30.0, tower=text.tower, order="given")
    np.testing.assert_allclose(head.for_classes(turned).logits(X), 1.5 * head.logits(X)[:, ::-1], rtol=1e-5)
    with pytest.raises(InputError, match="new classes: use encode_classes"):
        head.for_classes(turned.with_tower(None))
    with pytest.raises(InputError, match="csc must be False"):
        CoOp(csc=True, epochs=1).fit(X, y, text=text).for_classes(text)


def test_the_text_tower_in_bf16_learns_nearly_the_same(opened):
    encoder = opened("tiny")
    text = encode_classes(encoder, {name: [f"a photo of a {name}."] for name in ("cat", "dog", "owl")})
    X = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
    exact, near = (
        CoOp(n_ctx=4, epochs=20, precision=precision).fit(X, ["cat", "dog", "owl"] * 2, text=text)
        for precision in ("fp32", "bf16")
    )
    assert not torch.equal(exact.context_, near.context_)
    assert (exact.weight_ * near.weight_).sum(dim=1).min() > 0.999


def test_bf16_is_left_where_class_vectors_are_far():
    X, y, text = toy_features()
    tower = text.tower()
    given = tower.encode

    def encode(embeddings, lengths):
        turned = -1 if torch.is_autocast_enabled("cpu") else 1
        return turned * given(embeddings, lengths)

    tower.encode = encode
    exact, far = (CoOp(n_ctx=4, epochs=3, precision=p).fit(X, y, text=text).context_ for p in ("fp32", "bf16"))
    assert torch.equal(exact, far)


def test_a_saved_model_predicts_without_a_text_tower(opened, tmp_path, monkeypatch):
    (pictures, labels), encoder = squares(), opened("tiny")
    model = FewShotClassifier(encoder, "coop", head_params={"epochs": 3}, cache=None).fit(pictures, labels)
    model.save(tmp_path / "model")
    expected = model.logits(pictures)

    def refuse(*given):
        raise AssertionError("the text tower was opened")

    monkeypatch.setattr(type(encoder), "text_tower", refuse)
    monkeypatch.setattr(type(encoder), "encode_text", refuse)
    again = FewShotClassifier.load(tmp_path / "model", encoder=encoder, cache=None)
    np.testing.assert_array_equal(again.logits(pictures), expected)  # the same sums in the same order
