"""A fitted model of three colours, and files that nobody waits for."""

import os

import pytest

from clipadapter import FewShotClassifier

from ..classifier.squares import squares


@pytest.fixture(scope="package", autouse=True)
def no_sync():
    """No machine crashes here: robustness/kill_saves.py states what reaches the disk, and when."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def fitted():
    return FewShotClassifier("toy", "linear-probe", cache=None).fit(*squares())
