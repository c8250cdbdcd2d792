"""Few-shot table on picture features that are there already, such as published CLIP features.

FOLDER holds `image_features.safetensors` (`image_features` (n, d), `labels` (n,)), `text_features.safetensors`
(`text_features` (c, d), `labels` (c,): the class of each row) and `classes.json` (names by label). Classes without a
text row are left out. Shots are drawn by seed; the rows that were not drawn are the test part.

    python benchmarks/few_shot_features.py FOLDER --seeds 5 --out results/food10
"""

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from clipadapter.bench import few_shot, table
from clipadapter.features import FeatureSet
from clipadapter.heads import TextFeatures, create_head
from clipadapter.heads.clip_adapter import ClipAdapter


def read(folder: Path, scale: float):
    images, texts = (load_file(folder / f"{part}_features.safetensors") for part in ("image", "text"))
    names = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
    order = np.argsort(texts["labels"])
    classes = [names[label] for label in texts["labels"][order]]
    has_text = np.isin(images["labels"], texts["labels"])
    labels = tuple(names[label] for label in images["labels"][has_text])
    provenance = {"data": folder.name, "encoder": "published features"}
    features = FeatureSet(images["image_features"][has_text], labels, tuple(classes), provenance)
    return features, TextFeatures(classes, texts["text_features"][order].astype(np.float32), scale)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=100.0, help="exp(logit_scale) of the encoder")
    parser.add_argument("--shots", default="1,2,4,8,16")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for runs.jsonl and table.md")
    args = parser.parse_args()
    features, text = read(args.folder, args.scale)
    heads = {
        "zero-shot": create_head("zero-shot"),
        "linear-probe": create_head("linear-probe"),
        "clip-adapter": ClipAdapter(),
        "clip-adapter, official": ClipAdapter.official(),
    }
    records = None
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        records = args.out / "runs.jsonl"
    shots = [int(n) for n in args.shots.split(",")]
    runs = few_shot(heads, features, None, text, shots, range(args.seeds), records=records, progress=True)
    if args.out:
        (args.out / "table.md").write_text(table(runs, markdown=True), encoding="utf-8")
    print(table(runs))


if __name__ == "__main__":
    main()
