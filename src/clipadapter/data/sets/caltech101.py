"""Caltech-101: pictures of objects, without the background and the easy faces."""

from __future__ import annotations

from clipadapter.data.sets._base import Download, SplitFileSet, split_counts
from clipadapter.data.sets._registry import register_set


@register_set("caltech101")
class Caltech101(SplitFileSet):
    """Objects: 100 classes; the split file leaves out the background and the easy faces."""

    title = "Caltech101"
    folder = "caltech-101"
    n_classes = 100
    counts = split_counts(4128, 1649, 2465)
    templates = "caltech101"
    paper = "https://doi.org/10.1016/j.cviu.2005.09.012"
    homepage = "https://data.caltech.edu/records/mzrjq-6wc02"
    licence = "CC BY 4.0"
    pictures = "101_ObjectCategories"
    source = f"101_ObjectCategories.tar.gz, inside caltech-101.zip of {homepage}, unpacked"
    split_file = "split_zhou_Caltech101.json"
    section = "caltech101"
    download = Download("Caltech101", kept="caltech101")
