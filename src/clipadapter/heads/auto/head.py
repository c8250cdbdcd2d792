"""The default head: zero-shot and simple classifiers, stacked by their logits for held-out shots.

The method is ours. It rests on three observations:

- Zero-shot was not fitted to the shots. So their likelihood calibrates it (`fit_inverse_temperature`).
- The out-of-fold logits of several classifiers can be combined by log-loss, as in stacked generalisation (Wolpert,
  1992). The combination is hardly ever worse than the best of them.
- Where no shot can be held out, the logits that a classifier gives to wrong classes still show its noise. In units of
  that noise, one weight suits all encoders.

With thousands of classes its probes stop before the optimum (`PROBE_COST`), and text is calibrated on a part of the
shots (`MAX_CALIBRATION_LOGITS`): see docs/decisions/0040-thousands-of-classes.md.

Multi-label images have zero-shot and ridge regression alone, with two weights that all classes share and a bias of each
class: a few shots of each class suffice for two numbers. All is chosen by log-loss, as above. That was chosen on three
development sets of mosaics, 2 x 2 images of Caltech-101's training part under `lite`, with 2 to 16 shots per class.
There it had 1 to 2 points more mean average precision than logistic regression that starts from the text, and as much
as both together. Half or twice of its constants changes it by 0.3 points or less.

docs/decisions/0029-auto.md and 0047-auto-prior.md say how the constants were chosen. Further blocks of features are
mixed in by `clipadapter.heads.auto.blocks`, pictures without labels by `clipadapter.heads.auto.unlabelled`.
"""

from __future__ import annotations

from dataclasses import field
from functools import partial
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from clipadapter.heads.auto.blocks import (
    MIN_NOISE_STD,
    ONE_SHOT_RIDGE_RATIO,
    Mixture,
    fit_blocks,
    mean_of_classes,
    spread_shares,
    unit_blocks,
    unit_centred,
)
from clipadapter.heads.auto.experts import (
    EXPERTS,
    MAX_CALIBRATION_LOGITS,
    MAX_KERNEL_SHOTS,
    ExpertInputs,
    HeldOut,
    ZeroShotLogits,
    centre_logits,
    fit_inverse_temperature,
    fit_stacking,
    gaussian_kernel,
    leave_one_out_ridge,
    leave_one_out_ridge_noise,
    mix_logits,
    mix_out_of_fold,
    noise_std,
    out_of_fold_logits,
    predict_held_out,
    ridge_map,
    share_explained,
)
from clipadapter.heads.auto.unlabelled import MAX_SHOTS, MIN_PICTURES, fit_unlabelled, select_pictures
from clipadapter.heads.base import Head, SupportSet, at_least, register_head
from clipadapter.heads.losses import binary_losses, fit_bias
from clipadapter.heads.out_of_fold import OutOfFold, make_folds, most_classes_repeat, some_rows
from clipadapter.heads.softmax_regression import MAX_LOGITS, subsample
from clipadapter.utils.blocks import FINAL, Blocks, column_slices, select_blocks
from clipadapter.utils.functional import ABSENT_LOGIT, unit
from clipadapter.utils.parallel import limit_threads, parallel_map

