"""The residual ratio of adapters: how it is chosen, and how a trained one is computed (at the end of this file).

It is chosen by a prior from the zero-shot loss of the shots, and by the loss of held-out shots. Both are log-losses,
each at its best temperature: a ratio is evaluated by how well it separates the classes, not by how confident it is at
the encoder's logit scale. This choice is ours; the paper searched the ratio for each data set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clipadapter.errors import InputError, brief
from clipadapter.heads.losses import Loss

TRAINED_MODES = ("learned", "dynamic")
"""Modes in which gradient steps change the ratio, beside the adapter."""
AUTO_TRAINING_RATIO = 0.4
"""Ratio that "auto" trains with before it chooses one: the middle of the best range in the paper (0.2 to 0.6)."""
START_RATIO = 0.2
"""Where a learned and a dynamic ratio start."""
CANDIDATE_RATIOS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Ratios that held-out shots are evaluated at."""
CANDIDATE_TEMPERATURES = tuple(2.0 ** (i / 2) for i in range(-4, 13))
"""Divisors of the logits, 1/4 to 64; each loss is taken at the best of them."""
MAX_EXPECTED_RATIO = 0.3
"""Expected ratio where zero-shot is no better than the null model."""
MAX_POWER = 1.75
"""Exponent of the share of the loss that zero-shot leaves unexplained, with few shots."""
SHOTS_OF_HALF_POWER = 20
"""Shots at which that exponent is half as large: an adapter trained on more shots is a better one."""
PRIOR_SHOTS = 2
"""Pseudo-counts added to the shots, for which zero-shot explains half of the null model's loss: three shots that
happen to be right are weak evidence that the text is good."""
RATIO_SPREAD = 0.15
"""Standard deviation of the prior of the ratio around the expected one."""
TEMPERATURE_SPREAD = 1.0
"""Standard deviation of the prior of the logarithm of zero-shot's temperature, around that of the encoder."""
WRONG_LABEL_SHARE = 0.05
"""Share of the shots whose label may be wrong, so that one of them can't outweigh the others."""
MAX_ZERO_SHOT_ROWS = 1024
"""Most shots that the zero-shot loss is computed on."""
MAX_HELD_OUT_LOGITS = 2**23
"""Logits of shots, for one ratio, that losses are computed on: 838 shots of 10,000 classes. Of more a random part is
taken."""


def some_rows(rows: Tensor, n_classes: int, seed: int) -> Tensor:
    """As many of the rows, drawn by seed and in order, as have `MAX_HELD_OUT_LOGITS`; all if they have no more.

    >>> len(some_rows(torch.arange(1000), 10_000, seed=0)), len(some_rows(torch.arange(1000), 100, seed=0))
    (838, 1000)
    """
    n = max(1, MAX_HELD_OUT_LOGITS // n_classes)
    if len(rows) <= n:
        return rows
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[:n].sort().values]


