"""How `auto` learns from pictures without labels: one more ridge regression, which held-out shots let take part or not.

The mixture without these pictures, the teacher, gives each picture a probability of every class. A ridge regression is
fitted to the shots with their labels and to the pictures with these probabilities. The prediction for each picture by
the fit to all others has a closed form (leave-one-out). It is added to the teacher's logits, which gives better
probabilities, and so on for `REFINEMENTS` rounds. So no picture confirms its own label: a ridge regression of wide
features repeats the labels that it was fitted to. Every class has the same total weight, whatever its share among
the pictures, and the logarithm of this share is subtracted from the logits (see `clipadapter.heads.auto.blocks`).

The regression is stacked with the teacher by log-loss, as blocks of features are. Every fold has its own teacher and
its own regression, which see neither labels nor features of the held-out shots. The pictures are used only if the log
posterior of the held-out labels is higher than that of the teacher alone, and than that of the teacher with the same
regression on the shots without the pictures. Where no shot can be held out, the weight is a constant, and the pictures
are used only if the teacher finds most of the classes among them.

docs/decisions/0037-auto-unlabelled.md says how the constants were chosen, and what did not help.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from clipadapter.heads.auto.blocks import Mixture, log_rarity
from clipadapter.heads.auto.experts import HeldOut, Stacking, centre_logits, fit_stacking, noise_std, predict_held_out
from clipadapter.heads.out_of_fold import some_rows
from clipadapter.heads.support import rows_without_shots
from clipadapter.utils.blocks import Blocks, column_slices
from clipadapter.utils.functional import unit
from clipadapter.utils.parallel import limit_threads

RIDGE = 0.3  # ridge of the regression on shots and pictures
REFINEMENTS = 3  # how often the probabilities of the pictures are computed again
REFINEMENT_WEIGHT = 1.5  # weight of the leave-one-out logits beside the teacher's, in units of their noise
COUNT_OFFSET = 0.1  # what is subtracted from a class's logits for each unit of the logarithm of its number of pictures
MIN_NOISE_STD = 0.05  # bound of the noise of leave-one-out logits: with two classes there is hardly any
TEACHER_WEIGHT, TEACHER_LOG_STD = 0.8, 0.4
"""Prior of the teacher's weight beside the regression; it is below 1, since the two mostly agree."""
UNLABELLED_WEIGHT, UNLABELLED_LOG_STD = 0.5, 0.7  # prior of the regression's weight, in units of its noise
ALONE_WEIGHT, ALONE_LOG_STD = 1.0, 1.0
"""Prior of the teacher's weight without the regression. It is wide: surer logits are no gain by the pictures."""
ONE_SHOT_WEIGHT = 0.4
"""Where no shot can be held out: the regression's weight, in units of the deviation of its logits for the pictures."""
MIN_CLASS_RATIO = 0.7
"""The same: effective number of classes among the pictures (see `count_classes`), as a share of all classes, from which
they are used. Pictures of few classes or of something else have fewer."""
MIN_GAIN = 0.0  # log posterior in nats that the regression must add
MAX_PICTURES = 1000  # pictures that are used; of more, these many are drawn. More bring little, and the cost is cubic.
MAX_ROWS = 1500
"""Shots and pictures together. With more shots fewer pictures are used, and none with `MAX_SHOTS` or more."""
MAX_SHOTS = 1000
MIN_PICTURES = 4  # with fewer pictures there is nothing to learn
MAX_FOLD_ROUNDS = 2  # how many of the rounds of folds are used: each fold costs as much as the fit


class FittedRegression(NamedTuple):
    """The regression on shots and pictures, beside the teacher."""

    teacher_weight: float  # factor of the teacher's logits
    weight: Tensor  # (c, e) of the features of all blocks
    bias: Tensor  # (c,)
    share: float  # of the spread of the logits over the classes that comes from the regression
    held_out: HeldOut | None  # out-of-fold logits of both; None where no shot was held out