MIN_TEXT_WEIGHT = 0.1
"""Least prior median of the text's weight, as a share of its inverse temperature. The probe contains the text too."""
TEXT_PRIOR_SHOTS = 2
"""The shots per class that bring the median half of the way (of its logarithm) to what they say of the text."""
EXPERT_WEIGHT = 0.7
"""Prior median of the sum of the weights of all experts without one of their own, in units of their noise."""
LOG_WEIGHT_STD = 1.25  # standard deviation of the logarithm of each of these weights
MIN_WEIGHT_RATIO = 0.01  # experts with a smaller share of the largest weight are dropped
MAX_REPEATS, MIN_HELD_OUT_ROWS = 5, 300
"""The folds are drawn up to five times, until this many rows are held out in total."""
TWO_SHOT_LOGIT_GROWTH = 0.28
"""By how much logits grow from one to two shots per class, measured on development sets. From three quarters of four
or more shots to all of them they do not grow."""
UNUSED_REASONS = (
    "held-out shots do not gain",
    "a class has no shot",
    "there are so many shots that they bring little",
    "too few are left without those that are shots",
    "pictures may have several labels",
    "no shot can be held out, and few of the classes seem to be among them",
)
"""Why pictures without labels are not used. Saved models have the position in this list."""
NO_GAIN, MISSING_SHOT, MANY_SHOTS, FEW_PICTURES, SEVERAL_LABELS, FEW_CLASSES = range(len(UNUSED_REASONS))
SLOPES = torch.logspace(-2, 1, 31)
"""Candidate slopes of multi-label zero-shot logits of unit spread; their prior is log-normal, of median and sigma 1."""
MULTILABEL_TEXT_WEIGHT, MULTILABEL_RIDGE_WEIGHT = 0.5, 0.5
"""Prior medians of the weights: of the text, as a share of its slope; of ridge regression, in units of its noise. The
second is also the weight of ridge regression, beside the text at its full slope, where most classes have one shot."""
BLOCKS_RIDGE_RATIO = 0.5
"""Prior median of the weights of ridge regression on all further blocks together, divided by that on ``final``."""
MAX_MULTILABEL_REPEATS = 3  # how often the folds are drawn, until `MIN_HELD_OUT_ROWS` are held out
PARALLEL_COST_RATIO = 64
"""Cost of a pass over the shots divided by that of a typical product in a fold. Products of 100 classes x 4 shots x
512-d run faster one after the other, those of 101 x 16 x 1280 in parallel."""


