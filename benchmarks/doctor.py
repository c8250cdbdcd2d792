"""Precision and recall of `clipadapter doctor` on faults that are added to a folder of pictures, and its duration.

ROOT has train/CLASS and test/CLASS. It is copied. Some training pictures are moved to other classes. As many others get
a near duplicate in the test split: a JPEG file of another quality, nine tenths of the size, 4 % cropped, or a tenth
brighter, in turn. Findings on the unchanged folder are counted separately ("in the data").

    python benchmarks/doctor.py ROOT --encoder lite --count 20 --seeds 3 --out found/
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageEnhance

from clipadapter import FewShotClassifier, load_dataset
from clipadapter.data.images import read_image
from clipadapter.doctor import Diagnosis, diagnose


def save_jpeg(image: Image.Image, path: Path, quality: int = 90) -> None:
    image.save(path, "JPEG", quality=quality)


def shrink(image: Image.Image) -> Image.Image:
    return image.resize((round(image.width * 0.9), round(image.height * 0.9)), Image.Resampling.BICUBIC)


def crop(image: Image.Image) -> Image.Image:
    left, top = round(image.width * 0.02), round(image.height * 0.02)
    return image.crop((left, top, image.width - left, image.height - top))


def add_faults(root: Path, count: int, seed: int) -> tuple[dict[str, str], set[frozenset[str]]]:
    """Move and copy pictures; returns the class of each moved picture, and the pairs of duplicates."""
    rng = random.Random(seed)
    classes = sorted(folder.name for folder in (root / "train").iterdir())
    pictures = sorted((root / "train").rglob("*.*"))
    chosen = rng.sample(pictures, 2 * count)
    moved, pairs = {}, set()
    for path in chosen[:count]:
        other = rng.choice([name for name in classes if name != path.parent.name])
        target = root / "train" / other / f"moved-{path.parent.name}-{path.name}"
        path.rename(target)
        moved[target.relative_to(root).as_posix()] = path.parent.name
    for i, path in enumerate(chosen[count:]):
        image = read_image(path)
        changed = (image, shrink(image), crop(image), ImageEnhance.Brightness(image).enhance(1.1))[i % 4]
        target = root / "test" / path.parent.name / f"copy-{path.stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        save_jpeg(changed, target, 60 if i % 4 == 0 else 90)
        pairs.add(frozenset(file.relative_to(root).as_posix() for file in (path, target)))
    return moved, pairs


def score_labels(diagnosis: Diagnosis, moved: dict[str, str], known: set[str], *kinds: str) -> dict[str, float]:
    names = {finding.pictures[0].name for kind in kinds for finding in diagnosis.of_kind(kind)}
    right = {
        finding.pictures[0].name
        for kind in kinds
        for finding in diagnosis.of_kind(kind)
        if moved.get(finding.pictures[0].name) in finding.classes
    }
    in_data = names & known - set(moved)
    return {
        "found": len(names),
        "precision": round(len(names & set(moved)) / max(1, len(names)), 3),
        "recall": round(len(names & set(moved)) / len(moved), 3),
        "class named": round(len(right) / max(1, len(names & set(moved))), 3),
        "in the data": len(in_data),
    }


def score_copies(diagnosis: Diagnosis, pairs: set[frozenset[str]], known: set[frozenset[str]]) -> dict[str, float]:
    groups = [frozenset(picture.name for picture in finding.pictures) for finding in diagnosis.of_kind("leak")]
    recalled = {pair for pair in pairs if any(pair <= group for group in groups)}
    right = sum(any(pair <= group for pair in pairs) for group in groups)
    n_in_data = sum(group in known for group in groups)
    return {
        "found": len(groups),
        "precision": round(right / max(1, len(groups)), 3),
        "recall": round(len(recalled) / len(pairs), 3),
        "in the data": n_in_data,
        "precision without these": round(right / max(1, len(groups) - n_in_data), 3),
    }


def diagnose_folder(folder: Path, encoder: str, cache: Path) -> tuple[Diagnosis, float]:
    start = time.perf_counter()
    model = FewShotClassifier(encoder=encoder, precision="fp32", cache=cache)
    diagnosis = diagnose(load_dataset(folder), model)
    return diagnosis, round(time.perf_counter() - start, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="folder for doctor.jsonl, clean.html and features")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    cache = args.out / "features.sqlite"
    clean, cold = diagnose_folder(args.root, args.encoder, cache)
    clean, warm = diagnose_folder(args.root, args.encoder, cache)
    clean.to_html(args.out / "clean.html")
    doubts = {finding.pictures[0].name for kind in ("wrong-label", "doubtful-label") for finding in clean.of_kind(kind)}
    leaks = {frozenset(picture.name for picture in finding.pictures) for finding in clean.of_kind("leak")}
    rows = [{"seed": None, "pictures": clean.n_pictures, "cold s": cold, "warm s": warm, "counts": clean.counts}]
    for seed in range(1, args.seeds + 1):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "pictures"
            for split in ("train", "test"):
                shutil.copytree(args.root / split, root / split)
            moved, pairs = add_faults(root, args.count, seed)
            diagnosis, seconds = diagnose_folder(root, args.encoder, cache)
            row = {
                "seed": seed,
                "seconds": seconds,
                "likely wrong": score_labels(diagnosis, moved, doubts, "wrong-label"),
                "with doubts": score_labels(diagnosis, moved, doubts, "wrong-label", "doubtful-label"),
                "copies": score_copies(diagnosis, pairs, leaks),
            }
            rows.append(row)
    with (args.out / "doctor.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            print(json.dumps(row))


if __name__ == "__main__":
    main()
