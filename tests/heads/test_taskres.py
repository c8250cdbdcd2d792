"""TaskRes against its formula and its optimizer written out in numpy."""

import numpy as np
import pytest

from clipadapter.errors import InputError
from clipadapter.heads import TextFeatures
from clipadapter.heads.taskres import TaskRes
from clipadapter.testing import toy_features

from .assertions import assert_uses_views
from .formulas import AdamW, softmax, unit
from .golden_figures import doubles, golden
from .small_shots import SCALE, fit_unequal_shots, unequal_shots

LENGTHS = [9.0, 8.0, 11.0, 10.0]


@pytest.fixture
def case():
    return unequal_shots(seed=3, noise=0.3)


def logits_by_hand(X, weight):
    return SCALE * unit(X) @ unit(weight).T


def taskres_by_hand(X, target, text, alpha, steps, lr=2e-3, decay=5e-4):
    """Adam by its definition, L2 decay added to the gradient; the row of the class without shots is held at zero."""
    base = text * np.array(LENGTHS)[:, None]
    x, optimizer = np.zeros_like(base), AdamW()
    f, onehot = unit(X), np.eye(len(base))[target]
    for _ in range(steps):
        weight = base + alpha * x
        norm, direction = np.linalg.norm(weight, axis=1, keepdims=True), unit(weight)
        excess = (softmax(logits_by_hand(X, weight)) - onehot) / len(X)
        cosine = f @ direction.T
        gradient = np.zeros_like(x)
        for k in range(len(base)):
            for i in range(len(X)):
                gradient[k] += excess[i, k] * SCALE * (f[i] - cosine[i, k] * direction[k]) / norm[k]
        gradient = alpha * gradient + decay * x
        gradient[2] = 0
        x = optimizer.step(x, gradient, lr)
    return base + alpha * x


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("decay", [0.0, 5e-4])
def test_ten_steps_are_the_published_recipe(case, alpha, decay):
    X, target, text = case
    recipe = {"text_norm": LENGTHS, "schedule": "constant", "epochs": 10, "logit_adjustment": 0.0, "gce_q": 0.0}
    fitted = fit_unequal_shots(TaskRes(alpha=alpha, weight_decay=decay, **recipe), case)
    weight = taskres_by_hand(X, target, text, alpha, 10, decay=decay)
    np.testing.assert_allclose(fitted.logits(X), logits_by_hand(X, weight), rtol=1e-9, atol=1e-9)
    assert np.abs(fitted.logits(X) - logits_by_hand(X, text)).max() > 0.05


def test_a_class_without_shots_keeps_its_text_and_answers_by_it():
    X, y, text = toy_features((4, 0, 4))
    fitted = TaskRes().fit(X, y, text=text)
    np.testing.assert_allclose(fitted.weight_[1], text.embeddings[1], atol=1e-6)
    assert fitted.predict(text.embeddings).tolist() == ["cat", "dog", "owl"]


def test_half_the_text_length_is_twice_alpha(case):
    short, strong = (
        fit_unequal_shots(TaskRes(alpha=a, text_norm=length), case).logits(case[0])
        for a, length in ((0.5, 5.0), (1.0, 10.0))
    )
    np.testing.assert_allclose(short, strong, rtol=1e-9)


def test_text_norm_auto_is_a_tenth_of_the_scale(case):
    auto, four = (fit_unequal_shots(TaskRes(text_norm=norm), case).logits(case[0]) for norm in ("auto", 4.0))
    np.testing.assert_allclose(auto, four, rtol=1e-12)


def test_views_are_used_in_training():
    assert_uses_views(TaskRes(epochs=20))


@pytest.mark.parametrize(("name", "alpha", "lr"), [("oxford_flowers", 1.0, 2e-3), ("imagenet", 0.5, 2e-4)])
def test_presets_are_the_authors_recipe_with_what_they_changed_for_the_data_set(name, alpha, lr):
    head = TaskRes.preset(name)
    assert (head.alpha, head.lr) == (alpha, lr)
    assert head.get_params() == TaskRes.official(alpha=alpha, lr=lr).get_params()
    assert (head.schedule, head.warmup_epochs, head.batch_size) == ("cosine-epoch", 1, 256)
    assert TaskRes.preset(name, epochs=3).epochs == 3


def test_official_is_adam_by_the_authors_schedule():
    head = TaskRes.official(alpha=1.0)
    assert (head.epochs, head.lr, head.weight_decay, head.optimizer) == ("official", 2e-3, 5e-4, "adam")
    assert (head.schedule, head.warmup_epochs, head.batch_size, head.alpha) == ("cosine-epoch", 1, 256, 1.0)


@pytest.mark.parametrize(("shots", "epochs"), [(1, 100), (2, 100), (4, 100), (8, 200), (16, 200)])
def test_official_epochs_follow_the_shots_as_in_the_authors_scripts(shots, epochs):
    X, y, text = toy_features((shots, 1, 1))
    official, fixed, other = (
        TaskRes.official(epochs=given).fit(X, y, text=text).logits(X) for given in ("official", epochs, 300 - epochs)
    )
    np.testing.assert_array_equal(official, fixed)
    assert (official != other).any()


def test_unknown_epochs_are_named():
    X, y, text = toy_features()
    with pytest.raises(InputError, match="epochs must be a number, None or 'official', but is 'coop'"):
        TaskRes(epochs="coop").fit(X, y, text=text)


@pytest.mark.parametrize(
    ("norm", "words"),
    [
        ("long", "text_norm must be 'auto', a positive number"),
        ([1.0, 2.0], "text_norm has 2 numbers, but there are 3 classes"),
        (0.0, "text_norm must be 'auto', a positive number"),
    ],
)
def test_bad_text_norm_is_named(norm, words):
    X, y, text = toy_features()
    with pytest.raises(InputError, match=words):
        TaskRes(text_norm=norm).fit(X, y, text=text)


def released(**changes):
    """Figures of the released code, its queries, and the literal head fitted to its inputs with its length of text."""
    figures, parameters = golden("taskres")
    X, T, Q = doubles(figures, "support_raw", "text_raw", "query_raw")
    text = TextFeatures([str(k) for k in range(len(T))], T, parameters["logit_scale"])
    # The released schedule is CoOp's; the figures were made at a constant rate.
    head = TaskRes.official(
        **{"schedule": "constant", "warmup_epochs": 0, "text_norm": np.linalg.norm(T, axis=1).tolist(), **changes}
    )
    assert head.lr == parameters["lr"]
    return figures, Q, head.fit(X, figures["support_labels"].astype(str), text=text)


def test_released_code_begins_at_zero_shot():
    figures, Q, head = released(epochs=0)
    np.testing.assert_allclose(head.logits(Q), figures["f64_logits_x0"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize(("decay", "run"), [({}, "wd5e-4"), ({"weight_decay": 0.0}, "wd0")])
def test_released_code_gives_the_same_residual_loss_and_logits_after_ten_steps(alpha, decay, run):
    figures, Q, head = released(alpha=alpha, epochs=10, **decay)
    np.testing.assert_allclose(head.logits(Q), figures[f"f64_logits_step10_alpha{alpha}_{run}"], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(head.residual_, figures[f"residual_step10_alpha{alpha}_{run}"], atol=5e-7)  # float32
    assert head.loss_ == pytest.approx(figures[f"losses_alpha{alpha}_{run}"][-1], abs=5e-6)
