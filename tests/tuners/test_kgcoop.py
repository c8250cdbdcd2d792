"""KgCoOp against its authors' code."""

import numpy as np
import pytest
import torch

from clipadapter.heads import TextFeatures
from clipadapter.testing import toy_features
from clipadapter.tuners.coop import CoOp
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


def test_the_penalty_keeps_class_vectors_near_the_class_text():
    X, y, text = toy_features(noise=3.0)
    free, held = (KgCoOp(weight=weight, ctx_init=None).fit(X, y, text=text).weight_.numpy() for weight in (0.0, 8.0))
    assert (held * text.embeddings).sum(axis=1).mean() > (free * text.embeddings).sum(axis=1).mean() + 0.01


def test_weight_zero_is_coop():
    X, y, text = toy_features()
    plain = CoOp(n_ctx=4, epochs=5, batch_size=128).fit(X, y, text=text)
    found = KgCoOp(weight=0.0, ctx_init=None, epochs=5).fit(X, y, text=text)
    np.testing.assert_array_equal(found.logits(X), plain.logits(X))
