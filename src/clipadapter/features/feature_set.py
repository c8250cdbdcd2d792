"""Features with their labels, which heads are fitted to and evaluated on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import InputError
from clipadapter.utils.blocks import FINAL, Block, Blocks, as_blocks, select_blocks, total_width
from clipadapter.utils.files import without_paths
from clipadapter.utils.formatting import (
    check_names,
    describe_classes,
    format_count,
    format_list,
    html_block,
    html_table,
)
from clipadapter.utils.prediction import EvaluationFeatures

MAX_SHOWN_CLASSES = 20  # classes that a notebook shows


@dataclass(frozen=True, eq=False, repr=False)
class FeatureSet:
    """Raw features of n pictures and their labels.

    Args:
        X: (n, d) raw features, or (n, v, d) with v views per picture, the plain one first; converted to float32.
        y: n labels; empty for multi-label data.
        class_names: all classes in their order; a class may have no picture in the set.
        provenance: origin of the features: encoder, data set, views and so on.
        targets: (n, c) ones and zeros for multi-label data; else None.
        blocks: name and width of each block of columns, ``final`` first; by default ``final`` alone.

    Raises:
        InputError: if the shapes do not match, a feature is not finite, or a label is no class.

    >>> features = FeatureSet([[1, 2], [3, 4]], ("cat", "dog"), ("cat", "dog"))
    >>> features.take([1]).y
    ('dog',)
    >>> features
    <FeatureSet: 2 pictures of 2 classes (cat, dog), 2 features each>
    """

    X: NDArray[np.float32]
    y: tuple[str, ...]
    class_names: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    targets: NDArray[np.int8] | None = None
    blocks: Blocks = ()

    def __post_init__(self) -> None:
        X = np.asanyarray(self.X, dtype=np.float32)
        for name, value in (
            ("X", X),
            ("y", check_names(self.y)),
            ("class_names", check_names(self.class_names)),
            ("provenance", MappingProxyType(dict(self.provenance))),
        ):
            object.__setattr__(self, name, value)
        self._check()
        blocks = as_blocks(self.blocks) if self.blocks else (Block(FINAL, X.shape[-1]),)
        object.__setattr__(self, "blocks", blocks)
        if total_width(blocks) != X.shape[-1]:
            raise InputError(f"features have width {X.shape[-1]}, but their blocks have {total_width(blocks)}")

    def _check(self) -> None:
        if self.X.ndim not in (2, 3) or 0 in self.X.shape[1:]:
            raise InputError(f"features must have shape (n, d) or (n, views, d), but have {self.X.shape}")
        if self.targets is None and len(self.X) != len(self.y):
            raise InputError(f"{len(self.X)} features but {len(self.y)} labels")
        shape = (len(self.X), len(self.class_names))
        if self.targets is not None and (len(self.y) or self.targets.shape != shape):
            raise InputError(f"targets must have shape {shape}, but have {self.targets.shape}")
        if len(set(self.class_names)) != len(self.class_names):
            raise InputError(f"class names must differ, but are {format_list(self.class_names)}")
        if unknown := sorted(set(self.y) - set(self.class_names)):
            raise InputError(
                f"these labels are no class: {format_list(unknown)}; classes: {format_list(self.class_names)}"
            )
        bad_rows = np.flatnonzero(~np.isfinite(self.X).all(axis=tuple(range(1, self.X.ndim))))
        if len(bad_rows):
            raise InputError(
                f"{len(bad_rows)} of {len(self.X)} features are not finite, the first in row {bad_rows[0]}"
            )

    def __repr__(self) -> str:
        return f"<FeatureSet: {self._summary()}>"

    def _repr_html_(self) -> str:
        """For notebooks: the number of pictures of each class."""
        counts = list(self.counts.items())
        omitted = len(counts) - MAX_SHOWN_CLASSES
        more = f"and {omitted} more" if omitted > 0 else ""
        return html_block(
            f"FeatureSet: {self._summary()}", html_table(["class", "pictures"], counts[:MAX_SHOWN_CLASSES]), more
        )

    def _summary(self) -> str:
        views = f" in {self.X.shape[1]} views" if self.X.ndim == 3 else ""
        labels = "" if self.targets is None else ", several labels each"
        encoder = self.provenance.get("encoder")
        made_by = f", from the encoder {without_paths(str(encoder))}" if encoder else ""
        names = [block.name for block in self.blocks]
        blocks = f" in {len(names)} blocks ({', '.join(names)})" if len(names) > 1 else ""
        return (
            f"{format_count(len(self), 'picture')}{views}{labels} of {describe_classes(self.class_names)}, "
            f"{self.X.shape[-1]:,} features each{blocks}{made_by}"
        )

    def __len__(self) -> int:
        return len(self.X)

    @property
    def labels(self) -> tuple[str, ...] | NDArray[np.int8]:
        """The labels as heads take them: n names, or (n, c) ones and zeros."""
        return self.y if self.targets is None else self.targets

    def class_names_of(self, i: int) -> tuple[str, ...]:
        """The class names of picture i."""
        if self.targets is None:
            return (self.y[i],)
        return tuple(name for name, has in zip(self.class_names, self.targets[i], strict=True) if has)

    @property
    def counts(self) -> dict[str, int]:
        """Number of pictures of each class."""
        if self.targets is not None:
            return dict(zip(self.class_names, (int(n) for n in self.targets.sum(axis=0)), strict=True))
        return {name: self.y.count(name) for name in self.class_names}

    @property
    def shot_counts(self) -> dict[str, int]:
        """`counts`, or those that a model records which was saved without its shots."""
        recorded = self.provenance.get("shots")
        if len(self) or not isinstance(recorded, Mapping):
            return self.counts
        return {name: recorded.get(name, 0) for name in self.class_names}

    @property
    def plain(self) -> NDArray[np.float32]:
        """(n, d) features of the plain pictures."""
        return self.X if self.X.ndim == 2 else self.X[:, 0]

    @property
    def final(self) -> NDArray[np.float32]:
        """(n, w) block ``final`` of the plain pictures, which class text is compared with."""
        return self.plain[:, : self.blocks[0].width]

    def select_blocks(self, names: Iterable[str]) -> FeatureSet:
        """The set with these blocks only; their order does not change.

        Raises:
            InputError: if there is no such block, or ``final`` is missing.

        >>> features = FeatureSet([[1, 2, 3]], ("cat",), ("cat",), blocks=(("final", 2), ("stage3", 1)))
        >>> features.select_blocks(["final"]).X
        array([[1., 2.]], dtype=float32)
        """
        blocks, columns = select_blocks(self.blocks, names)
        return self if blocks == self.blocks else replace(self, X=self.X[..., columns], blocks=blocks)

    def mark_for_evaluation(self) -> FeatureSet:
        """The same features as a test split: heads predict for them, but refuse to be fitted to them."""
        return replace(self, X=self.X.view(EvaluationFeatures))

    def take(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> FeatureSet:
        """The set of these rows, in this order, with the same classes.

        Raises:
            InputError: if there is no such row.
        """
        index = np.asarray(rows, dtype=np.int64)
        if index.size and (index.min() < 0 or index.max() >= len(self)):
            raise InputError(f"rows must be 0 to {len(self) - 1}, but are {index.min()} to {index.max()}")
        y = tuple(self.y[i] for i in index) if self.targets is None else ()
        return replace(self, X=self.X[index], y=y, targets=None if self.targets is None else self.targets[index])
