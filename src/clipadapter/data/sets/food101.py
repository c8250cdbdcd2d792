"""Food-101: dishes."""

from __future__ import annotations

from clipadapter.data.sets._base import Download, SplitFileSet, split_counts
from clipadapter.data.sets._registry import register_set


@register_set("food101")
class Food101(SplitFileSet):
    """Dishes: 101 classes."""

    title = "Food101"
    folder = "food-101"
    n_classes = 101
    counts = split_counts(50500, 20200, 30300)
    counted = False
    templates = "food101"
    paper = "https://doi.org/10.1007/978-3-319-10599-4_29"
    homepage = "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/"
    licence = "not the authors' own; for research, as license_agreement.txt says"
    pictures = "images"
    source = f"food-101.tar.gz of {homepage}, unpacked"
    split_file = "split_zhou_Food101.json"
    section = "food101"
    download = Download("Food101", kept="food-101")
