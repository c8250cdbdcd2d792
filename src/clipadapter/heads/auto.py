"""The head that needs no choice: calibrated zero-shot beside what the shots say, mixed by what held-out shots show.

The method is ours. It stands on three observations. Zero-shot has seen none of the shots, so that their likelihood
says honestly how far to trust it. What several simple classifiers say of held-out shots can be mixed by log-loss, as
in stacked generalisation (Wolpert, 1992), and the mixture is hardly ever worse than the best of them. And where no
shot can be held out, the scores that a classifier gives to wrong classes still say how loud its noise is: measured in
that unit, one weight serves all encoders. See docs/architecture.md for how its few numbers came about.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from clipadapter.functional import unit
from clipadapter.heads._auto_several import fit_several
from clipadapter.heads._base import Head, SupportSet
from clipadapter.heads._experts import EXPERTS, MOST_SHOTS, RIDGE, Seen, kernel
from clipadapter.heads._folds import held_out_folds, most_can_be_held_out
from clipadapter.heads._judged import Told
from clipadapter.heads._mixture import NOISE, centre, mixing_weights, noise, trust
from clipadapter.heads._registry import register_head
from clipadapter.heads._regression import affordable
from clipadapter.parallel import limit_threads, parallel_map

TEXT, PROBE, OTHERS = 0.5, 1.0, 0.7
"""What is expected before a shot is held out: the weight of the text beside what the probe begins with, as a share of
its trust; the weight of the probe; that of all other experts, in units of their noise."""
SPREADS = (1.0, 1.0, 0.35)
"""How far held-out shots may take these weights from there, in the same units and order; the last is of one expert."""
NEGLIGIBLE = 0.01
"""Experts of a smaller share of the largest weight are left out."""
REPEATS, ENOUGH = 5, 300
"""Shots are divided into folds up to five times, as long as this many are not held out in all."""
LOUDER = 0.28
"""By how much the logits of a fit to two shots a class are larger than those of fits to one; to four or more than to
three quarters of them, not at all. As seen on development sets."""
FEW = 64
"""By how much a pass over the shots exceeds the typical product of a fold: 100 classes x 4 shots x 512-d are faster one
after the other, 101 x 16 x 1280 side by side."""


@register_head(
    "auto",
    fidelity="own: Zero-shot and classifiers of the shots, mixed by stacked generalisation. No paper has the whole.",
)
class Auto(Head):
    """Text and shots mixed by what held-out shots show; needs no parameter, no validation set, and no class text.

    With several labels a picture it mixes text and ridge regression.

    Args:
        folds: into how many parts the shots are divided, each held out once.
        seed: of the folds.

    >>> from clipadapter.testing import toy_features
    >>> X, y, text = toy_features()
    >>> bool((Auto().fit(X, y, text=text).predict(X) == y).all())
    True
    """

    multilabel = True
    usual_temperatures = (1.8, 1.5, 1.5, 1.3, 1.2)

    def __init__(self, folds: int = 4, seed: int = 0) -> None:
        self.folds = folds
        self.seed = seed

    def _fit(self, shots: SupportSet) -> None:
        self._told: Told | None = None
        if shots.targets is not None:
            self._fit_several(shots)
            return
        x = unit(unit(shots.views).mean(dim=1))  # (n, d)
        counts = shots.counts[shots.labels]
        self.centre_ = (x / counts[:, None]).sum(dim=0) / (1 / counts).sum()
        z = unit(x - self.centre_)
        classes = shots.labels.unique()
        labels = torch.searchsorted(classes, shots.labels)
        self.text_: Tensor | None = None if shots.text is None else _complete(shots.text, z, labels, classes)
        seen = self._seen(x, z, labels, classes)
        weights: dict[str, float] = {}
        units: dict[str, float] = {}
        if len(classes) > 1:
            weights, units = self._weights(seen)
        self.trust_ = weights.pop("text", seen.trust)
        self._mix(seen, weights, units, classes, shots.n_classes)
        if self._told is not None and len(classes) < shots.n_classes:
            self._told = self._for_all(self._told, x, classes)

    def _for_all(self, told: Told, x: Tensor, classes: Tensor) -> Told | None:
        """What was told of the classes with a shot, with the others as their text says."""
        if self.text_ is None:
            return None
        rows = torch.from_numpy(told.rows)
        logits = self.trust_ / self.spread_ * centre(x[rows] @ self.text_.T)
        logits[:, classes] = torch.from_numpy(told.logits).to(logits.dtype)
        return told._replace(logits=logits.numpy())

    def _fit_several(self, shots: SupportSet) -> None:
        mixed = fit_several(shots, self.folds, self.seed)
        self.centre_, self.weight_, self.bias_, self.text_ = mixed.centre, mixed.weight, mixed.bias, mixed.text
        self.trust_, self.spread_ = mixed.trust, mixed.spread
        self.shots_: Tensor | None = None
        self.dual_: Tensor | None = None

    def _seen(self, x: Tensor, z: Tensor, labels: Tensor, classes: Tensor) -> Seen:
        """What experts see; measures the text by the way."""
        # Folds and experts compare the same shots again and again.
        gram = z @ z.T if len(z) <= MOST_SHOTS else None
        if self.text_ is None:
            return Seen(z, labels, len(classes), None, 0.0, gram)
        every = centre(x @ self.text_.T)
        self.spread_ = float(every.std(dim=1).mean()) or 1.0
        counts = torch.bincount(labels)[labels]
        with limit_threads(0):  # small products too
            factor = trust(every / self.spread_, classes[labels], len(labels) / (len(classes) * counts))
        return Seen(z, labels, len(classes), every[:, classes] / self.spread_, factor, gram)

    def _weights(self, seen: Seen) -> tuple[dict[str, float], dict[str, float]]:
        """Weight of the text and of each expert, and the noise of each expert."""
        kept = affordable(seen.labels, seen.z.shape[1], self.seed)
        part = _some_classes(seen, kept)
        splits = held_out_folds(part.labels, self.folds, self.seed)
        if not most_can_be_held_out(part.labels):
            weights = {"text": TEXT * seen.trust, "probe": PROBE, "ridge": OTHERS}
            with limit_threads(seen.work):
                return weights, {"probe": 1.0, "ridge": _unseen_noise(seen)}
        # Few shots are divided more than once, since much hangs on how they fall.
        again = max(1, min(REPEATS, ENOUGH // len(seen.z)))
        for i in range(1, again):
            splits += held_out_folds(part.labels, self.folds, self.seed + i)
        splits = [(_thinned(part.labels, train, rows, self.seed + i), rows) for i, (train, rows) in enumerate(splits)]
        names = [name for name in EXPERTS if name != "kernel-ridge" or len(seen.z) <= MOST_SHOTS]
        logits = _answers(part, splits, names)
        held = torch.cat([rows for _, rows in splits])
        with limit_threads(0):  # small products between lines of Python
            weights, units = _judged(part, held, logits, again)
        if len(kept) == len(seen.z):
            shots = sum(len(train) for train, _ in splits) / len(splits) / part.n_classes
            alone = max(0.0, 3 - 4 * shots * part.n_classes / len(part.z))  # 1 where one of two shots is left
            mixed = _mixed(part, held, logits, weights, units).numpy()
            self._told = Told(mixed, held.numpy(), shots, 1 + LOUDER * alone)
        return weights, units

    def _mix(
        self, seen: Seen, weights: dict[str, float], units: dict[str, float], classes: Tensor, n_classes: int
    ) -> None:
        """Fit the experts that count to all shots, and add them up to one."""
        d = seen.z.shape[1]
        self.weight_, self.bias_ = seen.z.new_zeros(n_classes, d), seen.z.new_zeros(n_classes)
        self.shots_ = self.dual_ = None
        most = max(weights.values(), default=0.0)
        weights = {name: weight for name, weight in weights.items() if weight > NEGLIGIBLE * most}
        experts = parallel_map([partial(EXPERTS[name], seen) for name in weights], work=seen.work // FEW)
        for (name, weight), fitted in zip(weights.items(), experts, strict=True):
            expert, factor = fitted.centred(), weight / units[name]
            self.weight_[classes] += factor * expert.weight
            self.bias_[classes] += factor * expert.bias
            self.trust_ += factor * expert.text
            if expert.dual is not None:
                self.shots_, self.dual_ = expert.shots, seen.z.new_zeros(len(seen.z), n_classes)
                self.dual_[:, classes] = factor * expert.dual
        if self.text_ is None:
            self.bias_[torch.bincount(classes, minlength=n_classes) == 0] = -1e4

    def _text_logits(self, X: Tensor) -> Tensor:
        text = getattr(self, "text_", None)
        if text is None:
            return X.new_zeros(len(X), len(self.weight_))
        return self._zero_shot(unit(X), text)

    def _zero_shot(self, x: Tensor, text: Tensor) -> Tensor:
        """(m, c) what text says of unit features, as much as it is trusted."""
        found = x @ text.to(x.dtype).T
        # Of one label only the differences between classes tell; of several, each class's own cosine does.
        return self.trust_ / self.spread_ * (found if self.task_ == "multilabel" else centre(found))

    def _logits(self, X: Tensor) -> Tensor:
        x = unit(X)
        z = unit(x - self.centre_.to(X.dtype))
        found = z @ self.weight_.to(X.dtype).T + self.bias_.to(X.dtype)
        shots, dual, text = (getattr(self, name, None) for name in ("shots_", "dual_", "text_"))
        if shots is not None and dual is not None:
            found = found + kernel(z @ shots.to(X.dtype).T) @ dual.to(X.dtype)
        if text is not None:
            found = found + self._zero_shot(x, text)
        return found


def _answers(part: Seen, splits: list[tuple[Tensor, Tensor]], names: list[str]) -> dict[str, Tensor]:
    """(m, c) logits of each expert for the held-out rows of all splits, fitted to the others."""

    def answer(train: Tensor, rows: Tensor) -> list[Tensor]:
        seen, zero_shot = part.take(train), None if part.zero_shot is None else part.zero_shot[rows]
        products = part.products(rows, train)
        return [EXPERTS[name](seen).logits(part.z[rows], zero_shot, products) for name in names]

    found = parallel_map([partial(answer, *split) for split in splits], work=part.work // FEW)
    return {name: torch.cat(parts) for name, parts in zip(names, zip(*found, strict=True), strict=True)}


def _judged(
    part: Seen, held: Tensor, logits: dict[str, Tensor], again: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Weights and noise by what the experts said of held-out rows, each of which was asked for several times."""
    labels, names = part.labels[held], list(logits)
    units = {name: noise(centre(logits[name]), labels) for name in names}
    stack = [logits[name] / units[name] for name in names]
    expected, spread = _beforehand(names, units["probe"])
    if part.zero_shot is not None:
        stack = [part.zero_shot[held], *stack]
        expected, spread = [TEXT * part.trust, *expected], [SPREADS[0], *spread]
        names = ["text", *names]
    counts = torch.bincount(labels)
    shares = len(labels) / (int((counts > 0).sum()) * counts[labels]) / again
    return dict(zip(names, mixing_weights(stack, labels, expected, spread, shares), strict=True)), units


