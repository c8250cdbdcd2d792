"""TDA: a cache of confident and of uncertain pictures of the stream changes the answers to later ones.

Paper: Karmanov et al., CVPR 2024, https://arxiv.org/abs/2403.18293, equations 3 to 8. Code: kdiAAA/TDA (MIT).

A picture has a unit feature f, logits l, probabilities p = softmax(l), entropy h of p in nats and a pseudo-label, the
class of the largest logit. The positive cache holds, for each pseudo-label, the features of lowest entropy. The
negative cache does the same for pictures of middling entropy, each with the classes that it hardly excludes. Then

    logits = l + sum over positive items of alpha exp(-beta (1 - f . key)) onehot(pseudo-label)
               - sum over negative items of alpha' exp(-beta' (1 - f . key)) [low < p of the item < high]

As in the code: the bounds of the entropy are compared with h / log2(c), at most ln 2; a picture enters the cache
before its own answer is made, and so votes for its own pseudo-label; terms are sums, not means.

For any head, l are its calibrated log-probabilities, so that entropies are those of honest probabilities and the
weights are in nats. Three settings differ from the code's then; the first two were chosen on development sets. A
picture is answered before it enters the cache: its vote for its own pseudo-label changes no class and makes it
overconfident. The positive weight is 0.5 in place of 2, since the probabilities of a fitted head need less correction
than those of class text. A picture that comes again is not stored again, so that one that is sent every minute, to
see whether a server answers, does not fill the cache of its class. `TdaSettings.official` are the authors' settings
for ImageNet; those of other data sets were set on their test parts.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.utils.prediction import softmax

Array = NDArray[Any]
SAME_FEATURE = 1e-5
"""Largest difference of a column between unit features of the same picture: batches of other sizes round otherwise."""
ROUNDING = 1e-6  # largest amount by which a sum of probabilities may differ from one


@dataclass(frozen=True)
class TdaSettings:
    """Settings of `TdaCache`; the defaults are for calibrated log-probabilities of any head.

    Args:
        positive_size: items of each class in the positive cache.
        positive_alpha: weight of the positive term, in units of the logits.
        positive_beta: how fast an item's weight falls with the distance of its feature.
        negative_size: items of each class in the negative cache.
        negative_alpha: weight of the negative term, in units of the logits.
        negative_beta: as ``positive_beta``.
        entropy_range: a picture enters the negative cache if its entropy over log2(c) is between these.
        probability_range: an item of the negative cache speaks against the classes whose probability is between these.
        counts_itself: whether a picture enters the cache before its own answer is made, as in the authors' code.
        keeps_copies: whether a cache may have the same feature several times in a class, as in the authors' code.
        view_share: share of the views of a picture that are used, those of lowest entropy.
    """

    positive_size: int = 3
    positive_alpha: float = 0.5
    positive_beta: float = 5.0
    negative_size: int = 2
    negative_alpha: float = 0.117
    negative_beta: float = 1.0
    entropy_range: tuple[float, float] = (0.2, 0.5)
    probability_range: tuple[float, float] = (0.03, 1.0)
    counts_itself: bool = False
    keeps_copies: bool = False
    view_share: float = 0.1

    @classmethod
    def official(cls) -> Self:
        """The authors' settings for ImageNet, for logits 100 cos(f, text of the class)."""
        return cls(positive_alpha=2.0, counts_itself=True, keeps_copies=True)


