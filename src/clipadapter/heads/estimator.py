"""`Estimator`: a scikit-learn classifier that imports scikit-learn only when one of its tools is used.

The import of `sklearn.base` takes as long as that of torch. A fit, a prediction and an edit of a model need none of it;
docs/decisions/0032 has the figures. Parameters, `clone` and the check before a prediction are here. All else, such as
tags and metadata routing, is taken from scikit-learn's own base classes at its first use.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from numpy.typing import ArrayLike
from typing_extensions import Self

METADATA_METHODS = ("fit", "partial_fit", "predict", "predict_proba", "predict_log_proba", "score")
"""Methods to which scikit-learn's metadata routing can pass further arguments."""

AnyEstimator = TypeVar("AnyEstimator")


class Estimator:
    """A classifier for scikit-learn's tools: it has their methods, and passes their conformance checks."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name, sorted.

        Args:
            deep: also those of parameters that are estimators, as ``NAME__PARAMETER``.
        """
        cls: Any = type(self)
        params = {name: getattr(self, name) for name in _parameter_names(cls)}
        if not deep:
            return params
        nested = {name: value for name, value in params.items() if _is_estimator(value)}
        inner = {f"{name}__{key}": part for name, value in nested.items() for key, part in value.get_params().items()}
        return {**inner, **params}

    def set_params(self, **params: Any) -> Self:
        """Set parameters by name; ``NAME__PARAMETER`` is one of a parameter that is an estimator.

        Raises:
            ValueError: if there is no such parameter.
        """
        cls: Any = type(self)
        names = list(_parameter_names(cls))
        for key, value in params.items():
            name, _, inner = key.partition("__")
            if name not in names:
                raise ValueError(f"Invalid parameter {name!r} for estimator {self}. Valid parameters are: {names}.")
            if inner:
                getattr(self, name).set_params(**{inner: value})
            else:
                setattr(self, name, value)
        return self

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """The accuracy of `predict`; in the multi-label task, the share of rows whose labels are all right.

        Args:
            X: (m, d) raw features.
            y: (m,) labels, or (m, c) multi-label targets.
            sample_weight: (m,) weights of the rows.
        """
        from sklearn.metrics import accuracy_score

        return float(accuracy_score(y, self.predict(X), sample_weight=sample_weight))

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        params = self.get_params(deep=False)
        changed = [f"{key}={value!r}" for key, value in params.items() if repr(value) != repr(defaults[key].default)]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_clone__(self) -> Self:
        other = type(self)(**{name: _clone_parameter(value) for name, value in self.get_params(deep=False).items()})
        if "_metadata_request" in vars(self):  # which is no parameter
            vars(other)["_metadata_request"] = copy.deepcopy(vars(self)["_metadata_request"])
        return other

    def __sklearn_is_fitted__(self) -> bool:
        return "classes_" in vars(self)

    def __sklearn_tags__(self) -> Any:
        cls: Any = type(self)
        return _sklearn_classifier(cls)().__sklearn_tags__()

    def __getattr__(self, name: str) -> Any:
        """What scikit-learn's base classes offer beyond this, such as ``set_fit_request``."""
        own = inspect.getattr_static(type(self), name, None)
        if isinstance(own, property):
            return own.__get__(self)  # it raised an AttributeError, such as NotFittedError, and raises it again
        is_learned = name.endswith("_") and not name.startswith("_")
        if not is_learned and not name.startswith("__"):
            cls: Any = type(self)
            attribute = inspect.getattr_static(_sklearn_classifier(cls), name, None)
            if attribute is not None:
                return attribute.__get__(self, type(self)) if hasattr(attribute, "__get__") else attribute
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def clone(estimator: AnyEstimator) -> AnyEstimator:
    """A new estimator that is not fitted, with copies of the same parameters; as `sklearn.base.clone`.

    >>> from clipadapter.heads import create_head
    >>> clone(create_head("tip-adapter", alpha=2.0))
    TipAdapter(alpha=2.0)
    """
    other: AnyEstimator = estimator.__sklearn_clone__()  # type: ignore[attr-defined]
    return other


def check_is_fitted(estimator: Estimator) -> None:
    """Refuse an estimator before `fit`.

    Raises:
        sklearn.exceptions.NotFittedError: if so.
    """
    if estimator.__sklearn_is_fitted__():
        return
    from sklearn.exceptions import NotFittedError

    raise NotFittedError(f"This {type(estimator).__name__} instance is not fitted yet: call fit before using it.")


@functools.cache
def _parameter_names(cls: Callable[..., Any]) -> tuple[str, ...]:
    parameters = inspect.signature(cls).parameters.values()
    return tuple(sorted(part.name for part in parameters if part.kind is not part.VAR_KEYWORD))


@functools.cache
def _sklearn_classifier(cls: Any) -> type[Any]:
    """A class of scikit-learn that takes the same metadata as an estimator of ours: what `Estimator` lends from."""
    from sklearn.base import BaseEstimator, ClassifierMixin

    methods = {name: getattr(cls, name) for name in METADATA_METHODS if hasattr(cls, name)}
    return type(cls.__name__, (ClassifierMixin, BaseEstimator), methods)


def _is_estimator(value: Any) -> bool:
    return hasattr(value, "get_params") and not isinstance(value, type)


def _clone_parameter(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_clone_parameter(part) for part in value)
    if not _is_estimator(value):
        return copy.deepcopy(value)
    if isinstance(value, Estimator):
        return clone(value)
    from sklearn.base import clone as clone_sklearn

    return clone_sklearn(value)