def _mixed(
    part: Seen, held: Tensor, logits: dict[str, Tensor], weights: dict[str, float], units: dict[str, float]
) -> Tensor:
    """(m, c) logits of the mixture for held-out rows, centred as those of the full fit are."""
    found = sum((weights[name] / units[name] * centre(logits[name]) for name in logits), start=torch.zeros(()))
    return found if part.zero_shot is None else found + weights["text"] * part.zero_shot[held]


def _beforehand(names: list[str], unit_of_probe: float) -> tuple[list[float], list[float]]:
    """Mean and spread of each expert's weight before held-out shots are looked at."""
    usual = OTHERS / (len(names) - 1), SPREADS[2]
    probe = PROBE * unit_of_probe, max(SPREADS[1] * unit_of_probe, SPREADS[2])
    pairs = [probe if name == "probe" else usual for name in names]
    return [mean for mean, _ in pairs], [spread for _, spread in pairs]


def _some_classes(seen: Seen, rows: Tensor) -> Seen:
    """Some of the shots, and of the classes only those that still have one."""
    part = seen.take(rows)
    classes = part.labels.unique()
    zero_shot = None if part.zero_shot is None else part.zero_shot[:, classes]
    return Seen(part.z, torch.searchsorted(classes, part.labels), len(classes), zero_shot, part.trust, part.gram)


