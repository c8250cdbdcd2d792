"""ProGrad against the code of KgCoOp, which has it too."""

import pytest
import torch

from clipadapter.heads import TextFeatures
from clipadapter.tuners.prograd import ProGrad, without_opposed

from .golden_figures import golden, text_tower
from .recorded import recorded

RUNS = [(1, 1), (0.5, 2)]


@pytest.fixture(scope="module")
def figures():
    return golden("kgcoop_prograd")


def fitted(figures, strength, temperature, **changes):
    tensors, parameters = figures
    names, tower = parameters["class_names"], text_tower(tensors, parameters)
    text = TextFeatures(names, tensors["prograd_teacher_unit"].numpy(), 100.0, tower=lambda: tower)
    head = recorded(ProGrad)(
        strength=strength, temperature=temperature, n_ctx=4, epochs=5, schedule="constant", warmup_epochs=0, **changes
    )
    head.given = tensors["prograd_ctx"]
    return head.fit(tensors["image_features"], [names[i] for i in tensors["prograd_labels"]], text=text)


@pytest.mark.parametrize("memory", [1.0, 1e-9])
@pytest.mark.parametrize(("strength", "temperature"), RUNS)
def test_losses_gradient_and_context_are_the_authors(strength, temperature, memory, figures):
    tensors, head = figures[0], fitted(figures, strength, temperature, memory=memory)
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
    gradient = torch.tensor([1.0, -2.0])  # a direction of zero opposes nothing
    assert torch.equal(without_opposed(gradient, torch.zeros(2), strength), gradient)
