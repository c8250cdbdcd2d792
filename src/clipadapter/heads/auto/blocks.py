"""How `auto` mixes further blocks of features with ``final``: a ridge regression each, weighted by held-out log-loss.

Class text is compared with ``final`` alone, and there all experts of `auto` are fitted. A further block, such as an
inner layer, the picture at a second resolution or another encoder, gets one ridge regression without text, which has a
closed form. Its logits are divided by the noise of its logits for wrong classes, so that one prior fits all blocks.
The mixture is a weighted sum of logits. The weights of ``final``'s logits and of each block's are fitted to out-of-fold
logits under a log-normal prior (`fit_stacking`). The blocks of a further pass through an image tower are left out if
held-out shots do not show a gain, since each pass costs time for every prediction. Where no shot can be held out, the
weights are constants.

Ridge regression gives lower logits to a class that has fewer shots, even if all classes weigh the same. So with unequal
shots the mixture has one more term, the negative logarithm of the class's number of shots (logit adjustment, Menon et
al., ICLR 2021, https://arxiv.org/abs/2007.07314), whose weight is fitted with the others.

docs/decisions/0035-auto-blocks.md says how the constants were chosen, and what did not help.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from clipadapter.heads.auto.experts import (
    EXPERTS,
    MAX_KERNEL_SHOTS,
    ExpertInputs,
    HeldOut,
    centre_logits,
    fit_ridge,
    fit_stacking,
    leave_one_out_ridge_noise,
    noise_std,
    out_of_fold_logits,
)
from clipadapter.heads.support import SupportSet
from clipadapter.utils.blocks import FINAL, Block, BlockSource, column_slices
from clipadapter.utils.functional import unit
from clipadapter.utils.parallel import limit_threads, parallel_map

FINAL_WEIGHT, FINAL_LOG_STD = 0.7, 0.4
"""Prior of the weight of the logits of ``final``: below 1, since blocks that agree with it make the sum surer."""
BLOCKS_WEIGHT, BLOCK_LOG_STD = 0.6, 1.25
"""Prior of the weights of all further blocks, in units of their noise: sum of the medians, deviation of each log."""
ONE_SHOT_BLOCKS_WEIGHT, ONE_SHOT_RIDGE_RATIO = 0.3, 0.7
"""Where no shot can be held out: sum of the weights of the further blocks, and the part of its weight that ridge
regression on ``final`` keeps. So the shots have about the same weight beside the text as without further blocks."""
COUNT_WEIGHT, COUNT_LOG_STD = 1.0, 0.6  # prior of the weight of the negative log counts with unequal shots
MIN_SHARE = 0.01  # a block is not used if its share of the spread of the logits is smaller
MIN_GAIN, MIN_GAIN_OF_FURTHER_PASS = -0.5, 0.5
"""Log posterior in nats that blocks must add: those of the same pass as ``final``, which are there anyway, and those of
another pass."""
MIN_CENTRED_NORM, MIN_NOISE_STD = 1e-4, 1e-3
"""A block with the same values for every picture has rounding errors only. These bounds keep them small; centred unit
features have norms near 1, and ridge regression has a noise of about 0.1."""


@dataclass(frozen=True)
class Mixture:
    """What is mixed with which weights, so that it can be fitted to some of the shots."""

    inputs: ExpertInputs  # the shots as the experts on `final` get them
    text_weight: float  # of the zero-shot logits by themselves
    factors: dict[str, float]  # of the experts' logits; 0 for an expert that is not used
    held_out: HeldOut | None  # out-of-fold logits of the mixture; None where no shot was held out
    final_weight: float = 1.0  # factor of the logits of `final`
    block_inputs: Sequence[ExpertInputs] = ()  # the shots as the ridge regression of each further block gets them
    block_factors: Sequence[float] = ()  # of its logits; 0 for a block that is not used
    count_weight: float = 0.0  # of the negative log counts of the classes

    def logits(self, train: Tensor, pictures: list[Tensor], zero_shot: Tensor | None) -> Tensor:
        """Logits (u, c) of pictures by the mixture that is fitted to the training rows.

        The pictures have centred unit features (u, d) of each block, ``final`` first; their zero-shot logits have unit
        spread.
        """
        part = self.inputs.take(train)
        mixed = pictures[0].new_zeros(len(pictures[0]), part.n_classes)
        if zero_shot is not None:
            mixed = mixed + self.text_weight * zero_shot
        for name, factor in self.factors.items():
            if factor:
                mixed = mixed + factor * centre_logits(EXPERTS[name].fit(part).logits(pictures[0], zero_shot))
        mixed = self.final_weight * mixed
        for factor, inputs, z in zip(self.block_factors, self.block_inputs, pictures[1:], strict=True):
            if factor:
                mixed = mixed + factor * centre_logits(fit_ridge(inputs.take(train)).logits(z, None))
        return mixed + self.count_weight * log_rarity(part.counts)


class FittedBlocks(NamedTuple):
    """Further blocks beside ``final``: their logits are ``z W' + bias``."""

    centre: Tensor  # (e,) subtracted from the unit features of each block; e is the width of all further blocks
    weight: Tensor  # W, (c, e): zero in the columns of a block that is not used
    bias: Tensor  # (c,) for unequal shots, else zero
    shares: Tensor  # (b,) of each block in the spread of the logits, `final` first; 0 for a block that is not used
    mixture: Mixture  # of `final` and these blocks


