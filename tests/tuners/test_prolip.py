"""ProLIP against its loss with the whole projection as parameter, and against the authors' code."""

import numpy as np
import pytest

from clipadapter.errors import InputError
from clipadapter.heads import TextFeatures
from clipadapter.heads.rla import Rla
from clipadapter.heads.svl_adapter import SvlAdapter
from clipadapter.heads.zero_shot import ZeroShot
from clipadapter.testing import toy_features
from clipadapter.tuners.prolip import ProLip

from ..heads.golden_figures import doubles, golden

SCALE, P, D = 40.0, 9, 6
NAMES = ["ant", "bee", "cow", "dog"]


@pytest.fixture
def case():
    """Views before and after a projection with bias (n, v, D + P), labels, class text; the third class has no shot."""
    rng = np.random.default_rng(6)
    target = np.array([0, 0, 0, 1, 3, 3])
    weight, bias = rng.standard_normal((P, D)) / 3, rng.standard_normal(D) / 10
    before = rng.standard_normal((4, P))[target, None] + 0.5 * rng.standard_normal((6, 3, P))
    text = rng.standard_normal((4, D))
    return np.concatenate([before @ weight + bias, before], axis=2), target, text, weight, bias


def fit(head, case, scale=SCALE):
    X, target, text = case[:3]
    blocks = [("final", text.shape[1]), ("unprojected", X.shape[-1] - text.shape[1])]
    return head.fit(X, np.array(NAMES)[target], text=TextFeatures(NAMES, text, scale), blocks=blocks)


def logits_of(before, text, weight, bias):
    """The paper's formula, by rows."""
    features = np.array([weight.T @ b + bias for b in before])
    cosine = features @ text.T / np.linalg.norm(features, axis=1, keepdims=True) / np.linalg.norm(text, axis=1)
    return SCALE * cosine


@pytest.mark.parametrize("layout", ["vit_views1_cos", "vit_views3_cos", "vit_views1_const", "rn_views1_cos"])
def test_released_code_gives_the_same_projection_loss_and_logits(layout):
    figures, parameters = golden("prolip_rla")
    pre, query, proj, T, rn_bias = doubles(figures, "pre_views", "query_pre", "proj", "text_unit", "rn_bias")
    bias = rn_bias if layout.startswith("rn") else 0
    n_views, schedule = 3 if "views3" in layout else 1, "cosine" if layout.endswith("cos") else "constant"
    X, Q = (np.concatenate([each @ proj + bias, each], axis=-1) for each in (pre[:n_views].swapaxes(0, 1), query))
    text = TextFeatures([str(k) for k in range(len(T))], T, parameters["scale"])
    head = ProLip.official(lr=parameters["lr"], steps=parameters["steps"], schedule=schedule)
    blocks = [("final", T.shape[1]), ("unprojected", X.shape[-1] - T.shape[1])]
    head.fit(X, figures["labels"].astype(str), text=text, blocks=blocks)
    assert head.penalty_ == parameters["lambda"]
    # The released code ran in float32: with the bias its own rounding is 1.5e-6 in the projection.
    np.testing.assert_allclose(proj + head.shift_.numpy().T, figures[f"weight20_prolip_{layout}"], atol=3e-6)
    assert head.loss_ == pytest.approx(figures[f"loss20_prolip_{layout}"].item(), rel=1e-5)
    np.testing.assert_allclose(head.logits(Q), figures[f"logits20_prolip_{layout}"], atol=1e-4)


@pytest.mark.parametrize("head", [ProLip(penalty=1e7), ProLip(lr=1e-30)])
def test_a_projection_that_stays_is_zero_shot(case, head):
    X, _, text, weight, bias = case
    expected = logits_of(X[:, 0, D:], text, weight, bias)
    np.testing.assert_allclose(fit(head, case).logits(X[:, 0]), expected, atol=0.05)


def test_without_features_from_before_it_is_rla():
    X, y, text = toy_features()
    recipe = {"lr": 1e-3, "steps": 30, "seed": 3}
    plain, rla = (head(**recipe).fit(X, y, text=text).logits(X) for head in (ProLip, Rla))
    np.testing.assert_array_equal(plain, rla)  # the same sums in the same order


def test_new_classes_are_answered_through_the_trained_projection(case):
    X, _, _, weight, bias = case
    head = fit(ProLip(steps=30, lr=1e-2), case)
    fresh = np.random.default_rng(9).standard_normal((3, D))
    other = head.for_classes(TextFeatures(["elk", "fox", "gnu"], fresh, SCALE))
    expected = logits_of(X[:, 0, D:], fresh, weight + head.shift_.numpy().T, bias)
    np.testing.assert_allclose(other.logits(X[:, 0]), expected, rtol=1e-9, atol=1e-9)
    assert other.n_features_in_ == head.n_features_in_ == D + P
    assert list(head.classes_) == NAMES


def test_text_as_wide_as_the_rows_and_rows_wider_than_the_text_without_blocks_are_refused(case):
    X, target, text = case[:3]
    head = fit(ProLip(steps=1), case)
    with pytest.raises(InputError, match="class text has width 15, but the head's features have 6"):
        head.for_classes(TextFeatures(["elk", "fox"], np.eye(2, D + P)))
    with pytest.raises(InputError, match=r"width 15 but class text has width 6.*blocks=\[\('final', 6\)"):
        ZeroShot().fit(X, np.array(NAMES)[target], text=TextFeatures(NAMES, text, SCALE))


@pytest.mark.parametrize(
    ("block", "head", "width"),
    [
        ("unprojected", ProLip(), 5),
        ("unprojected", ZeroShot(), 3),
        ("unprojected", SvlAdapter(), 3),
        ("other/final", ProLip(), 3),
        ("other/final", SvlAdapter(), 5),
    ],
)
def test_a_head_reads_the_blocks_that_it_is_made_for(block, head, width):
    blocks = [("final", 3), (block, 2)]
    head.fit(np.ones((4, 5)), ("cat", "dog") * 2, TextFeatures(["cat", "dog"], np.eye(2, 3)), blocks=blocks)
    assert (head.n_features_in_, head.read_width) == (5, width)
