"""Rejection ("none of these"): AUROC and FPR95 of every score, and the rate of false rejections against the set rate.

TRAIN and TEST are folders of pictures, BACKGROUND a folder of pictures of none of the classes. In each draw --classes
classes are held out, and the shots are of the others. The groups of pictures to be rejected:

- new: test pictures of the held-out classes,
- far: half of the background (the other half is for scores that need outliers),
- corrupted: the test pictures themselves, blurred and noisy beyond recognition.

    python benchmarks/rejection.py TRAIN TEST BACKGROUND --encoder lite --out results/x

Each result is written to runs.jsonl at once, and a stopped run continues there.
"""

from pathlib import Path

import numpy as np
from _runs import Records, make_parser, parse, write_table
from PIL import Image, ImageFilter

from clipadapter import FewShotClassifier, load_dataset
from clipadapter.data import draw_shots
from clipadapter.data.folders import list_images
from clipadapter.errors import InputError
from clipadapter.heads import TextFeatures, create_head, out_of_fold
from clipadapter.imagenet import imagenet_names
from clipadapter.metrics.detection import aurc, auroc, excess_aurc, fpr_at
from clipadapter.uncertainty.negative_labels import select_negative_labels
from clipadapter.uncertainty.ood import learn_rejector
from clipadapter.uncertainty.ood_scores import SCORES

RATES = (0.05, 0.1)
VARIANTS: dict[str, tuple[str, ...]] = {name: (name,) for name in SCORES} | {
    "sum": (),
    "sum, negative-labels": (),
    "sum, outliers": (),
    "sum, both": (),
}
NEEDS = {
    "negative-labels": {"negative-labels"},
    "outliers": {"outliers"},
    "sum, negative-labels": {"negative-labels"},
    "sum, outliers": {"outliers"},
    "sum, both": {"negative-labels", "outliers"},
}
GROUPS = ("new", "far", "corrupted")


def corrupted(path, folder, rng):
    """Write a blurred and noisy copy of a picture, and return its path."""
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
    names, other_names = train.class_names, imagenet_names("torchvision")
    if not cache.exists():
        corrupted_folder = args.out / "corrupted"
        corrupted_folder.mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        chosen = [test.paths[i] for i in rng.permutation(len(test.paths))[: args.corrupted]]
        copies = [corrupted(path, corrupted_folder, rng) for path in chosen]
        far = list_images(args.background)
        parts = {"train": train.paths, "test": test.paths, "far": far, "corrupted": copies}
        arrays = {
            key: model.extract_features(paths, [names[0]] * len(paths), names).plain for key, paths in parts.items()
        }
        np.savez(cache, **arrays)
    return (
        dict(np.load(cache)),
        np.array(train.labels),
        np.array(test.labels),
        model.encode_classes(names),
        (
            other_names,
            model.encode_classes(other_names).embeddings,
        ),
    )


def draw(X, y, text, shots, seed, args):
    """Shots of the remaining classes, their out-of-fold logits, and the fitted head."""
    new = set(np.random.default_rng(1000 + seed).permutation(np.array(text.labels))[: args.classes])
    remaining = [i for i, name in enumerate(text.labels) if name not in new]
    own_text = TextFeatures(
        [text.labels[i] for i in remaining], text.embeddings[remaining], text.logit_scale, text.logit_bias
    )
    rows = np.array([i for i in draw_shots(list(y), shots, seed) if y[i] not in new])
    labels = np.array([own_text.labels.index(name) for name in y[rows]])
    head = create_head(args.head).fit(X[rows], y[rows], text=own_text)
    inputs = {"text": own_text.embeddings, "scale": own_text.logit_scale}
    held_out = out_of_fold(head, X[rows], y[rows], own_text, strategies=("own", "folds"))
    if held_out is not None:  # with one shot per class no shot can be held out
        first = held_out.first_per_shot
        inputs |= {"logits": first.logits, "rows": first.rows}
    return rows, labels, own_text, head, inputs, new


