"""Checks of pictures: image quality, and duplicates.

Each picture is read and decoded once, in threads. The same measures show whether it is dark, bright, empty, blurred,
small or long, and whether it is a copy of another: their files are equal, or features and perceptual hash are similar.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clipadapter.data.images import image_bytes, read_image
from clipadapter.doctor.findings import Finding, Picture
from clipadapter.errors import ImageError, require
from clipadapter.heads import transductive
from clipadapter.utils.formatting import format_list
from clipadapter.utils.progress import progress_bar

SHORT_SIDE = 256  # short side in pixels at which pictures are measured; smaller pictures are not resized
SHARPNESS_SIDE = 96  # short side at which sharpness is measured: that of a larger picture would depend on its size
HASH_SIDE = 32  # side in pixels of the input of the perceptual hash
MAX_THREADS = 8

# The limits of brightness were chosen on half of Caltech-101's training pictures. By these limits none of them is dark
# or bright. Darkened to a fifth, all of them are dark. The limit of sharpness was tried on 40 pictures of each of six
# sets (clothing, Caltech-101, textures, satellite pictures, steel, fabric). None of them is blurred. Blurred by 2 % of
# the short side, 233 of 240 are, and 223 of 240 at a short side of 100 pixels; by 1 %, 48 and 32.
MAX_GREY_OF_DARK = 70.0  # a picture is dark if its lightest grey, of 255, is below
MIN_GREY_OF_BRIGHT = 190.0  # a picture is bright if its darkest grey is above
MIN_CONTRAST = 30.0  # a picture is empty if its lightest and darkest grey differ by less
MIN_SHARPNESS = 0.15  # a picture is blurred if its sharpness (see `measure_sharpness`) is below
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


def measure_images(paths: Sequence[Path], progress: bool = False) -> dict[int, ImageMeasures]:
    """Measure pictures, by their position; those that can't be read are left out."""
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        measures = pool.map(measure_image, paths)
        bar = progress_bar(measures, total=len(paths), desc="image quality", unit="img", shown=progress)
        return {i: image for i, image in enumerate(bar) if image is not None}


def measure_image(path: Path) -> ImageMeasures | None:
    """Measure one picture; None if it can't be read."""
    imagehash = require("imagehash", "doctor", "the search for near duplicates")
    try:
        data = image_bytes(path)
        image = read_image(path, data=data, shrink_to=2 * SHORT_SIDE)
    except ImageError:
        return None
    grey = reduce_short_side(image).convert("L")
    values = np.asarray(grey, np.float32)
    low, high = np.percentile(values, [1, 99])
    tile = grey.resize((HASH_SIDE, HASH_SIDE), Image.Resampling.LANCZOS)
    plain_hash, mirrored_hash = (int(str(imagehash.phash(each)), 16) for each in (tile, ImageOps.mirror(tile)))
    digest = blake2b(data, digest_size=16).digest()
    sharpness = measure_sharpness(np.asarray(reduce_short_side(grey, SHARPNESS_SIDE), np.float32))
    return ImageMeasures(digest, *image.size, float(low), float(high), sharpness, plain_hash, mirrored_hash)


def reduce_short_side(image: Image.Image, side: int = SHORT_SIDE) -> Image.Image:
    """The picture with a short side of ``side`` pixels, or unchanged if it has fewer."""
    factor = side / min(image.size)
    if factor >= 1:
        return image
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def measure_sharpness(grey: np.ndarray) -> float:
    """Steepness of the steepest edges: the 99th percentile of the absolute Laplacian, divided by the contrast."""
    # The variance of the Laplacian would depend on the contrast, and on how much of the picture is empty.
    low, high = np.percentile(grey, [1, 99])
    if min(grey.shape) < 3 or high - low < 1:
        return 1.0
    inner = grey[1:-1, 1:-1]
    laplacian = 4 * inner - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return float(np.percentile(np.abs(laplacian), 99) / (high - low))


def check_image_quality(
    pictures: Sequence[Picture], measures: Sequence[ImageMeasures], input_side: int, squashes: bool
) -> Iterator[Finding]:
    """Findings on single pictures."""
    for picture, image in zip(pictures, measures, strict=True):
        for kind, score, message in _find_faults(image, input_side, squashes):
            yield Finding(kind, score, f"{picture.name}: {message}", (picture,))


def _find_faults(image: ImageMeasures, input_side: int, squashes: bool) -> Iterator[tuple[str, float, str]]:
    """Kind, score and message of each fault; of dark, bright, empty and blurred the first only."""
    if image.high < MAX_GREY_OF_DARK:
        yield "dark", 1 - image.high / 255, f"its lightest grey is {image.high / 255:.0%} of white"
    elif image.low > MIN_GREY_OF_BRIGHT:
        yield "bright", image.low / 255, f"its darkest grey is {image.low / 255:.0%} of white"
    elif image.contrast < MIN_CONTRAST:
        difference = image.contrast / 255
        yield "flat", 1 - difference, f"its lightest and darkest grey differ by {difference:.0%}"
    elif image.sharpness < MIN_SHARPNESS:
        score = 1 - image.sharpness / MIN_SHARPNESS
        yield "blurry", score, f"its sharpness is {image.sharpness:.3f}, below {MIN_SHARPNESS}"
    short, long = sorted((image.width, image.height))
    if short < input_side:
        size = f"{image.width} x {image.height} pixels"
        yield "tiny", 1 - short / input_side, f"{size}, the encoder's input has {input_side}"
    if long > MAX_USUAL_ASPECT_RATIO * short:
        lost = 1 - short / long
        effect = f"is squeezed to {short / long:.0%} of its length" if squashes else f"{lost:.0%} of it is cut off"
        yield "cut", lost, effect