def expected_ratio(zero_shot: Tensor, loss: Loss) -> float:
    """Prior mean of the ratio, from the zero-shot loss: the worse zero-shot is, the larger.

    Zero-shot was not trained on the shots, so their likelihood is an unbiased measure of it. With R the share of the
    null model's log-loss that zero-shot explains at its best temperature (McFadden's pseudo R squared), it is
    ``0.3 * (1 - R) ** p`` with ``p = 1.75 / (1 + n / 20)``, where two further shots with R of one half count as well.
    The null model gives each class the same probability; multi-label, the frequency of the class. The constants were
    chosen at one shot per class on 24 sets of 3 to 30 classes and four of 50 to 101.

    Args:
        zero_shot: (n, c) zero-shot logits of shots.
        loss: of their labels.

    >>> labels = torch.arange(4)
    >>> loss = Loss(1.0, labels, None, None)
    >>> round(expected_ratio(torch.zeros(4, 4), loss), 2), expected_ratio(100 * torch.eye(4), loss) < 0.05
    (0.23, True)
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


def empty_loss_table() -> Tensor:
    """(r, t) zeros, the table without a held-out shot."""
    return torch.zeros(len(CANDIDATE_RATIOS), len(CANDIDATE_TEMPERATURES))


def held_out_loss_table(logits: Sequence[Tensor], loss: Loss) -> Tensor:
    """Summed losses of held-out shots at each ratio and temperature. The tables of folds can be added.

    Args:
        logits: (h, c) of the held-out shots, at each of `CANDIDATE_RATIOS`.
        loss: of their labels.

    Returns:
        (r, t) float32.
    """
    rows, temperatures = torch.arange(len(logits[0])), logits[0].new_tensor(CANDIDATE_TEMPERATURES)
    sums = [loss.sums_at_temperatures(at_ratio, rows, temperatures, WRONG_LABEL_SHARE) for at_ratio in logits]
    return torch.stack(sums).float()


def choose_ratio(table: Tensor, expected: float) -> float:
    """Posterior mean of the ratio, each ratio evaluated at its best temperature.

    Args:
        table: (r, t) summed losses of held-out shots; zeros if none was held out.
        expected: mean of the prior, which is normal.

    >>> round(choose_ratio(empty_loss_table(), 0.3), 1)
    0.3
    """
    if not table.any():
        return expected
    ratios = table.new_tensor(CANDIDATE_RATIOS)
    deviations = (ratios - expected) / RATIO_SPREAD
    # Candidates are not equally far apart: each stands for the ratios that are nearest to it.
    widths = torch.cat([ratios[:1], (ratios[1:] + ratios[:-1]) / 2, ratios[-1:]]).diff()
    posterior = torch.softmax(widths.log() - table.amin(dim=1) - deviations.square() / 2, dim=0)
    return float(posterior @ ratios)


def check_ratio(name: str, value: float | str) -> None:
    """Raise InputError unless a ratio is 0 to 1, "auto", "learned" or "dynamic"."""
    if value not in ("auto", *TRAINED_MODES) and (isinstance(value, str) or not 0 <= value <= 1):
        raise InputError(f"{name} must be 0 to 1, 'auto', 'learned' or 'dynamic', but is {brief(value)}")


def gate_inputs(x: Tensor, text: Tensor, scale: float) -> Tensor:
    """Input (n, 2d) of the paper's Q(f, W): features (n, d), and their mean class text under zero-shot's probabilities.

    With the mean of the class text (c, d) the input has one width for any number of classes.

    >>> gate_inputs(torch.tensor([[0.6, 0.8]]), torch.eye(2), scale=0.0)
    tensor([[0.6000, 0.8000, 0.5000, 0.5000]])
    """
    return torch.cat([x, (scale * x @ text.T).softmax(dim=1) @ text], dim=1)


def ratio_from_gate(gate: Tensor, inputs: Tensor) -> Tensor:
    """A ratio (n, 1) as a function of inputs (n, k): the sigmoid of a linear map.

    The paper does not publish the architecture of its Q(f, W); this is the simplest that trains.

    Args:
        gate: (1 + k,), the constant first; or (1,) for a ratio that is one number.
        inputs: (n, k), not used for one number.

    >>> ratio_from_gate(torch.tensor([0.0, 1.0]), torch.tensor([[0.0], [100.0]]))
    tensor([[0.5000],
            [1.0000]])
    """
    return (gate[0] + inputs @ gate[1:] if len(gate) > 1 else gate).sigmoid().view(-1, 1)


def initial_ratio(ratio: float | str) -> float:
    """The ratio that training starts with: that of a mode, or the number itself."""
    return AUTO_TRAINING_RATIO if ratio == "auto" else START_RATIO if isinstance(ratio, str) else float(ratio)


def initial_gate(ratio: float | str, width: int, dtype: torch.dtype) -> Tensor | None:
    """Parameters of a trained ratio: its logit if it is learned, that and a linear map if it is dynamic; else None."""
    if ratio not in TRAINED_MODES:
        return None
    gate = torch.zeros(1 + (width if ratio == "dynamic" else 0), dtype=dtype)
    gate[0] = math.log(START_RATIO / (1 - START_RATIO))
    return gate.requires_grad_()


def residual_part(x: Tensor, adapted: Tensor, ratio: Tensor | float, normalise: bool = True) -> Tensor:
    """The part (n, d) of `clip_adapter.Adapter.blend` that does not come from the adapter.

    Args:
        x: (n, d) features before the adapter.
        adapted: (n, d) its output.
        ratio: weight of the adapted features.
        normalise: divide by the length of the whole blend.

    >>> x, adapted = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> residual_part(x, adapted, 0.25, normalise=False)
    tensor([[0.7500, 0.0000]])
    """
    own = (1 - ratio) * x
    return own / (own + ratio * adapted).norm(dim=1, keepdim=True).clamp_min(1e-12) if normalise else own
