"""ImageNet of the ILSVRC 2012 challenge; its validation pictures are the test part, as in the papers."""

from __future__ import annotations

from types import MappingProxyType

from clipadapter.data.sets._imagenet import ImageNetSet
from clipadapter.data.sets._registry import register_set


@register_set("imagenet")
class ImageNet(ImageNetSet):
    """Objects: 1,000 classes; the validation pictures are the test part."""

    title = "ImageNet"
    folder = "imagenet"
    n_classes = 1000
    counts = MappingProxyType({"train": 1281167, "test": 50000})
    paper = "https://arxiv.org/abs/1409.0575"
    homepage = "https://image-net.org"
    licence = "for non-commercial research, after registration"
    parts = MappingProxyType({"train": "images/train", "test": "images/val"})
    source = f"ILSVRC 2012 of {homepage}, in one folder a synset such as n01440764"