def fit_blocks(shots: SupportSet, final_logits: Tensor, final: Mixture) -> FittedBlocks:
    """Fit a ridge regression to each further block, and choose the weights beside the mixture on ``final``.

    The logits (n, c) of the shots are by that mixture. They are read only where no shot was held out.
    """
    x, labels, held_out = unit_blocks(shots), final.inputs.labels, final.held_out
    centre, counts = mean_of_classes(x, labels), torch.bincount(labels)
    inputs = []
    for columns in column_slices(shots.further_blocks).values():
        z = unit_centred(x[:, columns] - centre[columns])
        gram = z @ z.T if len(z) <= MAX_KERNEL_SHOTS else None
        inputs.append(ExpertInputs(z, labels, final.inputs.n_classes, None, 0.0, gram))
    cost = sum(part.cost for part in inputs)
    experts = parallel_map([partial(fit_ridge, part) for part in inputs], work=cost)
    maps = [expert.centred().weight for expert in experts]  # logits of mean zero over the classes
    count_weights: list[float] = []
    if held_out is None:
        with limit_threads(cost):
            noise = [leave_one_out_ridge_noise(part) for part in inputs]
        weights = [1.0, *[ONE_SHOT_BLOCKS_WEIGHT / len(inputs)] * len(inputs)]
        parts = [final_logits, *(part.z @ each.T / std for part, each, std in zip(inputs, maps, noise, strict=True))]
        shares = used_shares(weights, parts)
    else:
        rows, splits, truth, row_weights = held_out.rows, held_out.splits, held_out.labels, held_out.row_weights

        def predict_ridge(part: ExpertInputs) -> Tensor:
            return centre_logits(out_of_fold_logits(part.take(rows), splits, [fit_ridge])[0])

        logits = parallel_map([partial(predict_ridge, part) for part in inputs], work=cost)
        noise = [max(noise_std(part, truth), MIN_NOISE_STD) for part in logits]
        parts = [held_out.logits, *(part / std for part, std in zip(logits, noise, strict=True))]
        if counts.min() < counts.max():  # (r, c) negative log counts of the classes in the training rows
            part = inputs[0].take(rows)
            of_folds = [log_rarity(part.take(train).counts).expand(len(left_out), -1) for train, left_out in splits]
            parts.append(torch.cat(of_folds))

        def choose(of: Tensor | slice, used: Sequence[int]) -> list[float]:
            return choose_weights([part[of] for part in parts], shots.blocks, used, truth[of], row_weights[of])

        with limit_threads(0):  # small products between lines of Python
            used: list[int] = []
            kept = list(range(1 + len(inputs)))
            while len(kept) != len(used):  # without a block that is left out, the others are weighted again
                used = kept
                weights = choose(slice(None), used)
                shares = used_shares(weights[: 1 + len(inputs)], parts[: 1 + len(inputs)])
                kept = torch.nonzero(shares).flatten().tolist()
            held_out = held_out.mix(parts[1:], weights, lambda of: choose(of, used))
        weights, count_weights = weights[: 1 + len(inputs)], weights[1 + len(inputs) :]
    factors, count_weight = [weight / std for weight, std in zip(weights[1:], noise, strict=True)], sum(count_weights)
    weight = torch.cat([factor * each for factor, each in zip(factors, maps, strict=True)], dim=1)
    bias = count_weight * log_rarity(counts).to(x.dtype)
    mixture = replace(
        final,
        held_out=held_out,
        final_weight=weights[0],
        block_inputs=inputs,
        block_factors=factors,
        count_weight=count_weight,
    )
    return FittedBlocks(centre, weight, bias, shares, mixture)


