"""What holds for the tests of this folder, which fit often."""

import importlib

import pytest


@pytest.fixture(scope="module", autouse=True)
def folds_are_drawn_once(request):
    """A third less processor time for the tests of edits. How often they are drawn is for the tests of heads."""
    auto, out_of_fold = (importlib.import_module(f"clipadapter.heads.{name}") for name in ("auto.head", "out_of_fold"))
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name != "test_quality.py":
            patch.setattr(auto, "MAX_REPEATS", 1)
            patch.setattr(auto, "MAX_MULTILABEL_REPEATS", 1)
            patch.setattr(out_of_fold, "MAX_REPEATS", 1)
        yield
