"""EuroSAT: kinds of land, seen by Sentinel-2, in RGB."""

from __future__ import annotations

from clipadapter.data.sets._base import Download, SplitFileSet, split_counts
from clipadapter.data.sets._registry import register_set


@register_set("eurosat")
class EuroSAT(SplitFileSet):
    """Satellite pictures of land: 10 classes."""

    title = "EuroSAT"
    folder = "eurosat"
    n_classes = 10
    counts = split_counts(13500, 5400, 8100)
    templates = "eurosat"
    paper = "https://arxiv.org/abs/1709.00029"
    homepage = "https://github.com/phelber/EuroSAT"
    licence = "MIT"
    pictures = "2750"
    source = f"EuroSAT.zip (RGB) of {homepage}, unpacked"
    split_file = "split_zhou_EuroSAT.json"
    section = "eurosat"
    download = Download("EuroSAT", kept="eurosat")
