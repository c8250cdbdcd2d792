"""Finds out what is imported, in this process: a new one would take seconds to import torch."""

import sys
from contextlib import contextmanager

import pytest


@contextmanager
def recorded(*names):
    """Have modules that may be imported already be imported anew, and fail; gives the list of those that were tried."""
    tried = []

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name in names:
                tried.append(name)
                raise ImportError(f"the test refuses {name}")

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        patch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
        yield tried