def choose_weights(
    parts: list[Tensor], blocks: Sequence[Block], used: Sequence[int], labels: Tensor, row_weights: Tensor
) -> list[float]:
    """Weight of the logits of each block, ``final`` first; 0 for the blocks of a pass that is not worth its time.

    Passes are left out one after the other, the least useful first; only blocks at the ``used`` positions are tried.
    The parts (r, c) are the out-of-fold logits of each block, of ``final`` as they are, of others in units of their
    noise. With unequal shots one more part, the last, has the negative log counts of the classes in the training rows.
    """
    own = BlockSource.parse(FINAL).pass_key
    passes: dict[Hashable, list[int]] = {}
    for i in used[1:]:
        passes.setdefault(BlockSource.parse(blocks[i].name).pass_key, []).append(i)
    counts = range(len(blocks), len(parts))  # the position of the log counts, if they are there

    def fit(keys: list[Hashable]) -> tuple[dict[int, float], float]:
        """Weights by position of the blocks of some passes and of the log counts, and their log posterior."""
        further = [i for key in keys for i in passes[key]]
        rows, n = [0, *further, *counts], len(further)
        median = [FINAL_WEIGHT, *[BLOCKS_WEIGHT / max(n, 1)] * n, *[COUNT_WEIGHT] * len(counts)]
        std = [FINAL_LOG_STD, *[BLOCK_LOG_STD] * n, *[COUNT_LOG_STD] * len(counts)]
        weights, log_posterior, _ = fit_stacking([parts[i] for i in rows], labels, median, std, row_weights)
        return dict(zip(rows, weights, strict=True)), log_posterior

    kept = list(passes)
    weights, log_posterior = fit(kept)
    while kept:
        without = {key: fit([other for other in kept if other != key]) for key in kept}
        surplus = {
            key: log_posterior - without[key][1] - (MIN_GAIN if key == own else MIN_GAIN_OF_FURTHER_PASS)
            for key in kept
        }
        worst = min(kept, key=lambda key: surplus[key])
        if surplus[worst] >= 0:
            break
        kept.remove(worst)
        weights, log_posterior = without[worst]
    if not kept and not counts:
        weights = {0: 1.0}  # as if there were no further blocks
    return [weights.get(i, 0.0) for i in range(len(parts))]


def mean_of_classes(x: Tensor, labels: Tensor) -> Tensor:
    """(d,) mean over the class means of rows (n, d), which unequal numbers of shots do not move."""
    counts = torch.bincount(labels)[labels].to(x.dtype)
    return (x / counts[:, None]).sum(dim=0) / (1 / counts).sum()


def unit_blocks(shots: SupportSet) -> Tensor:
    """(n, e) features of the further blocks, side by side: each block has unit rows, the mean of the shot's views."""
    views = shots.further_views
    columns_of_blocks = column_slices(shots.further_blocks).values()
    return torch.cat([unit(unit(views[..., columns]).mean(dim=1)) for columns in columns_of_blocks], dim=1)


def unit_centred(x: Tensor) -> Tensor:
    """Rows (m, d) at unit length, except very short ones."""
    return x / x.norm(dim=1, keepdim=True).clamp(min=MIN_CENTRED_NORM)


def used_shares(weights: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    """Shares of weighted parts (m, c), ``final`` first, in the spread of the logits; 0 for a very small other part."""
    return spread_shares([weight * float(part.std(dim=1).mean()) for weight, part in zip(weights, parts, strict=True)])


def spread_shares(spreads: list[float]) -> Tensor:
    """Spreads of the parts of the logits as shares; 0 for a further part with a very small one."""
    total = sum(spreads)
    if not total > 0:
        return torch.tensor([1.0] + [0.0] * (len(spreads) - 1))
    used = torch.tensor([spreads[0], *(each if each >= MIN_SHARE * total else 0.0 for each in spreads[1:])])
    return used / used.sum()


def log_rarity(counts: Tensor) -> Tensor:
    """(c,) negative logarithms of numbers of shots, with mean zero."""
    log_counts = counts.log()
    return log_counts.mean() - log_counts
