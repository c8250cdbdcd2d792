"""Oxford-IIIT Pet: breeds of cats and dogs."""

from __future__ import annotations

from clipadapter.data.sets._base import Download, SplitFileSet, split_counts
from clipadapter.data.sets._registry import register_set


@register_set("oxford_pets")
class OxfordPets(SplitFileSet):
    """Breeds of cats and dogs: 37 classes."""

    title = "OxfordPets"
    folder = "oxford_pets"
    n_classes = 37
    counts = split_counts(2944, 736, 3669)
    templates = "oxford_pets"
    paper = "https://doi.org/10.1109/CVPR.2012.6248092"
    homepage = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
    licence = "CC BY-SA 4.0"
    pictures = "images"
    source = f"images.tar.gz of {homepage}, unpacked"
    split_file = "split_zhou_OxfordPets.json"
    section = "oxfordpets"
    download = Download("OxfordIIITPet", kept="oxford-iiit-pet")