@register_head("auto", version=6)
class Auto(Head):
    """Text and shots stacked by held-out shots; needs no tuning, no validation set, and no class text.

    With multi-label images it stacks text and ridge regression.

    It reads all blocks of features. Class text and most classifiers use ``final``. Each further block gets a ridge
    regression, and held-out shots choose the weights of the blocks.

    With pictures without labels it fits one more ridge regression, to the shots and to these pictures with the
    probabilities that it gives them. Held-out shots decide whether this regression takes part.

    Args:
        folds: number of folds; every shot is held out once.
        seed: of the folds.

    >>> from clipadapter.testing import toy_features
    >>> X, y, text = toy_features()
    >>> bool((Auto().fit(X, y, text=text).predict(X) == y).all())
    True

    Fidelity: own: Zero-shot and classifiers of the shots, mixed by stacked generalisation. No paper has the whole.
    """

    multilabel = accepts_unlabelled = True
    reads = "all"
    picture_features = ("shots_",)
    temperature_prior = (1.4, 1.5, 1.5, 1.3, 1.2)

    centre_: Tensor = field(init=False)  # (d,) mean of the class means, subtracted from unit features
    weight_: Tensor = field(init=False)  # (c, d) of centred features: the weighted sum of the linear experts
    bias_: Tensor = field(init=False)  # (c,)
    text_: Tensor | None = field(init=False, default=None)  # (c, d) class text
    text_weight_: float = field(init=False)  # weight of the zero-shot logits of unit spread, in total; 0 without text
    spread_: float = field(init=False)  # standard deviation of the cosines to the class texts over the classes
    shots_: Tensor | None = field(init=False, default=None)
    """(n, d) centred shots that the kernel compares with, if kernel ridge regression has a weight."""
    dual_: Tensor | None = field(init=False, default=None)  # (n, c) coefficients of the kernel sum
    block_centre_: Tensor | None = field(init=False, default=None)
    """(e,) mean of the class means of the further blocks, side by side; None if there is only ``final``."""
    block_weight_: Tensor | None = field(init=False, default=None)
    """(c, e) of centred unit features of the further blocks; zero for a block that is not used."""
    block_share_: Tensor | None = field(init=False, default=None)
    """Each block's share of the spread of the logits, ``final`` first."""
    unlabelled_share_: float | None = field(init=False, default=None)
    """The share of the spread of the logits that comes from these pictures; 0 if they are not used."""
    unlabelled_reason_: int | None = field(init=False, default=None)
    """Why they are not used, as a position in `UNUSED_REASONS`; None if they are."""
    unlabelled_gain_: float | None = field(init=False, default=None)
    """Log posterior of the held-out shots that they add, in nats; None where no shot was held out."""

    folds: Annotated[int, at_least(2)] = 4
    seed: int = 0

    def _fit(self, shots: SupportSet) -> None:
        self.block_centre_ = self.block_weight_ = self.block_share_ = None
        self.unlabelled_share_ = self.unlabelled_reason_ = self.unlabelled_gain_ = self.kept_pictures_ = None
        if shots.targets is not None:
            self._fit_multilabel(shots, shots.targets)
            self._select_pictures(shots, SEVERAL_LABELS)
            return
        x = unit(unit(shots.final_views).mean(dim=1))  # (n, d)
        self.centre_ = mean_of_classes(x, shots.labels)
        z = unit(x - self.centre_)
        classes = shots.labels.unique()
        labels = torch.searchsorted(classes, shots.labels)
        self.text_ = None if shots.text is None else _fill_missing_text(shots.text, z, labels, classes)
        inputs = self._expert_inputs(x, z, labels, classes)
        mixture = Mixture(inputs, inputs.inverse_temperature, {}, None)
        if len(classes) > 1:
            mixture = self._choose_weights(inputs, len(shots.further_blocks) > 0)
        self._fit_experts(mixture, classes, shots.n_classes)
        if shots.further_blocks and len(classes) > 1:
            # Only where no shot was held out are the logits of the shots themselves read.
            blocks = fit_blocks(shots, self._final_logits(x[:1] if mixture.held_out else x)[:, classes], mixture)
            self.block_centre_, self.block_share_, mixture = blocks.centre, blocks.shares, blocks.mixture
            self.block_weight_ = blocks.weight.new_zeros(shots.n_classes, blocks.weight.shape[1])
            self.block_weight_[classes] = blocks.weight
            self._scale_final(mixture.final_weight, classes)
            self.bias_[classes] += blocks.bias
        held_out = mixture.held_out if shots.unlabelled is None else self._fit_unlabelled(shots, mixture)
        # Without all shots in the folds, or logits of all classes, others hold the shots out.
        has_all_logits = self.text_ is not None or len(classes) == shots.n_classes
        if held_out is not None and len(held_out.rows) == len(x) and has_all_logits:
            self._own_out_of_fold = self._to_out_of_fold(x, classes, held_out, shots.n_classes)

    def _fit_multilabel(self, shots: SupportSet, targets: Tensor) -> None:
        """As for single labels, with targets (n, c), ridge regression as the only expert, and all weights at once."""
        x, further = unit(unit(shots.final_views).mean(dim=1)), column_slices(shots.further_blocks).values()
        self.centre_ = x.mean(dim=0)
        z = [unit(x - self.centre_)]  # of each block
        if further:
            further_x = unit_blocks(shots)
            self.block_centre_ = further_x.mean(dim=0)
            z += [unit_centred(further_x[:, columns] - self.block_centre_[columns]) for columns in further]
        none = shots.labels[:0]  # a class without text gets the mean of the others, which favours no label
        self.text_ = None if shots.text is None else _fill_missing_text(shots.text, z[0][:0], none, none)
        zero_shot, slope, mean, self.spread_ = torch.zeros_like(targets), 0.0, 0.0, 1.0
        if self.text_ is not None:
            # Subtract one mean for all, not that of each row: how well all classes fit says how many labels an image
            # has.
            zero_shot = x @ self.text_.T
            self.spread_, mean = float(zero_shot.std(dim=0, unbiased=False).mean()) or 1.0, float(zero_shot.mean())
            zero_shot = (zero_shot - mean) / self.spread_
            slope = _fit_slope(zero_shot, targets)
        repeats = max(1, min(MAX_MULTILABEL_REPEATS, MIN_HELD_OUT_ROWS // len(targets)))
        splits = make_folds(targets, self.folds, self.seed, repeats) if most_classes_repeat(targets) else []

        def fit(rows: Tensor | slice) -> list[Tensor]:
            centred = targets[rows] - targets[rows].mean(dim=0)
            return [ridge_map(each[rows], centred) for each in z]

        def predict(train: Tensor, rows: Tensor) -> list[Tensor]:
            return [each[rows] @ weight.T for each, weight in zip(z, fit(train), strict=True)]

        with limit_threads(z[0].numel() * targets.shape[1]):
            maps = fit(slice(None))
            # Where most classes have one shot, each shot is left out by itself, in closed form.
            scores = predict_held_out(splits, predict) or [leave_one_out_ridge(each @ each.T, targets) for each in z]
        rows = torch.cat([rows for _, rows in splits]) if splits else torch.arange(len(x))
        noise = [max(noise_std(each, targets[rows]), MIN_NOISE_STD if i else 0.0) for i, each in enumerate(scores)]
        parts = [zero_shot[rows], *(each / std for each, std in zip(scores, noise, strict=True))]
        weights = [slope, MULTILABEL_RIDGE_WEIGHT]
        weights += [MULTILABEL_RIDGE_WEIGHT * BLOCKS_RIDGE_RATIO / max(len(further), 1)] * len(further)
        if splits:
            weights[0] = MULTILABEL_TEXT_WEIGHT * slope
            log_std = [LOG_WEIGHT_STD] * len(parts)
            weights, _, bias = fit_stacking(parts, targets[rows], weights, log_std, 1 / repeats)
        factors = [weight / std for weight, std in zip(weights[1:], noise, strict=True)]
        if not splits:
            bias = fit_bias(mix_logits([zero_shot, *scores], [slope, *factors]), targets)
        self.weight_, self.text_weight_ = factors[0] * maps[0], weights[0]
        self.bias_ = bias.to(x.dtype) - weights[0] / self.spread_ * mean
        self.shots_ = self.dual_ = None
        if further:
            of_blocks = [mix_logits(parts[:2], weights[:2]), *map(torch.mul, parts[2:], weights[2:])]
            self.block_share_ = spread_shares([float(part.std(dim=0).mean()) for part in of_blocks])
            used = zip(factors[1:], maps[1:], self.block_share_[1:].tolist(), strict=True)
            self.block_weight_ = torch.cat([(factor if share else 0.0) * each for factor, each, share in used], dim=1)

    def _expert_inputs(self, x: Tensor, z: Tensor, labels: Tensor, classes: Tensor) -> ExpertInputs:
        """What experts are fitted to; calibrates the zero-shot logits and stores their spread.

        x has unit features (n, d) and z centred ones; labels (n,) are positions among the classes that have shots.
        """
        # Folds and experts need products of the same shots again and again.
        gram = z @ z.T if len(z) <= MAX_KERNEL_SHOTS else None
        if self.text_ is None:
            return ExpertInputs(z, labels, len(classes), None, 0.0, gram)
        has_many_logits, rows = len(x) * len(self.text_) > MAX_LOGITS, torch.arange(len(x))
        if has_many_logits:
            rows = some_rows(rows, MAX_CALIBRATION_LOGITS // len(self.text_), self.seed)
        zero_shot = centre_logits(x[rows] @ self.text_.T)  # (r, all classes)
        self.spread_ = float(zero_shot.std(dim=1).mean()) or 1.0
        row_weights = len(labels) / (len(classes) * torch.bincount(labels)[labels[rows]])
        zero_shot /= self.spread_
        with limit_threads(zero_shot.numel() if has_many_logits else 0):  # else the products are too small for threads
            inverse_temperature = fit_inverse_temperature(zero_shot, classes[labels[rows]], row_weights)
            explained = share_explained(inverse_temperature * zero_shot, classes[labels[rows]], row_weights)
        logits: Tensor | ZeroShotLogits = zero_shot[:, classes]
        if has_many_logits:
            logits = ZeroShotLogits(x, (self.text_[classes] - self.text_.mean(dim=0)) / self.spread_)
        # Text that explains the shots keeps its weight, so that wrong labels can't take it away.
        shots_per_class = len(labels) / len(classes)
        trust = explained * shots_per_class / (shots_per_class + TEXT_PRIOR_SHOTS)
        text_weight = MIN_TEXT_WEIGHT ** (1 - trust) * inverse_temperature
        return ExpertInputs(z, labels, len(classes), logits, inverse_temperature, gram, text_weight)

    def _choose_weights(self, inputs: ExpertInputs, has_further_blocks: bool) -> Mixture:
        """The mixture on ``final``."""
        rows = subsample(inputs.labels, inputs.z.shape[1], self.seed)
        part = inputs.take(rows)
        if not most_classes_repeat(part.labels):
            # The weights are constants, and only noise can be measured.
            with limit_threads(inputs.cost):
                noise_of_one = leave_one_out_ridge_noise(part if inputs.has_many_logits else inputs)
            unit_weight = ONE_SHOT_RIDGE_RATIO if has_further_blocks else 1.0
            factors = {
                name: kind.one_shot_weight * unit_weight / noise_of_one if kind.weight is None else kind.one_shot_weight
                for name, kind in EXPERTS.items()
            }
            return Mixture(inputs, inputs.text_weight, factors, None)
        # With few shots the weights depend much on how the folds are drawn: draw them several times.
        repeats = max(1, min(MAX_REPEATS, MIN_HELD_OUT_ROWS // len(inputs.z)))
        splits = [
            (_balance_training_rows(part.labels, train, held_out, self.seed + i), held_out)
            for i, (train, held_out) in enumerate(make_folds(part.labels, self.folds, self.seed, repeats))
        ]
        names = [name for name in EXPERTS if name != "kernel-ridge" or len(inputs.z) <= MAX_KERNEL_SHOTS]
        fits, work = [EXPERTS[name].fit for name in names], part.cost // PARALLEL_COST_RATIO
        logits = [centre_logits(each) for each in out_of_fold_logits(part, splits, fits, work)]
        held_out = torch.cat([rows for _, rows in splits])
        labels, counts = part.labels[held_out], torch.bincount(part.labels[held_out])
        # Every class that is held out has the same sum, and a row counts once however often it is held out.
        row_weights = len(labels) / (int((counts > 0).sum()) * counts[labels]) / repeats
        noise = [noise_std(each, labels) for each in logits]
        own = [EXPERTS[name].weight for name in names]
        expert_weight = EXPERT_WEIGHT / max(1, own.count(None))
        # A prior of its own is for an expert's logits as they are. Its noise takes it to the unit of the others.
        median = [expert_weight if each is None else each * std for each, std in zip(own, noise, strict=True)]
        parts = [each / std for each, std in zip(logits, noise, strict=True)]
        if part.zero_shot is not None:  # the text comes last
            parts.append(part.zero_shot[held_out])
            median.append(inputs.text_weight)

        def fit_weights(of: Tensor | slice) -> list[float]:
            some, log_std = [each[of] for each in parts], [LOG_WEIGHT_STD] * len(parts)
            return fit_stacking(some, labels[of], median, log_std, row_weights[of]).weights

        with limit_threads(0):  # small products between lines of Python
            weights = fit_weights(slice(None))
            least = MIN_WEIGHT_RATIO * max(weights[: len(names)], default=0.0)
            of_experts = [weight if weight > least else 0.0 for weight in weights[: len(names)]]
            of_text = weights[len(names) :]  # never dropped
            weights = of_experts + of_text
            cross_fitted = mix_out_of_fold(parts, splits, weights, fit_weights)
        factors = {name: weight / std for name, weight, std in zip(names, of_experts, noise, strict=True)}
        out_of_fold = HeldOut(rows, splits, mix_logits(parts, weights), labels, row_weights, cross_fitted)
        return Mixture(inputs, sum(of_text, 0.0), factors, out_of_fold)

    def _scale_final(self, factor: float, classes: Tensor) -> None:
        """Multiply the logits of ``final`` by a factor; classes without shots and without text keep their bias."""
        self.weight_ *= factor
        self.bias_[classes] = factor * self.bias_[classes]
        self.text_weight_ *= factor
        if self.dual_ is not None:
            self.dual_ *= factor

    def _select_pictures(self, shots: SupportSet, reason: int | None) -> Tensor:
        """Unit features of the pictures without labels that are used, which edits of the model use again.

        With a reason, this fit does not use them.
        """
        if shots.unlabelled is None:
            return shots.X[:0]
        pictures = select_pictures(shots.unlabelled, unit(shots.final_views[:, 0]), shots.blocks, self.seed)
        self.kept_pictures_, self.unlabelled_share_ = pictures.numpy() if len(pictures) else None, 0.0
        self.unlabelled_reason_ = FEW_PICTURES if reason is None and len(pictures) < MIN_PICTURES else reason
        return pictures.to(shots.X.dtype)

    def _fit_unlabelled(self, shots: SupportSet, teacher: Mixture) -> HeldOut | None:
        """Add the regression on pictures without labels to the teacher; returns the out-of-fold logits of both."""
        n, n_known, held_out = len(shots.labels), teacher.inputs.n_classes, teacher.held_out
        reason = None
        if n_known < max(2, shots.n_classes):
            reason = MISSING_SHOT
        elif n >= MAX_SHOTS or (held_out is not None and len(held_out.rows) < n):
            reason = MANY_SHOTS
        X = self._select_pictures(shots, reason)
        if self.unlabelled_reason_ is not None:
            return held_out
        x = unit(X[:, : len(self.centre_)])
        pictures = [unit(x - self.centre_), *self._further(X)]
        zero_shot = None if self.text_ is None else centre_logits(x @ self.text_.T) / self.spread_
        is_used = [True] if self.block_share_ is None else [True, *(self.block_share_[1:] > 0).tolist()]
        logits = centre_logits(self._logits(X))
        regression, self.unlabelled_gain_ = fit_unlabelled(pictures, is_used, teacher, logits, zero_shot)
        if regression is None:
            self.unlabelled_reason_ = FEW_CLASSES if self.unlabelled_gain_ is None else NO_GAIN
            return held_out
        self.unlabelled_share_ = regression.share
        self._scale_final(regression.teacher_weight, torch.arange(shots.n_classes))
        d = self.weight_.shape[1]
        self.weight_ += regression.weight[:, :d]
        self.bias_ += regression.bias
        if self.block_weight_ is not None:
            self.block_weight_ = regression.teacher_weight * self.block_weight_ + regression.weight[:, d:]
            parts = self._block_logits(X)
            spreads = [float(parts[b.name].std(dim=1).mean()) if b.name in parts else 0.0 for b in shots.blocks]
            self.block_share_ = torch.tensor(spreads) / sum(spreads)
        return regression.held_out

    def _to_out_of_fold(self, x: Tensor, classes: Tensor, held_out: HeldOut, n_classes: int) -> OutOfFold:
        """The out-of-fold logits for calibration, of all classes and on the scale of the fit to all shots (n, d)."""
        shots = sum(len(train) for train, _ in held_out.splits) / len(held_out.splits) / len(classes)
        # 1 where the folds leave one of two shots to train on, 0 where they leave three quarters or more.
        one_of_two = max(0.0, 3 - 4 * shots * len(classes) / len(x))
        ratio = 1 + TWO_SHOT_LOGIT_GROWTH * one_of_two
        rows = torch.cat([rows for _, rows in held_out.splits])
        logits = held_out.cross_fitted.numpy() * ratio
        if len(classes) < n_classes and self.text_ is not None:
            # A class without shots has its zero-shot logit, as in `_logits`.
            of_all = (ratio * (self.text_weight_ / self.spread_ * centre_logits(x[rows] @ self.text_.T))).numpy()
            of_all[:, classes.numpy()] = logits
            logits = of_all
        labels = classes[held_out.labels].numpy()
        return OutOfFold(logits, labels, rows.numpy(), "own", shots, logit_scale_ratio=ratio)

    def _fit_experts(self, mixture: Mixture, classes: Tensor, n_classes: int) -> None:
        """Fit the experts that have a weight to all shots, and add them up to one map."""
        inputs, d = mixture.inputs, mixture.inputs.z.shape[1]
        self.text_weight_ = mixture.text_weight
        self.weight_, self.bias_ = inputs.z.new_zeros(n_classes, d), inputs.z.new_zeros(n_classes)
        self.shots_ = self.dual_ = None
        used = {name: factor for name, factor in mixture.factors.items() if factor}
        experts = parallel_map(
            [partial(EXPERTS[name].fit, inputs) for name in used], work=inputs.cost // PARALLEL_COST_RATIO
        )
        for factor, fitted in zip(used.values(), experts, strict=True):
            expert = fitted.centred()
            self.weight_[classes] += factor * expert.weight
            self.bias_[classes] += factor * expert.bias
            self.text_weight_ += factor * expert.text_weight
            if expert.dual is not None:
                self.shots_, self.dual_ = expert.support, inputs.z.new_zeros(len(inputs.z), n_classes)
                self.dual_[:, classes] = factor * expert.dual
        if self.text_ is None:
            self.bias_[torch.bincount(classes, minlength=n_classes) == 0] = ABSENT_LOGIT

    def _text_logits(self, X: Tensor) -> Tensor:
        if self.text_ is None:
            return X.new_zeros(len(X), len(self.weight_))
        return self._zero_shot(unit(X[:, : len(self.centre_)]), self.text_)

    def _zero_shot(self, x: Tensor, text: Tensor) -> Tensor:
        """(m, c) weighted zero-shot logits of unit features."""
        cosines = x @ text.to(x.dtype).T
        # Softmax sees only differences between classes, and the experts were fitted to centred logits. The sigmoid of
        # multi-label images sees each cosine itself.
        return self.text_weight_ / self.spread_ * (cosines if self.task_ == "multilabel" else centre_logits(cosines))

    def _logits(self, X: Tensor) -> Tensor:
        logits, z = self._final_logits(X), self._further(X)
        return logits + torch.cat(z, dim=1) @ self._further_weight(X.dtype).T if z else logits

    def _block_logits(self, X: Tensor) -> dict[str, Tensor]:
        parts, used = {FINAL: self._final_logits(X)}, self.used_blocks()
        columns = column_slices(self.read_blocks[1:])
        for name, z in zip(columns, self._further(X), strict=False):
            if name in used:
                parts[name] = z @ self._further_weight(X.dtype)[:, columns[name]].T
        return parts

    def _final_logits(self, X: Tensor) -> Tensor:
        """(m, d) raw features, ``final`` first, to the part (m, c) of the logits that comes from ``final``."""
        x = unit(X[:, : len(self.centre_)])
        z = unit(x - self.centre_.to(X.dtype))
        logits = z @ self.weight_.to(X.dtype).T + self.bias_.to(X.dtype)
        if self.shots_ is not None and self.dual_ is not None:
            logits = logits + gaussian_kernel(z @ self.shots_.to(X.dtype).T) @ self.dual_.to(X.dtype)
        return logits if self.text_ is None else logits + self._zero_shot(x, self.text_)

    def _further(self, X: Tensor) -> list[Tensor]:
        """Centred unit features of each further block; none if no further block is used."""
        if self.block_centre_ is None:
            return []
        further, centre = X[:, len(self.centre_) :], self.block_centre_.to(X.dtype)
        every_columns = column_slices(self.read_blocks[1:]).values()
        return [unit_centred(unit(further[:, columns]) - centre[columns]) for columns in every_columns]

    def _further_weight(self, dtype: torch.dtype) -> Tensor:
        assert self.block_weight_ is not None
        return self.block_weight_.to(dtype)

    def describe_unlabelled(self) -> str:
        """See `Head.describe_unlabelled`."""
        if self.unlabelled_share_ is None:
            return ""
        if self.unlabelled_reason_ is not None:
            return f"not used: {UNUSED_REASONS[self.unlabelled_reason_]}"
        gain = self.unlabelled_gain_
        why = "no shot can be held out" if gain is None else f"held-out shots gain {gain:.1f} nats"
        return f"weight {self.unlabelled_share_:.0%} ({why})"

    def block_shares(self) -> dict[str, float]:
        """See `Head.block_shares`."""
        names = [block.name for block in self.read_blocks]
        values = [1.0] + [0.0] * (len(names) - 1) if self.block_share_ is None else self.block_share_.tolist()
        return dict(zip(names, values, strict=True))

    def used_blocks(self) -> tuple[str, ...]:
        """See `Head.used_blocks`."""
        return tuple(name for name, share in self.block_shares().items() if name == FINAL or share > 0)

    def _restrict(self, before: Blocks, after: Blocks) -> None:
        if len(after) == 1:
            self.block_centre_ = self.block_weight_ = self.block_share_ = None
        if self.block_centre_ is None or self.block_share_ is None:
            return
        names = [block.name for block in after]
        _, columns = select_blocks(before[1:], names[1:])
        self.block_centre_ = self.block_centre_[columns].clone()
        self.block_weight_ = self._further_weight(self.block_centre_.dtype)[:, columns].clone()
        self.block_share_ = self.block_share_[[block.name in names for block in before]].clone()


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


def _fit_slope(zero_shot: Tensor, targets: Tensor) -> float:
    """Posterior mean (of the logarithm) of the slope that calibrates zero-shot logits of unit spread."""
    log_posterior = []
    with limit_threads(0):
        for slope in SLOPES.tolist():
            logits = slope * zero_shot
            losses = binary_losses(logits + fit_bias(logits, targets), targets)
            log_posterior.append(-float(losses.sum()) - np.log(slope) ** 2 / 2)
    posterior = torch.tensor(log_posterior, dtype=torch.float64).softmax(dim=0)
    return float((posterior @ SLOPES.double().log()).exp())