def measure(rejector, head, groups, truth):
    """Metrics of one rejector."""
    scores, is_correct = {}, None
    for name, features in groups.items():
        logits = np.asarray(head.logits(features))
        scores[name] = rejector.scores(features, logits)
        if name == "known":
            is_correct = np.array(head.classes_)[logits.argmax(axis=1)] == truth
    metrics = {}
    for name in GROUPS:
        if name in scores:
            metrics |= {
                f"{name} auroc": auroc(scores["known"], scores[name]),
                f"{name} fpr": fpr_at(scores["known"], scores[name]),
            }
    for rate in RATES:
        rejected = {name: float((values > rejector.threshold(rate).value).mean()) for name, values in scores.items()}
        metrics |= {f"{name} rejected {rate}": value for name, value in rejected.items()}
    metrics |= {"aurc": aurc(-scores["known"], is_correct), "excess aurc": excess_aurc(-scores["known"], is_correct)}
    return metrics


def run(args):
    parts, y, test_labels, text, (names, negative_text) = load(args)
    records = Records(args.out)
    known = records.keys("shots", "seed", "head")
    for seed in range(args.seeds):
        for shots in args.shots:
            if (shots, seed, args.head) in known:
                continue
            rows, labels, own_text, head, inputs, new = draw(parts["train"], y, text, shots, seed, args)
            is_new = np.isin(test_labels, list(new))
            half = len(parts["far"]) // 2
            groups = {"known": parts["test"][~is_new], "new": parts["test"][is_new], "far": parts["far"][half:]}
            if len(parts["corrupted"]):
                groups["corrupted"] = parts["corrupted"]
            selected = select_negative_labels(own_text.labels, own_text.embeddings, names, negative_text)
            extra_inputs = {
                "negative-labels": {"negative_labels": negative_text[selected], "names": [names[i] for i in selected]},
                "outliers": {"outliers": parts["far"][:half]},
            }
            rows_to_add = []
            for variant, scores in VARIANTS.items():
                variant_inputs = {}
                for need in NEEDS.get(variant, ()):
                    variant_inputs |= extra_inputs[need]
                try:
                    rejector = learn_rejector(
                        parts["train"][rows], labels, len(own_text.labels), scores=scores, **inputs, **variant_inputs
                    )
                except InputError:  # with one shot per class there are no out-of-fold logits
                    continue
                metrics = measure(rejector, head, groups, test_labels[~is_new])
                rows_to_add.append({"method": variant, "shots": shots, "seed": seed, "head": args.head, **metrics})
            records.add(*rows_to_add)
    return [r for r in records.rows if r["head"] == args.head]


def table(records, shots, title, keys, digits=1):
    """Means over seeds, a row for each method and as many columns as shots."""
    lines = [f"**{title}**\n", "| score | " + " | ".join(map(str, shots)) + " |", "|---|" + "---:|" * len(shots)]
    for name in VARIANTS:
        cells = []
        for k in shots:
            rows = [r for r in records if r["method"] == name and r["shots"] == k and all(key in r for key in keys)]
            values = [f"{100 * np.mean([r[key] for r in rows]):.{digits}f}" for key in keys] if rows else ["-"]
            cells.append(" / ".join(values))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def report(records, shots):
    tables = [
        table(records, shots, f"{group}: AUROC / FPR95, %, by shots", (f"{group} auroc", f"{group} fpr"))
        for group in GROUPS
        if any(f"{group} auroc" in r for r in records)
    ]
    rates = " and ".join(f"{100 * rate:g} %" for rate in RATES)
    tables.append(
        table(
            records,
            shots,
            f"pictures of the classes rejected, %; set: {rates}",
            [f"known rejected {r}" for r in RATES],
        )
    )
    keys = [f"{group} rejected {RATES[0]}" for group in ("new", "far")]
    tables.append(table(records, shots, f"new / far pictures rejected, % at {100 * RATES[0]:g} % set", keys))
    tables.append(
        table(records, shots, "AURC / excess AURC of the predictions, %, by the score", ("aurc", "excess aurc"), 2)
    )
    return "\n".join(tables)


def main() -> None:
    parser = make_parser(__doc__, shots="1,2,4,8,16", seeds=5)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("background", type=Path)
    parser.add_argument("--head", default="auto")
    parser.add_argument("--classes", type=int, default=20, help="classes held out")
    parser.add_argument("--corrupted", type=int, default=200, help="test pictures that are corrupted")
    args = parse(parser)
    write_table(report(run(args), args.shots), args.out)


if __name__ == "__main__":
    main()
