"""ImageNetV2: new photographs, chosen as ImageNet's were; the matched-frequency ones."""

from __future__ import annotations

from types import MappingProxyType

from clipadapter.data.sets._imagenet import ImageNetSet
from clipadapter.data.sets._registry import register_set
from clipadapter.imagenet import imagenet_synsets


@register_set("imagenet_v2")
class ImageNetV2(ImageNetSet):
    """New photographs of ImageNet's classes, test only: 1,000 classes."""

    title = "ImageNetV2"
    folder = "imagenetv2"
    n_classes = 1000
    counts = MappingProxyType({"test": 10000})
    paper = "https://arxiv.org/abs/1902.10811"
    homepage = "https://github.com/modestyachts/ImageNetV2"
    licence = "pictures of the web, for research"
    parts = MappingProxyType({"test": "imagenetv2-matched-frequency-format-val"})
    source = f"imagenetv2-matched-frequency.tar.gz, linked on {homepage}, unpacked: folders 0 to 999"

    def _synset(self, folder: str) -> str | None:
        # The folder is a number among ImageNet's outputs.
        synsets = imagenet_synsets()
        return synsets[int(folder)] if folder.isascii() and folder.isdigit() and int(folder) < len(synsets) else None