class TdaCache:
    """The state of TDA for one stream of pictures. Its methods may be called from several threads.

    The answers depend on the order of the pictures, and on nothing else: there is no randomness.

    Args:
        n_classes: c.
        settings: capacities, weights and bounds.

    >>> cache = TdaCache(2)
    >>> features = np.array([[1.0, 0.0], [1.0, 0.0]])
    >>> cache.adapt(features, np.array([[4.0, 0.0], [0.0, 0.1]])).round(2)
    array([[4. , 0. ],
           [0.5, 0.1]])
    >>> len(cache)
    2
    """

    def __init__(self, n_classes: int, settings: TdaSettings | None = None) -> None:
        if n_classes < 2:
            raise InputError(f"a cache needs 2 classes or more, but got {n_classes}")
        self.n_classes, self.settings = n_classes, settings or TdaSettings()
        self._lock = threading.Lock()
        self._caches: tuple[_Items, ...] = ()  # the positive and the negative one, made for the first picture

    def __len__(self) -> int:
        """Number of items in both caches."""
        return sum(int(items.used.sum()) for items in self._caches)

    def adapt(self, features: Array, logits: Array) -> Array:
        """Change the logits of pictures, one after the other, and remember the pictures.

        Args:
            features: (n, d) of any length, in the order of the stream; or (n, v, d) of v views of each picture, of
                which the most confident ones are used.
            logits: (n, c) whose softmax is a probability; or (n, v, c) of the views.

        Returns:
            (n, c) in float64, one row for each picture.

        Raises:
            InputError: if the shapes don't fit each other or the earlier pictures.
        """
        z, f = np.asarray(logits, np.float64), np.asarray(features)
        if z.ndim == 2:
            z, f = z[:, None], f[:, None]
        n, v, c = z.shape
        if f.shape[:-1] != (n, v) or c != self.n_classes:
            raise InputError(
                f"this cache is for {self.n_classes} classes and takes features of the same views as the logits, but "
                f"the features are {f.shape} and the logits {z.shape}"
            )
        f = f if f.dtype in (np.float32, np.float64) else f.astype(np.float32)
        # A picture without a direction is as far from all keys as one at a right angle.
        f = f / np.maximum(np.linalg.norm(f, axis=-1, keepdims=True), np.finfo(f.dtype).tiny)
        p = softmax(z.reshape(n * v, c)).reshape(n, v, c)
        best = np.argsort(entropy(p), axis=1, kind="stable")[:, : max(1, int(self.settings.view_share * v))]
        rows = np.arange(n)[:, None]
        # The mean of unit features is not made a unit feature again, as in the authors' code.
        f, z, p = (values[rows, best].mean(axis=1) for values in (f, z, p))
        adapted, entropies = np.empty_like(z), entropy(p)
        with self._lock:
            if n and not self._caches:
                self._caches = self._make_caches(f.shape[1], f.dtype)
            if self._caches and f.shape[1] != (width := self._caches[0].keys.shape[2]):
                raise InputError(f"this cache has features of {width} columns, but got {f.shape[1]}")
            for i in range(n):
                if self.settings.counts_itself:
                    self._remember(f[i], p[i], float(entropies[i]), int(z[i].argmax()))
                adapted[i] = z[i] + self._terms(f[i])
                if not self.settings.counts_itself:
                    self._remember(f[i], p[i], float(entropies[i]), int(z[i].argmax()))
        return adapted

    def _make_caches(self, width: int, dtype: Any) -> tuple[_Items, _Items]:
        s, c, low = self.settings, self.n_classes, self.settings.probability_range[0]
        # Probabilities sum to one, so that few classes can have one above the lower bound.
        max_excluded = c if low * c <= 1 else int((1 + ROUNDING) / low)
        return _Items(c, s.positive_size, width, 0, dtype), _Items(c, s.negative_size, width, max_excluded, dtype)

    def _remember(self, feature: Array, probabilities: Array, own_entropy: float, pseudo_label: int) -> None:
        """Put a picture into the caches that take it."""
        s, (positive, negative) = self.settings, self._caches
        low, high = s.probability_range
        if s.keeps_copies or not positive.has(pseudo_label, feature):
            positive.add(pseudo_label, own_entropy, feature)
        # Nats over a logarithm of base 2, as in the authors' code: the largest value is ln 2.
        is_uncertain = s.entropy_range[0] < own_entropy / np.log2(self.n_classes) < s.entropy_range[1]
        if is_uncertain and (s.keeps_copies or not negative.has(pseudo_label, feature)):
            against = np.flatnonzero((low < probabilities) & (probabilities < high))
            negative.add(pseudo_label, own_entropy, feature, against)

    def _terms(self, feature: Array) -> Array:
        """What both caches add to the logits of a picture (c,)."""
        s, (positive, negative) = self.settings, self._caches
        gain = s.positive_alpha * positive.affinities(feature, s.positive_beta).sum(axis=1)
        loss = s.negative_alpha * negative.sums_against(negative.affinities(feature, s.negative_beta))
        return np.asarray(gain - loss, np.float64)


class _Items:
    """The items of one cache: for each class a few features, those of lowest entropy."""

    def __init__(self, n_classes: int, size: int, width: int, max_excluded: int, dtype: Any) -> None:
        self.keys = np.zeros((n_classes, size, width), dtype)
        # Positions, not masks of all classes, whose size would grow with the square of their number. c means no class.
        self._against = np.full((n_classes, size, max_excluded), n_classes, np.int32)
        self._entropies = np.full((n_classes, size), np.inf)  # ascending; infinite where there is no item

    @property
    def used(self) -> NDArray[np.bool_]:
        """(c, s), whether there is an item."""
        return np.isfinite(self._entropies)

    def add(self, k: int, own_entropy: float, key: Array, against: Sequence[int] | Array = ()) -> None:
        """Add an item to class k; the last one leaves. Refused if its entropy is not below that of the last one."""
        positions = np.full(self._against.shape[2], len(self.keys), np.int32)
        positions[: len(against)] = against
        place = int(np.searchsorted(self._entropies[k], own_entropy, side="right"))
        for array, value in ((self._entropies, own_entropy), (self.keys, key), (self._against, positions)):
            row = array[k]
            if place < len(row):
                row[place + 1 :] = row[place:-1].copy()
                row[place] = value

    def has(self, k: int, key: Array) -> bool:
        """Whether class k has an item with this feature."""
        return bool((self.used[k] & (np.abs(self.keys[k] - key).max(axis=1) < SAME_FEATURE)).any())

    def affinities(self, feature: Array, beta: float) -> Array:
        """(c, s) weights of the items for a picture; 0 where there is no item."""
        return np.asarray(np.exp(-beta * (1 - self.keys @ feature)) * self.used)

    def sums_against(self, weights: Array) -> Array:
        """(c,) for each class the sum of the weights (c, s) of the items that speak against it, in float64."""
        c = len(self.keys)
        repeated = np.repeat(weights.ravel(), self._against.shape[2])
        return np.bincount(self._against.ravel(), repeated, minlength=c + 1)[:c]


def entropy(probabilities: Array) -> Array:
    """Entropy in nats of probabilities (..., c)."""
    p = np.asarray(probabilities, np.float64)
    return -(p * np.log(np.maximum(p, np.finfo(np.float64).tiny))).sum(axis=-1)
