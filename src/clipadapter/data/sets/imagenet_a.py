"""ImageNet-A: photographs that ResNet-50 gets wrong."""

from __future__ import annotations

from types import MappingProxyType

from clipadapter.data.sets._imagenet import ImageNetSet
from clipadapter.data.sets._registry import register_set


@register_set("imagenet_a")
class ImageNetA(ImageNetSet):
    """Photographs that ResNet-50 gets wrong, test only: 200 of ImageNet's classes."""

    title = "ImageNet-A"
    folder = "imagenet-adversarial"
    n_classes = 200
    counts = MappingProxyType({"test": 7500})
    paper = "https://arxiv.org/abs/1907.07174"
    homepage = "https://github.com/hendrycks/natural-adv-examples"
    licence = "pictures of the web, for research"
    parts = MappingProxyType({"test": "imagenet-a"})
    source = f"imagenet-a.tar, linked on {homepage}, unpacked"
