"""Heads: methods that work on frozen features. One file a method; see ``list_heads()``; `select` chooses among them."""

from clipadapter.heads._base import Head, SupportSet
from clipadapter.heads._held_out import HeldOut, held_out
from clipadapter.heads._registry import Fidelity, create_head, fidelity_of, head_info, list_heads, register_head
from clipadapter.heads._select import Candidate, Selection, select
from clipadapter.heads._streaming import Exact, Streaming
from clipadapter.heads._text import TextFeatures
from clipadapter.heads._unseen import Unseen, held_out_shots, mean_shots

__all__ = [
    "Candidate",
    "TextFeatures",
    "Exact",
    "Fidelity",
    "Head",
    "HeldOut",
    "Selection",
    "SupportSet",
    "Streaming",
    "Unseen",
    "create_head",
    "fidelity_of",
    "head_info",
    "held_out",
    "held_out_shots",
    "list_heads",
    "mean_shots",
    "register_head",
    "select",
]
