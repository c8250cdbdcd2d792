"""The registry of heads; tuners, which train through a tower, are chosen by name like them."""

from __future__ import annotations

from clipadapter.heads._base import Head
from clipadapter.registry import Registry

HEADS: Registry[Head] = Registry("head", "clipadapter.heads", "clipadapter.tuners")
register_head = HEADS.register
list_heads = HEADS.list
head_info = HEADS.info
create_head = HEADS.create
