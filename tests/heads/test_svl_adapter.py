"""SVL-Adapter against its formulas: the network and Adam in plain numpy, the blend by hand."""

import math

import numpy as np
import pytest
import torch

from clipadapter.heads import TextFeatures
from clipadapter.heads.svl_adapter import SvlAdapter, star_blend

from .formulas import softmax, unit
from .golden_figures import doubles, golden

D, SECOND, HIDDEN, C, SCALE = 5, 7, 4, 3, 30.0
NAMES = ["a", "b", "c"]


def blocks(X, text):
    """The first encoder's feature is as wide as class text."""
    width, total = text.embeddings.shape[1], np.shape(X)[-1]
    return [("final", width), ("second/final", total - width)] if total > width else None


@pytest.fixture
def case():
    rng = np.random.default_rng(6)
    shapes = [(HIDDEN, SECOND), (HIDDEN,), (C, HIDDEN), (C,)]
    return {
        "X": np.hstack([10 * rng.standard_normal((9, D)), rng.uniform(0, 2, (9, SECOND))]),
        "y": np.array(NAMES * 3),
        "text": TextFeatures(NAMES, rng.standard_normal((C, D)), SCALE),
        "weights": [rng.uniform(-0.5, 0.5, shape) for shape in shapes],
    }


def started(head, case):
    """The head with given start weights instead of drawn ones."""
    head._initial = lambda *_: [torch.tensor(weight) for weight in case["weights"]]
    return head


def test_auto_blend_is_what_zero_shot_is_not_sure_of_on_the_shots(case):
    head = SvlAdapter(epochs=1).fit(case["X"], case["y"], text=case["text"], blocks=blocks(case["X"], case["text"]))
    sure = softmax(SCALE * unit(case["X"][:, :D]) @ case["text"].embeddings.T).max(axis=1).mean()
    assert head.blend_ == pytest.approx(1 - sure, rel=1e-9)


def test_without_a_second_encoder_the_network_reads_the_first_and_no_length_of_features_matters(case):
    first = case["X"][:, :D]
    alone, both, longer = (
        SvlAdapter(epochs=5).fit(X, case["y"], text=case["text"], blocks=blocks(X, case["text"])).logits(X)
        for X in (first, np.hstack([first, first]), np.hstack([0.01 * first, 100 * first]))
    )
    np.testing.assert_allclose(alone, both, rtol=1e-9)
    np.testing.assert_allclose(longer, both, atol=1e-7)


def test_a_class_without_shots_is_as_likely_to_the_network_as_the_mean_of_the_others(case):
    kept = case["y"] != "c"
    X, y, text = case["X"][kept], case["y"][kept], case["text"]
    network, blended = (SvlAdapter(blend=b, epochs=5).fit(X, y, text=text, blocks=blocks(X, text)) for b in (1, 0.5))
    odds = np.exp(network.logits(case["X"]))
    np.testing.assert_allclose(odds[:, 2], odds[:, :2].mean(axis=1), rtol=1e-9)
    assert blended.predict(np.hstack([text.embeddings[2:], X[:1, D:]])) == ["c"]


def test_start_is_torchs_default_for_linear_layers():
    head = SvlAdapter(hidden=100)
    for weight, fan_in in zip(head._initial(64, 3, torch.float32), (64, 64, 100, 100), strict=True):
        assert weight.abs().max() <= 1 / math.sqrt(fan_in)
    assert head._initial(64, 3, torch.float32)[0].std() == pytest.approx(1 / math.sqrt(3 * 64), rel=0.05)


def test_official_keeps_the_last_batch_of_an_epoch_as_a_data_loader_does():
    official, own = (head._train_config(torch.arange(33)) for head in (SvlAdapter.official(), SvlAdapter()))
    assert (official.optimizer, official.schedule, official.lr) == ("adam", "constant", 1e-3)
    assert (official.count_steps(33), own.count_steps(33)) == (50 * 2, 50 * 1)


@pytest.fixture
def released():
    """Figures of the released code, both encoders' features by part, and the literal head after some of its steps."""
    figures, parameters = golden("svl_adapter")
    parts = {
        part: np.hstack(doubles(figures, f"clip_{part}_features", f"ssl_{part}_features"))
        for part in ("support", "val", "query")
    }
    text = TextFeatures([str(k) for k in range(parameters["K"])], *doubles(figures, "text_unit"))
    start = {"weights": doubles(figures, "w1", "b1", "w2", "b2")}

    def trained(epochs, blend):
        head = SvlAdapter.official(blend=float(blend), hidden=parameters["hidden"], epochs=epochs)
        assert head.lr == parameters["lr"]
        assert head.batch_size > len(parts["support"])
        return started(head, start).fit(
            parts["support"], figures["support_labels"].astype(str), text=text, blocks=blocks(parts["support"], text)
        )

    return figures, parts, trained


@pytest.mark.parametrize(("epochs", "run"), [(0, "given"), (20, "trained20")])
def test_released_code_gives_the_same_network_and_blend_by_the_test_pictures(released, epochs, run):
    """It ran in float32, in which its own rounding is 5e-7 in the network and 1e-4 in the blended logits."""
    figures, parts, trained = released
    found = trained(epochs, 1.0).logits(parts["query"])
    np.testing.assert_allclose(found, figures[f"adapter_logits_{run}"], atol=2e-6)
    features, text = (torch.from_numpy(x) for x in doubles(figures, "clip_query_features", "text_unit"))
    for raw, name in ((True, "quirk"), (False, "norm")):
        blend = star_blend(features, text, 100.0, raw)
        np.testing.assert_allclose(blend, figures[f"lambda_star_{name}"], atol=2e-6)
        found = trained(epochs, blend).logits(parts["query"])
        np.testing.assert_allclose(found, figures[f"fused_star_{name}_{run}"], atol=3e-4)
