"""The default head: zero-shot and simple classifiers, stacked by their logits for held-out shots.

The method is ours. It rests on three observations:

- Zero-shot was not fitted to the shots. So their likelihood calibrates it (`fit_inverse_temperature`).
- The out-of-fold logits of several classifiers can be combined by log-loss, as in stacked generalisation (Wolpert,
  1992). The combination is hardly ever worse than the best of them.
- Where no shot can be held out, the logits that a classifier gives to wrong classes still show its noise. In units of
  that noise, one weight suits all encoders.

docs/decisions/0029-auto.md says how the constants were chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from clipadapter.functional import ABSENT_LOGIT, unit
from clipadapter.heads.auto.experts import EXPERTS, MAX_KERNEL_SHOTS, RIDGE, ExpertInputs, gaussian_kernel
from clipadapter.heads.auto.multilabel import fit_multilabel
from clipadapter.heads.auto.stacking import (
    DEFAULT_NOISE_STD,
    centre_logits,
    fit_inverse_temperature,
    noise_std,
    stacking_weights,
)
from clipadapter.heads.base import Head, SupportSet
from clipadapter.heads.folds import most_labels_repeat, stratified_folds
from clipadapter.heads.out_of_fold import OutOfFold
from clipadapter.heads.registry import register_head
from clipadapter.heads.softmax_regression import subsample
from clipadapter.parallel import limit_threads, parallel_map

TEXT_WEIGHT = 0.5
"""Prior mean of the text's weight, as a share of its inverse temperature. The probe contains the text once more."""
PROBE_WEIGHT = 1.0
"""Prior mean of the weight of the probe's logits as they are: they are calibrated like the text that it starts from."""
EXPERT_WEIGHT = 0.7
"""Prior mean of the sum of the weights of all other experts, in units of their noise."""
TEXT_WEIGHT_STD, PROBE_WEIGHT_STD, EXPERT_WEIGHT_STD = 1.0, 1.0, 0.35
"""Standard deviations of these priors: of the text, of the probe, of each other expert."""
MIN_WEIGHT_RATIO = 0.01
"""Experts with a smaller share of the largest weight are dropped."""
MAX_REPEATS, MIN_HELD_OUT_ROWS = 5, 300
"""The folds are drawn up to five times, until this many rows are held out in total."""
TWO_SHOT_LOGIT_GROWTH = 0.28
"""By how much logits grow from one to two shots per class, measured on development sets. From three quarters of four
or more shots to all of them they do not grow."""
PARALLEL_COST_RATIO = 64
"""Cost of a pass over the shots divided by that of a typical product in a fold. Products of 100 classes x 4 shots x
512-d run faster one after the other, those of 101 x 16 x 1280 in parallel."""


