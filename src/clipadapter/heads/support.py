"""`SupportSet`, the labelled features that a head learns from, and the checks of features, labels and class names.

Errors of these checks use scikit-learn's wording where its conformance checks look for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from clipadapter.errors import InputError, brief
from clipadapter.heads.text import TextFeatures
from clipadapter.utils.blocks import (
    FINAL,
    UNPROJECTED,
    Block,
    Blocks,
    BlockSource,
    as_blocks,
    select_blocks,
    total_width,
)
from clipadapter.utils.formatting import format_list
from clipadapter.utils.functional import unit
from clipadapter.utils.prediction import EvaluationFeatures
from clipadapter.utils.towers import TextTower

Array = NDArray[Any]


PLAIN_ARRAYS = (np.ndarray, Tensor, EvaluationFeatures)  # types without column names
SAME_PICTURE_COSINE = 1 - 1e-4
"""Cosine of two features of the block ``final`` above which they are of one picture. The cosines of one picture in two
batches of 16-bit numbers are below 1 by up to 1e-5, those of different pictures by 1e-2 or more. An edit has a
narrower bound (see `clipadapter.classifier.edit`): a picture without a label is left out at little loss."""


@dataclass(frozen=True)
class SupportSet:
    """The labelled features that a head is fitted to, as checked tensors.

    Args:
        views: (n, v, d) raw features; view 0 is the plain picture, the others are augmented.
        labels: (n,) class positions, int64; -1 for every shot in the multi-label task.
        n_classes: c, classes without a shot included.
        text: (c, d) unit text features, or None.
        scale: the encoder's ``exp(logit_scale)``; 100 without text features.
        unlabelled: (u, d) raw features of pictures without labels, for transductive heads; else None.
        names: (c) class names if there are text features, else empty.
        tower: opens the text tower that made the text features, for methods that train through it; else None.
        targets: (n, c) zeros and ones in the dtype of the features in the multi-label task; else None.
        bias: the logit bias of an encoder that was trained with the sigmoid loss (SigLIP), or None.
        blocks: the blocks of the d columns; by default ``final`` alone.
        prompts: (p_k, d) unit text features of the single prompts of each class, for a head that ``reads_prompts``;
            those of ``text`` if single prompts are not known; else empty.
    """

    views: Tensor
    labels: Tensor
    n_classes: int
    text: Tensor | None
    scale: float
    unlabelled: Tensor | None = None
    names: tuple[str, ...] = ()
    tower: Callable[[], TextTower] | None = None
    targets: Tensor | None = None
    bias: float | None = None
    blocks: Blocks = ()
    prompts: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        if not self.blocks:
            object.__setattr__(self, "blocks", (Block(FINAL, self.views.shape[2]),))

    @property
    def class_text(self) -> Tensor:
        """``text`` (c, d), for heads that ``needs_text``: they get shots with text only."""
        assert self.text is not None
        return self.text

    @property
    def truth(self) -> Tensor:
        """The class positions (n,), or the targets (n, c) of multi-label pictures."""
        return self.labels if self.targets is None else self.targets

    @property
    def X(self) -> Tensor:
        """(n, d) raw features of the plain pictures."""
        return self.views[:, 0]

    @property
    def final_views(self) -> Tensor:
        """(n, v, d) raw features of the block ``final``."""
        return self.views[..., : self.blocks[0].width]

    @property
    def further_blocks(self) -> Blocks:
        """The blocks after ``final``."""
        return self.blocks[1:]

    @property
    def further_views(self) -> Tensor:
        """(n, v, e) raw features of the blocks after ``final``, side by side."""
        return self.views[..., self.blocks[0].width :]

    @property
    def onehot(self) -> Tensor:
        """(n, c) one-hot labels in the dtype of the features."""
        return torch.nn.functional.one_hot(self.labels, self.n_classes).to(self.views.dtype)

    @property
    def counts(self) -> Tensor:
        """(c,) number of shots of each class in the dtype of the features."""
        return torch.bincount(self.labels, minlength=self.n_classes).to(self.views.dtype)

    def take(self, rows: Tensor) -> SupportSet:
        """The shots with these row numbers; classes and text features stay."""
        targets = None if self.targets is None else self.targets[rows]
        return replace(self, views=self.views[rows], labels=self.labels[rows], targets=targets)


def rows_without_shots(pictures: Tensor, shots: Tensor) -> Tensor:
    """Rows (u',) of the pictures (u, d) that are no shots (n, d), by the block ``final``; see `SAME_PICTURE_COSINE`."""
    shots = unit(shots.to(pictures.dtype))
    nearest = torch.cat([(unit(rows) @ shots.T).amax(dim=1) for rows in pictures.split(4096)])
    return torch.nonzero(nearest < SAME_PICTURE_COSINE).flatten()


def as_matrix(X: ArrayLike) -> Array:
    """Checked (m, d) float array: float64 is kept, other types become float32."""
    if isinstance(X, Tensor):
        X = X.detach().cpu().numpy()
    rows: Any = X
    is_plain = type(X) in PLAIN_ARRAYS and rows.ndim == 2 and rows.size > 0 and rows.dtype in (np.float32, np.float64)
    if is_plain and np.isfinite(rows).all():
        array = np.asarray(rows)
    else:  # of the usual arrays none comes here, since the import of scikit-learn takes long
        from sklearn.utils.validation import check_array

        try:
            array = np.asarray(check_array(X, dtype=[np.float64, np.float32], ensure_min_samples=1))
        except ValueError as error:
            if "Expected 2D array" not in str(error):
                raise
            # scikit-learn's message prints all numbers, and its checks look for these three words.
            raise InputError(
                f"features must have shape (m, d), one row for each picture, but got {brief(X)}. Reshape your data"
            ) from None
    return np.array(array) if not array.flags.writeable else np.ascontiguousarray(array)


def check_feature_names(head: Any, X: ArrayLike, *, reset: bool = False) -> None:
    """Store the column names of a data frame as ``feature_names_in_``, or compare them with the stored ones."""
    if type(X) in PLAIN_ARRAYS and (reset or "feature_names_in_" not in vars(head)):
        vars(head).pop("feature_names_in_", None)
        return
    from sklearn.utils.validation import validate_data

    validate_data(head, X, reset=reset, skip_check_array=True, ensure_2d=False)


def check_width(head: Any, width: int) -> None:
    """Check that features are as wide as those of the fit."""
    if width != head.n_features_in_:
        raise InputError(
            f"X has {width} features, but {type(head).__name__} is expecting {head.n_features_in_} features as input"
        )


def as_views(X: ArrayLike) -> Array:
    """Checked (n, v, d) float array of shots from (n, d) or (n, v, d)."""
    if isinstance(X, EvaluationFeatures):
        raise InputError(
            "these features are marked for evaluation: fit and select on shots, and measure with "
            "clipadapter.classifier.evaluation.score"
        )
    if isinstance(X, Tensor):
        X = X.detach().cpu().numpy()
    if getattr(X, "ndim", 2) != 3:
        return as_matrix(X)[:, None]
    n, v, d = np.shape(X)
    return as_matrix(np.asarray(X).reshape(n * v, d)).reshape(n, v, d)


def as_labels(y: ArrayLike, n: int) -> Array:
    """Checked (n,) labels."""
    if type(y) is np.ndarray:
        is_plain = y.ndim == 1 and y.dtype.kind in "Uiub"
    else:
        is_plain = isinstance(y, list | tuple) and all(type(label) is str for label in y)
    labels = np.asarray(y) if is_plain else _check_labels(y)
    if len(labels) != n:
        raise InputError(f"X has {n} rows but y has {len(labels)} labels")
    return labels


def _check_labels(y: ArrayLike) -> Array:
    """Labels (n,) that scikit-learn takes for classes; otherwise its error."""
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import assert_all_finite, column_or_1d

    labels = column_or_1d(y, warn=True)
    if labels.dtype.kind == "f":
        assert_all_finite(labels, input_name="y")
    with warnings.catch_warnings():
        # With one shot per class scikit-learn warns that y may be a regression target; here this is the normal case.
        warnings.simplefilter("ignore", UserWarning)
        check_classification_targets(labels)
    return np.asarray(labels)


def is_multilabel(y: ArrayLike) -> bool:
    """Whether y is a matrix of targets, one row of zeros and ones per picture, and not one label per picture."""
    shape = y.shape if isinstance(y, Tensor) else np.asarray(y).shape
    return len(shape) == 2 and shape[1] > 1


def check_truth(
    y: ArrayLike, n: int, text: TextFeatures | None, classes: Array | None = None
) -> tuple[Array, NDArray[Any]]:
    """Classes in order, and the position (n,) of each label among them, or multi-label targets (n, c), int8.

    The classes are those that are given, of labels only; else all of the text, or all labels.
    """
    if not is_multilabel(y):
        return _label_truth(as_labels(y, n), text, classes)
    targets = np.asarray(y.detach().cpu().numpy() if isinstance(y, Tensor) else y)
    if targets.dtype.kind not in "biuf" or not ((targets == 0) | (targets == 1)).all():
        raise InputError("multi-label targets are (n, c) zeros and ones, but y has something else in it")
    if len(targets) != n:
        raise InputError(f"X has {n} rows but y has {len(targets)} rows")
    c = targets.shape[1]
    if text is not None and len(text.labels) != c:
        raise InputError(f"y has {c} columns but the class text has {len(text.labels)} classes: one column per class")
    return np.arange(c) if text is None else np.asarray(text.labels), targets.astype(np.int8)


def _label_truth(labels: Array, text: TextFeatures | None, classes: Array | None) -> tuple[Array, NDArray[np.int64]]:
    """`check_truth` of labels (n,)."""
    ordered = classes
    if ordered is None:
        ordered = np.unique(labels) if text is None else text_classes(text, labels.dtype)
    positions = label_positions(labels, ordered, "are no class" if text is None else "have no class text")
    if classes is None and len(ordered) < 2:
        of_one = f"y has one class: {ordered[0]}" if text is None else "the class text has one class"
        raise InputError(f"a classifier needs two classes or more, but {of_one}")
    return ordered, positions


def text_classes(text: TextFeatures, dtype: np.dtype[Any]) -> Array:
    """Classes of text features in the type of the labels, sorted like `numpy.unique` unless their order is "given"."""
    classes = names_to_dtype(text.labels, dtype)
    return classes if text.order == "given" else np.sort(classes)


def names_to_dtype(names: Sequence[str], dtype: np.dtype[Any]) -> Array:
    """Class names as values of a dtype, if each name is the text of such a value; else as strings."""
    texts = np.asarray(names)
    if dtype.kind not in "biuf":
        return texts
    try:
        values = texts == "True" if dtype.kind == "b" else texts.astype(dtype)
    except (ValueError, OverflowError):
        return texts
    return values if tuple(map(str, values)) == tuple(names) else texts


def label_positions(labels: Array, classes: Array, problem: str = "are no class") -> NDArray[np.int64]:
    """The position (n,) of each label among the classes."""
    order = {str(label): i for i, label in enumerate(classes)}
    missing = sorted({str(label) for label in labels if str(label) not in order})
    if missing:
        raise InputError(
            f"these labels {problem}: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}; "
            f"known: {', '.join(map(str, classes[:5]))}{' ...' if len(order) > 5 else ''}"
        )
    return np.array([order[str(label)] for label in labels], dtype=np.int64)


Reads = Literal["final", "unprojected", "second-encoder", "all"]  # what `clipadapter.heads.Head.reads` may be


def check_blocks(width: int, blocks: Sequence[tuple[str, int]] | None) -> Blocks:
    """The blocks of features of this width; ``final`` alone for None."""
    if blocks is None:
        return (Block(FINAL, width),)
    checked = as_blocks(blocks)
    if total_width(checked) != width:
        widths = ", ".join(f"{block.name} {block.width}" for block in checked)
        raise InputError(f"features have width {width}, but their blocks have {total_width(checked)}: {widths}")
    return checked


def blocks_to_read(reads: Reads, blocks: Blocks) -> Blocks:
    """Those of the blocks that a head reads.

    >>> blocks = as_blocks([("final", 2), ("inner", 3), ("lite/final", 2), ("toy/final", 2)])
    >>> [block.name for block in blocks_to_read("second-encoder", blocks)]
    ['final', 'lite/final']
    """
    if reads == "all" or len(blocks) == 1:
        return blocks
    further = [BlockSource.parse(block.name) for block in blocks[1:]]
    names = [FINAL]
    if reads == "unprojected":
        names.append(UNPROJECTED)
    if reads == "second-encoder":
        names += [each.name for each in further if each.encoder and each == BlockSource(each.encoder, FINAL)][:1]
    return tuple(block for block in blocks if block.name in names)


def read_columns(X: Tensor, reads: Reads, blocks: Blocks) -> Tensor:
    """The columns (..., d) that a head reads, of features (..., all columns)."""
    read = blocks_to_read(reads, blocks)
    if len(read) == len(blocks):
        return X
    return X[..., select_blocks(blocks, [block.name for block in read])[1]].contiguous()


class HeadNeeds(Protocol):
    """What a head says that it needs; see `clipadapter.heads.Head`."""

    needs_text: ClassVar[bool]
    needs_tower: ClassVar[bool]
    transductive: ClassVar[bool]
    accepts_unlabelled: ClassVar[bool]
    reads: ClassVar[Reads]


def check_text(head: HeadNeeds, text: TextFeatures | None, blocks: Blocks) -> None:
    """Refuse class text that is missing where the head needs it, or as wide as no feature."""
    name = type(head).__name__
    if text is not None and not hasattr(text, "embeddings"):
        raise InputError(
            f"text is {brief(text)}: give TextFeatures(names, vectors), or encode_classes(encoder, prompts)"
        )
    if head.needs_text and text is None:
        raise InputError(f"{name} needs class text: call fit(X, y, text=TextFeatures(names, vectors))")
    if head.needs_tower and (text is None or text.tower is None):
        raise InputError(
            f"{name} trains through the text tower: fit it by FewShotClassifier, or call "
            "fit(X, y, text=encode_classes(encoder, prompts))"
        )
    if text is not None and text.absent and head.needs_text:
        raise InputError(
            f"{name} needs class text, but there is none of {format_list(text.absent)}; 'auto' needs none"
            + ("" if text.has_text else ", or name an encoder with a text tower, such as lite, beside this one")
        )
    width = blocks[0].width
    if text is not None and text.embeddings.shape[1] != width:
        expected = text.embeddings.shape[1]
        hint = f"If they have more blocks than {FINAL!r}, name them: blocks=[({FINAL!r}, {expected}), ...]"
        raise InputError(
            f"features have width {width} but class text has width {expected}: were they made by the same encoder?"
            f"{f' {hint}' if width > expected and len(blocks) == 1 else ''}"
        )


def check_unlabelled(head: HeadNeeds, unlabelled: ArrayLike | None, views: Tensor, blocks: Blocks) -> Tensor | None:
    """Features of pictures without labels in the dtype of the shots; None if the head takes none."""
    name = type(head).__name__
    if unlabelled is None:
        if head.transductive:
            raise InputError(
                f"{name} is transductive: it needs the pictures to classify when it is fitted; "
                "call fit(X, y, text=..., unlabelled=features)"
            )
        return None
    if not (head.transductive or head.accepts_unlabelled):
        raise InputError(f"{name} learns from labelled pictures only: it takes no unlabelled=")
    rows = torch.from_numpy(as_matrix(unlabelled)).to(views.dtype)
    expected = total_width(blocks)
    if rows.shape[1] != expected:
        raise InputError(f"unlabelled features have width {rows.shape[1]}, but the shots have {expected}")
    return read_columns(rows, head.reads, blocks)


def remap_rows(rows: Tensor, origin: Tensor) -> Tensor:
    """Rows (k, ...) of classes in another order, from their earlier positions (k,); zeros for new classes (-1)."""
    remapped = rows.new_zeros(len(origin), *rows.shape[1:])
    known = origin >= 0
    remapped[known] = rows[origin[known]]
    return remapped


def remap_labels(labels: Tensor, origin: Tensor) -> Tensor:
    """Class positions (n,) after the classes got another order, by their earlier positions (k,), -1 for new ones."""
    known = origin >= 0
    positions = torch.full((int(origin.max()) + 1,), -1)
    positions[origin[known]] = torch.nonzero(known).flatten()
    return positions[labels]


def class_origins(previous_classes: Array, classes: Array) -> Tensor:
    """(k,) position of each class in ``previous_classes``, -1 for a new class."""
    positions = {str(name): i for i, name in enumerate(previous_classes)}
    return torch.tensor([positions.get(str(name), -1) for name in classes])
