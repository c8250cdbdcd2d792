"""What of a head's answer comes from class text, where a head adds it to what the shots say."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array = NDArray[Any]
Scores = Callable[[Tensor], Tensor]


class TextPart:
    """The part of `Head` that tells class text from shots."""

    def _text_logits(self, X: Tensor) -> Tensor | None:
        """(m, d) raw features to the part (m, c) of `_logits` that class text gives, the rest being the shots'.

        None, the default, says that the head does not add the two up.
        """
        return None

    @abstractmethod
    def _by_block(self, X: ArrayLike, answer: Callable[[Array], Array], scores: Scores | None = None) -> Array:
        """What is made of scores in blocks of rows; see `Head`."""

    def text_logits(self, X: ArrayLike) -> Array | None:
        """The part of `logits` that class text gives; the rest is what was learned from the shots.

        Only differences between classes mean something.

        Args:
            X: (m, d) raw features.

        Returns:
            (m, c), or None if the head does not add the two up.

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
            InputError: as `logits`.

        >>> from clipadapter.heads import TextFeatures, create_head
        >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0], [0.0, 1.0]], logit_scale=1.0)
        >>> head = create_head("tip-adapter", alpha=2.0).fit([[0.6, 0.8]], ["cat"], text=text)
        >>> head.logits([[0.6, 0.8]]).round(2), head.text_logits([[0.6, 0.8]]).round(2)
        (array([[2.6, 0.8]]), array([[0.6, 0.8]]))
        """
        told = True

        def scores(rows: Tensor) -> Tensor:
            nonlocal told
            found = self._text_logits(rows)
            told = told and found is not None
            return torch.zeros(len(rows), 1) if found is None else found

        part = self._by_block(X, lambda found: found, scores)
        return part if told else None
