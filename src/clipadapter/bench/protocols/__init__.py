"""Protocols: how data sets become fits and test parts. One file for each protocol; the registry finds a new file.

A protocol is a class derived from `base.Protocol`, with ``@register_protocol("<name>")``. Suites and reports know its
`Rules` alone: the registry and the rules lie below suites, and `base` above them.
"""

from __future__ import annotations

from clipadapter.bench.protocols.rules import Rules
from clipadapter.utils.registry import Registry

PROTOCOLS: Registry[Rules] = Registry("protocol", "clipadapter.bench.protocols")
register_protocol = PROTOCOLS.register
list_protocols = PROTOCOLS.list


def protocol_rules(name: str) -> Rules:
    """The rules of a protocol.

    Raises:
        UnknownNameError: if there is no such protocol.
    """
    return PROTOCOLS.create(name)


__all__ = ["PROTOCOLS", "Rules", "list_protocols", "protocol_rules", "register_protocol"]
