"""What the methods that change an encoder's own weights share: one loss through both towers, then a tuned encoder.

`TowerTuner.tune` comes before `fit`. That gets features and class text of the tuned encoder and keeps the class text
alone: the answer is zero-shot by that encoder.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from typing_extensions import Self

from clipadapter.encoders import Encoder, open_twin
from clipadapter.errors import InputError
from clipadapter.functional import cosine_logits, unit
from clipadapter.heads import Head, SupportSet
from clipadapter.heads.training import Recipe
from clipadapter.tuners._through_towers import ClassTexts, Pictures, weights
from clipadapter.tuners._training import train
from clipadapter.tuners.checkpoint import Checkpoint, digest_of

PRECISIONS = ("fp32", "bf16")
UNSHAPING = ("progress", "checkpoint")
"""Parameters that don't change the result."""
LEARNED = ("image_", "text_")
"""How names of arrays begin that a tuned encoder is made from."""


@dataclass(frozen=True, eq=False)
class Trainable:
    """What a method has put into the towers.

    Args:
        arrays: parameters by the name they will have on the head: such as ``image_a_``.
        towers: which towers depend on them, "image" or "text"; another runs only once.
        start_step: called at the beginning of each step.
    """

    arrays: Mapping[str, Tensor]
    towers: Collection[str]
    start_step: Callable[[], None]


class TowerTuner(Head):
    """Base of the methods that change weights of the towers.

    A subclass has the parameters ``precision`` ("fp32" or "bf16"), ``checkpoint`` and ``seed``, puts what is trained
    into a second encoder in `_begin`, and into another one, for good, what that became, in `_apply`.
    """

    needs_text = True
    tunes_encoder = True

    precision: str
    checkpoint: float | None
    seed: int

    @abstractmethod
    def _begin(self, twin: Encoder, generator: torch.Generator) -> Trainable:
        """Put parameters into the twin's towers; whatever is drawn, then and later, comes from the generator."""

    @abstractmethod
    def _recipe(self, shots: int) -> Recipe:
        """How they are trained on so many shots a class."""

    @abstractmethod
    def _apply(self, twin: Encoder) -> str:
        """Change the twin by the arrays that were learned; gives the method's name and what was changed, for people.

        Raises:
            InputError: if they don't fit its layers.
        """

    @abstractmethod
    def _facts(self) -> tuple[object, ...]:
        """What else shapes a tuned encoder, beside the arrays."""

    def tune(
        self,
        encoder: Encoder,
        squares: NDArray[np.uint8],
        labels: Sequence[str],
        prompts: Mapping[str, Sequence[str]],
    ) -> Self:
        """Learn from pictures; `tuned` then gives the encoder.

        Both towers run in each step, forward and backward, the text tower over the prompts of all classes; one that is
        not changed runs once.

        Args:
            encoder: is not changed itself. A backend that runs it is left out.
            squares: (n, v, s, s, 3), v views of each picture as ``encoder.tower().pixels`` makes them, the plain one
                first.
            labels: (n,) class names.
            prompts: texts of each class; the order of the names is that of the classes.

        Raises:
            InputError: if the encoder can't be tuned, shapes or labels don't go together, or the loss is not finite.
        """
        if self.precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, but is {self.precision!r}")
        twin = open_twin(encoder)
        names = {name: i for i, name in enumerate(prompts)}
        strange = sorted(set(labels) - set(names))
        if strange or len(labels) != len(squares) or not len(labels):
            raise InputError(
                f"{len(squares)} pictures need a label each that is a class, but got {len(labels)} labels"
                + (f", among them {', '.join(strange[:3])}" if strange else "")
            )
        generator = torch.Generator().manual_seed(self.seed)
        trainable = self._begin(twin, generator)
        pictures = Pictures(twin, squares, frozen="image" not in trainable.towers)
        texts = ClassTexts(twin, prompts, frozen="text" not in trainable.towers)
        truth = torch.tensor([names[label] for label in labels], device=twin.device)

        def loss(rows: Tensor, views: Tensor) -> Tensor:
            trainable.start_step()
            with torch.autocast(twin.device.partition(":")[0], torch.bfloat16, enabled=self.precision == "bf16"):
                features, weight = pictures(rows, views).float(), texts().float()
            logits = twin.info.logit_scale * unit(features) @ weight.T
            return cross_entropy(logits, truth[rows.to(truth.device)])

        recipe = self._recipe(round(len(labels) / len(set(labels))))
        self.loss_ = train(
            list(trainable.arrays.values()),
            loss,
            len(labels),
            squares.shape[1],
            recipe,
            checkpoint=Checkpoint(self._digest(encoder, squares, labels, prompts), self.checkpoint),
            generator=generator,
            cost=min(recipe.batch_size, len(labels)) * weights(twin, trainable.towers),
        )
        for name, array in trainable.arrays.items():
            setattr(self, name, array.detach().cpu())
        return self

    def tuned(self, encoder: Encoder) -> Encoder:
        """An encoder of which the towers are changed as was learned; it has a fingerprint of its own.

        It shares with the one given all weights that stay as they were.

        Args:
            encoder: the one that was tuned; it is not changed itself.

        Raises:
            InputError: before `tune`, or if what was learned does not fit the encoder.
        """
        arrays = self._arrays()
        twin = open_twin(encoder)
        changed = self._apply(twin)
        total = blake2b(repr((twin.info.fingerprint, type(self).__name__, *self._facts())).encode(), digest_size=16)
        for name in sorted(arrays):
            total.update(name.encode())
            total.update(np.ascontiguousarray(arrays[name].numpy()).data)
        note = "; ".join(part for part in (twin.info.note, f"tuned by {changed}") if part)
        twin.info = replace(twin.info, fingerprint=total.hexdigest(), note=note)
        return twin

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "weight_")

    def _fit(self, shots: SupportSet) -> None:
        self._arrays()
        assert shots.text is not None
        self.weight_, self.scale_ = shots.text, shots.scale

    def _for_text(self, text: Tensor, scale: float) -> None:
        self.weight_, self.scale_ = text, scale

    def _logits(self, X: Tensor) -> Tensor:
        return cosine_logits(X, self.weight_.to(X.dtype), self.scale_)

    def _arrays(self) -> dict[str, Tensor]:
        """What was learned, by name.

        Raises:
            InputError: before `tune`.
        """
        found = {k: v for k, v in vars(self).items() if k.startswith(LEARNED) and k.endswith("_")}
        if not found:
            raise InputError(
                f"{type(self).__name__} tunes the encoder, which features that are there already don't allow: fit it "
                "by FewShotClassifier, or call tune(encoder, squares, labels, prompts) first"
            )
        return found

    def _digest(
        self,
        encoder: Encoder,
        squares: NDArray[np.uint8],
        labels: Sequence[str],
        prompts: Mapping[str, Sequence[str]],
    ) -> str:
        """Of all that shapes what is learned."""
        parameters = {k: v for k, v in self.get_params(deep=False).items() if k not in UNSHAPING}
        texts = [(name, list(each)) for name, each in prompts.items()]
        info = encoder.info
        told = (
            type(self).__name__,
            sorted(parameters.items()),
            list(labels),
            texts,
            info.logit_scale,
            info.fingerprint,
        )
        return digest_of([*told, squares])
