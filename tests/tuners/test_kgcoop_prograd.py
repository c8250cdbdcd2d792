"""KgCoOp and ProGrad against the code of KgCoOp's authors, which has both."""

import pytest
import torch

from clipadapter.heads import TextFeatures
from clipadapter.tuners.kgcoop import KgCoOp
from clipadapter.tuners.prograd import ProGrad, without_opposed

from .golden_figures import golden, text_tower
from .recorded import recorded


@pytest.fixture(scope="module")
def figures():
    return golden("kgcoop_prograd")


def fitted(tuner, figures, text, context, labels, **params):
    tensors, parameters = figures
    names, tower = parameters["class_names"], text_tower(tensors, parameters)
    class_text = TextFeatures(names, tensors[text].numpy(), 100.0, tower=lambda: tower)
    head = recorded(tuner)(epochs=5, schedule="constant", warmup_epochs=0, **params)
    head.given = tensors[context]
    return head.fit(tensors["image_features"], [names[i] for i in tensors[labels]], text=class_text)


@pytest.mark.parametrize("weight", [1, 8])
def test_loss_gradient_and_context_of_kgcoop_are_the_authors(weight, figures):
    tensors = figures[0]
    head = fitted(KgCoOp, figures, "text_handmade_unit", "ctx", "labels", weight=weight, ctx_init=None)
    assert float(head.losses[0]) == pytest.approx(tensors[f"kgcoop_loss_w{weight}"].item(), abs=1e-5)
    torch.testing.assert_close(head.gradients[0], tensors[f"kgcoop_grad_w{weight}"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.context_, tensors[f"kgcoop_ctx5_w{weight}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("memory", [1.0, 1e-9])
@pytest.mark.parametrize(("strength", "temperature"), [(1, 1), (0.5, 2)])
def test_losses_gradient_and_context_of_prograd_are_the_authors(strength, temperature, memory, figures):
    tensors, params = figures[0], {"strength": strength, "temperature": temperature, "memory": memory}
    head = fitted(ProGrad, figures, "prograd_teacher_unit", "prograd_ctx", "prograd_labels", n_ctx=4, **params)
    run = f"lam{strength}_T{temperature}"
    assert (tensors[f"prograd_cosines_{run}"] < 0).any()
    torch.testing.assert_close(head.losses[0], tensors[f"prograd_losses_{run}"], rtol=1e-5, atol=1e-5)
    gradient = tensors[f"prograd_grad_{run}"]
    torch.testing.assert_close(head.gradients[0], gradient, rtol=0, atol=1e-5 * float(gradient.norm()))
    torch.testing.assert_close(head.context_, tensors[f"prograd_ctx5_{run}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("strength", [1, 0.5])
def test_each_parameter_is_projected_on_its_own(strength, figures):
    tensors = figures[0]
    for pair, expected in enumerate(tensors[f"vec_projected_lam{strength}"]):
        for gradient, general, wanted in zip(tensors["vec_ce"][pair], tensors["vec_kl"][pair], expected, strict=True):
            torch.testing.assert_close(without_opposed(gradient, general, strength), wanted, rtol=0, atol=1e-5)


def test_a_direction_of_zero_opposes_nothing():
    gradient = torch.tensor([1.0, -2.0])
    assert torch.equal(without_opposed(gradient, torch.zeros(2), 1.0), gradient)
