"""MaPLe against its authors' code on a tiny CLIP."""

import pytest
import torch

from clipadapter.encoders import create_encoder, open_tunable_copy
from clipadapter.tuners.maple import Maple
from clipadapter.tuners.tower_tuner import ClassEmbeddings, ImageFeatures

from .golden_figures import golden, logits_of, prompts_of, write_clip
from .recorded import starting_from_given

NAMES = ("text", "weight", "bias")


@pytest.fixture(scope="module")
def figures():
    return golden("maple")


@pytest.fixture(scope="module")
def encoder(figures, tmp_path_factory):
    return create_encoder(write_clip(figures[1], tmp_path_factory.mktemp("golden") / "clip"))


Given = starting_from_given(Maple)


def tuned(figures, encoder, **changes):
    tensors, parameters = figures
    labels = [parameters["class_names"][i] for i in tensors["labels"]]
    asked = {name: parameters[name] for name in ("n_ctx", "depth", "lr", "weight_decay")}
    asked |= {"epochs": parameters["steps"], "batch_size": len(labels), "schedule": "constant", "warmup_epochs": 0}
    head = Given(**{**asked, "checkpoint": None, **changes})
    head.given = [tensors[f"start_{name}"] for name in NAMES]
    return head.tune(encoder, tensors["squares"][:, None].numpy(), labels, prompts_of(parameters["class_names"]))


def test_features_and_gradients_are_the_authors(figures, encoder):
    tensors, parameters = figures
    tunable = open_tunable_copy(encoder)
    head = Given(n_ctx=parameters["n_ctx"], depth=parameters["depth"])
    head.given = [tensors[f"start_{name}"] for name in NAMES]
    head._attach(tunable, torch.Generator())
    rows, views = torch.arange(6), torch.zeros(6, dtype=torch.int64)
    features = ImageFeatures(tunable, tensors["squares"][:, None].numpy(), frozen=False)(rows, views)
    weight = ClassEmbeddings(tunable, prompts_of(parameters["class_names"]), frozen=False)()
    torch.testing.assert_close(features, tensors["image_features"], rtol=1e-5, atol=1e-5)
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(weight, unit(tensors["text_features"], dim=1), rtol=1e-5, atol=1e-6)
    logits = encoder.info.logit_scale * unit(features, dim=1) @ weight.T
    torch.testing.assert_close(logits, tensors["logits"], rtol=1e-5, atol=1e-4)
    torch.nn.functional.cross_entropy(logits, tensors["labels"]).backward()
    for array, name in zip(head.trained, NAMES, strict=True):
        torch.testing.assert_close(array.grad, tensors[f"grad_{name}"], rtol=1e-4, atol=1e-5)


def test_prompts_after_three_steps_are_the_authors(figures, encoder):
    tensors = figures[0]
    head = tuned(figures, encoder)
    assert head.loss_ == pytest.approx(float(tensors["losses"][-1]), rel=1e-5)
    for array, name in zip(head.trained, NAMES, strict=True):
        torch.testing.assert_close(array.detach(), tensors[f"end_{name}"], rtol=1e-5, atol=1e-6)
    expected = torch.stack(
        [w @ t_row + b for t, w, b in zip(*(tensors[f"end_{n}"] for n in NAMES), strict=True) for t_row in t]
    ).reshape(head.image_prompts_.shape)
    torch.testing.assert_close(head.image_prompts_, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("key", "names"), [("end_logits", None), ("end_new_logits", ["owl"])])
def test_the_tuned_encoder_gives_the_authors_logits_for_known_and_new_classes(key, names, figures, encoder):
    tensors, parameters = figures
    after = tuned(figures, encoder).tuned(encoder)
    logits = logits_of(after, tensors["squares"], prompts_of(names or parameters["class_names"]))
    torch.testing.assert_close(logits, tensors[key], rtol=1e-4, atol=1e-4)
