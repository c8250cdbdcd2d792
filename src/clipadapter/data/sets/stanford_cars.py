"""Stanford Cars: makes, models and years of cars. The authors' site no longer has it."""

from __future__ import annotations

from pathlib import Path

from clipadapter.data.sets._base import Need, SplitFileSet, split_counts
from clipadapter.data.sets._registry import register_set

_GONE = "no longer on the authors' site and not downloadable by torchvision; ask those who have {} of 2013, unpacked"


@register_set("stanford_cars")
class StanfordCars(SplitFileSet):
    """Makes, models and years of cars: 196 classes; can't be downloaded any more."""

    title = "StanfordCars"
    folder = "stanford_cars"
    n_classes = 196
    counts = split_counts(6509, 1635, 8041)
    templates = "stanford_cars"
    paper = "https://doi.org/10.1109/ICCVW.2013.77"
    homepage = "https://ai.stanford.edu/~jkrause/cars/car_dataset.html"
    licence = "not stated; for research"
    pictures = "."
    source = ""
    split_file = "split_zhou_StanfordCars.json"
    section = "stanfordcars"

    def _needs(self) -> tuple[Need, ...]:
        _, split = super()._needs()
        return *(Need(Path(name), _GONE.format(f"{name}.tgz")) for name in ("cars_train", "cars_test")), split
