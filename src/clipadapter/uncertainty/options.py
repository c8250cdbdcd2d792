"""What a classifier is to learn from held-out shots, and what it says by default."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import ArrayLike

from clipadapter.errors import InputError
from clipadapter.uncertainty.calibration import METHODS
from clipadapter.uncertainty.conformal import HOW, SCORES

CALIBRATION = ("auto", *METHODS, "none")


@dataclass(frozen=True, eq=False)
class UncertaintyOptions:
    """How far a classifier may be trusted, and what it may say.

    Args:
        calibration: "temperature"; "vector", a factor and a bias a class besides; "none"; or "auto", a temperature
            unless shots can only be held out by training through a tower.
        reject: share of pictures of the classes that may be called "none of these", such as 0.05; None never says so.
        coverage: share of pictures whose class is to be in the set of classes that is named, such as 0.9.
        costs: (c, c), row the true class, column the answer; the least expected cost decides.
        sets: how shots are held out for the sets: "cross", "cv+" which keeps the folds' heads, or "split" which fits
            on half of the shots only; see `Conformal.words` for what each promises.
        by_class: promise the coverage for each class by itself.
        score: of the sets: "lac", "aps" or "raps".
        distractors: compare pictures with the 1,000 class names of ImageNet too, to tell "none of these".

    Raises:
        InputError: if a value is none of these, or a rate is no share.

    >>> UncertaintyOptions(reject=0.05).reject
    0.05
    """

    calibration: str = "auto"
    reject: float | None = None
    coverage: float | None = None
    costs: ArrayLike | None = None
    sets: str = "cross"
    by_class: bool = False
    score: str = "lac"
    distractors: bool = False

    def __post_init__(self) -> None:
        for name, known in (("calibration", CALIBRATION), ("sets", HOW), ("score", SCORES)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")
        for name in ("reject", "coverage"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < 1):
                raise InputError(f"{name} is a share between 0 and 1, such as 0.05 or 0.9, but is {value!r}")
