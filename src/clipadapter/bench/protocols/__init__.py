"""Protocols: how data sets become fits and test parts. One file each; a new file is found by itself.

A protocol is a class derived from `base.Protocol`, with ``@register_protocol("<name>")``.
"""

from clipadapter.bench.protocols._registry import create_protocol, list_protocols, register_protocol

__all__ = ["create_protocol", "list_protocols", "register_protocol"]
