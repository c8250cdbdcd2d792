"""Protocols: how data sets become fits and test parts. One file for each protocol; the registry finds a new file.

A protocol is a class derived from `base.Protocol`, with ``@register_protocol("<name>")``. The registry is here and not
in `base`, so that suites can check the name of their protocol without an import of `base`, which imports suites.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from clipadapter.utils.registry import Registry

if TYPE_CHECKING:
    from clipadapter.bench.protocols.base import Protocol

PROTOCOLS: Registry[Protocol] = Registry("protocol", "clipadapter.bench.protocols")
register_protocol = PROTOCOLS.register
list_protocols = PROTOCOLS.list


def create_protocol(name: str, options: Mapping[str, int] | None = None) -> Protocol:
    """A protocol by name.

    Args:
        name: one of `list_protocols`.
        options: those of a suite.

    Raises:
        UnknownNameError: if there is no such protocol.
    """
    protocol = PROTOCOLS.create(name)
    protocol.options = {**protocol.options, **(options or {})}
    return protocol


__all__ = ["create_protocol", "list_protocols", "register_protocol"]
