"""CLIP-Adapter in a stream: it goes on where it ended, forgets without kept shots, and hardly with them."""

import numpy as np
import pytest
import torch

from clipadapter.heads import TextFeatures
from clipadapter.heads.clip_adapter import ClipAdapter
from clipadapter.heads.clip_adapter_replay import ClipAdapterReplay
from clipadapter.testing import toy_features

from .formulas import unit

D, NAMES = 24, [f"class {i}" for i in range(6)]
FAST = {"reduction": 2, "alpha": 0.6, "steps": 60, "lr": 3e-2}


def world(seed=0):
    """Pictures of six classes, and text that hardly tells them."""
    rng = np.random.default_rng(seed)
    means = unit(rng.standard_normal((len(NAMES), D)))
    text = TextFeatures(NAMES, 0.3 * means + unit(rng.standard_normal(means.shape)), 20.0)

    def pictures(classes, n):
        labels = np.repeat(classes, n)
        return unit(means[labels] + 0.5 * rng.standard_normal((len(labels), D)) / np.sqrt(D)), np.array(NAMES)[labels]

    return pictures, text


@pytest.mark.parametrize("replay", [0, 2])
def test_it_forgets_the_first_of_three_tasks_without_kept_shots_and_hardly_with_them(replay):
    pictures, text = world()
    head, (X, y) = ClipAdapterReplay(replay=replay, **FAST), pictures([0, 1], 40)
    found = []
    for task in ([0, 1], [2, 3], [4, 5]):
        head.partial_fit(*pictures(task, 8), text=text)
        found.append((head.predict(X) == y).mean())
    assert found[0] > 0.9
    assert found[-1] > 0.85 if replay else found[-1] < 0.5


@pytest.mark.parametrize("alpha", [0.5, "auto"])
def test_the_first_fit_is_that_of_clip_adapter(alpha):
    X, y, text = toy_features()
    found = ClipAdapterReplay(alpha=alpha, steps=40).fit(X, y, text=text)
    expected = ClipAdapter(alpha=alpha, steps=40).fit(X, y, text=text)
    np.testing.assert_allclose(found.logits(X), expected.logits(X), rtol=1e-5, atol=1e-5)


def test_training_goes_on_where_it_ended_around_the_centre_of_the_first_task():
    pictures, text = world()
    head = ClipAdapterReplay(**FAST).fit(*pictures([0, 1, 2], 6), text=text)
    still = ClipAdapterReplay(**{**FAST, "lr": 1e-12}).load_state(head.state(), list(head.classes_), D)
    still.partial_fit(*pictures([3, 4], 6), text=text)
    assert torch.equal(still.centre_, head.centre_)
    X = pictures(range(6), 4)[0]
    np.testing.assert_allclose(still.logits(X), head.logits(X), atol=1e-4)


def test_so_many_shots_of_each_class_are_kept_and_follow_their_classes_into_another_order():
    pictures, text = world()
    rows = np.concatenate([np.ones((1, D)), text.embeddings[::-1]])
    turned = TextFeatures(["new", *NAMES[::-1]], rows, 20.0, order="given")
    head, given = ClipAdapterReplay(replay=3, **FAST), []
    for classes, n, of in (([0, 1], 8, text), ([2], 2, text), ([1, 3], 20, turned)):
        X, y = pictures(classes, n)
        given.append((X.astype(np.float32), y))
        head.partial_fit(X, y, text=of)
    names = [turned.labels[label] for label in head.kept_labels_.tolist()]
    assert sorted(names) == [NAMES[k] for k, n in enumerate([3, 3, 2, 3]) for _ in range(n)]
    X, y = (np.concatenate(parts) for parts in zip(*given, strict=True))
    for row, name in zip(head.kept_.numpy(), names, strict=True):
        distance = np.abs(X - row).sum(axis=1)
        assert distance.min() < 1e-5 and y[distance.argmin()] == name


def test_a_class_of_before_weighs_as_much_as_a_new_one(monkeypatch):
    pictures, text = world()
    head = ClipAdapterReplay(replay=2, **FAST).fit(*pictures([0, 1, 2], 6), text=text)
    shown = []
    train = ClipAdapterReplay._train
    monkeypatch.setattr(
        ClipAdapterReplay,
        "_train",
        lambda self, shots, part: shown.append(shots.labels[part.rows]) or train(self, shots, part),
    )
    head.partial_fit(*pictures([3, 4], 8), text=text)
    assert torch.bincount(shown[0]).tolist() == [8, 8, 8, 8, 8]


def test_the_ratio_follows_held_out_shots_of_all_tasks():
    pictures, text = world()
    head = ClipAdapterReplay(**{**FAST, "alpha": "auto"}).fit(*pictures([0, 1, 2], 6), text=text)
    first = head.losses_
    head.partial_fit(*pictures([3, 4, 5], 6), text=text)
    assert (head.losses_ > first).all()
    of_last_task = ClipAdapterReplay(**{**FAST, "alpha": "auto"}).fit(*pictures([3, 4, 5], 6), text=text).losses_
    assert not torch.allclose(head.losses_ - first, of_last_task)  # of the adapter that went on
    assert 0 < head.alpha_ < 1
