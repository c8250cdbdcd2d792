"""ProKeR against its formula in numpy, and its closed-form answers against refits."""

import numpy as np
import pytest

from clipadapter.errors import InputError
from clipadapter.heads import TextFeatures, proker
from clipadapter.heads.proker import Proker

from .formulas import unit
from .golden_figures import golden
from .small_shots import released_shots


def drawn(counts=(4, 4, 4, 4, 4), d=32, views=10, seed=3):
    """Raw views (n, v, d), labels, text and queries of classes that share a direction, as CLIP's features do."""
    rng = np.random.default_rng(seed)
    c = len(counts)
    means = 2 * rng.standard_normal(d) + rng.standard_normal((c, d))
    positions = np.repeat(np.arange(c), counts)
    names = [f"class {i}" for i in range(c)]
    images = means[positions] + 0.5 * rng.standard_normal((len(positions), d))
    X = images[:, None] + 0.2 * rng.standard_normal((len(positions), views, d))
    text = TextFeatures(names, means + 2 * rng.standard_normal((c, d)), logit_scale=50.0)
    return X, np.array(names)[positions], text, means[rng.integers(c, size=30)] + 0.5 * rng.standard_normal((30, d))


def test_default_scales_text_by_the_encoder_and_the_regression_by_its_height():
    X, y, text, Q = drawn(views=1)
    cosines = unit(Q) @ text.embeddings.T.astype(float)
    regression = (Proker.official().fit(X, y, text=text).logits(Q) - cosines) / 0.05
    expected = 50.0 * cosines + 7.0 * regression
    np.testing.assert_allclose(Proker(height=7.0).fit(X, y, text=text).logits(Q), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("counts", "beta", "lam"),
    [((1, 1), 3.0, 0.05), ((4, 4), 1.5, 0.05), ((16, 16), 1.7, 0.1), ((30, 30), 1.7, 0.1), ((1, 0), 3.0, 0.05)],
)
def test_published_values_by_shots_are_interpolated_over_log2_of_their_mean(counts, beta, lam):
    X, y, text, Q = drawn(counts, views=1)
    by_itself, given_ = (Proker.official(**kw).fit(X, y, text=text) for kw in ({}, {"beta": beta, "lam": lam}))
    np.testing.assert_allclose(by_itself.logits(Q), given_.logits(Q), rtol=1e-12)
    X, y, text, _ = drawn((1, 5), views=1)  # 3 shots a class lie log2(3) - 1 of the way from 2 (2.6) to 4 (1.5)
    assert Proker().fit(X, y, text=text).beta_ == pytest.approx(2.6 - 1.1 * (np.log2(3) - 1))


def test_averaged_views_are_one_row_a_shot():
    X, y, text, Q = drawn()
    mean = unit(X).mean(axis=1)[:, None]
    averaged = Proker(views="average").fit(X, y, text=text).logits(Q)
    np.testing.assert_allclose(averaged, Proker(views="plain").fit(mean, y, text=text).logits(Q), rtol=1e-6)


def test_many_rows_are_solved_in_single_precision_and_more_than_can_be_factorised_are_refused(monkeypatch):
    X, y, text, Q = drawn((4, 3, 2), views=3)
    exact = Proker().fit(X, y, text=text).logits(Q)
    monkeypatch.setattr(proker, "MAX_FLOAT64_ROWS", 10)
    np.testing.assert_allclose(Proker().fit(X.astype(np.float32), y, text=text).logits(Q), exact, rtol=1e-3)
    monkeypatch.setattr(proker, "MAX_ROWS", 26)
    with pytest.raises(InputError, match="9 shots with their views are 27 rows"):
        Proker().fit(X, y, text=text)
    Proker(views="average").fit(X, y, text=text)


@pytest.mark.parametrize("shots", ["1", "4", "16"])
@pytest.mark.parametrize("method", ["proker", "bireg"])
def test_released_code_gives_the_same_logits(method, shots):
    figures, X, y, text, Q = released_shots(method)
    table = golden(method)[1]["table"][shots]
    head = Proker.official(beta=table["beta"], lam=table["lmbda"], text_ridge=table.get("gamma"))
    found = head.fit(X, y, text=text).logits(Q)
    np.testing.assert_allclose(found, figures[f"f64_logits_table{shots}"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("views", "name"), [(10, "table4"), (1, "table4_view0")])
@pytest.mark.parametrize(("method", "gamma"), [("proker", None), ("bireg", 0.1)])
def test_released_code_takes_the_same_values_at_four_shots(method, gamma, views, name):
    figures, X, y, text, Q = released_shots(method)
    found = Proker.official(text_ridge=gamma).fit(X[:, :views], y, text=text).logits(Q)
    np.testing.assert_allclose(found, figures[f"f64_logits_{name}"], rtol=1e-9, atol=1e-12)
