"""CLIP-Adapter trained on one task after another: with replay of a few stored shots per class, or without.

Papers: Gao et al., IJCV 2023, https://arxiv.org/abs/2110.04544 (the adapter); Rebuffi et al., CVPR 2017,
https://arxiv.org/abs/1611.07725, and Chaudhry et al., 2019, https://arxiv.org/abs/1902.10486 (a few pictures of each
class are stored and replayed). With ``replay=0`` it is sequential fine-tuning, the baseline for forgetting.
Ours: stored shots are drawn at random, as features, and repeated so often that a class of an earlier task weighs as
much as one of this task; a ratio "auto" follows the shots that each task so far held out, by their summed losses.
"""

from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from clipadapter.heads.base import NOT_NEGATIVE, SupportSet, register_head
from clipadapter.heads.clip_adapter import FOLDS, SUFFICIENT_SHOTS, ClipAdapter, Layers
from clipadapter.heads.incremental import IncrementalHead
from clipadapter.heads.losses import Loss
from clipadapter.heads.out_of_fold import hyperparameter_folds
from clipadapter.heads.residual_ratio import (
    CANDIDATE_RATIOS,
    CANDIDATE_TEMPERATURES,
    choose_ratio,
    expected_ratio,
    zero_shot_of,
)
from clipadapter.heads.support import remap_labels


@register_head("clip-adapter-replay", version=5, paper="https://arxiv.org/abs/2110.04544", compare=False)
class ClipAdapterReplay(IncrementalHead, ClipAdapter):
    """CLIP-Adapter on picture features in a stream: each task trains on from where the last one ended.

    The first fit is that of `ClipAdapter`. Memory is ``replay`` features per class, however many pictures come.

    Args:
        replay: shots of each class that are stored and trained on again; 0 for sequential fine-tuning, which forgets.
        alpha: weight of the adapted feature, 0 to 1; "auto" chooses it as `ClipAdapter` does, by the held-out shots of
            all tasks so far: three folds in the first fit, one such part of the new shots in each later task.
        lr: highest learning rate of each task.
        schedule: of the learning rate in each task.
        warmup_epochs: of each task.
        epochs: of each task; None for as many as make ``steps`` steps.
        steps: of each task.
        seed: of initialisation, shuffling, folds, and of which shots are stored.

    >>> from clipadapter.testing import toy_features
    >>> X, y, text = toy_features()
    >>> head = ClipAdapterReplay(replay=2).fit(X[:8], y[:8], text=text).partial_fit(X[8:], y[8:], text=text)
    >>> head.kept_.shape, bool((head.predict(X) == y).all())
    (torch.Size([6, 16]), True)

    Fidelity: own: CLIP-Adapter and the replay of stored shots are published. Their combination is ours.
    """

    supports_warm_start = multilabel = False
    picture_features = ("kept_",)

    kept_: Tensor = field(init=False)  # (r, d) raw features
    kept_labels_: Tensor = field(init=False)  # (r,) their classes
    losses_: Tensor = field(init=False)  # (r, t) of held-out shots of all tasks, at each ratio and temperature

    replay: Annotated[int, NOT_NEGATIVE] = 4
    # Stored shots are repeated until their classes are as frequent as the others: little is left to adjust.
    logit_adjustment: float = 0.0
    branch: str = field(default="visual", init=False)
    beta: float | str = field(default="auto", init=False)

    def _init_sums(self, shots: SupportSet) -> None:
        self.down_ = self.up_ = self.centre_ = None
        self.kept_, self.kept_labels_ = shots.X[:0], shots.labels[:0]
        self.losses_ = torch.zeros(len(CANDIDATE_RATIOS), len(CANDIDATE_TEMPERATURES))

    def _remap_sums(self, origin: Tensor) -> None:
        self.kept_labels_ = remap_labels(self.kept_labels_, origin)

    def _start(self, shots: SupportSet, *others: Any) -> dict[str, Layers]:
        """What was learned, if something was, around the centre of the first task."""
        learned = self._adapter(shots.class_text.dtype)
        if learned is None:
            return super()._start(shots, *others)
        return {"visual": Layers(*(tensor.clone() for tensor in learned))}

    def _add_shots(self, shots: SupportSet) -> None:
        self.bias_ = None
        n, n_views, d = shots.views.shape
        replayed = self.kept_.to(shots.views.dtype)[:, None].expand(-1, n_views, -1)
        all_shots = replace(
            shots, views=torch.cat([shots.views, replayed]), labels=torch.cat([shots.labels, self.kept_labels_])
        )
        # Stored shots are repeated until their classes weigh as much as the new ones.
        new, old = (len(labels) / max(1, len(labels.unique())) for labels in (shots.labels, self.kept_labels_))
        replay_rows = torch.arange(n, n + len(replayed)).repeat(max(1, round(new / old)) if old else 1)
        folds = hyperparameter_folds(shots, FOLDS, self.seed, SUFFICIENT_SHOTS) if self.alpha == "auto" else []
        if self.losses_.any():  # each further task adds one fold's: less would not pay, more is not needed
            folds = folds[:1]
        parts = [torch.arange(n), *(rows for rows, _ in folds)]
        trained = self._train_on_each(all_shots, [torch.cat([rows, replay_rows]) for rows in parts], None)
        (layers, *of_folds), (self.loss_, *_) = zip(*trained, strict=True)
        ratios = self._ratios()
        if self.alpha == "auto":
            for fit, (_, held_out) in zip(of_folds, folds, strict=True):
                self.losses_ = self.losses_ + self._losses_by_ratio(all_shots, fit, held_out)
            tables = [self.losses_] if self.losses_.any() else []
            rows, zero_shot = zero_shot_of(all_shots, self.seed)
            expected = expected_ratio(zero_shot, Loss.of_support_set(all_shots, rows))
            ratios = self._ratios(choose_ratio(tables, expected))
        self._store(shots, layers, ratios)
        self._draw_stored_shots(all_shots)

    def _draw_stored_shots(self, all_shots: SupportSet) -> None:
        """Draw the shots to store from the new and the stored shots of each class."""
        generator = torch.Generator().manual_seed(self.seed + len(all_shots.labels))
        order = torch.randperm(len(all_shots.labels), generator=generator)
        order = order[all_shots.labels[order].argsort(stable=True)]
        labels = all_shots.labels[order]
        first = torch.searchsorted(labels, labels)  # where its class begins
        rows = order[torch.arange(len(order)) - first < self.replay]
        self.kept_, self.kept_labels_ = all_shots.X[rows], all_shots.labels[rows]