@register_head(
    "auto",
    fidelity="own: Zero-shot and classifiers of the shots, mixed by stacked generalisation. No paper has the whole.",
)
@dataclass(eq=False, repr=False, kw_only=True)
class Auto(Head):
    """Text and shots stacked by held-out shots; needs no tuning, no validation set, and no class text.

    With multi-label images it stacks text and ridge regression.

    Args:
        folds: number of folds; every shot is held out once.
        seed: of the folds.

    >>> from clipadapter.testing import toy_features
    >>> X, y, text = toy_features()
    >>> bool((Auto().fit(X, y, text=text).predict(X) == y).all())
    True
    """

    multilabel = True
    temperature_prior = (1.8, 1.5, 1.5, 1.3, 1.2)

    centre_: Tensor = field(init=False)
    """(d,) mean of the class means, subtracted from unit features."""
    weight_: Tensor = field(init=False)
    """(c, d) of centred features: the weighted sum of the linear experts."""
    bias_: Tensor = field(init=False)
    """(c,)."""
    text_: Tensor | None = field(init=False)
    """(c, d) class text."""
    trust_: float = field(init=False)
    """Weight of the zero-shot logits of unit spread, in total; 0 without text. The name is that of saved models."""
    spread_: float = field(init=False)
    """Standard deviation of the cosines to the class texts over the classes."""
    shots_: Tensor | None = field(init=False)
    """(n, d) centred shots that the kernel compares with, if kernel ridge regression has a weight."""
    dual_: Tensor | None = field(init=False)
    """(n, c) coefficients of the kernel sum."""

    folds: int = 4
    seed: int = 0

    def _fit(self, shots: SupportSet) -> None:
        self._own_out_of_fold: OutOfFold | None = None
        if shots.targets is not None:
            self._fit_multilabel(shots)
            return
        x = unit(unit(shots.views).mean(dim=1))  # (n, d)
        counts = shots.counts[shots.labels]
        # The mean over classes, not over shots, so that unequal numbers of shots do not move it.
        self.centre_ = (x / counts[:, None]).sum(dim=0) / (1 / counts).sum()
        z = unit(x - self.centre_)
        classes = shots.labels.unique()
        labels = torch.searchsorted(classes, shots.labels)
        self.text_ = None if shots.text is None else _fill_missing_text(shots.text, z, labels, classes)
        inputs = self._expert_inputs(x, z, labels, classes)
        weights: dict[str, float] = {}
        noise: dict[str, float] = {}
        if len(classes) > 1:
            weights, noise = self._choose_weights(inputs)
        self.trust_ = weights.pop("text", inputs.inverse_temperature)
        self._fit_experts(inputs, weights, noise, classes, shots.n_classes)
        own = self._own_out_of_fold
        if own is not None and len(classes) < shots.n_classes:
            self._own_out_of_fold = self._add_classes_without_shots(own, x, classes)

    def _fit_multilabel(self, shots: SupportSet) -> None:
        mixture = fit_multilabel(shots, self.folds, self.seed)
        self.centre_, self.weight_, self.bias_ = mixture.centre, mixture.weight, mixture.bias
        self.text_, self.trust_, self.spread_ = mixture.text, mixture.text_weight, mixture.spread
        self.shots_ = self.dual_ = None

    def _expert_inputs(self, x: Tensor, z: Tensor, labels: Tensor, classes: Tensor) -> ExpertInputs:
        """What experts are fitted to; calibrates the zero-shot logits and stores their spread.

        Args:
            x: (n, d) unit features.
            z: (n, d) centred unit features.
            labels: (n,) positions among the classes that have shots.
            classes: their positions among all classes.
        """
        # Folds and experts need products of the same shots again and again.
        gram = z @ z.T if len(z) <= MAX_KERNEL_SHOTS else None
        if self.text_ is None:
            return ExpertInputs(z, labels, len(classes), None, 0.0, gram)
        zero_shot = centre_logits(x @ self.text_.T)  # (n, all classes)
        self.spread_ = float(zero_shot.std(dim=1).mean()) or 1.0
        counts = torch.bincount(labels)[labels]
        with limit_threads(0):  # the products are too small for threads
            inverse_temperature = fit_inverse_temperature(
                zero_shot / self.spread_, classes[labels], len(labels) / (len(classes) * counts)
            )
        known = zero_shot[:, classes] / self.spread_
        return ExpertInputs(z, labels, len(classes), known, inverse_temperature, gram)

    def _choose_weights(self, inputs: ExpertInputs) -> tuple[dict[str, float], dict[str, float]]:
        """Weight of the text and of each expert, and the noise of each expert that its logits are divided by."""
        rows = subsample(inputs.labels, inputs.z.shape[1], self.seed)
        part = _take_with_classes(inputs, rows)
        splits = stratified_folds(part.labels, self.folds, self.seed)
        if not most_labels_repeat(part.labels):
            # Most classes have one shot: the weights are the means of their priors, and only noise can be measured.
            weights = {"text": TEXT_WEIGHT * inputs.inverse_temperature, "probe": PROBE_WEIGHT, "ridge": EXPERT_WEIGHT}
            with limit_threads(inputs.cost):
                return weights, {"probe": 1.0, "ridge": _leave_one_out_ridge_noise(inputs)}
        # With few shots the weights depend much on how the folds are drawn: draw them several times.
        repeats = max(1, min(MAX_REPEATS, MIN_HELD_OUT_ROWS // len(inputs.z)))
        for i in range(1, repeats):
            splits += stratified_folds(part.labels, self.folds, self.seed + i)
        splits = [
            (_balance_training_rows(part.labels, train, held_out, self.seed + i), held_out)
            for i, (train, held_out) in enumerate(splits)
        ]
        names = [name for name in EXPERTS if name != "kernel-ridge" or len(inputs.z) <= MAX_KERNEL_SHOTS]
        logits = _out_of_fold_logits(part, splits, names)
        held_out = torch.cat([rows for _, rows in splits])
        with limit_threads(0):  # small products between lines of Python
            weights, noise = _fit_weights(part, held_out, logits, repeats)
        if len(rows) == len(inputs.z):
            shots = sum(len(train) for train, _ in splits) / len(splits) / part.n_classes
            # 1 where the folds leave one of two shots to train on, 0 where they leave three quarters or more.
            one_of_two = max(0.0, 3 - 4 * shots * part.n_classes / len(part.z))
            mixture = _mixture_logits(part, held_out, logits, weights, noise).numpy()
            ratio = 1 + TWO_SHOT_LOGIT_GROWTH * one_of_two
            self._own_out_of_fold = OutOfFold(
                mixture * ratio, part.labels[held_out].numpy(), held_out.numpy(), "own", shots, logit_scale_ratio=ratio
            )
        return weights, noise

    def _fit_experts(
        self, inputs: ExpertInputs, weights: dict[str, float], noise: dict[str, float], classes: Tensor, n_classes: int
    ) -> None:
        """Fit the experts that have a weight to all shots, and add them up to one map."""
        d = inputs.z.shape[1]
        self.weight_, self.bias_ = inputs.z.new_zeros(n_classes, d), inputs.z.new_zeros(n_classes)
        self.shots_ = self.dual_ = None
        largest = max(weights.values(), default=0.0)
        weights = {name: weight for name, weight in weights.items() if weight > MIN_WEIGHT_RATIO * largest}
        experts = parallel_map(
            [partial(EXPERTS[name], inputs) for name in weights], work=inputs.cost // PARALLEL_COST_RATIO
        )
        for (name, weight), fitted in zip(weights.items(), experts, strict=True):
            expert, factor = fitted.centred(), weight / noise[name]
            self.weight_[classes] += factor * expert.weight
            self.bias_[classes] += factor * expert.bias
            self.trust_ += factor * expert.text_weight
            if expert.dual is not None:
                self.shots_, self.dual_ = expert.support, inputs.z.new_zeros(len(inputs.z), n_classes)
                self.dual_[:, classes] = factor * expert.dual
        if self.text_ is None:
            self.bias_[torch.bincount(classes, minlength=n_classes) == 0] = ABSENT_LOGIT

    def _add_classes_without_shots(self, own: OutOfFold, x: Tensor, classes: Tensor) -> OutOfFold | None:
        """Out-of-fold logits of all classes: a class without shots has its zero-shot logit, as in `_logits`."""
        if self.text_ is None:
            return None
        rows = torch.from_numpy(own.rows)
        logits = own.logit_scale_ratio * (self.trust_ / self.spread_ * centre_logits(x[rows] @ self.text_.T))
        logits[:, classes] = torch.from_numpy(own.logits).to(logits.dtype)
        return replace(own, logits=logits.numpy(), labels=classes.numpy()[own.labels])

    def _text_logits(self, X: Tensor) -> Tensor:
        text = getattr(self, "text_", None)
        if text is None:
            return X.new_zeros(len(X), len(self.weight_))
        return self._zero_shot(unit(X), text)

    def _zero_shot(self, x: Tensor, text: Tensor) -> Tensor:
        """(m, c) weighted zero-shot logits of unit features."""
        cosines = x @ text.to(x.dtype).T
        # Softmax sees only differences between classes, and the experts were fitted to centred logits. The sigmoid of
        # multi-label images sees each cosine itself.
        return self.trust_ / self.spread_ * (cosines if self.task_ == "multilabel" else centre_logits(cosines))

    def _logits(self, X: Tensor) -> Tensor:
        x = unit(X)
        z = unit(x - self.centre_.to(X.dtype))
        logits = z @ self.weight_.to(X.dtype).T + self.bias_.to(X.dtype)
        support, dual, text = (getattr(self, name, None) for name in ("shots_", "dual_", "text_"))
        if support is not None and dual is not None:
            logits = logits + gaussian_kernel(z @ support.to(X.dtype).T) @ dual.to(X.dtype)
        if text is not None:
            logits = logits + self._zero_shot(x, text)
        return logits


def _out_of_fold_logits(
    inputs: ExpertInputs, splits: list[tuple[Tensor, Tensor]], names: list[str]
) -> dict[str, Tensor]:
    """(m, c) logits of each expert for the held-out rows of all splits in their order, fitted to the training rows."""

    def fit_and_predict(train: Tensor, held_out: Tensor) -> list[Tensor]:
        part, zero_shot = inputs.take(train), None if inputs.zero_shot is None else inputs.zero_shot[held_out]
        products = inputs.gram_block(held_out, train)
        return [EXPERTS[name](part).logits(inputs.z[held_out], zero_shot, products) for name in names]

    by_split = parallel_map(
        [partial(fit_and_predict, *split) for split in splits], work=inputs.cost // PARALLEL_COST_RATIO
    )
    return {name: torch.cat(parts) for name, parts in zip(names, zip(*by_split, strict=True), strict=True)}


def _fit_weights(
    inputs: ExpertInputs, held_out: Tensor, logits: dict[str, Tensor], repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Stacking weights and noise from the out-of-fold logits of rows, each of which was held out ``repeats`` times."""
    labels, names = inputs.labels[held_out], list(logits)
    noise = {name: noise_std(centre_logits(logits[name]), labels) for name in names}
    stack = [logits[name] / noise[name] for name in names]
    mean, std = _expert_priors(names, noise["probe"])
    if inputs.zero_shot is not None:
        stack = [inputs.zero_shot[held_out], *stack]
        mean, std = [TEXT_WEIGHT * inputs.inverse_temperature, *mean], [TEXT_WEIGHT_STD, *std]
        names = ["text", *names]
    counts = torch.bincount(labels)
    # Every class that is held out has the same sum of weights, and a row counts once however often it is held out.
    row_weights = len(labels) / (int((counts > 0).sum()) * counts[labels]) / repeats
    return dict(zip(names, stacking_weights(stack, labels, mean, std, row_weights), strict=True)), noise


def _expert_priors(names: list[str], probe_noise: float) -> tuple[list[float], list[float]]:
    """Prior means and standard deviations of the experts' weights.

    The probe's prior is for its logits as they are. Its noise takes it to the unit of the other experts.
    """
    expert = EXPERT_WEIGHT / (len(names) - 1), EXPERT_WEIGHT_STD
    probe = PROBE_WEIGHT * probe_noise, max(PROBE_WEIGHT_STD * probe_noise, EXPERT_WEIGHT_STD)
    priors = [probe if name == "probe" else expert for name in names]
    return [mean for mean, _ in priors], [std for _, std in priors]


def _mixture_logits(
    inputs: ExpertInputs,
    held_out: Tensor,
    logits: dict[str, Tensor],
    weights: dict[str, float],
    noise: dict[str, float],
) -> Tensor:
    """(m, c) logits of the mixture for held-out rows, centred as those of the final fit are."""
    mixture = sum((weights[name] / noise[name] * centre_logits(logits[name]) for name in logits), torch.zeros(()))
    return mixture if inputs.zero_shot is None else mixture + weights["text"] * inputs.zero_shot[held_out]


def _take_with_classes(inputs: ExpertInputs, rows: Tensor) -> ExpertInputs:
    """Some of the shots, and of the classes only those that still have one."""
    part = inputs.take(rows)
    classes = part.labels.unique()
    labels = torch.searchsorted(classes, part.labels)
    zero_shot = None if part.zero_shot is None else part.zero_shot[:, classes]
    return ExpertInputs(part.z, labels, len(classes), zero_shot, part.inverse_temperature, part.gram)


def _balance_training_rows(labels: Tensor, train: Tensor, held_out: Tensor, seed: int) -> Tensor:
    """Training rows of a fold in which each held-out class keeps as many shots as a randomly drawn class has.

    Only classes with two or more shots are held out. With unequal shots the experts would be evaluated on the
    classes with most shots alone, and would get too large a weight for the others. With equal shots no row is dropped.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = torch.bincount(labels)
    balanced = []
    for label in labels[train].unique():
        rows = train[labels[train] == label]
        max_shots = int(counts[torch.randint(len(counts), (1,), generator=generator)])
        order = torch.randperm(len(rows), generator=generator)
        balanced.append(rows[order[:max_shots]] if (labels[held_out] == label).any() else rows)
    return torch.cat(balanced)


def _leave_one_out_ridge_noise(inputs: ExpertInputs) -> float:
    """`noise_std` of ridge regression where every class has one shot, from fits without the shot in closed form.

    The estimate is regularised by four pseudo-observations of `DEFAULT_NOISE_STD`.
    """
    n, c = len(inputs.z), inputs.n_classes
    gram = inputs.new_gram()
    gram.diagonal().add_(RIDGE)
    inverse = torch.linalg.inv(gram)
    target = inputs.onehot - inputs.onehot.mean(dim=0)
    # The leave-one-out prediction of ridge regression: y_i - (G^-1 y)_i / (G^-1)_ii with G = K + lambda I.
    logits = target - inverse @ target / inverse.diagonal()[:, None]
    is_wrong = ~inputs.onehot.bool()
    wrong_logits = centre_logits(logits[is_wrong].reshape(n, c - 1))
    squares = wrong_logits.square().sum() + 4 * DEFAULT_NOISE_STD**2
    return float((squares / (n * max(c - 2, 0) + 4)).sqrt())


def _fill_missing_text(text: Tensor, z: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Class text where a class without text gets a vector in the direction of its shots.

    Its distance from the mean of the texts is the mean distance of the other classes' texts.
    """
    missing = text.norm(dim=1) == 0
    if not missing.any():
        return text
    mean = text[~missing].mean(dim=0)
    distance = (text[~missing] - mean).norm(dim=1).mean()
    filled = text.clone()
    for k in torch.nonzero(missing).flatten().tolist():
        class_shots = z[classes[labels] == k]
        filled[k] = unit(mean + distance * unit(class_shots.mean(dim=0))) if len(class_shots) else mean
    return filled
