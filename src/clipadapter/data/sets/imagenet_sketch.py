"""ImageNet-Sketch: drawings of ImageNet's classes."""

from __future__ import annotations

from types import MappingProxyType

from clipadapter.data.sets._imagenet import ImageNetSet
from clipadapter.data.sets._registry import register_set


@register_set("imagenet_sketch")
class ImageNetSketch(ImageNetSet):
    """Drawings of ImageNet's classes, test only: 1,000 classes."""

    title = "ImageNet-Sketch"
    folder = "imagenet-sketch"
    n_classes = 1000
    counts = MappingProxyType({"test": 50889})
    counted = False
    paper = "https://arxiv.org/abs/1905.13549"
    homepage = "https://github.com/HaohanWang/ImageNet-Sketch"
    licence = "pictures of the web, for research"
    parts = MappingProxyType({"test": "images"})
    source = f"the archive linked on {homepage}, unpacked: one folder a synset"
