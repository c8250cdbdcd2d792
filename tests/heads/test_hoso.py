"""HOSO's parts by hand: which shot is held out, what each learns from which, and what stays at one shot a class."""

import numpy as np
import torch

from clipadapter.heads.clip_adapter import ClipAdapter
from clipadapter.heads.clip_adapter_ablations import Hoso
from clipadapter.heads.out_of_fold import hold_out_one_per_class
from clipadapter.testing import toy_features


def positions(y, text):
    return np.array([text.labels.index(name) for name in y])


def held_out_rows(y, text):
    return hold_out_one_per_class(torch.tensor(positions(y, text)))[1].numpy()


def test_at_one_shot_the_ratio_and_the_adapter_are_those_of_clip_adapter():
    # No class can spare a shot, so both train on all of them.
    X, y, text = toy_features((1, 1, 1), noise=3.0)
    fitted, plain = (head.fit(X, y, text=text) for head in (Hoso(), ClipAdapter()))
    assert fitted.alpha_ == plain.alpha_
    np.testing.assert_array_equal(fitted.logits(X), plain.logits(X))


def test_the_adapter_never_sees_a_held_out_shot():
    X, y, text = toy_features()
    held = held_out_rows(y, text)
    changed = X.copy()
    changed[held] = np.random.default_rng(0).standard_normal((len(held), X.shape[1]))
    first, second = (Hoso(steps=20).fit(data, y, text=text) for data in (X, changed))
    np.testing.assert_array_equal(first.down_, second.down_)
    np.testing.assert_array_equal(first.up_, second.up_)
    assert first.alpha_ != second.alpha_


def test_the_ratio_is_smaller_if_held_out_shots_are_as_the_text_says_than_if_they_are_as_the_other_shots():
    _, y, text = toy_features((6, 6, 6))
    # Pictures of each class lie where the text of the next one points.
    X = np.roll(text.embeddings, 1, axis=0)[np.repeat(range(3), 6)]
    held = held_out_rows(y, text)
    as_text = X.copy()
    as_text[held] = text.embeddings
    falls, grows = (Hoso().fit(data, y, text=text).alpha_ for data in (as_text, X))
    assert falls < grows
