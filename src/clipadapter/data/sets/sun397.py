"""SUN397: scenes."""

from __future__ import annotations

from clipadapter.data.sets._base import Download, SplitFileSet, split_counts
from clipadapter.data.sets._registry import register_set


@register_set("sun397")
class SUN397(SplitFileSet):
    """Scenes: 397 classes."""

    title = "SUN397"
    folder = "sun397"
    n_classes = 397
    counts = split_counts(15880, 3970, 19850)
    counted = False
    templates = "sun397"
    paper = "https://doi.org/10.1109/CVPR.2010.5539970"
    homepage = "https://vision.princeton.edu/projects/2010/SUN/"
    licence = "not stated; for research"
    pictures = "SUN397"
    source = f"SUN397.tar.gz of {homepage}, unpacked"
    split_file = "split_zhou_SUN397.json"
    section = "sun397"
    download = Download("SUN397", kept=".")
