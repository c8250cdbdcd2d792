"""FGVC-Aircraft: variants of aircraft, with the authors' own lists instead of a split file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clipadapter.data.dataset import Sample
from clipadapter.data.sets._base import BenchmarkSet, Content, Download, Need, check_pictures, split_counts
from clipadapter.data.sets._registry import register_set
from clipadapter.data.split_file import PARTS, is_inside
from clipadapter.errors import DataError
from clipadapter.files import open_text


@register_set("fgvc_aircraft")
class FGVCAircraft(BenchmarkSet):
    """Variants of aircraft: 100 classes."""

    title = "FGVCAircraft"
    folder = "fgvc_aircraft"
    n_classes = 100
    counts = split_counts(3334, 3333, 3333)
    counted = False
    templates = "fgvc_aircraft"
    paper = "https://arxiv.org/abs/1306.5151"
    homepage = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
    licence = "for non-commercial research only"
    download = Download("FGVCAircraft", kept="fgvc-aircraft-2013b/data", checksum=False)

    def _needs(self) -> tuple[Need, ...]:
        lists = ["variants.txt", *(f"images_variant_{part}.txt" for part in PARTS)]
        inside = f"in the folder data of fgvc-aircraft-2013b.tar.gz of {self.homepage}"
        return tuple(Need(Path(name), f"{name} {inside}", fetched=True) for name in ("images", *lists))

    def _read(self, folder: Path) -> Content:
        names = tuple(text for _, text in _lines(folder / "variants.txt"))
        known = set(names)
        samples = []
        for part in PARTS:
            path = folder / f"images_variant_{part}.txt"
            for number, line in _lines(path):
                picture, _, name = line.partition(" ")
                if name not in known or not is_inside(picture):
                    expected = "expected a picture and a variant of variants.txt, such as '1025794 707-320'"
                    raise DataError(f"{path}, line {number}: {expected}, got '{line[:80]}'")
                samples.append(Sample(folder / "images" / f"{picture}.jpg", name, part))
        check_pictures(self.name, tuple(samples), folder / "images")
        return tuple(samples), names


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers."""
    try:
        with open_text(path) as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the text is not UTF-8 (byte {error.start})") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line.strip()
