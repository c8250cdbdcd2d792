"""How often the studio's forecast contains the accuracy that ten more pictures per class bring.

    python benchmarks/forecast_coverage.py FOLDER [FOLDER ...] [--encoder lite] [--trials 20] [--shots 4 8]

Each FOLDER has one folder of pictures per class, also below ``train/`` and ``test/``. A trial draws classes and shots,
computes the learning curve and its forecast as the studio does, then fits to ten more pictures per class, three times,
and measures these fits on all other pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from clipadapter.classifier import FewShotClassifier
from clipadapter.data import class_prompts, load_dataset
from clipadapter.encoders import create_encoder
from clipadapter.features import encode_classes, extract
from clipadapter.heads import create_head
from clipadapter.studio.model import MORE_SHOTS, fit_project_model, learning_curve, mean_class_accuracy

CLASS_COUNTS = (2, 3, 5, 10)
FITS_WITH_MORE = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--trials", type=int, default=20, help="of each folder and number of shots")
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 8])
    options = parser.parse_args()
    encoder = create_encoder(options.encoder)
    trials = {shots: [] for shots in options.shots}
    for folder in options.folders:
        data = load_dataset(folder)
        features = extract(encoder, data.paths, strict=True).features[:, 0]
        labels = np.array([sample.label for sample in data.samples])
        for shots in options.shots:
            for seed in range(options.trials):
                trials[shots].append(run_trial(encoder, features, labels, shots, seed))
            print_summary(f"{folder.name}, {shots} shots", trials[shots][-options.trials :])
    for shots, results in trials.items():
        print_summary(f"all, {shots} shots", results)


def run_trial(encoder, features, labels, shots, seed):
    """(lower end, forecast, upper end, measured accuracy, whether the studio shows the forecast, measured gain)."""
    rng = np.random.default_rng([shots, seed])
    names = np.unique(labels)
    names = sorted(rng.choice(names, min(int(rng.choice(CLASS_COUNTS)), len(names)), replace=False).tolist())
    text = encode_classes(encoder, class_prompts(names))
    rows = np.flatnonzero(np.isin(labels, names))
    drawn = draw(rng, rows, labels, shots)
    classifier = FewShotClassifier(encoder, cache=None)
    model = fit_project_model(classifier, text, [str(row) for row in drawn], features[drawn], labels[drawn].tolist())
    curve = learning_curve(model, features[drawn], labels[drawn].tolist())
    forecast = curve.forecast
    rest = np.setdiff1d(rows, drawn)
    now = mean_class_accuracy(model.classifier.head_.predict(features[rest]) == labels[rest], labels[rest])
    measured = []
    for _ in range(FITS_WITH_MORE):
        more = np.union1d(drawn, draw(rng, np.setdiff1d(rows, drawn), labels, MORE_SHOTS))
        others = np.setdiff1d(rows, more)
        head = create_head("auto").fit(features[more], labels[more], text=text)
        measured.append(mean_class_accuracy(head.predict(features[others]) == labels[others], labels[others]))
    after = float(np.mean(measured))
    return forecast.low, forecast.value, forecast.high, after, curve.shows_gain, after - now


def draw(rng, rows, labels, count):
    """Rows of `count` pictures of each class."""
    return np.concatenate([rng.permutation(rows[labels[rows] == name])[:count] for name in np.unique(labels[rows])])


def print_summary(title, trials):
    # In whole percents, as the studio shows them.
    low, value, high, measured, is_shown, gain = np.round(np.array(trials, float).T, 2)
    gains = {name: gain[is_shown == k] for k, name in enumerate(("elsewhere", "there"))}
    gains = [f"{name} {100 * np.mean(part):.1f} points" for name, part in gains.items() if len(part)]
    contained = (low <= measured) & (measured <= high)
    print(
        f"{title}: {len(trials)} trials, measured accuracy in the interval {np.mean(contained):.0%},"
        f" length {100 * np.mean(high - low):.1f} points, mean error {100 * np.mean(abs(value - measured)):.1f},"
        f" forecast minus measured {100 * np.mean(value - measured):+.1f}; shown in {np.mean(is_shown):.0%},"
        f" measured gain {', '.join(gains)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
