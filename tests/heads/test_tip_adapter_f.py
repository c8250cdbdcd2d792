"""Tip-Adapter-F: its training against gradients and AdamW written out by hand."""

import numpy as np

from clipadapter.heads.tip_adapter import TipAdapter
from clipadapter.heads.tip_adapter_f import TipAdapterF

from .small_shots import released_shots, three_classes


def test_released_code_trains_to_these_keys_and_logits_and_answers_so_with_other_parameters():
    figures, X, y, text, Q = released_shots("tip_adapter")
    head = TipAdapterF.preset("imagenet", epochs=10, draw_views=False).fit(X, y, text=text)
    np.testing.assert_allclose(head.keys_, figures["F_keys_step10"], atol=2e-7)  # float32 there
    np.testing.assert_allclose(head.logits(Q), figures["f64_F_logits_step10"], rtol=1e-10, atol=1e-10)
    head = TipAdapterF.preset("imagenet", epochs=1, draw_views=False).fit(X, y, text=text)
    # Its epoch was chosen by the queries, which is not repeated here: it was the first one.
    np.testing.assert_array_equal(figures["F_keys_best"], figures["F_keys_step1"])
    beta, alpha = figures["F_searched_beta_alpha"]
    head.load_state({**head.state(), "alpha_": alpha, "beta_": beta}, head.classes_, head.n_features_in_)
    np.testing.assert_allclose(head.logits(Q), figures["f64_F_logits_searched"], rtol=1e-10, atol=1e-10)


def test_no_epoch_is_tip_adapter_and_views_need_not_be_training_rows():
    X, _, y, text = three_classes()
    expected = TipAdapter(alpha=2.0, beta=3.0).fit(X, y, text=text).logits(X)
    found = TipAdapterF(alpha=2.0, beta=3.0, epochs=0).fit(X, y, text=text).logits(X)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    noise = np.random.default_rng(0).standard_normal(X.shape)
    views = np.stack([X, X + noise, X - noise], axis=1)  # the mean is X
    plain, kept = (TipAdapterF(draw_views=False).fit(data, y, text=text).keys_ for data in (X, views))
    np.testing.assert_allclose(kept, plain, rtol=1e-9)
