"""UCF101: actions; the middle frame of each video."""

from __future__ import annotations

from clipadapter.data.sets._base import INSTRUCTIONS, SplitFileSet, split_counts
from clipadapter.data.sets._registry import register_set


@register_set("ucf101")
class UCF101(SplitFileSet):
    """Human actions, the middle frame of each video: 101 classes."""

    title = "UCF101"
    folder = "ucf101"
    n_classes = 101
    counts = split_counts(7639, 1898, 3783)
    templates = "ucf101"
    paper = "https://arxiv.org/abs/1212.0402"
    homepage = "https://www.crcv.ucf.edu/data/UCF101.php"
    licence = "not stated; for research"
    pictures = "UCF-101-midframes"
    source = f"UCF-101-midframes.zip, linked in {INSTRUCTIONS}#ucf101, unpacked"
    split_file = "split_zhou_UCF101.json"
    section = "ucf101"
