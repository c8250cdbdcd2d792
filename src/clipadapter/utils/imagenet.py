"""Names of the 1,000 ImageNet classes. Several sources name the classes; each user needs one of them unchanged."""

from __future__ import annotations

import contextlib
import csv
import functools
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from clipadapter.errors import require

TIMM_TABLES = Path("data", "_info")
SYNSETS_FILE, LEMMAS_FILE = "imagenet_synsets.txt", "imagenet_synset_to_lemma.txt"
PURPOSE = "Reading the names of ImageNet classes"


def imagenet_names(source: Literal["wordnet", "torchvision", "clip"]) -> tuple[str, ...]:
    """The names of the 1,000 ImageNet classes, in the order of a classifier's outputs.

    "wordnet" gives all lemmas of each synset, such as ``tench, Tinca tinca``; ``crane`` comes twice. "torchvision" has
    the names of torchvision's classifiers, "clip" those that CLIP was evaluated with; two pairs of classes
    share a name there, and get the first lemma of WordNet instead.
    """
    if source == "wordnet":
        return tuple(_lemmas_by_synset().values())
    if source == "torchvision":
        from torchvision.models import ResNet50_Weights

        return tuple(ResNet50_Weights.DEFAULT.meta["categories"])
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    counts = Counter(IMAGENET_CLASSNAMES)
    pairs = zip(IMAGENET_CLASSNAMES, _lemmas_by_synset().values(), strict=True)
    return tuple(name if counts[name] == 1 else lemmas.split(",")[0] for name, lemmas in pairs)


def imagenet_synsets() -> tuple[str, ...]:
    """The synsets of the 1,000 ImageNet classes, in ascending order, which is that of a classifier's outputs."""
    return tuple(_lemmas_by_synset())


@functools.cache
def _lemmas_by_synset() -> dict[str, str]:
    spec = find_spec("timm")
    for folder in () if spec is None else spec.submodule_search_locations or ():
        # These are the tables that `timm.data.ImageNetInfo` reads. Importing timm takes seconds.
        tables = Path(folder) / TIMM_TABLES
        with contextlib.suppress(OSError, KeyError):
            lemmas = dict(csv.reader((tables / LEMMAS_FILE).read_text("utf-8").splitlines(), delimiter="\t"))
            return {synset: lemmas[synset] for synset in (tables / SYNSETS_FILE).read_text("utf-8").splitlines()}
    data: Any = require("timm.data", "lite", PURPOSE)
    info = data.ImageNetInfo("imagenet-1k")
    return {info.index_to_label_name(i): info.index_to_description(i) for i in range(1000)}
