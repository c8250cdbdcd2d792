"""PromptSRC against its authors' code on a tiny CLIP."""

import pytest
import torch
from torch.nn.functional import normalize

from clipadapter.encoders import create_encoder
from clipadapter.tuners.deep_prompts import gaussian_weights
from clipadapter.tuners.prompt_src import PromptSrc, mean_divergence, teacher_vectors
from clipadapter.tuners.tower_tuner import Step, image_features

from .golden_figures import golden, logits_of, prompts_of, write_clip
from .recorded import starting_from_given

ARRAYS = ("text", "image")


@pytest.fixture(scope="module")
def figures():
    return golden("prompt_src")


@pytest.fixture(scope="module")
def encoder(figures, tmp_path_factory):
    return create_encoder(write_clip(figures[1], tmp_path_factory.mktemp("golden") / "clip"))


class Recording(PromptSrc):
    """It keeps its losses."""

    def _make_loss(self, *inputs):
        loss_of, self.losses = super()._make_loss(*inputs), []

        def recorded(step):
            self.losses.append(loss_of(step))
            return self.losses[-1]

        return recorded


def create(figures, **changes):
    parameters = figures[1]
    average = {"average_mean": parameters["gpa_mean"], "average_std": parameters["gpa_std"]}
    asked = {"n_ctx_image": parameters["n_ctx_image"], "epochs": parameters["epochs"], **average, **changes}
    return starting_from_given(Recording, ARRAYS)(figures, **asked)


def loss_of_first_step(figures, encoder, head):
    tensors, parameters = figures
    step = head.first_step(encoder)
    prompts = prompts_of(parameters["class_names"])
    return head._make_loss(encoder, tensors["squares"][:, None].numpy(), prompts)(step)


def test_features_are_the_authors(figures, encoder):
    tensors = figures[0]
    step = create(figures).first_step(encoder)
    torch.testing.assert_close(step.features, tensors["image_features"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(step.weight, tensors["text_features"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(step.logits, tensors["logits"], rtol=1e-5, atol=1e-4)


def test_the_teacher_is_the_authors(figures, encoder):
    tensors, parameters = figures
    text = teacher_vectors(encoder, parameters["class_names"])
    torch.testing.assert_close(text, tensors["teacher_text"], rtol=1e-5, atol=1e-6)
    image = image_features(encoder, tensors["squares"][:, None].numpy(), frozen=True)
    features = normalize(image(torch.arange(6), torch.zeros(6, dtype=torch.int64)), dim=1)
    torch.testing.assert_close(features, tensors["teacher_image"], rtol=1e-5, atol=1e-6)
    divergence = mean_divergence(tensors["zero_shot_logits"], tensors["logits"])
    torch.testing.assert_close(divergence, tensors["loss_logits"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "terms"),
    [
        ({}, ["ce", "text", "image", "logits"]),
        ({"text_weight": 0.0, "image_weight": 0.0, "logit_weight": 0.0}, ["ce"]),
        ({"image_weight": 0.0, "logit_weight": 0.0}, ["ce", "text"]),
        ({"text_weight": 0.0, "logit_weight": 0.0}, ["ce", "image"]),
    ],
)
def test_each_term_of_the_loss_and_its_gradients_are_the_authors(weights, terms, figures, encoder):
    head = create(figures, **weights)
    loss = loss_of_first_step(figures, encoder, head)
    expected = sum(float(figures[0][f"loss_{term}"]) for term in terms)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    if not weights:
        loss.backward()
        for array, name in zip(head.trained, ARRAYS, strict=True):
            torch.testing.assert_close(array.grad, figures[0][f"grad_{name}"], rtol=1e-4, atol=1e-5)


def test_the_frozen_tower_sees_the_view_of_the_step(figures, encoder):
    tensors, parameters = figures
    head = create(figures, text_weight=0.0, logit_weight=0.0)
    squares = torch.stack([tensors["squares"], 255 - tensors["squares"]], dim=1).numpy()
    loss_of = head._make_loss(encoder, squares, prompts_of(parameters["class_names"]))
    rows, views = torch.tensor([4, 0]), torch.tensor([1, 0])
    seen = torch.stack([255 - tensors["squares"][4], tensors["squares"][0]])[:, None].numpy()
    frozen = normalize(
        image_features(encoder, seen, frozen=True)(torch.arange(2), torch.zeros(2, dtype=torch.int64)), dim=1
    )
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    step = Step(frozen + 0.01, tensors["teacher_text"], logits, labels, rows, views)
    assert loss_of(step).item() == pytest.approx(torch.tensor(3.0).log().item() + 10 * 0.01, rel=1e-4)


def test_losses_and_averaged_prompts_are_the_authors(figures, encoder):
    tensors, parameters = figures
    head = create(figures).tune_as_authors(encoder)
    losses = torch.stack(head.losses).detach()
    torch.testing.assert_close(losses, tensors["losses"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.text_prompts_, tensors["end_text"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.image_prompts_, tensors["end_image"], rtol=1e-5, atol=1e-6)
    logits = logits_of(head.tuned(encoder), tensors["squares"], prompts_of(parameters["class_names"]))
    torch.testing.assert_close(logits, tensors["end_logits"], rtol=1e-4, atol=1e-4)


def test_weights_of_epochs_are_the_authors_and_sum_to_one(figures):
    tensors, parameters = figures
    weights = gaussian_weights(parameters["epochs"], parameters["gpa_mean"], parameters["gpa_std"])
    assert weights == pytest.approx(tensors["gaussian"].tolist(), rel=1e-12)
    assert sum(PromptSrc.official()._epoch_weights(50)) == pytest.approx(1)
    assert PromptSrc.official()._epoch_weights(50) == pytest.approx(PromptSrc()._epoch_weights(50))
    early = PromptSrc.preset("base-to-new")._epoch_weights(20)
    assert max(range(20), key=early.__getitem__) == 14
