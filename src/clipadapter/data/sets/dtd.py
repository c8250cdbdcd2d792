"""Describable Textures Dataset."""

from __future__ import annotations

from clipadapter.data.sets._base import Download, SplitFileSet, split_counts
from clipadapter.data.sets._registry import register_set


@register_set("dtd")
class DTD(SplitFileSet):
    """Textures: 47 classes."""

    title = "DTD"
    folder = "dtd"
    n_classes = 47
    counts = split_counts(2820, 1128, 1692)
    templates = "dtd"
    paper = "https://arxiv.org/abs/1311.3618"
    homepage = "https://www.robots.ox.ac.uk/~vgg/data/dtd/"
    licence = "for research"
    pictures = "images"
    source = f"dtd-r1.0.1.tar.gz of {homepage}, unpacked"
    split_file = "split_zhou_DescribableTextures.json"
    section = "dtd"
    download = Download("DTD", kept="dtd/dtd")
