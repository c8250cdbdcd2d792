"""Any value of a parameter is refused before a fit, or fits: nothing is found out after pictures were encoded."""

from typing import Annotated

import numpy as np
import pytest

from clipadapter.errors import InputError
from clipadapter.heads import TrainedHead
from clipadapter.heads.parameters import NOT_NEGATIVE, POSITIVE, OneOf, Within, at_least, check_bounds
from clipadapter.heads.registry import HEADS
from clipadapter.testing import toy_features

VALUES = ("x", -1, 0, 1.5, float("nan"), float("inf"), None)
X, Y, TEXT = toy_features()
HEADS_OF_FEATURES = [name for name in HEADS.list() if not HEADS.info(name).cls.tunes_encoder]


def is_refused(name, head, parameter, value):
    """Whether the command line refuses the value before it reads pictures."""
    try:
        HEADS.check_value(name, parameter, value)
        HEADS.create(name, **{parameter: value})
        head.set_params(**{parameter: value}).check_parameters()
    except InputError as error:
        assert str(error)
        return True
    return False


@pytest.mark.parametrize("name", HEADS_OF_FEATURES)
def test_a_value_is_refused_before_the_fit_or_gives_finite_logits(name):
    cls = HEADS.info(name).cls
    parameters = cls().get_params(deep=False)
    quick = {parameter: 1 for parameter in ("epochs", "steps") if parameter in parameters}
    fixed_ratio = {"alpha": 0.3} if parameters.get("alpha") == "auto" and issubclass(cls, TrainedHead) else {}
    for parameter in parameters.keys() - {"progress", "seed", *quick}:
        for value in VALUES:
            head = cls(**quick, **fixed_ratio)
            if is_refused(name, head, parameter, value):
                continue
            head.fit(X, Y, text=TEXT, unlabelled=X if cls.transductive else None)
            assert np.isfinite(head.logits(X)).all(), (parameter, value)


@pytest.mark.parametrize("name", [name for name in HEADS_OF_FEATURES if "epochs" in HEADS.info(name).parameters])
def test_epochs_have_a_number_or_a_name_that_is_known(name):
    with pytest.raises(InputError, match="epochs must be [01] or more.*, but is 'x'"):
        HEADS.create(name, epochs="x").fit(X, Y, text=TEXT)


class Bounded:
    share: "Annotated[float, Within(0, 1)]"
    part: Annotated[float, Within(0, 1, closed="right")]
    rest: Annotated[float, Within(0, 1, closed="left")]
    inner: Annotated[float, Within(0, 1, closed="neither")]
    rows: Annotated[int, at_least(2)]
    penalty: Annotated[float | None, NOT_NEGATIVE]
    C: Annotated[float | str, POSITIVE, OneOf("auto")]
    kind: Annotated[str, OneOf("a", "b")]
    free: "NameOfATypeChecker"  # noqa: F821 # is not evaluated


class WithAnotherDefault(Bounded):
    share: float = 0.5


@pytest.mark.parametrize(
    ("name", "accepted", "refused", "message"),
    [
        ("share", [0, 0.5, 1], [-0.1, 1.1, "x", None, float("nan")], "share must be 0 to 1, but is -0.1"),
        ("part", [0.1, 1], [0, 1.1], "part must be above 0 and up to 1, but is 0"),
        ("rest", [0, 0.9], [1, -1], "rest must be 0 or more and below 1, but is 1"),
        ("inner", [0.5], [0, 1], "inner must be above 0 and below 1, but is 0"),
        ("rows", [2, 3], [1, 2.5, float("inf")], "rows must be 2 or more, but is 1"),
        ("penalty", [0, 2, None], [-1, float("inf")], "penalty must be 0 or more, but is -1"),
        ("C", ["auto", 0.1], [0, "none", None], "C must be positive or 'auto', but is 0"),
        ("kind", ["a", "b"], ["c", 1], "kind must be one of a, b, but is 'c'"),
    ],
)
def test_a_declared_bound_refuses_other_values_and_says_which_it_accepts(name, accepted, refused, message):
    for value in accepted:
        check_bounds(Bounded, {name: value})
    for value in refused:
        with pytest.raises(InputError, match=message if value is refused[0] else f"{name} must be "):
            check_bounds(Bounded, {name: value})


def test_a_subclass_that_sets_another_default_keeps_the_bounds():
    with pytest.raises(InputError, match="share must be 0 to 1"):
        check_bounds(WithAnotherDefault, {"share": 2.0})
