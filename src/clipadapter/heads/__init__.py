"""Heads: methods that work on frozen features. One file a method; see ``list_heads()``."""

from clipadapter.heads._base import Head, Shots
from clipadapter.heads._registry import create_head, head_info, list_heads, register_head
from clipadapter.heads._text import ClassText

__all__ = ["ClassText", "Head", "Shots", "create_head", "head_info", "list_heads", "register_head"]
