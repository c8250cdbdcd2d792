"""The names of the 1,000 ImageNet classes by their synsets, in ascending order: that of a classifier's outputs."""

from __future__ import annotations

import contextlib
import csv
import functools
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clipadapter.errors import require

TIMM_TABLES = Path("data", "_info")
SYNSETS_FILE, LEMMAS_FILE = "imagenet_synsets.txt", "imagenet_synset_to_lemma.txt"


@functools.cache
def wordnet_names() -> dict[str, str]:
    """All lemmas of each synset, such as ``tench, Tinca tinca``; ``crane`` comes twice."""
    spec = find_spec("timm")
    for folder in () if spec is None else spec.submodule_search_locations or ():
        # These are the tables that `timm.data.ImageNetInfo` reads. Importing timm takes seconds.
        tables = Path(folder) / TIMM_TABLES
        with contextlib.suppress(OSError, KeyError):
            lemmas = dict(csv.reader((tables / LEMMAS_FILE).read_text("utf-8").splitlines(), delimiter="\t"))
            return {synset: lemmas[synset] for synset in (tables / SYNSETS_FILE).read_text("utf-8").splitlines()}
    data: Any = require("timm.data", "lite", "Reading the names of ImageNet classes")
    info = data.ImageNetInfo("imagenet-1k")
    return {info.index_to_label_name(i): info.index_to_description(i) for i in range(1000)}


def clip_names() -> dict[str, str]:
    """The names that CLIP was evaluated with; two pairs of classes share one, and get WordNet's first lemma instead."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    counts = Counter(IMAGENET_CLASSNAMES)
    pairs = zip(IMAGENET_CLASSNAMES, wordnet_names().items(), strict=True)
    return {synset: name if counts[name] == 1 else lemmas.split(",")[0] for name, (synset, lemmas) in pairs}
