"""Heads: methods that work on frozen features, one file per method. `list_heads` names them, `select` chooses one."""

from clipadapter.heads.base import Head
from clipadapter.heads.incremental import ExactIncrementalHead, IncrementalHead
from clipadapter.heads.out_of_fold import OutOfFold, mean_shots_per_class, out_of_fold
from clipadapter.heads.registry import (
    Fidelity,
    create_head,
    default_parameters,
    fidelity_of,
    head_info,
    list_heads,
    register_head,
)
from clipadapter.heads.select import Candidate, Selection, select
from clipadapter.heads.support import SupportSet
from clipadapter.heads.text import TextFeatures
from clipadapter.heads.training import ScheduledHead, TrainedHead

__all__ = [
    "Candidate",
    "ExactIncrementalHead",
    "Fidelity",
    "Head",
    "IncrementalHead",
    "OutOfFold",
    "ScheduledHead",
    "Selection",
    "SupportSet",
    "TextFeatures",
    "TrainedHead",
    "create_head",
    "default_parameters",
    "fidelity_of",
    "head_info",
    "list_heads",
    "mean_shots_per_class",
    "out_of_fold",
    "register_head",
    "select",
]
