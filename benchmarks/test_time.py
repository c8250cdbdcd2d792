"""What test-time adaptation changes: accuracy, calibration error and log-loss, with and without it.

DATA and the sets are those of development_sets.py; all pictures are of training parts. Each head is fitted to shots and
calibrated as in FewShotClassifier, then answers a stream of other pictures: in a random order, and class by class.
"tda" is the default of `clipadapter.adaptation`, "official" the authors' settings for ImageNet on the same calibrated
log-probabilities. The rows "text alone" are the published use: no shots, scaled cosines, no calibration.

    python benchmarks/test_time.py DATA --out test-time

With --views ZERO is measured on some pictures of three sets too. These are encoded once in 32 views, which takes most
of the time; then they are in the feature store.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from development_sets import draw, load_sets

from clipadapter import FewShotClassifier, load_dataset
from clipadapter.adaptation import TdaCache, TdaSettings, count_votes
from clipadapter.classifier.fitting import Negatives, check_options, fit_with_uncertainty
from clipadapter.data import textiles
from clipadapter.features import FeatureSet, ViewSpec
from clipadapter.features.views import CROPS
from clipadapter.heads import TextFeatures, create_head
from clipadapter.metrics import expected_calibration_error, log_loss
from clipadapter.prediction import softmax

SETS = ("clothing", "satellite", "textures", "steel", "caltech 30", "fabric", "food")
HEADS = ("zero-shot", "linear-probe", "auto")
SHOTS = (1, 4, 8)
VIEWS = (8, 32)
SHARES = (0.1, 0.3, 0.5)
"""Of the views that vote."""
VIEW_SETS = {"clothing": ("clothing10", 8), "satellite": ("satellite7", 5), "fabric": ("", 10)}
"""Folder, and pictures of each class that are encoded in views."""
SETTINGS = {"tda": TdaSettings(), "official": TdaSettings.official()}
MIN_PROBABILITY = 1e-6
"""A class without a vote has the probability 0, whose log-loss is infinite."""


def fit(X, y, one, head):
    """A fitted head and its calibration."""
    names = [f"class {k:02}" for k in range(len(one.text))]
    support = FeatureSet(np.ascontiguousarray(X), tuple(names[k] for k in y), tuple(names), {}, blocks=one.blocks)
    text = TextFeatures(names, one.text, one.scale)
    fitted = fit_with_uncertainty(create_head(head), support, text, None, check_options(None), Negatives(), 0)
    return fitted.head, fitted.uncertainty.calibrator


def score(p, truth):
    return (
        100 * float((p.argmax(axis=1) == truth).mean()),
        100 * expected_calibration_error(p, truth),
        log_loss(np.maximum(p, MIN_PROBABILITY) / np.maximum(p, MIN_PROBABILITY).sum(axis=1, keepdims=True), truth),
    )


def orders(truth, seed):
    """The stream in a random order, and class by class."""
    rows = np.random.default_rng(seed).permutation(len(truth))
    return {"random": rows, "class by class": rows[np.argsort(truth[rows], kind="stable")]}


def measure_streams(sets, seeds):
    """Scores by (head, shots, method, order), of all sets and seeds."""
    scores = {}

    def add(head, shots, name, features, z, truth, seed):
        for order, rows in orders(truth, seed).items():
            scores.setdefault((head, shots, "", order), []).append((name, *score(softmax(z[rows]), truth[rows])))
            for method, settings in SETTINGS.items():
                adapted = TdaCache(z.shape[1], settings).adapt(features[rows], z[rows])
                scores.setdefault((head, shots, method, order), []).append(
                    (name, *score(softmax(adapted), truth[rows]))
                )

    for name in SETS:
        one = sets[name]
        width = one.blocks[0].width
        for seed in range(seeds):
            for shots in SHOTS:
                rows, Q, truth = draw(one, shots, seed)
                if shots == SHOTS[0]:
                    f = Q[:, :width] / np.linalg.norm(Q[:, :width], axis=1, keepdims=True)
                    t = one.text / np.linalg.norm(one.text, axis=1, keepdims=True)
                    add("text alone", 0, name, f, one.scale * f @ t.T, truth, seed)
                for head in HEADS:
                    fitted, calibrator = fit(one.X[rows], one.y[rows], one, head)
                    z = calibrator.log_probabilities(fitted.logits(np.ascontiguousarray(Q)))
                    add(head, shots, name, Q[:, :width], z, truth, seed)
    return scores


def stream_table(scores):
    """One row for each head, number of shots and order; differences are to the same head without adaptation."""
    metrics = "".join(f" {name} | {' | '.join(SETTINGS)} |" for name in ("accuracy", "ECE", "log-loss"))
    lines = [f"| head | shots | order |{metrics}"]
    lines.append("|---|---:|---|" + "---:|" * 9)
    for head, shots, method, order in scores:
        if method:
            continue
        columns = {m: np.array([row[1:] for row in scores[head, shots, m, order]]) for m in ("", *SETTINGS)}
        cells = []
        for metric, form in enumerate(("{:.1f}", "{:.1f}", "{:.3f}")):
            plain = columns[""][:, metric]
            cells.append(form.format(plain.mean()))
            for m in SETTINGS:
                change = (columns[m][:, metric] - plain).mean()
                cells.append(("+" if change >= 0 else "-") + form.format(abs(change)))
        lines.append(f"| {head} | {shots} | {order} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def set_table(scores, method="tda"):
    """Change of accuracy by set and head, random order, mean of shots and seeds."""
    heads = list(dict.fromkeys(key[0] for key in scores))
    lines = ["| set | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for name in SETS:
        cells = []
        for head in heads:
            changes = []
            for h, shots, m, order in scores:
                if (h, m, order) == (head, method, "random"):
                    pairs = zip(scores[h, shots, m, order], scores[h, shots, "", order], strict=True)
                    changes += [new[1] - old[1] for new, old in pairs if new[0] == name]
            cells.append(f"{np.mean(changes):+.1f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def load_views(data, name, sets, encoder, crop):
    """Features (n, v, d) of the pictures in views, their labels, and rows of the set that are none of them."""
    folder, per_class = VIEW_SETS[name]
    dataset = load_dataset(data / folder / "train") if folder else textiles()
    one = sets[name]
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(np.flatnonzero(one.y == k))[:per_class] for k in range(len(one.text))])
    model = FewShotClassifier(encoder=encoder, quality="fast", precision="fp32")
    pictures, labels = [dataset.paths[i] for i in rows], [dataset.labels[i] for i in rows]
    views = ViewSpec.from_crop(crop, max(VIEWS))
    features = model.extract_features(pictures, labels, dataset.class_names, views=views).X
    return features, one.y[rows], np.setdiff1d(np.arange(len(one.y)), rows)


def measure_views(data, sets, seeds, encoder, crop, shots=4):
    scores = {}
    for name in VIEW_SETS:
        one = sets[name]
        features, truth, rest = load_views(data, name, sets, encoder, crop)
        n, _, d = features.shape
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            rows = np.concatenate([rng.permutation(rest[one.y[rest] == k])[:shots] for k in range(len(one.text))])
            for head in HEADS:
                fitted, calibrator = fit(one.X[rows], one.y[rows], one, head)
                logits = fitted.logits(np.ascontiguousarray(features.reshape(-1, d))).reshape(n, features.shape[1], -1)
                z = calibrator.log_probabilities(logits.reshape(-1, logits.shape[2])).reshape(logits.shape)
                results = {"plain picture": softmax(z[:, 0])}
                for count in VIEWS:
                    for share in SHARES:
                        votes = count_votes(z[:, :count], share)
                        results[f"{count} views, votes of {100 * share:g} %"] = votes / votes.sum(axis=1, keepdims=True)
                    results[f"{count} views, mean of all"] = np.exp(z[:, :count]).mean(axis=1)
                for method, p in results.items():
                    scores.setdefault((head, method), []).append((name, *score(p, truth)))
    return scores


def view_table(scores):
    heads = list(dict.fromkeys(key[0] for key in scores))
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for method in dict.fromkeys(key[1] for key in scores):
        means = [np.array([row[1:] for row in scores[head, method]]).mean(axis=0) for head in heads]
        lines.append(f"| {method} | " + " | ".join("{:.1f} / {:.1f} / {:.3f}".format(*mean) for mean in means) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--views", action="store_true", help="measure ZERO too")
    parser.add_argument("--crop", default="tip", choices=sorted(CROPS), help="scale of the crops of views")
    parser.add_argument("--out", type=Path, required=True, help="folder for table.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sets = load_sets(
        args.data, lambda: FewShotClassifier(encoder=args.encoder, quality="fast", precision="fp32"), False
    )
    scores = measure_streams(sets, args.draws)
    text = f"Means of {len(SETS)} sets and {args.draws} draws.\n\n{stream_table(scores)}\n\n"
    text += f"Change of accuracy by tda in random order:\n\n{set_table(scores)}\n"
    if args.views:
        found = measure_views(args.data, sets, args.draws, args.encoder, args.crop)
        text += f"\nAccuracy / ECE / log-loss after 4 shots, of {', '.join(VIEW_SETS)}:\n\n{view_table(found)}\n"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
