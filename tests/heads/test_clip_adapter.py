"""CLIP-Adapter and HOSO against their published formulas, written out in plain loops."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from clipadapter.heads import TextFeatures, clip_adapter, out_of_fold, residual_ratio, trained_head
from clipadapter.heads.clip_adapter import ClipAdapter, Layers
from clipadapter.heads.clip_adapter_ablations import ClipAdapterTrainedRatio, Hoso
from clipadapter.heads.out_of_fold import hold_out_one_per_class
from clipadapter.heads.training import MOMENTUM
from clipadapter.testing import toy_features

from .formulas import unit_list
from .golden_figures import doubles, golden

D, CLASSES, SCALE = 8, 3, 30.0


def relu(v):
    return [max(x, 0.0) for x in v]


def product(matrix, v):
    return [sum(m * x for m, x in zip(row, v, strict=True)) for row in matrix]


def plain_logits(x, down, up, text, alpha, centre=(0.0,) * D):
    """Equations 1, 3 and 5 of the paper for one raw feature; the centre is subtracted before the adapter."""
    u = unit_list(list(x))
    adapted = product(up, relu(product(down, [v - m for v, m in zip(u, centre, strict=True)])))
    mixed = unit_list([alpha * a + (1 - alpha) * v for a, v in zip(adapted, u, strict=True)])
    return [SCALE * cosine for cosine in product(text, mixed)]


@pytest.fixture
def case():
    rng = np.random.default_rng(5)
    X = rng.standard_normal((12, D)) + 0.5
    return {
        "X": X * rng.uniform(8, 12, (12, 1)),
        "y": np.array([f"class {i % CLASSES}" for i in range(12)]),
        "text": TextFeatures([f"class {i}" for i in range(CLASSES)], rng.standard_normal((CLASSES, D)), SCALE),
        "down": rng.uniform(-0.5, 0.5, (2, D)),
        "up": rng.uniform(-0.5, 0.5, (D, 2)),
    }


def started(head, case):
    """The head with given start weights instead of drawn ones."""
    down, up = torch.tensor(case["down"]), torch.tensor(case["up"])
    start = head._start

    def given(*of):
        return {name: Layers(down.clone(), up.clone(), drawn.centre) for name, drawn in start(*of).items()}

    head._start = given
    return head


def test_text_branch_blends_the_class_weights(case):
    head = started(ClipAdapter(branch="text", beta=0.4, centre=False, epochs=0), case)
    for row, weight in zip(case["text"].embeddings, head.fit(case["X"], case["y"], case["text"]).weight_, strict=True):
        adapted = product(case["up"], relu(product(case["down"], row)))
        expected = unit_list([0.4 * a + 0.6 * t for a, t in zip(adapted, row, strict=True)])
        np.testing.assert_allclose(weight, expected, atol=1e-5)


@pytest.mark.parametrize(("reduction", "width"), [(4, 4), (1, 16), (32, 1)])
def test_bottleneck_width(reduction, width):
    X, y, text = toy_features(d=16)
    fitted = ClipAdapter(reduction=reduction, alpha=0.2, epochs=1).fit(X, y, text=text)
    assert fitted.down_.shape == (width, 16)
    assert fitted.up_.shape == (16, width)


def test_the_centre_is_the_mean_of_the_class_means_and_is_subtracted_before_the_adapter(case):
    uneven = [0, 3, 6, 1, 2]  # three shots of the first class, one of each other
    X, y, text = case["X"][uneven], case["y"][uneven], case["text"]
    fitted = started(ClipAdapter(alpha=0.3, epochs=0), case).fit(X, y, text=text)
    units = [unit_list(list(x)) for x in X]
    mean = [(sum(u[j] for u in units[:3]) / 3 + units[3][j] + units[4][j]) / 3 for j in range(D)]
    expected = [plain_logits(x, case["down"], case["up"], text.embeddings, 0.3, mean) for x in case["X"]]
    np.testing.assert_allclose(fitted.logits(case["X"]), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "optimizer", "scale", "n_views"),
    [
        (lambda: ClipAdapter.paper(epochs=7), lambda p: torch.optim.Adam(p, lr=1e-5), SCALE, 1),
        (
            lambda: ClipAdapter(alpha=0.2, centre=False, noise=0, epochs=7, schedule="constant"),
            lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0),
            SCALE / 2,
            1,
        ),
        (lambda: ClipAdapter.paper(epochs=7, lr=1e-2), lambda p: torch.optim.Adam(p, lr=1e-2), SCALE, 8),
    ],
    ids=["the paper's recipe", "our recipe, at half the logit scale", "a view for each epoch: epoch e has view 1 + e"],
)
def test_training_is_that_of_plain_pytorch(case, make, optimizer, scale, n_views):
    views = case["X"][:, None] + (n_views > 1) * np.random.default_rng(6).standard_normal((12, n_views, D))
    fitted = started(make(), case).fit(views, case["y"], text=case["text"])
    down, up = (torch.tensor(case[name], requires_grad=True) for name in ("down", "up"))
    steps = optimizer([down, up])
    x = normalize(torch.tensor(views), dim=-1)
    text, labels = torch.tensor(case["text"].embeddings), torch.tensor([int(name[-1]) for name in case["y"]])
    for epoch in range(7):
        f = x[:, (1 + epoch) % n_views]
        mixed = normalize(0.2 * (f @ down.T).relu() @ up.T + 0.8 * f)  # the paper's adapter
        steps.zero_grad()
        cross_entropy(scale * mixed @ text.T, labels).backward()
        steps.step()
    for found, expected in ((fitted.down_, down), (fitted.up_, up)):
        np.testing.assert_allclose(found, expected.detach(), atol=1e-7 if n_views == 1 else 1e-6)


def test_the_released_recipe_takes_the_epochs_of_coop_by_shots():
    labels = [torch.arange(3).repeat(shots) for shots in (1, 2, 4, 8, 16)]
    assert [ClipAdapter.official().planned_epochs(each) for each in labels] == [50, 100, 100, 200, 200]
    assert ClipAdapter.official(epochs=50).planned_epochs(labels[-1]) == 50  # ImageNet's


def test_a_dynamic_ratio_is_the_sigmoid_of_a_linear_map_of_picture_and_text_after_loading_and_for_other_classes(case):
    head = ClipAdapterTrainedRatio(ratio="dynamic", centre=False, steps=40, lr=0.02)
    fitted = head.fit(case["X"], case["y"], text=case["text"])
    loaded = ClipAdapterTrainedRatio(ratio="dynamic").load_state(fitted.state(), list(fitted.classes_), D)
    two = TextFeatures(case["text"].labels[:2], case["text"].embeddings[:2], SCALE)
    gate = fitted.alpha_gate_.tolist()
    for answer, rows in ((loaded, case["text"].embeddings), (fitted.for_classes(two), two.embeddings)):
        text, ratios = rows.tolist(), []
        for x, logits in zip(case["X"], answer.logits(case["X"]), strict=True):
            u = unit_list(list(x))
            share = [math.exp(SCALE * cosine) for cosine in product(text, u)]
            pointed = [sum(s * row[j] for s, row in zip(share, text, strict=True)) / sum(share) for j in range(D)]
            ratios.append(1 / (1 + math.exp(-gate[0] - product([gate[1:]], [*u, *pointed])[0])))
            expected = plain_logits(x, fitted.down_.tolist(), fitted.up_.tolist(), text, ratios[-1])
            np.testing.assert_allclose(logits, expected, atol=1e-3)
        assert max(ratios) - min(ratios) > 1e-3
        if answer is loaded:
            assert fitted.alpha_ == pytest.approx(sum(ratios) / len(ratios), abs=1e-5)


@pytest.mark.parametrize("branch", ["visual", "text", "both"])
@pytest.mark.parametrize("ratio", ["learned", "dynamic"])
def test_a_trained_ratio_starts_at_that_of_the_released_code(branch, ratio):
    X, y, text = toy_features()
    trained = ClipAdapterTrainedRatio(branch=branch, ratio=ratio, epochs=0).fit(X, y, text=text)
    fixed = ClipAdapter(branch=branch, alpha=0.2, beta=0.2, epochs=0).fit(X, y, text=text)
    np.testing.assert_allclose(trained.logits(X), fixed.logits(X), atol=1e-4)


@pytest.mark.parametrize("branch", ["visual", "text", "both"])
def test_auto_takes_no_more_than_a_dozen_shots_to_leave_text_that_is_wrong(branch):
    X, y, text = toy_features((4, 4, 4), d=256)
    wrong = TextFeatures(text.labels, np.roll(text.embeddings, 1, axis=0), text.logit_scale)
    assert (ClipAdapter(branch=branch).fit(X, y, text=wrong).predict(X) == y).all()


def test_auto_fits_no_more_folds_than_hold_out_enough_shots_and_they_calibrate_too(monkeypatch):
    X, y, text = toy_features((9, 9, 9), d=32, noise=2.0)
    sizes = []

    class Counting(ClipAdapter):
        def _train(self, shots, part):
            sizes.append(len(part.rows))
            return super()._train(shots, part)

    head = Counting(steps=40).fit(X, y, text=text)
    found = out_of_fold(head, X, y, text, strategies=("own", "folds"))
    assert (found.strategy, sizes) == ("own", [27, 18, 18, 18])
    assert sorted(found.rows) == list(range(27))
    assert (found.logits.argmax(axis=1) == found.labels).mean() > 0.8
    assert ClipAdapter(alpha=0.2, steps=20).fit(X, y, text=text)._own_out_of_fold is None
    for enough, folds in ((19, 3), (18, 2), (1, 1)):
        sizes.clear()
        monkeypatch.setattr(clip_adapter, "SUFFICIENT_SHOTS", enough)
        fewer = Counting(steps=40).fit(X, y, text=text).alpha_
        assert sizes == [27, *[18] * folds], enough
        assert fewer == pytest.approx(head.alpha_, abs=0.1)


def test_where_logits_are_many_the_ratio_is_judged_on_some_shots(monkeypatch):
    X, y, text = toy_features((40, 40, 40), d=32, noise=2.0)
    expected = ClipAdapter(steps=20, batch_size=12).fit(X, y, text=text)
    judged, table = [], clip_adapter.held_out_loss_table

    def counted(logits, loss):
        judged.append(len(logits(0.5)))
        return table(logits, loss)

    monkeypatch.setattr(clip_adapter, "held_out_loss_table", counted)
    monkeypatch.setattr(residual_ratio, "MAX_HELD_OUT_LOGITS", 3 * 15)
    found = ClipAdapter(steps=20, batch_size=12).fit(X, y, text=text)
    assert judged == [15, 15, 15]
    assert found.alpha_ == pytest.approx(expected.alpha_, abs=0.15)


@pytest.mark.parametrize(
    ("branch", "has"), [("visual", {"alpha_"}), ("text", {"beta_"}), ("both", {"alpha_", "beta_"})]
)
def test_a_branch_that_is_off_has_no_ratio(branch, has):
    X, y, text = toy_features()
    head = ClipAdapter(branch=branch, steps=2).fit(X, y, text=text)
    state = head.state()
    assert {"alpha_", "beta_"} & state.keys() == has
    loaded = ClipAdapter(branch=branch, steps=2).load_state(state, head.classes_, X.shape[1])
    np.testing.assert_array_equal(loaded.logits(X), head.logits(X))  # one head, and the same kernel
    again = ClipAdapter(branch=branch, steps=2)
    again._full_fit = loaded
    again.fit(X, y, text=text)
    for name in has:
        assert getattr(again, name) == pytest.approx(float(getattr(head, name)))


@pytest.mark.parametrize(("branch", "adapters"), [("visual", 1), ("text", 1), ("both", 2)])
def test_a_dear_training_announces_the_epochs_that_it_makes(branch, adapters, monkeypatch):
    X, y, text = toy_features((40, 40, 40), d=32)
    made = []
    monkeypatch.setattr(trained_head, "train", lambda *of, **_: made.append(of[4].count_epochs(of[2])) or 0.0)
    row_cost = 32 * 3 + adapters * 2 * 32 * 8
    monkeypatch.setattr(ClipAdapter, "max_cost", 120 * row_cost * 7)
    head = ClipAdapter(branch=branch, alpha=0.4, beta=0.4, steps=20, batch_size=12).fit(X, y, text=text)
    labels = torch.arange(3).repeat_interleave(40)
    assert made == [7] == [head.planned_epochs(labels, (3, 32))]
    assert head.planned_epochs(labels) == 20  # without the number of classes and the width it is what there is at most
    assert ClipAdapter(epochs=9).planned_epochs(labels, (3, 32)) == 9


def test_one_wrong_label_among_single_shots_does_not_choose_the_ratio():
    rng = np.random.default_rng(0)
    names = [f"class {i}" for i in range(8)]
    means = rng.standard_normal((8, 32))
    X = means + 0.5 * rng.standard_normal((8, 32))
    text = TextFeatures(names, rng.standard_normal((8, 32)), 30.0)
    clean = ClipAdapter().fit(X, names, text=text)
    wrong = ClipAdapter().fit(X, [names[1], *names[1:]], text=text)
    assert wrong.alpha_ == pytest.approx(clean.alpha_, abs=0.1)


@pytest.mark.parametrize(("lr", "suffix"), [(2e-3, ""), (0.5, "_lr0.5")])
def test_released_code_gives_the_same_adapter_output_weights_loss_and_logits(lr, suffix):
    figures, parameters = golden("clip_adapter")
    X, T, Q, down, up = doubles(figures, "support_raw", "text_raw", "query_raw", "W1", "W2")
    text = TextFeatures([str(k) for k in range(len(T))], T, parameters["logit_scale"])

    def trained(epochs):
        # The released schedule is CoOp's; the figures were made at a constant rate.
        head = ClipAdapter.official(schedule="constant", warmup_epochs=0, epochs=epochs, lr=lr)
        assert (head.alpha, MOMENTUM, head.weight_decay) == (parameters["ratio"], 0.9, parameters["weight_decay"])
        return started(head, {"down": down, "up": up}).fit(X, figures["support_labels"].astype(str), text=text)

    start, head = trained(0), trained(10)
    adapted = start.adapt(torch.from_numpy(Q), start._adapter(torch.float64))
    np.testing.assert_allclose(adapted, figures["adapter_output_init"], atol=1e-6)  # float32 there
    np.testing.assert_allclose(start.logits(Q), figures["f64_logits_init"], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(head.logits(Q), figures[f"f64_logits_step10{suffix}"], rtol=1e-10, atol=1e-10)
    # The released code ran in float32, in which its own rounding is 4e-6 in the weights.
    np.testing.assert_allclose(head.down_, figures[f"W1_step10{suffix}"], atol=1e-5)
    np.testing.assert_allclose(head.up_, figures[f"W2_step10{suffix}"], atol=1e-5)
    assert head.loss_ == pytest.approx(figures[f"losses{suffix}"][-1], abs=2e-6)


def held_out_rows(y, text):
    return hold_out_one_per_class(torch.tensor([text.labels.index(name) for name in y]))[1].numpy()


def test_at_one_shot_the_ratio_and_the_adapter_are_those_of_clip_adapter():
    # No class can spare a shot, so both train on all of them.
    X, y, text = toy_features((1, 1, 1), noise=3.0)
    fitted, plain = (head.fit(X, y, text=text) for head in (Hoso(), ClipAdapter()))
    assert fitted.alpha_ == plain.alpha_
    np.testing.assert_array_equal(fitted.logits(X), plain.logits(X))  # the same sums in the same order


def test_the_adapter_never_sees_a_held_out_shot():
    X, y, text = toy_features()
    held = held_out_rows(y, text)
    changed = X.copy()
    changed[held] = np.random.default_rng(0).standard_normal((len(held), X.shape[1]))
    first, second = (Hoso(steps=20).fit(data, y, text=text) for data in (X, changed))
    np.testing.assert_array_equal(first.down_, second.down_)  # the same sums in the same order
    np.testing.assert_array_equal(first.up_, second.up_)  # the same sums in the same order
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