def fit_unlabelled(
    pictures: list[Tensor], is_used: list[bool], teacher: Mixture, picture_logits: Tensor, zero_shot: Tensor | None
) -> tuple[FittedRegression | None, float | None]:
    """Fit the regression beside the teacher, and the log posterior that it adds for held-out shots, in nats.

    The pictures (u, d) are centred unit features of each block, ``final`` first. A block that the teacher does not use
    (``is_used``) is not used here either. ``picture_logits`` (u, c) are the teacher's, ``zero_shot`` (u, c) of unit
    spread. There is no regression if it adds too little, or if no shot can be held out, so that what it adds is None,
    and few of the classes are among the pictures.
    """
    held_out, labels, n_classes = teacher.held_out, teacher.inputs.labels, teacher.inputs.n_classes
    if held_out is None and count_classes(picture_logits) < MIN_CLASS_RATIO * min(picture_logits.shape):
        return None, None
    shots, further = [part.z for part in (teacher.inputs, *teacher.block_inputs)], sum(is_used[1:])
    # Factors of the blocks in the joint feature: ``final`` has half of its squared length, the others the rest.
    scales = [0.5**0.5 if further else 1.0, *((0.5 / max(further, 1)) ** 0.5 * used for used in is_used[1:])]
    # The features of all blocks side by side: of the shots, then of the pictures.
    scaled = ([scale * part for scale, part in zip(scales, parts, strict=True)] for parts in (shots, pictures))
    joint = torch.cat([torch.cat(parts, dim=1) for parts in scaled])
    products, picture_rows = joint @ joint.T, torch.arange(len(labels), len(joint))

    def predict(train: Tensor, rows: Tensor) -> list[Tensor]:
        """Logits of held-out rows by the regression with the pictures, and without them."""
        predicted = []
        for kept, logits in (
            (torch.cat([train, picture_rows]), teacher.logits(train, pictures, zero_shot)),
            (train, picture_logits[:0]),
        ):
            part = products.index_select(0, kept).index_select(1, kept)
            coefficients, offset, _ = fit_regression(part, labels[train], n_classes, logits)
            predicted.append(products.index_select(0, rows).index_select(1, kept) @ coefficients + offset)
        return predicted

    with limit_threads(len(products) ** 3):
        dual, bias, own_logits = fit_regression(products, labels, n_classes, picture_logits)
        if held_out is None:
            weights, gain, std = [1.0, ONE_SHOT_WEIGHT], None, float(own_logits.std()) or 1.0
        else:
            first = _first_rounds(held_out)
            parts = [centre_logits(part) for part in predict_held_out(first.splits, predict)]
            stds = [max(noise_std(part, first.labels), MIN_NOISE_STD) for part in parts]
            (logits, logits_without), std = [part / each for part, each in zip(parts, stds, strict=True)], stds[0]
            with limit_threads(0):  # small products between lines of Python
                weights, log_posterior, _ = _stack(first, logits)
                prior = [ALONE_WEIGHT], [ALONE_LOG_STD]
                alone = fit_stacking([first.logits], first.labels, *prior, first.row_weights).log_posterior
                gain = log_posterior - max(alone, _stack(first, logits_without).log_posterior)
            if gain <= MIN_GAIN:
                return None, gain
            held_out = first.mix([logits], weights, lambda of: _stack(first, logits, of).weights)
    factor = weights[1] / std
    weight = factor * (dual.T @ joint)
    own_spread = float((joint[len(labels) :] @ weight.T + factor * bias).std(dim=1).mean())
    share = own_spread / ((weights[0] * float(picture_logits.std(dim=1).mean()) + own_spread) or 1.0)
    columns = torch.cat([scale * torch.ones(part.shape[1]) for scale, part in zip(scales, shots, strict=True)])
    return FittedRegression(weights[0], weight * columns.to(weight.dtype), factor * bias, share, held_out), gain


