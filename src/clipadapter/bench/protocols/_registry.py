"""The registry of protocols. It imports no protocol, so that suites can check the name of theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipadapter.registry import Registry

if TYPE_CHECKING:
    from clipadapter.bench.protocols.base import Protocol

PROTOCOLS: Registry[Protocol] = Registry("protocol", "clipadapter.bench.protocols")
register_protocol = PROTOCOLS.register
list_protocols = PROTOCOLS.list
create_protocol = PROTOCOLS.create