def _thinned(labels: Tensor, train: Tensor, held: Tensor, seed: int) -> Tensor:
    """Training rows of which the held-out classes keep as many as a class drawn at random has; all if shots are equal.

    Only classes with two shots or more are held out, so that with unequal shots experts would be judged on the best
    known classes alone, and trusted too far on the others.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = torch.bincount(labels)
    kept = []
    for label in labels[train].unique():
        rows = train[labels[train] == label]
        most = int(counts[torch.randint(len(counts), (1,), generator=generator)])
        order = torch.randperm(len(rows), generator=generator)
        kept.append(rows[order[:most]] if (labels[held] == label).any() else rows)
    return torch.cat(kept)


def _unseen_noise(seen: Seen) -> float:
    """Noise of the ridge expert where every class has one shot: each is scored by a fit to the others."""
    n, c = len(seen.z), seen.n_classes
    gram = seen.gram_matrix()
    gram.diagonal().add_(RIDGE)
    inverse = torch.linalg.inv(gram)
    target = seen.onehot - seen.onehot.mean(dim=0)
    scores = target - inverse @ target / inverse.diagonal()[:, None]
    wrong = ~seen.onehot.bool()
    rest = centre(scores[wrong].reshape(n, c - 1))
    return float(((rest.square().sum() + 4 * NOISE**2) / (n * max(c - 2, 0) + 4)).sqrt())


def _complete(text: Tensor, z: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Class text in which a class without text stands where its shots are, as far from the mean as the others."""
    missing = text.norm(dim=1) == 0
    if not missing.any():
        return text
    mean = text[~missing].mean(dim=0)
    length = (text[~missing] - mean).norm(dim=1).mean()
    found = text.clone()
    for k in torch.nonzero(missing).flatten().tolist():
        own = z[classes[labels] == k]
        found[k] = unit(mean + length * unit(own.mean(dim=0))) if len(own) else mean
    return found
