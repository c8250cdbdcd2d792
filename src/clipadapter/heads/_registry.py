"""The registry of heads."""

from __future__ import annotations

from clipadapter.heads._base import Head
from clipadapter.registry import Registry

HEADS: Registry[Head] = Registry("head", "clipadapter.heads")
register_head = HEADS.register
list_heads = HEADS.list
head_info = HEADS.info
create_head = HEADS.create
