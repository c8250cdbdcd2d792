"""ImageNet-R: renditions, such as paintings and toys, of ImageNet's classes."""

from __future__ import annotations

from types import MappingProxyType

from clipadapter.data.sets._imagenet import ImageNetSet
from clipadapter.data.sets._registry import register_set


@register_set("imagenet_r")
class ImageNetR(ImageNetSet):
    """Paintings, toys and other renditions, test only: 200 of ImageNet's classes."""

    title = "ImageNet-R"
    folder = "imagenet-rendition"
    n_classes = 200
    counts = MappingProxyType({"test": 30000})
    paper = "https://arxiv.org/abs/2006.16241"
    homepage = "https://github.com/hendrycks/imagenet-r"
    licence = "pictures of the web, for research"
    parts = MappingProxyType({"test": "imagenet-r"})
    source = f"imagenet-r.tar, linked on {homepage}, unpacked"
