"""MaPLe against its authors' code on a tiny CLIP."""

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from clipadapter.encoders import create_encoder
from clipadapter.tuners.maple import Maple

from .golden_figures import golden, logits_of, prompts_of, write_clip
from .recorded import starting_from_given

NAMES = ("text", "weight", "bias")


@pytest.fixture(scope="module")
def figures():
    return golden("maple")


@pytest.fixture(scope="module")
def encoder(figures, tmp_path_factory):
    return create_encoder(write_clip(figures[1], tmp_path_factory.mktemp("golden") / "clip"))


@pytest.fixture
def head(figures):
    return starting_from_given(Maple, NAMES)(figures, epochs=figures[1]["steps"])


def test_features_and_gradients_are_the_authors(head, figures, encoder):
    tensors, step = figures[0], head.first_step(encoder)
    for found, name in ((step.features, "image_features"), (step.weight, "text_features")):
        torch.testing.assert_close(found, normalize(tensors[name], dim=1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(step.logits, tensors["logits"], rtol=1e-5, atol=1e-4)
    cross_entropy(step.logits, step.labels).backward()
    for array, name in zip(head.trained, NAMES, strict=True):
        torch.testing.assert_close(array.grad, tensors[f"grad_{name}"], rtol=1e-4, atol=1e-5)


def test_prompts_and_logits_after_three_steps_are_the_authors_for_known_and_new_classes(head, figures, encoder):
    tensors, parameters = figures
    head.tune_as_authors(encoder)
    assert head.loss_ == pytest.approx(float(tensors["losses"][-1]), rel=1e-5)
    for array, name in zip(head.trained, NAMES, strict=True):
        torch.testing.assert_close(array.detach(), tensors[f"end_{name}"], rtol=1e-5, atol=1e-6)
    expected = torch.stack(
        [w @ t_row + b for t, w, b in zip(*(tensors[f"end_{n}"] for n in NAMES), strict=True) for t_row in t]
    ).reshape(head.image_prompts_.shape)
    torch.testing.assert_close(head.image_prompts_, expected, rtol=1e-5, atol=1e-5)
    after = head.tuned(encoder)
    for key, names in (("end_logits", parameters["class_names"]), ("end_new_logits", ["owl"])):
        logits = logits_of(after, tensors["squares"], prompts_of(names))
        torch.testing.assert_close(logits, tensors[key], rtol=1e-4, atol=1e-4)
