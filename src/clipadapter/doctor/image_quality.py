"""Image quality: pictures that are dark, bright, empty, blurred, small or long, by a few measures of each.

Each picture is read and decoded once, in threads. The same measures serve to find duplicates.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image, ImageOps

from clipadapter.data.images import image_bytes, read_image
from clipadapter.doctor.findings import Finding, Picture
from clipadapter.errors import ImageError, require
from clipadapter.utils.progress import progress_bar

SHORT_SIDE = 256
"""Short side in pixels at which pictures are measured; smaller pictures are not resized."""
SHARPNESS_SIDE = 96
"""Short side at which sharpness is measured: that of a larger picture would depend on its size."""
HASH_SIDE = 32
"""Side in pixels of the input of the perceptual hash."""
CHUNK_PICTURES = 1024
"""Pictures that are measured between two updates of the progress bar."""
MAX_THREADS = 8

# The limits of brightness were chosen on half of Caltech-101's training pictures. By these limits none of them is dark
# or bright. Darkened to a fifth, all of them are dark. The limit of sharpness was tried on 40 pictures of each of six
# sets (clothing, Caltech-101, textures, satellite pictures, steel, fabric). None of them is blurred. Blurred by 2 % of
# the short side, 233 of 240 are, and 223 of 240 at a short side of 100 pixels; by 1 %, 48 and 32.
MAX_GREY_OF_DARK = 70.0
"""A picture is dark if its lightest grey, of 255, is below."""
MIN_GREY_OF_BRIGHT = 190.0
"""A picture is bright if its darkest grey is above."""
MIN_CONTRAST = 30.0
"""A picture is empty if its lightest and darkest grey differ by less."""
MIN_SHARPNESS = 0.15
"""A picture is blurred if its sharpness (see `measure_sharpness`) is below."""
MAX_USUAL_ASPECT_RATIO = 2.5
"""A picture is cut or squeezed too much if its long side is more than this times its short side."""


@dataclass(frozen=True)
class ImageMeasures:
    """Measures of one picture; grey values are 0 to 255."""

    digest: bytes  # of the file's bytes
    width: int  # in pixels, upright. Large JPEG files are decoded at a half, a quarter or an eighth of it.
    height: int  # the same
    low: float  # first percentile of grey
    high: float  # 99th percentile of grey
    sharpness: float  # see `measure_sharpness`
    hash: int  # perceptual hash, 64 bits
    mirrored_hash: int  # perceptual hash of the mirrored picture

    @property
    def contrast(self) -> float:
        """Difference of the lightest and the darkest grey."""
        return self.high - self.low


def measure_images(paths: Sequence[Path], progress: bool = False) -> list[ImageMeasures | None]:
    """Measure pictures; None for one that can't be read."""
    imagehash = require("imagehash", "doctor", "the search for near duplicates")

    def measure(path: Path) -> ImageMeasures | None:
        try:
            return measure_image(path, imagehash)
        except ImageError:
            return None

    measures: list[ImageMeasures | None] = []
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        bar = progress_bar(total=len(paths), desc="image quality", unit="img", shown=progress)
        for start in range(0, len(paths), CHUNK_PICTURES):
            measures += pool.map(measure, paths[start : start + CHUNK_PICTURES])
            bar.update(len(measures) - bar.n)
        bar.close()
    return measures


def measure_image(path: Path, imagehash: ModuleType) -> ImageMeasures:
    """Measure one picture."""
    data = image_bytes(path)
    image = read_image(path, data=data, shrink_to=2 * SHORT_SIDE)
    grey = reduce_short_side(image).convert("L")
    values = np.asarray(grey, np.float32)
    low, high = np.percentile(values, [1, 99])
    tile = grey.resize((HASH_SIDE, HASH_SIDE), Image.Resampling.LANCZOS)
    plain_hash, mirrored_hash = (_perceptual_hash(imagehash, each) for each in (tile, ImageOps.mirror(tile)))
    digest = blake2b(data, digest_size=16).digest()
    sharpness = measure_sharpness(np.asarray(reduce_short_side(grey, SHARPNESS_SIDE), np.float32))
    return ImageMeasures(digest, *image.size, float(low), float(high), sharpness, plain_hash, mirrored_hash)


def reduce_short_side(image: Image.Image, side: int = SHORT_SIDE) -> Image.Image:
    """The picture with a short side of ``side`` pixels, or unchanged if that is less.

    >>> reduce_short_side(Image.new("L", (300, 1000)), 30).size, reduce_short_side(Image.new("L", (20, 40)), 30).size
    ((30, 100), (20, 40))
    """
    factor = side / min(image.size)
    if factor >= 1:
        return image
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def measure_sharpness(grey: np.ndarray) -> float:
    """Steepness of the steepest edges: the 99th percentile of the absolute Laplacian, divided by the contrast.

    Unlike the variance of the Laplacian it depends neither on the contrast nor on how much of the picture is empty.
    """
    low, high = np.percentile(grey, [1, 99])
    if min(grey.shape) < 3 or high - low < 1:
        return 1.0
    inner = grey[1:-1, 1:-1]
    laplacian = 4 * inner - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return float(np.percentile(np.abs(laplacian), 99) / (high - low))


def _perceptual_hash(imagehash: ModuleType, tile: Image.Image) -> int:
    bits = np.packbits(imagehash.phash(tile).hash.ravel())
    return int.from_bytes(bits.tobytes(), "big")


def check_image_quality(
    pictures: Sequence[Picture], measures: Sequence[ImageMeasures], input_side: int, squashes: bool
) -> Iterator[Finding]:
    """Findings on single pictures. Of dark, bright, empty and blurred, each picture gets the first only."""
    for picture, image in zip(pictures, measures, strict=True):
        yield from _check_tones(picture, image)
        short, long = sorted((image.width, image.height))
        if short < input_side:
            size = f"{image.width} x {image.height} pixels, the encoder's input has {input_side}"
            yield Finding("tiny", 1 - short / input_side, f"{picture.name}: {size}", (picture,))
        if long > MAX_USUAL_ASPECT_RATIO * short:
            lost = 1 - short / long
            effect = f"is squeezed to {short / long:.0%} of its length" if squashes else f"{lost:.0%} of it is cut off"
            yield Finding("cut", lost, f"{picture.name}: {effect}", (picture,))


def _check_tones(picture: Picture, image: ImageMeasures) -> Iterator[Finding]:
    if image.high < MAX_GREY_OF_DARK:
        message = f"its lightest grey is {image.high / 255:.0%} of white"
        yield Finding("dark", 1 - image.high / 255, f"{picture.name}: {message}", (picture,))
    elif image.low > MIN_GREY_OF_BRIGHT:
        message = f"its darkest grey is {image.low / 255:.0%} of white"
        yield Finding("bright", image.low / 255, f"{picture.name}: {message}", (picture,))
    elif image.contrast < MIN_CONTRAST:
        message = f"its lightest and darkest grey differ by {image.contrast / 255:.0%}"
        yield Finding("flat", 1 - image.contrast / 255, f"{picture.name}: {message}", (picture,))
    elif image.sharpness < MIN_SHARPNESS:
        message = f"its sharpness is {image.sharpness:.3f}, below {MIN_SHARPNESS}"
        yield Finding("blurry", 1 - image.sharpness / MIN_SHARPNESS, f"{picture.name}: {message}", (picture,))
