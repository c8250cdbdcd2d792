"""FGVC-Aircraft: variants of aircraft. The authors' lists define the splits, not a split file of CoOp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

from clipadapter.data.dataset import Sample
from clipadapter.data.sets.base import BenchmarkSet, Download, RequiredPath, SamplesAndClasses, check_pictures_exist
from clipadapter.data.sets.registry import register_set
from clipadapter.data.split_file import SPLITS, is_inside
from clipadapter.errors import DataError
from clipadapter.files import open_text


@register_set("fgvc_aircraft")
class FGVCAircraft(BenchmarkSet):
    """Variants of aircraft: 100 classes."""

    title = "FGVCAircraft"
    folder = "fgvc_aircraft"
    n_classes = 100
    counts = MappingProxyType({"train": 3334, "val": 3333, "test": 3333})
    counts_verified = False
    templates = "fgvc_aircraft"
    paper = "https://arxiv.org/abs/1306.5151"
    homepage = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
    licence = "for non-commercial research only"
    download = Download("FGVCAircraft", folder="fgvc-aircraft-2013b/data", has_checksum=False)

    def list_required(self) -> tuple[RequiredPath, ...]:
        """See `BenchmarkSet.list_required`."""
        names = ["images", "variants.txt", *(f"images_variant_{split}.txt" for split in SPLITS)]
        archive = f"in the folder data of fgvc-aircraft-2013b.tar.gz of {self.homepage}"
        return tuple(RequiredPath(Path(name), f"{name} {archive}", downloadable=True) for name in names)

    def read_samples(self, folder: Path) -> SamplesAndClasses:
        """See `BenchmarkSet.read_samples`."""
        class_names = tuple(line for _, line in _read_lines(folder / "variants.txt"))
        samples = []
        for split in SPLITS:
            path = folder / f"images_variant_{split}.txt"
            for number, line in _read_lines(path):
                picture, _, variant = line.partition(" ")
                if variant not in class_names or not is_inside(picture):
                    expected = "expected a picture and a variant of variants.txt, such as '1025794 707-320'"
                    raise DataError(f"{path}, line {number}: {expected}, got '{line[:80]}'")
                samples.append(Sample(folder / "images" / f"{picture}.jpg", variant, split))
        check_pictures_exist(self.name, tuple(samples), folder / "images")
        return tuple(samples), class_names


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers from 1."""
    try:
        with open_text(path) as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the text is not UTF-8 (byte {error.start})") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line.strip()
