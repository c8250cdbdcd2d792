"""Tiny stand-ins of benchmark data sets, laid out as the originals are."""

import colorsys
import json
import zlib

import numpy as np
from PIL import Image

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
IMAGENET_FOLDERS = {
    "imagenet": {"train": "imagenet/images/train", "test": "imagenet/images/val"},
    "imagenet_v2": {"test": "imagenetv2/imagenetv2-matched-frequency-format-val"},
    "imagenet_sketch": {"test": "imagenet-sketch/images"},
    "imagenet_a": {"test": "imagenet-adversarial/imagenet-a"},
    "imagenet_r": {"test": "imagenet-rendition/imagenet-r"},
}
# Folder of the set, folder of the pictures in it, split file.
SPLIT_SETS = {
    "caltech101": ("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json"),
    "dtd": ("dtd", "images", "split_zhou_DescribableTextures.json"),
    "eurosat": ("eurosat", "2750", "split_zhou_EuroSAT.json"),
    "food101": ("food-101", "images", "split_zhou_Food101.json"),
    "oxford_flowers": ("oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json"),
    "oxford_pets": ("oxford_pets", "images", "split_zhou_OxfordPets.json"),
    "stanford_cars": ("stanford_cars", ".", "split_zhou_StanfordCars.json"),
    "sun397": ("sun397", "SUN397", "split_zhou_SUN397.json"),
    "ucf101": ("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json"),
}


def make_stand_in(name, root, classes=3, pictures=6):
    """Write a stand-in of the set `name` under `root`, as ``load_dataset(name, root)`` reads it; gives `root`.

    A class has `pictures` training pictures, and half as many (at least one) to validate and to test with. They are
    noisy squares in the colour of the class, the same colour in ImageNet and its shifted sets, of which each has
    brightness of its own. Classes are called kind_0, kind_1, ...; ImageNet's have real names (at most ten).
    """
    fewer = max(1, pictures // 2)
    counts = {"train": pictures, "val": fewer, "test": fewer}
    if name in IMAGENET_FOLDERS:
        _imagenet(name, root, classes, counts)
    elif name == "fgvc_aircraft":
        _aircraft(root, classes, counts)
    else:
        _split_set(name, root, classes, counts)
    return root


def _imagenet(name, root, classes, counts):
    for part, folder in IMAGENET_FOLDERS[name].items():
        for number, (synset, index, _) in enumerate(IMAGENET[:classes]):
            inner = str(index) if name == "imagenet_v2" else synset
            for i in range(counts[part]):
                _draw(root / folder / inner / f"{synset}_{i}.JPEG", number, classes, name)


def _aircraft(root, classes, counts):
    folder, count = root / "fgvc_aircraft", 0
    for part, amount in counts.items():
        lines = []
        for number in range(classes):
            for _ in range(amount):
                _draw(folder / "images" / f"{count:07}.jpg", number, classes, "fgvc_aircraft")
                lines.append(f"{count:07} kind {number}")
                count += 1
        (folder / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "variants.txt").write_text("".join(f"kind {number}\n" for number in range(classes)), "utf-8")


def _split_set(name, root, classes, counts):
    own, pictures, split_file = SPLIT_SETS[name]
    folder, split = root / own, {part: [] for part in counts}
    for number in range(classes):
        for part, amount in counts.items():
            for i in range(amount):
                inner = f"kind_{number}/{part}_{i}.jpg"
                if name == "stanford_cars":
                    inner = f"cars_{'test' if part == 'test' else 'train'}/{number}_{part}_{i}.jpg"
                _draw(folder / pictures / inner, number, classes, name)
                split[part].append([inner, number, f"kind_{number}"])
    (folder / split_file).write_text(json.dumps(split), "utf-8")


def _draw(path, number, classes, name):
    """A noisy square; its noise depends on its path alone."""
    base = "imagenet" if name in IMAGENET_FOLDERS else name
    bright = 1 - 0.1 * list(IMAGENET_FOLDERS).index(name) if base == "imagenet" else 1
    colour = 150 * np.array(colorsys.hsv_to_rgb(number / classes, 1, 1)) * bright
    noise = np.random.default_rng(zlib.crc32("/".join(path.parts[-4:]).encode())).integers(0, 60, (16, 16, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((colour + noise).astype(np.uint8)).save(path, "PNG")  # without loss, whatever its name
