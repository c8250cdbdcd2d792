"""`Head`, the base class of all methods: a scikit-learn classifier on frozen features with logits for every class.

The base checks features, labels and text features, orders the classes, converts arrays to tensors and back, predicts in
blocks of rows, and saves and loads what was learned. A method implements `_fit` and `_logits`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import logsigmoid
from typing_extensions import Self

from clipadapter.errors import ArtifactError, InputError, brief
from clipadapter.heads.estimator import Estimator, check_is_fitted, clone
from clipadapter.heads.parameters import NOT_NEGATIVE as NOT_NEGATIVE  # for the files of methods, as are those below
from clipadapter.heads.parameters import POSITIVE as POSITIVE
from clipadapter.heads.parameters import OneOf as OneOf
from clipadapter.heads.parameters import Within as Within
from clipadapter.heads.parameters import at_least as at_least
from clipadapter.heads.parameters import check_bounds
from clipadapter.heads.registry import HEADS
from clipadapter.heads.registry import register_head as register_head
from clipadapter.heads.support import (
    Array,
    Reads,
    as_matrix,
    as_views,
    blocks_to_read,
    check_blocks,
    check_feature_names,
    check_text,
    check_truth,
    check_unlabelled,
    check_width,
    is_multilabel,
    names_to_dtype,
    read_columns,
    text_classes,
)
from clipadapter.heads.support import SupportSet as SupportSet
from clipadapter.heads.text import TextFeatures
from clipadapter.metrics.table import Task
from clipadapter.utils.blocks import FINAL, Blocks, select_blocks, total_width
from clipadapter.utils.formatting import format_list
from clipadapter.utils.functional import unit
from clipadapter.utils.prediction import DEFAULT_LOGIT_SCALE
from clipadapter.utils.registry import unknown

Preset = Mapping[str, Any]
MULTILABEL = "multilabel_"  # attribute that only heads have which were fitted to multi-label targets
MAX_FLOATS_PER_BLOCK = 2**24  # numbers that a head may hold at a time while it predicts: 64 MB in float32
PRIOR_SHOTS_PER_CLASS = (1, 2, 4, 8, 16)  # shots per class at which `Head.temperature_prior` was measured
NOT_IN_STATE = ("blocks_", "classes_", "feature_names_in_", "kept_pictures_", "n_features_in_")
"""Learned attributes that are not part of `Head.state`."""


class Head(Estimator, ABC):
    """Base class of all heads.

    The parameters of a subclass are the fields of the dataclass that `register_head` makes of it, or those of an
    ``__init__`` that only stores them. It learns in `_fit` into attributes that end in ``_``, and computes (m, c)
    logits in `_logits`. `_logits` gets X in blocks of rows, so that its memory is bounded; see `_numbers_per_row`.
    """

    needs_text: ClassVar[bool] = False
    """True if `fit` requires text features."""
    transductive: ClassVar[bool] = False
    """True if `fit` needs the pictures that will be classified, without labels."""
    accepts_unlabelled: ClassVar[bool] = False
    """True if `fit` takes pictures without labels and does not need them; a transductive head needs them."""
    reads: ClassVar[Reads] = "final"
    """The blocks of X that the head reads: the one that class text is compared with ("final"); this and the features
    before the image tower's projection ("unprojected"); this and the final feature of the first other encoder
    ("second-encoder"); or "all"."""
    reads_prompts: ClassVar[bool] = False
    """True if `fit` uses the text features of the single prompts of a class (`TextFeatures.prompts`)."""
    needs_tower: ClassVar[bool] = False
    """True if `fit` trains through the text tower that made the text features."""
    needs_tower_to_predict: ClassVar[bool] = False
    """True if `predict` uses the text tower too, so that a head that was loaded needs `attach`."""
    tunes_encoder: ClassVar[bool] = False
    """True if the encoder itself is changed before features are made; see `clipadapter.tuners`."""
    multilabel: ClassVar[bool] = False
    """True if `fit` also takes multi-label targets."""
    picture_features: ClassVar[tuple[str, ...]] = ()
    """Learned arrays whose rows are features of pictures: centred, of some columns, or where training starts."""
    supports_warm_start: ClassVar[bool] = False
    """True if `fit_from` starts from what an earlier fit learned; other heads fit from scratch."""
    recipes: ClassVar[Mapping[str, Preset]] = {}
    """The parameters of the authors' code, "official", and of the paper, "paper"; see `from_recipe`."""
    presets: ClassVar[Mapping[str, Preset]] = {}
    """Published parameters by the name of a data set; see `preset`."""
    preset_note: ClassVar[str] = "It is not stated how these values were chosen."
    """What the values of `presets` are: those that the authors used, or where their search starts, and on what data."""
    temperature_prior: ClassVar[tuple[float, float, float, float, float]] = (1.0, 1.0, 1.0, 1.0, 1.0)
    """Temperatures at which this head's softmax is calibrated on typical data, after fits to 1, 2, 4, 8 and 16 shots
    per class. A calibrator uses them as the mean of its prior."""

    classes_: Array
    n_features_in_: int
    blocks_: Blocks  # the blocks of X in `fit`
    feature_names_in_: Array  # (d,) names of the columns of X if `fit` got a data frame; not saved

    kept_pictures_: Array | None = None
    """(u, d) features of pictures without labels, as for `fit`, that fits after an edit use again. They are no part of
    `state`: a saved model has them beside the shots."""
    _previous: Head | None = None
    """The earlier head, while `fit_from` runs."""
    _full_fit: Head | None = None
    """The head fitted to all shots, while `refit_without` fits to some of them with its chosen hyperparameters."""
    _own_out_of_fold: Any = None
    """The `OutOfFold` of a head whose `_fit` holds out shots itself; not saved."""

    # Implemented by each method

    @abstractmethod
    def _fit(self, shots: SupportSet) -> None:
        """Learn from checked tensors."""

    @abstractmethod
    def _logits(self, X: Tensor) -> Tensor:
        """(m, d) raw features to (m, c) logits; each row is independent of the others."""

    def _numbers_per_row(self) -> int:
        """How many numbers `_logits` holds for each row; it gets as many rows at a time as make 2^24 numbers.

        The default counts the row's features, its logits, and one number for each row of the longest learned array,
        since a head that keeps its shots compares them with each row.
        """
        lengths = (len(v) for k, v in vars(self).items() if k.endswith("_") and isinstance(v, Tensor) and v.ndim)
        return self.n_features_in_ + len(self.classes_) + max(lengths, default=0)

    def _text_logits(self, X: Tensor) -> Tensor | None:
        """(m, d) raw features to the part (m, c) of `_logits` that comes from text features.

        None, the default, if the logits are not a sum of a part from text and a part from shots.
        """
        return None

    def _block_logits(self, X: Tensor) -> dict[str, Tensor] | None:
        """(m, d) raw features to the part (m, c) of `_logits` that comes from each block; their sum is `_logits`.

        None, the default for several blocks, if the logits are not such a sum.
        """
        return {FINAL: self._logits(X)} if len(self.read_blocks) == 1 else None

    def _for_text(self, text: Tensor, scale: float) -> None:
        """Replace the classes by those of unit text features (c, d); only for heads that learn no class weights."""
        raise InputError(f"{type(self).__name__} knows only the classes that it was fitted to")

    def planned_epochs(self, labels: Tensor, text_shape: tuple[int, int] | None = None) -> int | None:
        """How many passes over the shots `fit` will make, so that each can get an augmented view of its own.

        None, the default, if the head makes no passes or chooses the view of each step in another way: it then takes no
        ``views="per-epoch"``. A fit to fewer shots, such as that of a fold, may make more passes and draws views at
        random.

        Args:
            labels: (n,) class positions of the shots; -1 for each in the multi-label task.
            text_shape: (c, d) of the class text, on which the cost of an epoch depends; None, if it is not known, for
                as many epochs as the head makes at most.
        """
        return None

    # Construct

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """The head with the values that its authors published for one data set.

        `preset_note` says what these values are; ``clipadapter heads NAME`` prints it. They were chosen for this data
        set, often on validation or test pictures: use them to repeat a paper, not for a fair comparison.

        Args:
            name: of the data set, such as "dtd".
            changes: parameters to set otherwise.

        Raises:
            UnknownNameError: if the head has no such preset.
        """
        if name not in cls.presets:
            raise unknown(f"preset of {cls.__name__}", name, sorted(cls.presets))
        return cls(**{**cls.presets[name], **changes})

    @classmethod
    def from_recipe(cls, name: str, **changes: Any) -> Self:
        """The head with one of its `recipes`.

        Args:
            name: "official" or "paper".
            changes: parameters to set otherwise.

        Raises:
            UnknownNameError: if there is none.
        """
        if name not in cls.recipes:
            raise unknown(f"recipe of {cls.__name__}", name, list(cls.recipes))
        return cls(**{**cls.recipes[name], **changes})

    @classmethod
    def official(cls, **changes: Any) -> Self:
        """`from_recipe` with the recipe of the authors' code."""
        return cls.from_recipe("official", **changes)

    @classmethod
    def paper(cls, **changes: Any) -> Self:
        """`from_recipe` with the recipe of the paper."""
        return cls.from_recipe("paper", **changes)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = self.multilabel
        return tags

    # Fit

    def check_parameters(self) -> None:
        """Refuse parameters with which no fit is possible; `fit` calls it, and commands before they read pictures.

        Raises:
            InputError: with the accepted values. A head overrides this for what declared bounds can't say.
        """
        check_bounds(type(self), self.get_params(deep=False))

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        text: TextFeatures | None = None,
        unlabelled: ArrayLike | None = None,
        blocks: Sequence[tuple[str, int]] | None = None,
    ) -> Self:
        """Learn from labelled features.

        Args:
            X: (n, d) raw features, or (n, v, d) with v views per picture, the plain one first.
            y: (n,) labels; names that occur in ``text.labels`` if text features are given, or numbers whose texts do.
                ``classes_`` are the classes in the type of y, sorted (see `TextFeatures.order`). Or (n, c) multi-label
                targets of zeros and ones, one column per class: then each class is a binary problem, and ``classes_``
                are the names of the text features in their order, or 0 to c - 1.
            text: class names and their text features.
            unlabelled: (u, d) raw features of pictures without labels; required by transductive heads, optional for
                heads that ``accepts_unlabelled``, refused by others.
            blocks: name and width of each block of columns of X, ``final`` first (`clipadapter.utils.blocks`); None if
                X is ``final`` alone. The head reads some of them; see `reads`.

        Returns:
            The head itself.

        Raises:
            InputError: if shapes, widths or labels do not match, a feature is not finite, or a parameter is refused.
        """
        return self._fit_checked(X, y, text, unlabelled, blocks)

    def _fit_checked(
        self,
        X: ArrayLike,
        y: ArrayLike,
        text: TextFeatures | None,
        unlabelled: ArrayLike | None,
        blocks: Sequence[tuple[str, int]] | None,
        classes: Array | None = None,
    ) -> Self:
        """`fit`, with these classes if they are given."""
        check_feature_names(self, X, reset=True)
        views = as_views(X)
        checked = check_blocks(views.shape[2], blocks)
        shots, self.classes_ = self._check_shots(views, y, text, unlabelled, classes, checked)
        self.n_features_in_, self.blocks_ = views.shape[2], checked
        # In the multi-label task only: it is part of the saved state, and single-label models have no such array.
        self.__dict__.pop(MULTILABEL, None)
        if shots.targets is not None:
            setattr(self, MULTILABEL, 1)
        self._own_out_of_fold = None
        self._fit(shots)
        return self

    @property
    def task_(self) -> Task:
        """The task that the head was fitted to."""
        check_is_fitted(self)
        return "multilabel" if MULTILABEL in vars(self) else "single-label"

    def _check_shots(
        self,
        X: ArrayLike,
        y: ArrayLike,
        text: TextFeatures | None,
        unlabelled: ArrayLike | None = None,
        classes: Array | None = None,
        blocks: Blocks | None = None,
    ) -> tuple[SupportSet, Array]:
        """The arguments of `fit` and the head's parameters, checked, and the classes in order.

        Text features are returned in the order of the classes, so that everything that is learned is in that order. The
        order is that of ``classes`` if they are given, else of all classes of the text, or all labels. Blocks are those
        of the last `fit`, or ``final`` alone, if they are not given.
        """
        self.check_parameters()
        views = as_views(X)
        if blocks is None:
            if hasattr(self, "blocks_"):
                check_width(self, views.shape[2])
            blocks = getattr(self, "blocks_", None) or check_blocks(views.shape[2], None)
        tensor = read_columns(torch.from_numpy(views), self.reads, blocks)
        if is_multilabel(y) and not self.multilabel:
            able = [name for name in HEADS.list() if HEADS.info(name).cls.multilabel]
            raise InputError(
                f"{type(self).__name__} is a single-label head, but y has multi-label targets (n, c); "
                f"these heads are multi-label: {', '.join(able)}"
            )
        check_text(self, text, blocks)
        classes, truth = check_truth(y, len(views), text, classes)
        labels, targets = torch.from_numpy(truth), None
        if truth.ndim == 2:
            labels, targets = torch.full((len(views),), -1), labels.to(tensor.dtype)
        text = None if text is None else text.arranged(classes)
        pool, read = check_unlabelled(self, unlabelled, tensor, blocks), blocks_to_read(self.reads, blocks)
        shots = SupportSet(tensor, labels, len(classes), None, DEFAULT_LOGIT_SCALE, pool, targets=targets, blocks=read)
        if text is not None:
            shots = replace(shots, scale=text.logit_scale, names=text.labels, tower=text.tower)
        if text is not None and text.has_text:  # without, it only says which classes there are
            rows, *prompts = (
                unit(torch.from_numpy(each.copy()).to(tensor.dtype))
                for each in (text.embeddings, *(text.prompt_rows if self.reads_prompts else ()))
            )
            shots = replace(shots, text=rows, bias=text.logit_bias, prompts=tuple(prompts))
        return shots, classes

    @property
    def read_blocks(self) -> Blocks:
        """The blocks of X in `fit` that the head reads, in the order of the columns that `_logits` gets."""
        return blocks_to_read(self.reads, self.blocks_)

    @property
    def read_width(self) -> int:
        """Number of columns that the head reads."""
        return total_width(self.read_blocks)

    def read_columns(self, X: Tensor) -> Tensor:
        """The columns (m, d) that `_logits` gets, of features (m, n_features_in_)."""
        return read_columns(X, self.reads, self.blocks_)

    # Fit again: from an earlier fit, without some shots, for other classes

    def fit_from(
        self,
        previous: Head,
        X: ArrayLike,
        y: ArrayLike,
        text: TextFeatures | None = None,
        blocks: Sequence[tuple[str, int]] | None = None,
    ) -> Self:
        """`fit` in less time, by a warm start from an earlier fit if the head `supports_warm_start`.

        X and y are all shots, those of the earlier fit included. A head with a unique optimum ends where `fit` does,
        others near it.

        Args:
            previous: a fitted head of the same type; its classes may be others, and in another order.
            X: as for `fit`.
            y: as for `fit`.
            text: as for `fit`.
            blocks: as for `fit`.

        Raises:
            InputError: as `fit`; or if the earlier head is of another type or not fitted.
        """
        if type(previous) is not type(self) or not hasattr(previous, "classes_"):
            raise InputError(f"{type(self).__name__} starts from a fitted one, not from {type(previous).__name__}")
        self._previous = previous if self.supports_warm_start else None
        try:
            return self.fit(X, y, text=text, unlabelled=previous.kept_pictures_, blocks=blocks)
        finally:
            self.__dict__.pop("_previous", None)

    def describe_unlabelled(self) -> str:
        """How the last fit used the pictures without labels, in words; empty if it says nothing about them."""
        return ""

    @property
    def is_warm_start(self) -> bool:
        """Whether the last fit started from an earlier one."""
        return "changed_" in vars(self)

    def refit_without(
        self,
        X: ArrayLike,
        y: ArrayLike,
        held_out: Array,
        text: TextFeatures | None = None,
        *,
        reuse_chosen: bool = True,
        blocks: Blocks | None = None,
    ) -> Self:
        """A new head, fitted to all shots but some; this head does not change.

        Args:
            X: all shots, as for `fit`.
            y: as for `fit`.
            held_out: (h,) rows that are left out.
            text: as for `fit`.
            reuse_chosen: True to take over hyperparameters that this head chose among all its shots, such as a residual
                ratio or a penalty. To search them again may take several times as long as the fit.
            blocks: as for `fit`; by default those of the last `fit`.

        Raises:
            InputError: as `fit`.
        """
        train = np.setdiff1d(np.arange(len(np.asarray(y))), held_out)
        blocks = getattr(self, "blocks_", None) if blocks is None else blocks
        head: Self = clone(self)
        if "progress" in head.get_params(deep=False):
            head.set_params(progress=False)  # one of many fits, whose caller shows a bar
        head._full_fit = self if reuse_chosen else None
        try:
            return head.fit(np.asarray(X)[train], np.asarray(y)[train], text, self.kept_pictures_, blocks)
        finally:
            head.__dict__.pop("_full_fit", None)

    def for_classes(self, text: TextFeatures) -> Self:
        """A copy of the fitted head that predicts other classes, known by their text features alone.

        What the head learned about features does not change (base-to-new and cross-dataset protocols).

        Args:
            text: of the new classes; they are ordered as by `fit`.

        Raises:
            InputError: if the head learns weights of the classes that it is fitted to, or the widths differ.
            sklearn.exceptions.NotFittedError: before `fit`.
        """
        check_is_fitted(self)
        width, expected = text.embeddings.shape[1], self.blocks_[0].width
        if width != expected:
            raise InputError(f"class text has width {width}, but the head's features have {expected}")
        if text.absent:
            raise InputError(f"these classes have no text: {format_list(text.absent)}")
        if self.task_ == "single-label":
            text = text.arranged(text_classes(text, self.classes_.dtype))
        other = copy.copy(self)
        other.classes_ = names_to_dtype(text.labels, self.classes_.dtype)
        other._for_text(unit(torch.from_numpy(text.embeddings.copy())), text.logit_scale)
        return other

    # Blocks

    def used_blocks(self) -> tuple[str, ...]:
        """Names of the blocks that the logits depend on, ``final`` first; those that the head reads, by default."""
        check_is_fitted(self)
        return tuple(block.name for block in self.read_blocks)

    def block_shares(self) -> dict[str, float] | None:
        """Share of each block that the head reads in the spread of the logits over the classes; 0 if it is not used.

        None if the head reads several blocks and can't divide its logits among them.
        """
        return {FINAL: 1.0} if len(self.read_blocks) == 1 else None

    def restrict_blocks(self, names: Sequence[str]) -> Self:
        """A copy of the fitted head for features that have fewer blocks, with equal logits.

        Args:
            names: of the blocks that stay, `used_blocks` among them.

        Raises:
            InputError: if a block is missing that the logits depend on.
        """
        missing = [name for name in self.used_blocks() if name not in names]
        if missing:
            raise InputError(f"{type(self).__name__} needs the block {missing[0]!r}")
        other = copy.copy(self)
        other.blocks_, columns = select_blocks(self.blocks_, names)
        other.kept_pictures_ = None if self.kept_pictures_ is None else self.kept_pictures_[:, columns]
        other.n_features_in_ = total_width(other.blocks_)
        other._restrict(self.read_blocks, other.read_blocks)
        return other

    def _restrict(self, before: Blocks, after: Blocks) -> None:
        """Forget what was learned of blocks that this copy of a head reads no more."""

    # Predict

    def logits(self, X: ArrayLike) -> Array:
        """Logits of every class.

        Args:
            X: (m, d) raw features.

        Returns:
            (m, c), columns in the order of ``classes_``.

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
            InputError: if the width differs from that in `fit`, or a feature is not finite.
        """
        return self._map_rows(X, self._logits)

    def predict(self, X: ArrayLike) -> Array:
        """The most probable class of each row of X (m, d), as labels (m,); (m, c) zeros and ones if multi-label.

        In the multi-label task, classes with a probability above 0.5; `clipadapter.uncertainty` has learned thresholds.
        """
        if self.task_ == "multilabel":
            return self._map_rows(X, lambda rows: (self._logits(rows) > 0).long())
        # Of equal logits the first is taken, which torch does not promise.
        return np.asarray(self.classes_[self._map_rows(X, lambda rows: self._logits(rows).numpy().argmax(axis=1))])

    def predict_proba(self, X: ArrayLike) -> Array:
        """Softmax of the logits: (m, c) float64, rows sum to one; if multi-label, the sigmoid of each logit."""
        if self.task_ == "multilabel":
            return self._map_rows(X, lambda rows: self._logits(rows).double().sigmoid())
        return self._map_rows(X, lambda rows: self._logits(rows).double().softmax(dim=1))

    def predict_log_proba(self, X: ArrayLike) -> Array:
        """Natural logarithm of `predict_proba` (m, c); finite even where a probability rounds to zero."""
        if self.task_ == "multilabel":
            return self._map_rows(X, lambda rows: logsigmoid(self._logits(rows).double()))
        return self._map_rows(X, lambda rows: self._logits(rows).double().log_softmax(dim=1))

    def text_logits(self, X: ArrayLike) -> Array | None:
        """The part of `logits` that comes from text features; the rest was learned from the shots.

        Only differences between classes have a meaning.

        Args:
            X: (m, d) raw features.

        Returns:
            (m, c), or None if the logits are not a sum of the two parts.

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
            InputError: as `logits`.

        >>> from clipadapter.heads import TextFeatures, create_head
        >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0], [0.0, 1.0]], logit_scale=1.0)
        >>> head = create_head("tip-adapter", alpha=2.0).fit([[0.6, 0.8]], ["cat"], text=text)
        >>> head.logits([[0.6, 0.8]]).round(2), head.text_logits([[0.6, 0.8]]).round(2)
        (array([[2.6, 0.8]]), array([[0.6, 0.8]]))
        """
        scores: Any = self._text_logits
        return None if self._of_one_row(scores) is None else self._map_rows(X, scores)

    def block_logits(self, X: ArrayLike) -> dict[str, Array] | None:
        """The part of `logits` that comes from each block of features; class text belongs to ``final``.

        Only differences between classes have a meaning, and only blocks that the logits depend on are there.

        Args:
            X: (m, d) raw features.

        Returns:
            (m, c) by name of the block, whose sum is `logits`; None if the logits are not such a sum.

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
            InputError: as `logits`.

        >>> from clipadapter.heads import create_head
        >>> from clipadapter.testing import toy_features
        >>> X, y, text = toy_features()
        >>> head = create_head("auto").fit(np.hstack([X, X]), y, text, blocks=[("final", 16), ("inner", 16)])
        >>> {name: part.shape for name, part in head.block_logits(np.hstack([X, X])).items()}
        {'final': (12, 3), 'inner': (12, 3)}
        """
        scores: Any = self._block_logits
        names = self._of_one_row(scores)
        if names is None:
            return None
        logits = self._map_rows(X, lambda rows: torch.stack([*scores(rows).values()], dim=1))
        return {name: logits[:, i] for i, name in enumerate(names)}

    def prior_temperature(self, shots_per_class: float) -> float:
        """`temperature_prior` at any number of shots per class, by linear interpolation of its logarithms."""
        log_shots, values = np.log(PRIOR_SHOTS_PER_CLASS), np.log(self.temperature_prior)
        return float(np.exp(np.interp(np.log(max(shots_per_class, 1.0)), log_shots, values)))

    def _of_one_row(self, scores: Callable[[Tensor], Any]) -> Any:
        """Scores of a row that only show which there are."""
        check_is_fitted(self)
        with torch.inference_mode():
            return scores(torch.ones(1, self.read_width))

    def _map_rows(self, X: ArrayLike, function: Callable[[Tensor], Any]) -> Array:
        """Apply a function to blocks of rows (b, d) of X (m, d), each as `_logits` gets it, and join its results."""
        check_is_fitted(self)
        check_feature_names(self, X)
        rows = as_matrix(X)
        check_width(self, rows.shape[1])
        block_size = max(1, MAX_FLOATS_PER_BLOCK // self._numbers_per_row())
        joined: Array | None = None
        with torch.inference_mode():
            for start in range(0, len(rows), block_size):
                block = torch.from_numpy(rows[start : start + block_size])
                result = np.asarray(function(self.read_columns(block)))
                if len(result) == len(rows):
                    return result
                joined = np.empty((len(rows), *result.shape[1:]), result.dtype) if joined is None else joined
                joined[start : start + block_size] = result
        assert joined is not None  # there is a row
        return joined

    # Save and load

    def state(self) -> dict[str, Array]:
        """What was learned, as arrays by name, without ``classes_``, ``n_features_in_`` and ``blocks_``.

        Raises:
            sklearn.exceptions.NotFittedError: before `fit`.
        """
        check_is_fitted(self)
        learned = {k: v for k, v in vars(self).items() if k.endswith("_") and k not in NOT_IN_STATE and v is not None}
        return {k: v.numpy() if isinstance(v, Tensor) else np.asarray(v) for k, v in learned.items()}

    def load_state(
        self, state: Mapping[str, Array], classes: Sequence[Any], width: int, blocks: Sequence[tuple[str, int]] = ()
    ) -> Self:
        """Become the fitted head that `state` came from.

        Args:
            state: arrays by name.
            classes: labels in order.
            width: feature width d.
            blocks: the blocks of these columns; empty for ``final`` alone.

        Raises:
            ArtifactError: if the arrays do not make a working head: it must compute finite logits (1, c).
        """
        self._load_state_dict(state, classes, width, blocks)
        name, c = type(self).__name__, len(self.classes_)
        try:
            logits = self._answer_to_check()
        except (RuntimeError, AttributeError, TypeError, ValueError, IndexError) as error:
            raise ArtifactError(f"the saved arrays don't fit a {name}: {error}") from error
        if logits.shape != (1, c) or not np.isfinite(logits).all():
            raise ArtifactError(f"the saved arrays of {name} give no finite logits of {c} classes")
        return self

    def attach(self, text: TextFeatures) -> Self:
        """Give a loaded head the text tower of its classes' text features, if it predicts through it.

        Raises:
            InputError: if such a head gets text features without a text tower, or of other classes.
        """
        return self

    def _load_state_dict(
        self, state: Mapping[str, Array], classes: Sequence[Any], width: int, blocks: Sequence[tuple[str, int]] = ()
    ) -> None:
        """Set saved arrays as attributes without checking them; arrays without axes become numbers, others tensors."""
        for name, value in state.items():
            # A learned attribute may be None by default; any other one of the class is no array.
            is_learned = name.endswith("_") and not name.startswith("_") and name not in NOT_IN_STATE
            if not is_learned or getattr(type(self), name, None) is not None:
                raise ArtifactError(f"the saved head has an array called {brief(name)}, which no head learns")
            array = np.asarray(value)
            # A copy in memory of torch, aligned as that of a fit is: kernels may sum in another order otherwise.
            setattr(self, name, array.item() if array.ndim == 0 else torch.tensor(array))
        self.classes_, self.n_features_in_ = np.asarray(classes), width
        self.blocks_ = check_blocks(width, blocks or None)

    def _answer_to_check(self) -> Array:
        """Logits (1, c) that show whether loaded arrays make a working head."""
        return self.logits(np.ones((1, self.n_features_in_), dtype=np.float32))
