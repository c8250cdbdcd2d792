"""The residual ratio of adapters: how it is chosen from the shots.

It is chosen by a prior from the zero-shot loss of the shots, and by the loss of held-out shots. Both are log-losses,
each at its best temperature: a ratio is evaluated by how well it separates the classes, not by how confident it is at
the encoder's logit scale. This choice is ours; the paper searched the ratio for each data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clipadapter.heads.losses import WRONG_LABEL_SHARE, Loss
from clipadapter.heads.out_of_fold import some_rows
from clipadapter.heads.support import SupportSet
from clipadapter.utils.functional import unit

CANDIDATE_RATIOS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Ratios that held-out shots are evaluated at."""
CANDIDATE_TEMPERATURES = tuple(2.0 ** (i / 2) for i in range(-4, 13))
"""Divisors of the logits, 1/4 to 64; each loss is taken at the best of them."""
MAX_EXPECTED_RATIO = 0.3  # expected ratio where zero-shot is no better than the null model
MAX_POWER = 1.75  # exponent of the share of the loss that zero-shot leaves unexplained, with few shots
SHOTS_OF_HALF_POWER = 20
"""Shots at which that exponent is half as large: an adapter trained on more shots is a better one."""
PRIOR_SHOTS = 2
"""Pseudo-counts added to the shots, for which zero-shot explains half of the null model's loss: three shots that
happen to be right are weak evidence that the text is good."""
RATIO_SPREAD = 0.15  # standard deviation of the prior of the ratio around the expected one
TEMPERATURE_SPREAD = 1.0
"""Standard deviation of the prior of the logarithm of zero-shot's temperature, around that of the encoder."""
MAX_ZERO_SHOT_ROWS = 1024  # most shots that the zero-shot loss is computed on
MAX_HELD_OUT_LOGITS = 2**23
"""Logits of shots, for one ratio, that losses are computed on: 838 shots of 10,000 classes. Of more a random part is
taken."""


def limit_rows(rows: Tensor, shots: SupportSet, seed: int) -> Tensor:
    """Some of the shots; of more than `MAX_HELD_OUT_LOGITS` allows a random part."""
    return some_rows(rows, MAX_HELD_OUT_LOGITS // shots.n_classes, seed)


def zero_shot_of(shots: SupportSet, seed: int) -> tuple[Tensor, Tensor]:
    """Rows (m,) of all shots, within the limit, and their zero-shot logits (m, c)."""
    rows = limit_rows(torch.arange(len(shots.views)), shots, seed)
    return rows, shots.scale * unit(shots.X[rows]) @ shots.class_text.T


def expected_ratio(zero_shot: Tensor, loss: Loss) -> float:
    """Prior mean of the ratio, from the zero-shot loss: the worse zero-shot is, the larger.

    Zero-shot was not trained on the shots, so their likelihood is an unbiased measure of it. With R the share of the
    null model's log-loss that zero-shot explains at its best temperature (McFadden's pseudo R squared), it is
    ``0.3 * (1 - R) ** p`` with ``p = 1.75 / (1 + n / 20)``, where two further shots with R of one half count as well.
    The null model gives each class the same probability; multi-label, the frequency of the class. The constants were
    chosen at one shot per class on 24 sets of 3 to 30 classes and four of 50 to 101.
    """
    rows = torch.arange(len(zero_shot))[:: 1 + (len(zero_shot) - 1) // MAX_ZERO_SHOT_ROWS]
    temperatures = zero_shot.new_tensor(CANDIDATE_TEMPERATURES)
    losses = loss.sums_at_temperatures(zero_shot[rows], rows, temperatures, WRONG_LABEL_SHARE)  # (t,)
    best = int((losses + temperatures.log().square() / (2 * TEMPERATURE_SPREAD**2)).argmin())
    null_loss = loss.of_null_model(rows, zero_shot.shape[1])
    unexplained = min(1.0, float(losses[best]) / null_loss) if null_loss > 0 else 1.0
    n = len(zero_shot)
    unexplained = (n * unexplained + PRIOR_SHOTS * 0.5) / (n + PRIOR_SHOTS)
    return float(MAX_EXPECTED_RATIO * unexplained ** (MAX_POWER / (1 + n / SHOTS_OF_HALF_POWER)))


def held_out_loss_table(logits: Callable[[float], Tensor], loss: Loss) -> Tensor:
    """Summed losses (r, t), at each ratio and temperature, of held-out shots with logits (h, c) at a ratio; float32."""
    sums = []
    for ratio in CANDIDATE_RATIOS:
        z = logits(ratio)
        temperatures = z.new_tensor(CANDIDATE_TEMPERATURES)
        sums.append(loss.sums_at_temperatures(z, torch.arange(len(z)), temperatures, WRONG_LABEL_SHARE))
    return torch.stack(sums).float()


def choose_ratio(tables: Sequence[Tensor], expected: float) -> float:
    """Posterior mean of the ratio, each ratio evaluated at its best temperature.

    The tables have the summed losses (r, t) of the held-out shots of each fold. The prior is normal around the expected
    ratio.
    """
    if not tables:
        return expected
    table = torch.stack([*tables]).sum(dim=0)
    ratios = table.new_tensor(CANDIDATE_RATIOS)
    deviations = (ratios - expected) / RATIO_SPREAD
    # Candidates are not equally far apart: each stands for the ratios that are nearest to it.
    widths = torch.cat([ratios[:1], (ratios[1:] + ratios[:-1]) / 2, ratios[-1:]]).diff()
    posterior = torch.softmax(widths.log() - table.amin(dim=1) - deviations.square() / 2, dim=0)
    return float(posterior @ ratios)
