"""None of these: every score's AUROC and FPR95, and the realised share of false rejects against the asked one.

TRAIN and TEST are folders of pictures, BACKGROUND a folder of pictures of none of the classes. On each draw --classes
classes are held out, and the shots are of the others. What is to be told from the test pictures of those:

- new: test pictures of the held-out classes,
- far: half of the background (the other half is given to what takes a background),
- corrupted: the test pictures themselves, blurred and noisy beyond recognition.

    python benchmarks/rejection.py TRAIN TEST BACKGROUND --encoder lite --out results/x

Every result is a line of runs.jsonl as soon as it is there; a run that was stopped goes on.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from clipadapter import FewShotClassifier, load_dataset
from clipadapter.data import draw_shots
from clipadapter.data.folders import list_images
from clipadapter.errors import InputError
from clipadapter.heads import TextFeatures, create_head, out_of_fold
from clipadapter.imagenet import imagenet_names
from clipadapter.metrics.detection import aurc, auroc, excess_aurc, fpr_at
from clipadapter.uncertainty import Calibrator, learn_calibrator
from clipadapter.uncertainty.negative_labels import select_negative_labels
from clipadapter.uncertainty.ood import METHODS, learn_rejector

RATES = (0.05, 0.1)
VARIANTS = {name: name for name in METHODS if name != "auto"} | {
    "auto": "auto",
    "auto, distractors": "auto",
    "auto, background": "auto",
    "auto, both": "auto",
}
TAKES = {
    "distractors": {"distractors"},
    "background": {"background"},
    "auto, distractors": {"distractors"},
    "auto, background": {"background"},
    "auto, both": {"distractors", "background"},
}
GROUPS = ("new", "far", "corrupted")


def corrupted(path, folder, rng):
    """A blurred and noisy copy of a picture; where it lies."""
    picture = Image.open(path).convert("RGB")
    picture = picture.filter(ImageFilter.GaussianBlur(max(picture.size) / 25))
    pixels = np.asarray(picture, dtype=np.float32) + rng.normal(0, 80, (*picture.size[::-1], 3))
    copy = folder / f"{len(list(folder.iterdir())):05d}.png"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(copy)
    return copy


def load(args):
    """Features and labels of shots and tests, of the background, and of corrupted tests; class and distractor text."""
    cache = args.out / "features.npz"
    model = FewShotClassifier(encoder=args.encoder, precision="fp32", progress=True)
    train, test = load_dataset(args.train), load_dataset(args.test)
    names, others = train.class_names, imagenet_names("torchvision")
    if not cache.exists():
        broken = args.out / "corrupted"
        broken.mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        some = [test.paths[i] for i in rng.permutation(len(test.paths))[: args.corrupted]]
        copies = [corrupted(path, broken, rng) for path in some]
        far = list_images(args.background)
        parts = {"train": train.paths, "test": test.paths, "far": far, "corrupted": copies}
        found = {
            key: model.extract_features(paths, [names[0]] * len(paths), names).plain for key, paths in parts.items()
        }
        np.savez(cache, **found)
    return (
        dict(np.load(cache)),
        np.array(train.labels),
        np.array(test.labels),
        model.encode_classes(names),
        (
            others,
            model.encode_classes(others).embeddings,
        ),
    )


def draw(X, y, text, shots, seed, args):
    """Shots of the classes that are left, their held-out logits, the fitted head."""
    new = set(np.random.default_rng(1000 + seed).permutation(np.array(text.labels))[: args.classes])
    left = [i for i, name in enumerate(text.labels) if name not in new]
    own = TextFeatures([text.labels[i] for i in left], text.embeddings[left], text.logit_scale, text.logit_bias)
    rows = np.array([i for i in draw_shots(list(y), shots, seed) if y[i] not in new])
    labels = np.array([own.labels.index(name) for name in y[rows]])
    head = create_head(args.head).fit(X[rows], y[rows], text=own)
    given = {"text": own.embeddings, "scale": own.logit_scale}
    calibrator = Calibrator(head.prior_temperature(shots))
    seen = out_of_fold(head, X[rows], y[rows], own, strategies=("own", "folds"))
    if seen is not None:  # with one shot a class nothing can be held out
        usual, held = head.prior_temperature(shots), seen.first_per_shot
        calibrator = learn_calibrator(seen.logits, seen.labels, prior_temperature=usual, n=len(held.rows))
        p = calibrator.probabilities(held.logits)
        given |= {"logits": held.logits, "rows": held.rows, "probabilities": p}
    return rows, labels, own, head, given, calibrator, new


def measure(rejector, head, calibrator, groups, truth):
    """Figures of one rejector."""
    score, right = {}, None
    for name, features in groups.items():
        logits = np.asarray(head.logits(features))
        score[name] = rejector.scores(features, logits, calibrator.probabilities(logits))
        if name == "known":
            right = np.array(head.classes_)[logits.argmax(axis=1)] == truth
    found = {}
    for name in GROUPS:
        if name in score:
            found |= {
                f"{name} auroc": auroc(score["known"], score[name]),
                f"{name} fpr": fpr_at(score["known"], score[name]),
            }
    for rate in RATES:
        above = {name: float((values > rejector.threshold(rate).value).mean()) for name, values in score.items()}
        found |= {f"{name} rejected {rate}": share for name, share in above.items()}
    found |= {"aurc": aurc(-score["known"], right), "excess aurc": excess_aurc(-score["known"], right)}
    return found


def run(args):
    parts, y, answers, text, (names, others) = load(args)
    records = args.out / "runs.jsonl"
    done = [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []
    known = {(r["shots"], r["seed"], r["head"]) for r in done}
    for seed in range(args.seeds):
        for shots in args.shots:
            if (shots, seed, args.head) in known:
                continue
            rows, labels, own, head, given, calibrator, new = draw(parts["train"], y, text, shots, seed, args)
            is_new = np.isin(answers, list(new))
            half = len(parts["far"]) // 2
            groups = {"known": parts["test"][~is_new], "new": parts["test"][is_new], "far": parts["far"][half:]}
            if len(parts["corrupted"]):
                groups["corrupted"] = parts["corrupted"]
            kept = select_negative_labels(own.labels, own.embeddings, names, others)
            extra = {
                "distractors": {"negative_labels": others[kept], "names": [names[i] for i in kept]},
                "background": {"outliers": parts["far"][:half]},
            }
            lines = []
            for variant, method in VARIANTS.items():
                more = {key: value for part in TAKES.get(variant, ()) for key, value in extra[part].items()}
                try:
                    rejector = learn_rejector(
                        parts["train"][rows], labels, len(own.labels), method=method, **given, **more
                    )
                except InputError:  # one shot a class has no held-out logits
                    continue
                found = measure(rejector, head, calibrator, groups, answers[~is_new])
                lines.append({"method": variant, "shots": shots, "seed": seed, "head": args.head, **found})
            done += lines
            with records.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
    return [r for r in done if r["head"] == args.head]


def table(done, shots, title, keys, digits=1):
    """Means over seeds, a row for each method and as many columns as shots."""
    lines = [f"**{title}**\n", "| score | " + " | ".join(map(str, shots)) + " |", "|---|" + "---:|" * len(shots)]
    for name in VARIANTS:
        cells = []
        for k in shots:
            chosen = [r for r in done if r["method"] == name and r["shots"] == k and all(key in r for key in keys)]
            values = [f"{100 * np.mean([r[key] for r in chosen]):.{digits}f}" for key in keys] if chosen else ["-"]
            cells.append(" / ".join(values))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def report(done, shots):
    tables = [
        table(done, shots, f"{group}: AUROC / FPR95, %, by shots", (f"{group} auroc", f"{group} fpr"))
        for group in GROUPS
        if any(f"{group} auroc" in r for r in done)
    ]
    asked = " and ".join(f"{100 * rate:g} %" for rate in RATES)
    tables.append(
        table(
            done, shots, f"pictures of the classes rejected, %; asked: {asked}", [f"known rejected {r}" for r in RATES]
        )
    )
    at = [f"{group} rejected {RATES[0]}" for group in ("new", "far")]
    tables.append(table(done, shots, f"new / far pictures rejected, % at {100 * RATES[0]:g} % asked", at))
    tables.append(
        table(done, shots, "AURC / excess AURC of the answers, %, the score as doubt", ("aurc", "excess aurc"), 2)
    )
    return "\n".join(tables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("background", type=Path)
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--head", default="auto")
    parser.add_argument("--classes", type=int, default=20, help="classes held out")
    parser.add_argument("--shots", default="1,2,4,8,16")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--corrupted", type=int, default=200, help="test pictures that are corrupted")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs.jsonl, features and table.md")
    args = parser.parse_args()
    args.shots = [int(n) for n in args.shots.split(",")]
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    text = report(run(args), args.shots)
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
