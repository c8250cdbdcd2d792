"""Every registered head against every rule; a new head is tested by being there."""

import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator

from clipadapter.heads import Head, create_head, head_info, list_heads
from clipadapter.heads._registry import HEADS
from clipadapter.testing import HEAD_CHECKS


def cases():
    for name in list_heads():
        excuses = head_info(name).facts.get("xfail", {})
        for check in HEAD_CHECKS:
            reason = excuses.get(check.__name__)
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
            yield pytest.param(name, check, id=f"{name}-{check.__name__}", marks=marks)


@pytest.mark.parametrize(("name", "check"), list(cases()))
def test_head_keeps_the_rule(name, check):
    check(create_head(name))


def sklearn_cases():
    for name in list_heads():
        if not head_info(name).cls.needs_text:
            for estimator, check in estimator_checks_generator(create_head(name), mark="skip"):
                rule = getattr(check, "func", check).__name__
                yield pytest.param(estimator, check, id=f"{name}-{rule}")


@pytest.mark.parametrize(("estimator", "check"), list(sklearn_cases()))
def test_text_free_heads_are_scikit_learn_estimators(estimator, check):
    check(estimator)


def test_the_three_heads_are_there():
    assert {"zero-shot", "linear-probe", "clip-adapter"} <= set(list_heads())


def test_a_head_in_another_package_is_held_to_the_same_rules():
    @HEADS.register("test-only-broken")
    class Broken(Head):
        """Forgets its parameter."""

        def __init__(self, size: int = 1) -> None:
            self.other = size

        def _fit(self, shots):
            self.done_ = 1

        def _logits(self, X):
            return -X[:, :3]

    try:
        failed = []
        for check in HEAD_CHECKS:
            try:
                check(Broken())
            except Exception:
                failed.append(check.__name__)
        assert "check_constructor_only_stores" in failed
        assert "check_fit_learns" in failed
    finally:
        del HEADS._entries["test-only-broken"]
