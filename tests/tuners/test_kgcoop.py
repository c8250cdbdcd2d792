"""KgCoOp against its authors' code."""

import pytest
import torch

from clipadapter.heads import TextFeatures
from clipadapter.tuners.kgcoop import KgCoOp

from .golden_figures import golden, text_tower
from .recorded import recorded


@pytest.fixture(scope="module")
def figures():
    return golden("kgcoop_prograd")


def fitted(figures, weight):
    tensors, parameters = figures
    names, tower = parameters["class_names"], text_tower(tensors, parameters)
    text = TextFeatures(names, tensors["text_handmade_unit"].numpy(), 100.0, tower=lambda: tower)
    head = recorded(KgCoOp)(weight=weight, ctx_init=None, epochs=5, schedule="constant", warmup_epochs=0)
    head.given = tensors["ctx"]
    return head.fit(tensors["image_features"], [names[i] for i in tensors["labels"]], text=text)


@pytest.mark.parametrize("weight", [1, 8])
def test_loss_gradient_and_context_are_the_authors(weight, figures):
    tensors, head = figures[0], fitted(figures, weight)
    assert float(head.losses[0]) == pytest.approx(tensors[f"kgcoop_loss_w{weight}"].item(), abs=1e-5)
    torch.testing.assert_close(head.gradients[0], tensors[f"kgcoop_grad_w{weight}"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.context_, tensors[f"kgcoop_ctx5_w{weight}"], rtol=0, atol=1e-6)
