"""Cross-modal adaptation against its loss, gradient and AdamW written out in numpy."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from clipadapter.heads import TextFeatures, cross_modal, losses
from clipadapter.heads.cross_modal import CrossModal
from clipadapter.heads.losses import label_loss

from .golden_figures import doubles, golden
from .small_shots import fit_unequal_shots, unequal_shots


def test_text_samples_hold_a_class_without_shots():
    # The text of the class without shots lies between the others', so that their pictures push it away.
    text = TextFeatures(["cat", "dog", "owl"], [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]], 20.0)
    X, y = [[1.0, 0.8, 0.3], [0.8, 1.0, -0.3]], ["cat", "owl"]
    pictures_alone, both = (
        CrossModal(text_share=share, lr=1e-2).fit(X, y, text=text).predict(text.embeddings).tolist()
        for share in (0.0, 0.5)
    )
    assert pictures_alone[1] != "dog"
    assert both == ["cat", "dog", "owl"]


def test_many_classes_are_drawn_a_batch_at_a_time(monkeypatch):
    sizes = []
    for module in (cross_modal, losses):
        monkeypatch.setattr(
            module,
            "label_loss",
            lambda logits, labels, *more: (sizes.append(len(labels)), label_loss(logits, labels, *more))[1],
        )
    fit_unequal_shots(CrossModal(batch_size=3, epochs=2), unequal_shots(seed=8, noise=0.5))
    assert sizes == [3] * 8  # two steps an epoch, pictures and text in each


@pytest.mark.parametrize("prompts", ["among the shots", "as text"])
def test_released_code_gives_the_same_rates_weights_and_logits(prompts, monkeypatch):
    """Its prompts, two a class, are given among the shots, or stand for the class text as samples.

    One mean over all rows takes either as they are.
    """
    figures, parameters = golden("cross_modal_linear")
    X, P, Q = doubles(figures, "support_features", "text_per_template", "query_features")
    y, names = figures["support_labels"].astype(str), [str(k) for k in range(len(P))]
    text = TextFeatures(names, P.mean(axis=1), np.exp(parameters["logit"]))
    rows, row_labels = P.reshape(-1, P.shape[2]), np.repeat(np.arange(len(P)), P.shape[1])
    if prompts == "among the shots":
        X, y, share = np.vstack([X, rows]), np.concatenate([y, row_labels.astype(str)]), 0.0
    else:
        share = len(rows) / (len(X) + len(rows))
        monkeypatch.setattr(CrossModal, "_text_rows", lambda *_: (torch.from_numpy(rows), torch.from_numpy(row_labels)))
    head = CrossModal.official(text_share=share, batch_size=30, epochs=parameters["steps"])
    config = clone(head).set_params(warmup_steps=5)._train_config(torch.arange(1))
    rates = [config.learning_rate(step, 1, 20) for step in range(20)]
    np.testing.assert_allclose(rates, figures["lr_schedule"], rtol=1e-6)
    constant = {"schedule": "constant", "warmup_steps": 0}
    for changes, weights, logits in (
        ({"epochs": 0}, "head_init", "logits_init"),
        (constant, "weights20", "logits20"),
        ({"warmup_steps": 5}, "weights20_sched", "logits20_sched"),
        ({**constant, "wise": 0.5}, "weights20_wiseft", "logits20_wiseft"),
        ({**constant, "wise": 0.2}, None, "logits20_wiseft_0.2"),
    ):
        fitted = clone(head).set_params(**changes).fit(X, y, text=text)
        # The released code ran in float32, in which its own rounding is 2e-7 in the weights and 6e-5 in the logits.
        np.testing.assert_allclose(fitted.logits(Q), figures[logits], atol=2e-4)
        if weights:
            np.testing.assert_allclose(fitted.weight_, figures[weights], atol=1e-6)
