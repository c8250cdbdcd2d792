"""Heads: methods that work on frozen features. One file a method; see ``list_heads()``; `select` chooses among them."""

from clipadapter.heads._held_out import HeldOut, held_out
from clipadapter.heads.base import Head, SupportSet
from clipadapter.heads.incremental import Exact, Streaming
from clipadapter.heads.out_of_fold import Unseen, held_out_shots, mean_shots
from clipadapter.heads.registry import Fidelity, create_head, fidelity_of, head_info, list_heads, register_head
from clipadapter.heads.select import Candidate, Selection, select
from clipadapter.heads.text import TextFeatures

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
