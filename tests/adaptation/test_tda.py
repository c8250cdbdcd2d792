"""TDA gives what the authors' code gave, and takes bounded memory."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from clipadapter.adaptation import TdaCache, TdaSettings
from clipadapter.errors import InputError, UnknownNameError
from clipadapter.uncertainty import Uncertainty

GOLDEN = load_file(Path(__file__).parent / "golden" / "tda.safetensors")
OFFICIAL = TdaSettings.official()
RUNS = {
    "both": OFFICIAL,
    "pos": replace(OFFICIAL, negative_size=0),
    "neg": replace(OFFICIAL, positive_size=0, negative_alpha=3.0),
}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def clip_logits(features):
    return 100 * unit(features) @ GOLDEN["text_unit"].astype(features.dtype).T


def toy(n=60, c=4, d=8, seed=0):
    """Features and log-probabilities of a stream, some of which are nearly certain and some are not."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((c, d))
    x = means[rng.integers(c, size=n)] + rng.standard_normal((n, d))
    z = 2 * unit(x) @ unit(means).T * rng.uniform(0.5, 4, (n, 1))
    return x, z - np.log(np.exp(z).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("run", RUNS)
def test_logits_of_the_authors_code(run):
    x = GOLDEN["stream_raw"].astype(np.float64)
    adapted = TdaCache(6, RUNS[run]).adapt(x, clip_logits(x))
    np.testing.assert_allclose(adapted, GOLDEN[f"f64_logits_{run}"], rtol=1e-9)
    if run == "both":
        x = GOLDEN["stream_raw"]
        np.testing.assert_allclose(TdaCache(6, OFFICIAL).adapt(x, clip_logits(x)), GOLDEN["logits_both"], atol=2e-4)


def test_views_of_the_authors_code():
    settings = replace(OFFICIAL, entropy_range=(0.05, 0.6))
    for prefix, dtype, tolerance in (("f64_", np.float64, 3.7e-8), ("", np.float32, 7.6e-5)):
        x = GOLDEN["views_raw"].astype(dtype)
        adapted = TdaCache(6, settings).adapt(x, clip_logits(x))
        np.testing.assert_allclose(adapted, GOLDEN[f"{prefix}logits_views"], rtol=1e-9, atol=tolerance)


def test_parts_of_a_stream_are_answered_as_the_whole():
    x, z = toy()
    cache = TdaCache(4)
    parts = [cache.adapt(x[rows], z[rows]) for rows in (slice(0, 7), slice(7, 7), slice(7, 60))]
    np.testing.assert_allclose(np.concatenate(parts), TdaCache(4).adapt(x, z), rtol=1e-12)


def test_a_picture_is_answered_before_it_is_stored_and_stored_once_if_it_comes_again():
    x, z = np.ones((4, 3)), np.log(np.tile([0.85, 0.15], (4, 1)))
    expected = z + np.array([0, 0.5, 0.5, 0.5])[:, None] * [1, 0] - np.array([0, 0.117, 0.117, 0.117])[:, None]
    cache = TdaCache(2)
    np.testing.assert_allclose(cache.adapt(x, z), expected)
    assert len(cache) == 2  # it is certain enough for one cache and uncertain enough for the other
    copies = TdaCache(2, TdaSettings(keeps_copies=True))
    np.testing.assert_allclose(copies.adapt(x, z)[3] - z[3], [3 * 0.5 - 2 * 0.117, -2 * 0.117])


def test_threads_share_a_cache():
    x, z = toy(n=200)
    cache = TdaCache(4)
    threads = [threading.Thread(target=cache.adapt, args=(x[i::4], z[i::4])) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    # Whatever the order, the positive cache has the three lowest entropies of each pseudo-label.
    h = -(np.exp(z) * z).sum(axis=1)
    for k in range(4):
        np.testing.assert_allclose(cache._caches[0]._entropies[k], np.sort(h[z.argmax(axis=1) == k])[:3])


def test_memory_grows_with_the_number_of_classes_not_its_square():
    for c, low, positions in ((2_000, 0.03, 33), (100, 0.0, 100)):  # 34 of 0.03 are more than 1
        cache = TdaCache(c, TdaSettings(probability_range=(low, 1.0)))
        cache.adapt(np.ones((1, 8), np.float32), np.zeros((1, c)))
        # 5 features and entropies of an item per class, and the positions of each of 2 items.
        size = sum(array.nbytes for items in cache._caches for array in vars(items).values())
        assert size == c * (5 * (4 * 8 + 8) + 2 * 4 * positions)


@pytest.mark.parametrize("low", [0.0, 0.03, 0.1, 1 / 49])
def test_an_item_speaks_against_every_class_within_the_bounds(low):
    c = 50
    for n_likely in (2, 9, 10, 33, 49):
        p = np.full(c, 1e-6)
        p[:n_likely] = (1 - 1e-6 * (c - n_likely)) / n_likely
        settings = TdaSettings(positive_alpha=0.0, entropy_range=(0.0, 1.0), probability_range=(low, 1.0))
        cache = TdaCache(c, settings)
        x = np.eye(1, 8)
        cache.adapt(x, np.log(p)[None])
        against = (low < p) & (p < 1)
        np.testing.assert_allclose(cache.adapt(x, np.zeros((1, c)))[0], -settings.negative_alpha * against, atol=1e-12)


def test_a_picture_without_a_direction_gives_finite_logits_and_other_shapes_are_refused():
    x, z = toy(n=4)
    cache = TdaCache(4)
    assert np.isfinite(cache.adapt(np.zeros_like(x), z)).all()
    for features, logits in ((x[:, :5], z), (x[:2], z), (x, z[:, :3])):
        with pytest.raises(InputError):
            cache.adapt(features, logits)
    with pytest.raises(InputError, match="2 classes or more"):
        TdaCache(1)


def test_a_wrong_name_is_refused():
    with pytest.raises(UnknownNameError, match="tad"):
        Uncertainty().open_cache("tad", 3)
    cache = TdaCache(3)
    assert Uncertainty().open_cache(cache, 3) is cache
