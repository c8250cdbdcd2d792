"""What the studies of heads share: published features, and records that let a stopped run continue."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from clipadapter.features import FeatureSet
from clipadapter.heads import TextFeatures


def read_features(folder: Path, scale: float) -> tuple[FeatureSet, TextFeatures]:
    """Features and class text that are there already, such as published CLIP features.

    The folder holds `image_features.safetensors` (`image_features` (n, d), `labels` (n,)), `text_features.safetensors`
    (`text_features` (c, d), `labels` (c,): the class of each row) and `classes.json` (names by label). Classes without
    a text row are left out.
    """
    images, texts = (load_file(folder / f"{part}_features.safetensors") for part in ("image", "text"))
    names = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
    order = np.argsort(texts["labels"])
    classes = [names[label] for label in texts["labels"][order]]
    has_text = np.isin(images["labels"], texts["labels"])
    labels = tuple(names[label] for label in images["labels"][has_text])
    provenance = {"data": folder.name, "encoder": "published features"}
    features = FeatureSet(images["image_features"][has_text], labels, tuple(classes), provenance)
    return features, TextFeatures(classes, texts["text_features"][order].astype(np.float32), scale)


class Records:
    """Results as lines of ``runs.jsonl``, written at once so that a stopped run continues.

    Args:
        folder: of the file; it is created.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "runs.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.rows = [json.loads(line) for line in lines]

    def keys(self, *fields: str) -> set[tuple]:
        """The values of these fields in all rows."""
        return {tuple(row[field] for field in fields) for row in self.rows}

    def add(self, *rows: dict) -> None:
        """Append rows to the file."""
        self.rows += rows
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def table_head(columns: Sequence[object], n_text: int = 1) -> list[str]:
    """The first two lines of a Markdown table; the columns behind the first ones are numbers."""
    return [f"| {' | '.join(map(str, columns))} |", "|" + "---|" * n_text + "---:|" * (len(columns) - n_text)]


def write_table(text: str, folder: Path) -> None:
    """Write ``table.md`` and print it."""
    (folder / "table.md").write_text(text, encoding="utf-8")
    print(text)
