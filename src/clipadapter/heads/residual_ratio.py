"""The choice of the residual ratio: what zero-shot says of the shots, corrected by what held-out shots say.

Both are log-losses, each at the temperature that suits it best: a ratio is judged by how well it tells the classes
apart, not by how confident it is at the encoder's logit scale. This choice is ours; the paper searched the ratio.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipadapter.heads.losses import Objective

RATIOS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Candidates."""
TEMPERATURES = tuple(2.0 ** (i / 2) for i in range(-4, 13))
"""What logits are divided by before a loss is taken: 1/4 to 64."""
MAX_EXPECTED_RATIO = 0.3
"""Ratio that is expected where zero-shot knows nothing of the classes."""
MAX_POWER = 2.0
"""How fast the expected ratio falls with the loss that zero-shot leaves, with few shots."""
SHOTS_OF_HALF_POWER = 20
"""Shots with which it falls half as fast: an adapter that is shared by many shots is a better one, and costs less."""
PRIOR_SHOTS = 2
"""Shots that count beside those that are there, of which zero-shot takes away half of a guess's loss: three shots that
happen to be right are weak evidence that the text is good."""
RATIO_SPREAD = 0.15
"""Standard deviation of the prior of the ratio around the expected one."""
TEMPERATURE_SPREAD = 1.0
"""Standard deviation of the prior of the logarithm of zero-shot's temperature, around that of the encoder."""
WRONG_LABELS = 0.05
"""Share of the shots whose label may be wrong, so that one of them can't outweigh the others."""
MAX_SHOTS_LOOKED_AT = 1024
"""Shots by which zero-shot is judged."""


def expected_ratio(zero_shot: Tensor, objective: Objective) -> float:
    """The ratio that is expected before a shot is held out: the less zero-shot knows, the larger.

    Zero-shot saw none of the shots, so their likelihood is an honest measure of it. With R the share of the log-loss of
    a guess that zero-shot takes away at its best temperature (McFadden's pseudo R squared), it is
    ``0.3 * (1 - R) ** p`` with ``p = 2 / (1 + n / 20)``, where two further shots with R of one half count as well. A
    guess knows of one label nothing; of several labels how frequent each is. The constants were chosen at one shot a
    class on 24 sets of 3 to 30 classes and four of 50 to 101.

    Args:
        zero_shot: (n, c) zero-shot logits of shots.
        objective: with their labels.

    >>> labels = torch.arange(4)
    >>> objective = Objective(1.0, labels, None, None)
    >>> round(expected_ratio(torch.zeros(4, 4), objective), 2), expected_ratio(100 * torch.eye(4), objective) < 0.05
    (0.22, True)
    """
    rows = torch.arange(len(zero_shot))[:: 1 + (len(zero_shot) - 1) // MAX_SHOTS_LOOKED_AT]
    temperatures = zero_shot.new_tensor(TEMPERATURES)
    losses = objective.losses_at(zero_shot[rows], rows, temperatures, WRONG_LABELS)  # (t,)
    best = int((losses + temperatures.log().square() / (2 * TEMPERATURE_SPREAD**2)).argmin())
    guess = objective.guess_loss(rows, zero_shot.shape[1])
    left = min(1.0, float(losses[best]) / guess) if guess > 0 else 1.0
    n = len(zero_shot)
    left = (n * left + PRIOR_SHOTS * 0.5) / (n + PRIOR_SHOTS)
    return float(MAX_EXPECTED_RATIO * left ** (MAX_POWER / (1 + n / SHOTS_OF_HALF_POWER)))


def no_losses() -> Tensor:
    """(r, t) the table of no held-out shot."""
    return torch.zeros(len(RATIOS), len(TEMPERATURES))


def loss_table(logits: Sequence[Tensor], objective: Objective) -> Tensor:
    """Summed losses of held-out shots at each ratio and temperature: tables of several folds are added.

    Args:
        logits: (h, c) of the held-out shots, at each of `RATIOS`.
        objective: with their labels.

    Returns:
        (r, t) float32.
    """
    rows, temperatures = torch.arange(len(logits[0])), logits[0].new_tensor(TEMPERATURES)
    return torch.stack([objective.losses_at(layer, rows, temperatures, WRONG_LABELS) for layer in logits]).float()


def choose_ratio(table: Tensor, expected: float) -> float:
    """Posterior mean of the ratio, each ratio judged at its best temperature.

    Args:
        table: (r, t) summed losses of held-out shots; zeros if none was held out.
        expected: mean of the prior, which is normal.

    >>> round(choose_ratio(no_losses(), 0.3), 1)
    0.3
    """
    if not table.any():
        return expected
    ratios = table.new_tensor(RATIOS)
    away = (ratios - expected) / RATIO_SPREAD
    # Candidates are not equally far apart: each stands for the ratios that are nearest to it.
    shares = torch.cat([ratios[:1], (ratios[1:] + ratios[:-1]) / 2, ratios[-1:]]).diff()
    posterior = torch.softmax(shares.log() - table.amin(dim=1) - away.square() / 2, dim=0)
    return float(posterior @ ratios)
