"""2SFS: the layer norms of both towers are tuned on the shots, then a linear head that starts from class text.

Paper: Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages", CVPR 2025,
https://arxiv.org/abs/2503.11609.
The defaults are those of the authors' code: 300 steps for each shot per class, 60 % of them in the first stage, AdamW
in both stages, each with a cosine of its own. As in that code, the norms before the first block and after the last one
stay frozen: its walk over the modules visits them twice, and the second visit turns their gradient off.
``norms="all"`` tunes them too. Weight decay draws the tuned weights of the norms towards 0, not 1.

Differs from the code in precision (fp32 by default, not mixed), in the views of pictures (as many as there are, not new
ones each step), and in prompts (those of the classifier, not the first template of a data set).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from typing_extensions import Self

from clipadapter.encoders import Encoder, attention_layers
from clipadapter.errors import InputError
from clipadapter.heads import SupportSet, TextFeatures, register_head
from clipadapter.heads.parameters import OneOf, Within
from clipadapter.heads.training import TrainConfig, gather_views, train
from clipadapter.tuners.tower_tuner import PartTuner, Trainable
from clipadapter.utils.functional import unit

STEPS_PER_SHOT = 300  # optimizer steps of both stages for each shot per class, as in the authors' code


@register_head("two-stage", version=2, paper="https://arxiv.org/abs/2503.11609", compare=False)
class TwoStage(PartTuner):
    """A linear head on an encoder whose layer norms were tuned; `FewShotClassifier` fits it, from pictures.

    The first stage runs the towers forward and backward in every step, so that it wants a GPU: with 16 shots, 2,880
    steps of 32 pictures and of the prompts of all classes. The second stage takes seconds: it trains one vector for
    each class on features of the tuned encoder. A tower without layer norms in attention blocks, such as a ResNet, is
    left out of "both".

    `for_classes` keeps the trained vectors of known classes, and takes those of the tuned text tower for new ones.

    Args:
        towers: "both", "image" or "text": whose layer norms are tuned.
        norms: "blocks" for those inside the attention blocks, "all" for those before and after the blocks too.
        lr: highest learning rate of AdamW in both stages. In each it falls to 1e-6 in a cosine.
        weight_decay: of AdamW in both stages.
        steps: optimizer steps of both stages together; None for 300 times the shots per class.
        stage1_share: share of the steps in which the layer norms are tuned.
        seed: of shuffling and the choice of views.

    Fidelity: verified: Both stages, their losses, gradients and what they learn, are those of the authors' code on a
    tiny tower, and so is the step at which each ends. Views are drawn from a fixed number.
    """

    method_name = "two-stage"
    parts = "layer norms in attention blocks"
    changed_parts = "norms"
    learns_from_views = True
    # The released code stops in the middle of an epoch, where its number of steps is reached.
    training = {**PartTuner.training, "whole_epochs": False, "drop_last": False}
    fingerprint_parameters = ("norms",)

    norms: Annotated[str, OneOf("blocks", "all")] = "blocks"
    lr: float = 2e-4
    weight_decay: float = 1e-2
    steps: int | None = None
    stage1_share: Annotated[float, Within(0, 1, closed="neither")] = 0.6

    def _attach(self, tunable: Encoder, generator: torch.Generator) -> Trainable:
        norms_of: dict[str, list[nn.LayerNorm]] = self._tower_parts(tunable)
        arrays = {f"{tower}_norms_": read_norms(norms).requires_grad_() for tower, norms in norms_of.items()}

        def start_step() -> None:
            for norms, values in zip(norms_of.values(), arrays.values(), strict=True):
                set_norms(norms, values)

        start_step()
        return Trainable(arrays, norms_of.keys(), start_step)

    def _train_config(self, shots_per_class: int) -> TrainConfig:
        steps, _ = self._stage_steps(shots_per_class)
        return TrainConfig.from_estimator(self, **self.training, steps=steps, view_per_epoch=False)

    def _stage_steps(self, shots_per_class: int) -> tuple[int, int]:
        """Steps of the two stages, each of which needs one."""
        total = STEPS_PER_SHOT * shots_per_class if self.steps is None else self.steps
        first = int(self.stage1_share * total)
        if not 0 < first < total:
            raise InputError(
                f"each stage needs a step, but {self.stage1_share} of {total} steps leaves one without: change "
                "stage1_share or steps"
            )
        return first, total - first

    def describe_training(self, counts: Sequence[int]) -> str:
        """See `TowerTuner.describe_training`; the second stage is fast."""
        return f"{super().describe_training(counts)} through the towers, then a second stage on features"

    def _merge_tower(self, tower: str, parts: list[nn.LayerNorm]) -> bool:
        values = getattr(self, f"{tower}_norms_", None)
        if values is None or values.shape != read_norms(parts).shape:
            return False
        set_norms(parts, values, is_learned=False)
        return True

    def _fit(self, shots: SupportSet) -> None:
        """The second stage: class vectors from features of the tuned encoder."""
        self._arrays()
        shots_per_class = round(len(shots.labels) / len(shots.labels.unique()))
        config = replace(self._train_config(shots_per_class), steps=self._stage_steps(shots_per_class)[1])
        weight, views = shots.class_text.clone().requires_grad_(), unit(shots.views)

        def loss(rows: Tensor, view: Tensor) -> Tensor:
            logits = shots.scale * gather_views(views, rows, view) @ unit(weight).T
            return cross_entropy(logits, shots.labels[rows])

        self.head_loss_ = train([weight], loss, len(views), views.shape[1], config, row_cost=weight.numel())
        self.weight_, self.scale_ = weight.detach(), shots.scale
        if checkpoint := self.__dict__.pop("_checkpoint", None):
            checkpoint.remove()

    def for_classes(self, text: TextFeatures) -> Self:
        """A copy that predicts classes of `fit` by trained vectors, new ones by their text from the tuned encoder."""
        other = super().for_classes(text)
        row_of = {label: row for row, label in enumerate(self.classes_.tolist())}
        rows = [(new, row_of[label]) for new, label in enumerate(other.classes_.tolist()) if label in row_of]
        if rows:
            new, old = torch.tensor(rows).T
            other.weight_ = other.weight_.to(self.weight_.dtype).index_copy(0, new, self.weight_[old])
        return other

    def _parts_of(self, tower: str, network: nn.Module, tunable: Encoder) -> list[nn.LayerNorm]:
        """The layer norms that are tuned."""
        norms = block_norms(network)
        if self.norms == "all" and norms:  # a tower without attention blocks stays, whatever norms it has
            text = tunable.text_tower() if tower == "text" else None
            modules = [*network.modules(), None if text is None else text.final_norm()]
            norms = [norm for norm in modules if isinstance(norm, nn.LayerNorm) and norm.elementwise_affine]
        return norms


def block_norms(network: nn.Module) -> list[nn.LayerNorm]:
    """The layer norms inside the attention blocks of a network, not those before the first or after the last one."""
    owners = {id(layer["q"].owner) for layer in attention_layers(network)}
    blocks = [
        block
        for parent in network.modules()
        if isinstance(parent, (nn.ModuleList, nn.Sequential))
        for block in parent
        if any(id(module) in owners for module in block.modules())
    ]
    norms = [module for block in blocks for module in block.modules() if isinstance(module, nn.LayerNorm)]
    return [norm for norm in dict.fromkeys(norms) if norm.elementwise_affine]


def _list_values(norms: Sequence[nn.LayerNorm]) -> list[tuple[nn.LayerNorm, str, Tensor]]:
    """Norm by norm the weight, then the bias, if it has them."""
    every = [(norm, name, getattr(norm, name)) for norm in norms for name in ("weight", "bias")]
    return [(norm, name, value) for norm, name, value in every if value is not None]


def read_norms(norms: Sequence[nn.LayerNorm]) -> Tensor:
    """A copy of the values of some layer norms as one array, (size,)."""
    return torch.cat([value.detach().flatten() for _, _, value in _list_values(norms)])


def set_norms(norms: Sequence[nn.LayerNorm], values: Tensor, is_learned: bool = True) -> None:
    """Make the norms compute with parts of an array (size,), so that gradients reach it, or with parameters of them."""
    listed = _list_values(norms)
    parts = values.split([value.numel() for _, _, value in listed])
    for (norm, name, value), part in zip(listed, parts, strict=True):
        norm._parameters.pop(name, None)  # a parameter can't be a part of another tensor
        own = part.view(value.shape)
        # The old parameters, which another encoder may share, stay as they are.
        setattr(norm, name, own if is_learned else nn.Parameter(own.to(value, copy=True), requires_grad=False))
