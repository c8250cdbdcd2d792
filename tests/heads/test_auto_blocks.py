import numpy as np
import pytest
import torch

from clipadapter.heads import TextFeatures
from clipadapter.heads.auto import blocks as auto_blocks
from clipadapter.heads.auto import head
from clipadapter.heads.auto.blocks import choose_weights
from clipadapter.heads.auto.head import Auto
from clipadapter.utils.blocks import Block

C, D = 4, 24
NAMES = [f"class {i}" for i in range(C)]
BLOCKS = [("final", D), ("inner", D), ("noise", D)]
GENERATOR = np.random.default_rng(0)
MEANS, TEXT = GENERATOR.standard_normal((3, C, D)) / np.sqrt(D), GENERATOR.standard_normal((C, D))
SPREAD = (2.5, 0.8)


@pytest.fixture(autouse=True)
def _few_folds(monkeypatch):
    monkeypatch.setattr(head, "MAX_REPEATS", 1)


def draw(counts, seed=0):
    """Pictures whose ``final`` says little and whose ``inner`` says much; the columns of ``noise`` say nothing."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(C), counts)
    final, inner = (MEANS[i][labels] + SPREAD[i] * rng.standard_normal((len(labels), D)) / np.sqrt(D) for i in range(2))
    noise = 10 * rng.standard_normal((len(labels), D))
    return np.hstack([final, 5 * inner, noise]).astype(np.float32), np.array(NAMES)[labels]


def text(quality=0.5):
    return TextFeatures(NAMES, quality * MEANS[0] + (1 - quality) * TEXT / np.sqrt(D), 30.0)


TEST = draw([60] * C, seed=99)


def accuracy(model):
    X, y = TEST
    return float((model.predict(X[:, : model.n_features_in_]) == y).mean())


def fitted(counts, *, seed=0, blocks=BLOCKS):
    X, y = draw(counts, seed)
    return Auto().fit(X[:, : sum(width for _, width in blocks)], y, text=text(), blocks=blocks)


def test_final_alone_gives_what_it_gave_without_blocks():
    X, y = draw([4] * C)
    plain = Auto().fit(X[:, :D], y, text=text())
    named = fitted([4] * C, blocks=BLOCKS[:1])
    kept = {"centre_", "weight_", "bias_", "text_", "text_weight_", "spread_"}
    assert plain.state().keys() == named.state().keys() == kept | ({"shots_", "dual_"} & plain.state().keys())
    # the same sums in the same order
    assert all(np.array_equal(value, named.state()[name]) for name, value in plain.state().items())
    assert named.used_blocks() == ("final",) and named.block_shares() == {"final": 1.0}


@pytest.mark.parametrize("shots", [2, 8])
def test_an_informative_block_helps_and_noise_hardly_counts(shots):
    gains, shares, held_out_gains = [], [], []
    for seed in range(2):
        model, alone = (fitted([shots] * C, seed=seed, blocks=blocks) for blocks in (BLOCKS, BLOCKS[:1]))
        gains.append(accuracy(model) - accuracy(alone))
        own = [each._own_out_of_fold for each in (model, alone)]
        held_out_gains.append(np.subtract(*((each.logits.argmax(axis=1) == each.labels).mean() for each in own)))
        shares.append(list(model.block_shares().values()))
    share = np.mean(shares, axis=0)
    assert np.mean(gains) > 0.15 and np.mean(held_out_gains) > 0.1  # calibration reads the logits of the mixture
    assert share[1] > 0.4 and share[2] < share[1] / 2
    assert np.allclose(np.sum(shares, axis=1), 1)


def test_a_further_pass_without_a_gain_is_left_out():
    passes = [("final", D), ("inner", D), ("final@384", D)]
    of_noise = fitted([8] * C, blocks=passes).used_blocks()
    X, y = draw([8] * C)
    swapped = np.hstack([X[:, :D], X[:, 2 * D :], X[:, D : 2 * D]])
    of_inner = Auto().fit(swapped, y, text=text(), blocks=passes).used_blocks()
    assert "final@384" not in of_noise and "inner" in of_noise
    assert "final@384" in of_inner


def test_noise_alone_costs_little():
    blocks = [BLOCKS[0], *((f"noise{i}", D) for i in range(4))]
    losses = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        X, y = draw([4] * C, seed)
        X, Q = (np.hstack([part[:, :D], rng.standard_normal((len(part), 4 * D))]) for part in (X, TEST[0]))
        model = Auto().fit(X, y, text=text(0.9), blocks=blocks)
        alone = Auto().fit(X[:, :D], y, text=text(0.9))
        losses.append((alone.predict(Q[:, :D]) == TEST[1]).mean() - (model.predict(Q) == TEST[1]).mean())
    assert np.mean(losses) < 0.05


def test_a_class_without_shots_keeps_its_text():
    X, y = draw([6, 6, 6, 0])
    model = Auto().fit(X, y, text=text(0.95), blocks=BLOCKS)
    assert not model.block_weight_[3].any()
    assert model._own_out_of_fold.logits.shape[1] == C
    without_text = Auto().fit(X, y, blocks=BLOCKS)
    assert len(without_text.classes_) == 3


def test_unequal_shots_do_not_make_a_class_likelier():
    counts = [2, 12, 2, 12]
    model = fitted(counts)
    rare = np.isin(model.predict(TEST[0]), NAMES[::2]).mean()
    assert 0.4 < rare < 0.6


def test_logits_that_contain_the_log_counts_lose_them():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(C, size=400))
    right = 2 * torch.nn.functional.one_hot(labels, C) + torch.from_numpy(rng.standard_normal((400, C)))
    rarity = -torch.tensor([2.0, 12.0, 2.0, 12.0]).log().expand(400, -1)
    blocks, rows = (Block("final", D), Block("inner", D)), torch.ones(400)
    *weights, of_counts = choose_weights([right - rarity, right - rarity, rarity], blocks, (0, 1), labels, rows)
    assert of_counts == pytest.approx(sum(weights), rel=0.1)
    assert choose_weights([right, right, rarity], blocks, (0, 1), labels, rows)[2] < 0.25


def test_out_of_fold_logits_are_those_of_the_blocks_that_the_model_keeps(monkeypatch):
    """A block of a small share is left out of both, as if it had not been there."""
    monkeypatch.setattr(auto_blocks, "MIN_SHARE", 0.9)
    kept, alone = fitted([3] * C), fitted([3] * C, blocks=BLOCKS[:1])
    assert kept.used_blocks() == ("final",)
    np.testing.assert_allclose(kept._own_out_of_fold.logits, alone._own_out_of_fold.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(kept.logits(TEST[0]), alone.logits(TEST[0][:, :D]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shots", [1, 4])
def test_the_parts_of_the_blocks_add_up_to_the_logits(shots):
    model = fitted([shots] * C)
    parts = model.block_logits(TEST[0])
    assert tuple(parts) == model.used_blocks()
    np.testing.assert_allclose(sum(parts.values()), model.logits(TEST[0]), atol=1e-4)
    # The part of the class text belongs to final.
    moved = TEST[0].copy()
    moved[:, D:] += 1
    # the same sums in the same order
    np.testing.assert_array_equal(model.text_logits(moved), model.text_logits(TEST[0]))


@pytest.mark.parametrize(("shots", "used"), [(16, 2), (3, 1)])
def test_a_head_of_the_used_blocks_gives_equal_logits_and_keeps_no_state_of_others(shots, used):
    X, y = draw([shots] * C)
    X[:, used * D :] = 1  # a constant block can't be used
    model = Auto().fit(X, y, text=text(), blocks=BLOCKS)
    names = tuple(name for name, _ in BLOCKS[:used])
    assert model.used_blocks() == names
    small = model.restrict_blocks(names)
    assert small.n_features_in_ == used * D
    assert sum(name.startswith("block_") for name in small.state()) == (3 if used > 1 else 0)
    np.testing.assert_allclose(small.logits(X[:, : used * D]), model.logits(X), atol=1e-5)
    assert small.block_shares() == {name: share for name, share in model.block_shares().items() if share}


@pytest.mark.parametrize("is_multilabel", [False, True])
def test_saved_arrays_make_the_same_head(is_multilabel):
    X, y = draw([4] * C)
    model = Auto().fit(X, targets(y) if is_multilabel else y, text=text(), blocks=BLOCKS)
    loaded = Auto().load_state(model.state(), model.classes_, model.n_features_in_, model.blocks_)
    np.testing.assert_array_equal(loaded.logits(TEST[0]), model.logits(TEST[0]))  # the same sums in the same order
    assert loaded.block_shares() == model.block_shares()


def targets(y):
    """(n, c): each picture also has the class after its own, every second time."""
    ones = (np.asarray(y)[:, None] == np.array(NAMES)).astype(int)
    ones[::2] |= np.roll(ones[::2], 1, axis=1)
    return ones


@pytest.mark.parametrize("shots", [1, 6])
def test_several_labels_per_picture(shots):
    X, y = draw([shots] * C)
    Q, truth = TEST
    precision = {}
    for blocks in (BLOCKS[:1], BLOCKS):
        width = sum(size for _, size in blocks)
        model = Auto().fit(X[:, :width], targets(y), text=text(), blocks=blocks)
        logits = model.logits(Q[:, :width])
        precision[len(blocks)] = (np.array(NAMES)[logits.argmax(axis=1)] == truth).mean()
    parts = model.block_logits(Q)
    np.testing.assert_allclose(sum(parts.values()), logits, atol=1e-4)
    assert precision[3] > precision[1]
    assert model.block_shares()["inner"] > model.block_shares()["noise"]


def test_views_are_averaged_in_each_block():
    X, y = draw([4] * C)
    model = Auto().fit(np.stack([X, 2 * X], axis=1), y, text=text(), blocks=BLOCKS)
    np.testing.assert_allclose(model.logits(X), Auto().fit(X, y, text=text(), blocks=BLOCKS).logits(X), atol=1e-3)