def fit_regression(
    products: Tensor, labels: Tensor, n_classes: int, picture_logits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Ridge regression on shots with labels (n,) and pictures with probabilities, from logits (u, c) of the teacher.

    The products (n + u, n + u) are the Gram matrix of the shots, then of the pictures. The results are coefficients
    (n + u, c) of these rows, the bias (c,), and leave-one-out logits (u, c) of the pictures.
    """
    n = len(labels)
    onehot = torch.nn.functional.one_hot(labels, n_classes).to(products.dtype)
    logits = picture_logits.to(products.dtype)
    for _ in range(REFINEMENTS + 1):
        target = torch.cat([onehot, logits.softmax(dim=1)])
        counts = target.sum(dim=0)
        row_weights = (target @ (1 / counts)) * len(target) / n_classes  # every class has the same sum
        target = target - 1 / n_classes
        bias = COUNT_OFFSET * log_rarity(counts)
        matrix = products.clone()
        matrix.diagonal().add_(RIDGE / row_weights)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
        dual = inverse @ target
        left_out = centre_logits(target - dual / inverse.diagonal()[:, None] + bias)
        noise = max(noise_std(left_out[:n], labels), MIN_NOISE_STD)
        logits = picture_logits + REFINEMENT_WEIGHT / noise * left_out[n:]
    return dual - dual.mean(dim=1, keepdim=True), bias, left_out[n:]


def count_classes(logits: Tensor) -> float:
    """Effective number of classes that logits (u, c) predict: the exponential of the entropy of their shares."""
    counts = torch.bincount(logits.argmax(dim=1)).double()
    shares = counts[counts > 0] / counts.sum()
    return round(float((-shares * shares.log()).sum().exp()), 6)


def select_pictures(pictures: Tensor, shots: Tensor, blocks: Blocks, seed: int) -> Tensor:
    """Unit features (u', d) of the pictures that are used: those that are no shots, and at most `MAX_PICTURES`.

    Their values are those of 16-bit numbers, so that a saved model keeps them in half the space, and an edit of it
    sees the same pictures as the fit. The pictures have raw features of all blocks, the shots unit features of
    ``final``.
    """
    columns = list(column_slices(blocks).values())
    units = torch.cat([unit(pictures[:, part]) for part in columns], dim=1)
    kept = rows_without_shots(units[:, columns[0]], shots)
    kept = kept[units[kept].any(dim=1)]  # zeros have no direction
    limit = max(0, min(MAX_PICTURES, MAX_ROWS - len(shots)))
    return units[some_rows(kept, limit, seed)[:limit]].half().float()  # `some_rows` keeps one at a limit of 0


def _stack(held_out: HeldOut, regression: Tensor, of: Tensor | slice = slice(None)) -> Stacking:
    """Weights of the teacher and of the regression by some of the held-out rows."""
    parts = [held_out.logits[of], regression[of]]
    median, log_std = [TEACHER_WEIGHT, UNLABELLED_WEIGHT], [TEACHER_LOG_STD, UNLABELLED_LOG_STD]
    return fit_stacking(parts, held_out.labels[of], median, log_std, held_out.row_weights[of])


def _first_rounds(held_out: HeldOut) -> HeldOut:
    """The first rounds of folds: each of them holds out every shot once that can be held out."""
    n_rows = len(torch.cat([rows for _, rows in held_out.splits]).unique())
    rounds = round(len(held_out.labels) / n_rows)
    if rounds <= MAX_FOLD_ROUNDS:
        return held_out
    splits = held_out.splits[: len(held_out.splits) * MAX_FOLD_ROUNDS // rounds]
    n = sum(len(rows) for _, rows in splits)
    row_weights = held_out.row_weights[:n] * rounds / MAX_FOLD_ROUNDS
    first = {name: getattr(held_out, name)[:n] for name in ("logits", "labels", "cross_fitted")}
    return replace(held_out, splits=splits, row_weights=row_weights, **first)
