"""OpenVINO and NNCF tell their makers that they are used, unless they find themselves in a CI job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

SWITCHES = {"CI": "true", "NNCF_CI": "1"}
"""Environment variables by which both leave it; they know no other way that leaves the user's home folder alone."""


@contextmanager
def nothing_told() -> Iterator[None]:
    """Import and use them in here: nothing leaves the machine, and no file comes into the user's home folder."""
    before = {name: os.environ.get(name) for name in SWITCHES}
    os.environ.update(SWITCHES)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
