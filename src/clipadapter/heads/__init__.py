"""Heads: methods that work on frozen features. One file a method; see ``list_heads()``; `select` chooses among them."""

from clipadapter.heads._base import Head, Shots
from clipadapter.heads._registry import create_head, head_info, list_heads, register_head
from clipadapter.heads._select import Candidate, HeldOut, Selection, held_out, select
from clipadapter.heads._text import ClassText

__all__ = [
    "Candidate",
    "ClassText",
    "Head",
    "HeldOut",
    "Selection",
    "Shots",
    "create_head",
    "head_info",
    "held_out",
    "list_heads",
    "register_head",
    "select",
]