# ---- Duplicates ----

MAX_NEIGHBOURS = 12
"""Nearest pictures that are compared; limits memory if hundreds are similar, such as frames of a video."""
NEAR_DUPLICATE_RULES = ((0.75, 10), (0.85, 16), (0.95, 22))
"""(minimum cosine of centred features, maximum number of different bits of 64); each of them makes a pair."""
MAX_BITS_OF_COPIES = 2
"""Different bits of 64 up to which two pictures are copies, whatever their features: those of a copy that was saved
smaller or compressed more may be far away. Pictures with little contrast are left out, since their hashes are noise."""
MIRRORED_RULE = (0.85, 8)  # the same for a mirrored picture
MAX_LISTED_NAMES = 4


Neighbours = tuple[NDArray[np.float32], NDArray[np.int64]]
"""The nearest pictures of each, nearest first: (n, k) cosines of centred features, and (n, k) positions."""
Duplicates = dict[tuple[int, int], tuple[str, float]]
"""Pairs of positions, the smaller one first, with their relation ("equal files", "equal hash", "nearly equal" or
"mirrored") and similarity: the cosine of their centred features; for an equal hash the share of equal bits."""


def nearest_neighbours(X: NDArray[np.float32], k: int = MAX_NEIGHBOURS) -> Neighbours:
    """The k nearest pictures of each by the cosine of centred features (n, d)."""
    units = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
    # Few cosines of CLIP are below a half. Of unrelated pictures those of centred features are near 0, by any encoder.
    units = units - units.mean(axis=0)
    units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-12)
    rows = torch.from_numpy(units)
    cosines, positions = transductive.nearest_neighbours(rows, rows, k, exclude_self=True)
    return cosines.numpy(), positions.numpy()


def find_duplicates(measures: Sequence[ImageMeasures], neighbours: Neighbours) -> Duplicates:
    """All pairs of duplicates; of several equal files, each with the next."""
    cosines, positions = neighbours
    by_digest: dict[bytes, list[int]] = {}
    for i, image in enumerate(measures):
        by_digest.setdefault(image.digest, []).append(i)
    duplicates: Duplicates = {pair: ("equal files", 1.0) for rows in by_digest.values() for pair in pairwise(rows)}
    min_cosine = min(cosine for cosine, _ in (*NEAR_DUPLICATE_RULES, MIRRORED_RULE))
    for i, rank in zip(*np.nonzero(cosines >= min_cosine), strict=True):
        a, b = sorted((int(i), int(positions[i, rank])))
        cosine = float(cosines[i, rank])
        if measures[a].digest != measures[b].digest and (relation := _relation(measures[a], measures[b], cosine)):
            duplicates.setdefault((a, b), (relation, min(cosine, 1.0)))
    files = [rows[0] for rows in by_digest.values() if measures[rows[0]].contrast >= MIN_CONTRAST]
    # Of one part more than the bits that may differ, one is equal.
    for part in range(MAX_BITS_OF_COPIES + 1):
        mask = sum(1 << bit for bit in range(part, 64, MAX_BITS_OF_COPIES + 1))
        by_part: dict[int, list[int]] = {}
        for i in files:
            by_part.setdefault(measures[i].hash & mask, []).append(i)
        for a, b in (pair for rows in by_part.values() for pair in combinations(rows, 2)):
            different_bits = (measures[a].hash ^ measures[b].hash).bit_count()
            if different_bits <= MAX_BITS_OF_COPIES:
                duplicates.setdefault((a, b), ("equal hash", 1 - different_bits / 64))
    return duplicates


def _relation(a: ImageMeasures, b: ImageMeasures, cosine: float) -> str | None:
    different_bits = (a.hash ^ b.hash).bit_count()
    if any(cosine >= min_cosine and different_bits <= max_bits for min_cosine, max_bits in NEAR_DUPLICATE_RULES):
        return "nearly equal"
    min_cosine, max_bits = MIRRORED_RULE
    if cosine >= min_cosine and (a.hash ^ b.mirrored_hash).bit_count() <= max_bits:
        return "mirrored"
    return None


def group_duplicates(pictures: Sequence[Picture], duplicates: Duplicates) -> Iterator[Finding]:
    """A finding for each group of pictures that pairs connect. It is severe if they differ in label or split."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not duplicates:
        return
    ends = tuple(np.array(list(duplicates)).T)
    graph = coo_matrix((np.ones(len(duplicates)), ends), shape=(len(pictures), len(pictures)))
    component = connected_components(graph, directed=False)[1].tolist()  # numbered in the order of the pictures
    groups: dict[int, list[tuple[int, int]]] = {}
    for pair in duplicates:
        groups.setdefault(component[pair[0]], []).append(pair)
    for _, pairs in sorted(groups.items()):
        group = tuple(pictures[i] for i in sorted({i for pair in pairs for i in pair}))
        relation, similarity = min((duplicates[pair] for pair in pairs), key=lambda weakest: weakest[1])
        cosine = f", cosine {similarity:.3f}" if relation in ("nearly equal", "mirrored") else ""
        names = " = ".join(picture.name for picture in group)
        if len(group) > MAX_LISTED_NAMES:
            names = f"{len(group)} pictures: {format_list((picture.name for picture in group), MAX_LISTED_NAMES)}"
        labels = tuple(sorted({picture.label for picture in group if picture.label is not None}))
        kinds = ["conflict"] if len({picture.label for picture in group}) > 1 else []
        kinds += ["leak"] if len({picture.split for picture in group}) > 1 else []
        for kind in kinds or ["duplicate"]:
            yield Finding(kind, similarity, f"{names} ({relation}{cosine})", group, labels)
