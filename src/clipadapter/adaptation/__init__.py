"""Test-time adaptation: answers that depend on other pictures of the stream, or on several views of a picture.

Nothing here is on by default. See docs/guides/at-test-time.md.
"""

from __future__ import annotations

from clipadapter.adaptation.tda import TdaCache, TdaSettings
from clipadapter.adaptation.zero import vote

Adapt = str | TdaCache | None  # a method, a cache that goes on, or None for no adaptation
METHODS = ("tda",)  # what ``adapt`` of predictions may name

__all__ = ["METHODS", "Adapt", "TdaCache", "TdaSettings", "vote"]
