"""CLIP-Adapter trained on one task after another: with replay of a few stored shots per class, or without.

Papers: Gao et al., IJCV 2023, https://arxiv.org/abs/2110.04544 (the adapter); Rebuffi et al., CVPR 2017,
https://arxiv.org/abs/1611.07725, and Chaudhry et al., 2019, https://arxiv.org/abs/1902.10486 (a few pictures of each
class are stored and replayed). With ``replay=0`` it is sequential fine-tuning, the baseline for forgetting.
Ours: stored shots are drawn at random, as features, and repeated so often that a class of an earlier task weighs as
much as one of this task; a ratio "auto" follows the shots that each task so far held out, by their summed losses.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from clipadapter.functional import unit
from clipadapter.heads.base import SupportSet
from clipadapter.heads.clip_adapter import ADAPTER_TENSORS, Adapter, ClipAdapter
from clipadapter.heads.incremental import IncrementalHead
from clipadapter.heads.losses import Loss
from clipadapter.heads.parameters import NOT_NEGATIVE
from clipadapter.heads.registry import register_head
from clipadapter.heads.residual_ratio import choose_ratio, empty_loss_table, expected_ratio
from clipadapter.parallel import parallel_map


@register_head(
    "clip-adapter-replay",
    version=4,
    paper="https://arxiv.org/abs/2110.04544",
    compare=False,
    fidelity="own: CLIP-Adapter and the replay of stored shots are published. Their combination is ours.",
)
@dataclass(eq=False, repr=False, kw_only=True)
class ClipAdapterReplay(IncrementalHead, ClipAdapter):
    """CLIP-Adapter on picture features in a stream: each task trains on from where the last one ended.

    The first fit is that of `ClipAdapter`. Memory is ``replay`` features per class, however many pictures come.

    Args:
        replay: shots of each class that are stored and trained on again; 0 for sequential fine-tuning, which forgets.
        alpha: weight of the adapted feature, 0 to 1; "learned" and "dynamic" train it anew in each task; "auto" chooses
            it as `ClipAdapter` does, by the held-out shots of all tasks so far.
        lr: highest learning rate of each task.
        schedule: of the learning rate in each task.
        warmup_epochs: of each task.
        epochs: of each task; None for as many as make ``steps`` steps.
        steps: of each task.
        folds: for "auto", in the first fit; each later task holds out one such part of its new shots.
        seed: of initialisation, shuffling, folds, and of which shots are stored.

    >>> from clipadapter.testing import toy_features
    >>> X, y, text = toy_features()
    >>> head = ClipAdapterReplay(replay=2).fit(X[:8], y[:8], text=text).partial_fit(X[8:], y[8:], text=text)
    >>> head.kept_.shape, bool((head.predict(X) == y).all())
    (torch.Size([6, 16]), True)
    """

    supports_warm_start = False
    multilabel = False
    picture_features = ("kept_",)

    kept_: Tensor = field(init=False)
    """(r, d) raw features."""
    kept_labels_: Tensor = field(init=False)
    """(r,) their classes."""
    centre_: Tensor | None = field(init=False)
    """(d,) mean of the features of the first task; None if it is not subtracted."""
    losses_: Tensor = field(init=False)
    """(r, t) of held-out shots of all tasks, at each ratio and temperature."""

    replay: Annotated[int, NOT_NEGATIVE] = 4
    # Stored shots are repeated until their classes are as frequent as the others: little is left to adjust.
    logit_adjustment: float = 0.0
    branch: str = field(default="visual", init=False)
    beta: float | str = field(default="auto", init=False)

    def _partial_fit_first(self, shots: SupportSet) -> None:
        for name in ADAPTER_TENSORS:
            self.__dict__.pop(f"{name}_", None)
        self.kept_, self.kept_labels_ = shots.X[:0], shots.labels[:0]
        self.losses_ = empty_loss_table()
        self._choose_gce_q(shots)
        features = self._input(shots.X)
        self.centre_ = super()._centre(features, shots, torch.arange(len(features)))
        self._train_task(shots)

    def _partial_fit_next(self, shots: SupportSet, origin: Tensor) -> None:
        position_of = torch.full((int(origin.max()) + 1,), -1).index_copy(
            0, origin[origin >= 0], torch.nonzero(origin >= 0).flatten()
        )
        self.kept_labels_ = position_of[self.kept_labels_]
        self._train_task(shots)

    def _initial(self, d: int, generator: torch.Generator, dtype: torch.dtype) -> Adapter:
        """Where training starts: at what was learned, if something was."""
        learned = Adapter.of_head(self, dtype)
        if learned is None:
            return super()._initial(d, generator, dtype)
        # Without biases that are trained, that of the first layer is what subtracts the centre, and is made anew.
        names = ADAPTER_TENSORS if self.bias else ("down", "up")
        start = {name: tensor.clone() for name, tensor in learned.tensors().items() if name in names}
        return Adapter(**start, final_relu=self.final_relu)

    def _centre(self, x: Tensor, shots: SupportSet, rows: Tensor) -> Tensor | None:
        """That of the first task: what was learned around it holds for it alone."""
        centre = getattr(self, "centre_", None)  # a saved model has no None
        begun = self.bias and Adapter.of_head(self, x.dtype) is not None  # it is in the bias already
        return None if centre is None or begun else centre.to(x.dtype)

    def _train_task(self, shots: SupportSet) -> None:
        assert shots.text is not None
        self.bias_ = None
        n, n_views, d = shots.views.shape
        replayed = self.kept_.to(shots.views.dtype)[:, None].expand(-1, n_views, -1)
        all_shots = replace(
            shots, views=torch.cat([shots.views, replayed]), labels=torch.cat([shots.labels, self.kept_labels_])
        )
        replay_rows = torch.arange(n, n + len(replayed)).repeat(self._count_repeats(shots.labels))
        splits = self._splits(shots) if self.alpha == "auto" else []
        if self.losses_.any():  # each further task adds one fold's: less would not pay, more is not needed
            splits = splits[:1]
        fits = [partial(self._train, all_shots, torch.cat([torch.arange(n), replay_rows]), self.progress)]
        fits += [partial(self._train, all_shots, torch.cat([rows, replay_rows]), False) for rows, _ in splits]
        trained, *fold_adapters = parallel_map(fits, work=min(self.batch_size, n) * self._hidden_width(d) * d)
        if self.alpha == "auto":
            tables = [self._held_out_losses(all_shots, *fold) for fold in zip(fold_adapters, splits, strict=True)]
            self.losses_ = sum(tables, self.losses_)
            zero_shot = shots.scale * unit(all_shots.X) @ shots.text.T
            expected = expected_ratio(
                zero_shot, Loss.of_support_set(all_shots, torch.arange(len(all_shots.labels)), None)
            )
            trained = self._with_ratio(trained, choose_ratio(self.losses_, expected))
        self._store(shots, trained)
        self._draw_stored_shots(all_shots)

    def _count_repeats(self, labels: Tensor) -> int:
        """How often stored shots are repeated per epoch, so that their classes weigh as much as the new ones."""
        if not len(self.kept_):
            return 1
        new, old = (len(rows) / len(rows.unique()) for rows in (labels, self.kept_labels_))
        return max(1, round(new / old))

    def _draw_stored_shots(self, all_shots: SupportSet) -> None:
        """Draw the shots to store from the new and the stored shots of each class."""
        generator = torch.Generator().manual_seed(self.seed + len(all_shots.labels))
        order = torch.randperm(len(all_shots.labels), generator=generator)
        order = order[all_shots.labels[order].argsort(stable=True)]
        labels = all_shots.labels[order]
        first = torch.searchsorted(labels, labels)  # where its class begins
        rows = order[torch.arange(len(order)) - first < self.replay]
        self.kept_, self.kept_labels_ = all_shots.X[rows], all_shots.labels[rows]
