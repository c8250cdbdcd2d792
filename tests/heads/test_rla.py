"""RLA against its loss, gradient and Adam written out in numpy."""

import numpy as np
import pytest

from clipadapter.heads import TextFeatures
from clipadapter.heads.rla import Rla
from clipadapter.testing import toy_features

from .assertions import assert_refused, assert_uses_views, assert_zero_shot
from .formulas import AdamW, cosine_rate, softmax, unit
from .golden_figures import doubles, golden
from .small_shots import SCALE, fit_unequal_shots, unequal_shots

D = 6


@pytest.fixture
def case():
    """Three views of six pictures; the third class has none."""
    X, target, text = unequal_shots(seed=6, noise=0.3, d=D)
    return np.stack([X, X + 0.3, X * [1, 1, 1, 1, 1, 0.5]], axis=1), target, text


def adapted(X, M):
    """Row by row, so that the side from which M multiplies can't be mistaken."""
    return np.array([unit(M @ x) for x in X])


def loss_by_hand(X, target, text, M, penalty):
    z = SCALE * adapted(X, M) @ text.T
    top = z.max(axis=1)
    likelihood = z[np.arange(len(X)), target] - top - np.log(np.exp(z - top[:, None]).sum(axis=1))
    return -likelihood.mean() + penalty * ((M - np.eye(len(M))) ** 2).sum()


def gradient_by_hand(X, target, text, M, penalty):
    gradient = 2 * penalty * (M - np.eye(len(M)))
    for x, t in zip(unit(X), target, strict=True):
        g = M @ x
        h = unit(g)
        p = softmax(SCALE * text @ h)
        p[t] -= 1
        toward = SCALE * text.T @ p / len(X)
        gradient = gradient + np.outer(toward - (toward @ h) * h, x) / np.linalg.norm(g)
    return gradient


def rla_by_hand(views, target, text, penalty, steps, cosine, lr=1e-3):
    """Adam with epsilon 1e-4; views 1, 2 and 0 in turn."""
    M, optimizer = np.eye(D), AdamW(eps=1e-4)
    for step in range(steps):
        gradient = gradient_by_hand(views[:, (step + 1) % views.shape[1]], target, text, M, penalty)
        M = optimizer.step(M, gradient, cosine_rate(lr, step, steps) if cosine else lr)
    return M


def fit(head, case, views=3):
    X, target, text = case
    return fit_unequal_shots(head, (X[:, :views], target, text))


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_official_steps_are_the_published_recipe(case, schedule, views):
    X, target, text = case
    fitted = fit(Rla.official(steps=20, schedule=schedule), case, views)
    # Six shots of three classes that have any: two a class.
    M = rla_by_hand(X[:, :views], target, text, 1 / 2, 20, schedule == "cosine")
    np.testing.assert_allclose(fitted.shift_.numpy(), M - np.eye(D), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fitted.logits(X[:, 0]), SCALE * adapted(X[:, 0], M) @ text.T, rtol=1e-9, atol=1e-9)


def test_the_gradient_written_out_here_is_that_of_the_loss(case):
    X, target, text = case
    M = np.eye(D) + 0.1 * np.random.default_rng(0).standard_normal((D, D))
    expected = np.zeros_like(M)
    for i in np.ndindex(D, D):
        h = np.zeros_like(M)
        h[i] = 1e-6
        above, below = (loss_by_hand(X[:, 0], target, text, M + sign * h, 0.3) for sign in (1, -1))
        expected[i] = (above - below) / 2e-6
    np.testing.assert_allclose(gradient_by_hand(X[:, 0], target, text, M, 0.3), expected, atol=1e-6)


def test_the_last_loss_is_that_of_the_last_step(case):
    X, target, text = case
    fitted = fit(Rla.official(steps=2, schedule="constant"), case, views=1)
    M = rla_by_hand(X[:, :1], target, text, 1 / 2, 1, cosine=False)
    assert fitted.loss_ == pytest.approx(loss_by_hand(X[:, 0], target, text, M, 1 / 2), rel=1e-9)


@pytest.mark.parametrize(("penalty", "expected"), [("1/n", 1 / 2), ("auto", 0.4**2 / 2), (0.7, 0.7)])
def test_the_penalty_is_one_over_shots_a_class(case, penalty, expected):
    assert fit(Rla(penalty=penalty, steps=1), case).penalty_ == pytest.approx(expected)


def test_a_strong_penalty_is_zero_shot():
    assert_zero_shot(Rla(penalty=1e5), atol=0.05)


def test_pictures_of_zeros_are_no_trap():
    _, y, text = toy_features()
    assert np.isfinite(Rla(steps=5).fit(np.zeros((12, 16)), y, text=text).logits(np.ones((1, 16)))).all()


def test_steps_are_bounded_whatever_the_number_of_shots(monkeypatch):
    X, y, text = toy_features((40, 40, 40))
    seen = []

    def counted(parameters, loss, n, n_views, config, **options):
        seen.append(config.count_epochs(n))
        return 0.0

    monkeypatch.setattr("clipadapter.heads.trained_head.train", counted)
    for batch_size, epochs in ((None, 150), (256, 150), (16, 22)):  # 22 passes of 7 steps are the first over 150
        Rla(batch_size=batch_size).fit(X, y, text=text)
        assert seen[-1] == epochs
    Rla.official().fit(X, y, text=text)
    assert seen[-1] == 300  # full batches, as the authors published


def test_views_are_drawn():
    assert_uses_views(Rla(steps=20))


@pytest.mark.parametrize("penalty", ["2/n", -1.0])
def test_bad_penalty_is_named(penalty):
    assert_refused(Rla(penalty=penalty), "penalty must be 'auto', '1/n' or a number from 0")


def test_bad_batch_size_is_named():
    assert_refused(Rla(batch_size=0), "batch_size must be positive")


@pytest.mark.parametrize(("schedule", "views"), [("cosine", 1), ("cosine", 3), ("constant", 1)])
def test_released_code_gives_the_same_map_loss_and_logits(schedule, views):
    figures, parameters = golden("prolip_rla")
    pre, Q, proj, T = doubles(figures, "pre_views", "query_pre", "proj", "text_unit")
    X, y = (pre[:views] @ proj).swapaxes(0, 1), figures["labels"].astype(str)
    text = TextFeatures([str(k) for k in range(len(T))], T, parameters["scale"])
    head = Rla.official(steps=parameters["steps"], schedule=schedule).fit(X, y, text=text)
    run = f"rla_vit_views{views}_{'cos' if schedule == 'cosine' else 'const'}"
    assert head.penalty_ == parameters["lambda"]
    # The released code ran in float32, in which its own rounding is 1e-6 in the map and 3e-5 in the logits.
    np.testing.assert_allclose(head.shift_.numpy() + np.eye(proj.shape[1]), figures[f"weight20_{run}"], atol=3e-6)
    assert head.loss_ == pytest.approx(figures[f"loss20_{run}"].item(), rel=3e-6)
    np.testing.assert_allclose(head.logits(Q @ proj), figures[f"logits20_{run}"], atol=1e-4)
