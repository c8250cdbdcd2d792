"""Oxford 102 Flower: flowers that are common in the United Kingdom."""

from __future__ import annotations

from clipadapter.data.sets._base import Download, SplitFileSet, split_counts
from clipadapter.data.sets._registry import register_set


@register_set("oxford_flowers")
class OxfordFlowers(SplitFileSet):
    """Flowers: 102 classes."""

    title = "OxfordFlowers"
    folder = "oxford_flowers"
    n_classes = 102
    counts = split_counts(4093, 1633, 2463)
    templates = "oxford_flowers"
    paper = "https://doi.org/10.1109/ICVGIP.2008.47"
    homepage = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
    licence = "not stated; for research"
    pictures = "jpg"
    source = f"102flowers.tgz of {homepage}, unpacked"
    split_file = "split_zhou_OxfordFlowers.json"
    section = "flowers102"
    download = Download("Flowers102", kept="flowers-102")
