"""Tiny stand-ins of benchmark data sets, laid out as the originals are."""

import colorsys
import json
import zlib

import numpy as np
from PIL import Image

from clipadapter.data.sets import get_set, list_sets
from clipadapter.data.sets.layouts import ImageNetSet

# Synsets that ImageNet-A and ImageNet-R have too, their number among ImageNet's outputs, and CLIP's name.
IMAGENET = (
    ("n01498041", 6, "stingray"),
    ("n01531178", 11, "goldfinch"),
    ("n01534433", 13, "junco"),
    ("n01614925", 22, "bald eagle"),
    ("n01616318", 23, "vulture"),
    ("n01677366", 39, "green iguana"),
    ("n01694178", 47, "chameleon"),
    ("n01770393", 71, "scorpion"),
    ("n01774750", 76, "tarantula"),
    ("n01784675", 79, "centipede"),
)
IMAGENETTE = (
    ("n01440764", 0, "tench"),
    ("n02102040", 217, "English Springer Spaniel"),
    ("n02979186", 482, "cassette player"),
)


def classes_of(name):
    """Synset, number and name of the classes that a stand-in of an ImageNet can have."""
    return IMAGENETTE if name == "imagenette" else IMAGENET


def make_stand_in(name, root, classes=3, pictures=6):
    """Write a stand-in of the set `name` under `root`, as ``load_dataset(name, root)`` reads it; gives `root`.

    A class has `pictures` training pictures, and half as many (at least one) to validate and to test with. They are
    noisy squares in the colour of the class, the same colour in ImageNet and its shifted sets, of which each has
    brightness of its own. Classes are called kind_0, kind_1, ...; ImageNet's have real names (at most ten, Imagenette's
    three).
    """
    fewer = max(1, pictures // 2)
    counts = {"train": pictures, "val": fewer, "test": fewer}
    one = get_set(name)
    if isinstance(one, ImageNetSet):
        _imagenet(one, root / one.folder, classes, counts)
    elif name == "fgvc_aircraft":
        _aircraft(root / one.folder, classes, counts)
    else:
        _split_set(one, root / one.folder, classes, counts)
    return root


def _imagenet(one, root, classes, counts):
    for split, folder in one.split_folders.items():
        for number, (synset, index, _) in enumerate(classes_of(one.name)[:classes]):
            inner = str(index) if one.class_folders == "index" else synset
            for i in range(counts[split]):
                _draw(root / folder / inner / f"{synset}_{i}.JPEG", number, classes, one.name)


def _aircraft(folder, classes, counts):
    count = 0
    for part, amount in counts.items():
        lines = []
        for number in range(classes):
            for _ in range(amount):
                _draw(folder / "images" / f"{count:07}.jpg", number, classes, "fgvc_aircraft")
                lines.append(f"{count:07} kind {number}")
                count += 1
        (folder / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "variants.txt").write_text("".join(f"kind {number}\n" for number in range(classes)), "utf-8")


def _split_set(one, folder, classes, counts):
    split = {part: [] for part in counts}
    for number in range(classes):
        for part, amount in counts.items():
            for i in range(amount):
                inner = f"kind_{number}/{part}_{i}.jpg"
                if one.name == "stanford_cars":
                    inner = f"cars_{'test' if part == 'test' else 'train'}/{number}_{part}_{i}.jpg"
                _draw(folder / one.image_folder / inner, number, classes, one.name)
                split[part].append([inner, number, f"kind_{number}"])
    (folder / one.split_file).write_text(json.dumps(split), "utf-8")


def _draw(path, number, classes, name):
    """A noisy square; its noise depends on its path alone."""
    imagenets = [other for other in list_sets() if isinstance(get_set(other), ImageNetSet)]
    bright = 1 - 0.1 * imagenets.index(name) if name in imagenets else 1
    colour = 150 * np.array(colorsys.hsv_to_rgb(number / classes, 1, 1)) * bright
    noise = np.random.default_rng(zlib.crc32("/".join(path.parts[-4:]).encode())).integers(0, 60, (16, 16, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((colour + noise).astype(np.uint8)).save(path, "PNG")  # without loss, whatever its name
