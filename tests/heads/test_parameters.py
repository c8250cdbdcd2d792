"""Any value of a parameter is refused before a fit, or fits: nothing is found out after pictures were encoded."""

import numpy as np
import pytest

from clipadapter.errors import InputError
from clipadapter.heads.registry import HEADS
from clipadapter.testing import toy_features

VALUES = ("x", -1, 0, 1.5, float("nan"), float("inf"), None)
ABOUT_THE_SHOTS = {("ss-text-u", "marginal")}
"""Parameters whose numbers suit the classes or not, which only the fit knows."""
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
    for parameter in parameters.keys() - {"progress", "seed", *quick}:
        for value in VALUES:
            head = cls(**quick)
            if is_refused(name, head, parameter, value) or (name, parameter) in ABOUT_THE_SHOTS:
                continue
            head.fit(X, Y, text=TEXT, unlabelled=X if cls.transductive else None)
            assert np.isfinite(head.logits(X)).all(), (parameter, value)
