import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support

from clipadapter.errors import InputError
from clipadapter.metrics.multilabel import evaluate_multilabel

NAMES = [f"class {k}" for k in range(6)]


def answers(seed, m=50, ties=False):
    rng = np.random.default_rng(seed)
    truth = rng.random((m, 6)) < 0.3
    truth[0] = True  # every class occurs, as scikit-learn's means want
    scores = truth + rng.standard_normal((m, 6))
    return truth, np.round(scores, 1) if ties else scores


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_scikit_learn(seed, ties):
    truth, scores = answers(seed, ties=ties)
    said = scores > 0.4
    found = evaluate_multilabel(truth, scores, said, NAMES)
    averages = {"micro_f1": "micro", "macro_f1": "macro", "sample_f1": "samples"}
    expected = {name: f1_score(truth, said, average=kind, zero_division=0) for name, kind in averages.items()}
    expected["mean_average_precision"] = average_precision_score(truth, scores, average="macro")
    expected["exact"] = (truth == said).all(axis=1).mean()
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected)
    precision, recall, f1, count = precision_recall_fscore_support(truth, said, zero_division=0)
    for k, report in enumerate(found.classes):
        assert report.average_precision == pytest.approx(average_precision_score(truth[:, k], scores[:, k]))
        assert (report.precision, report.recall, report.f1) == pytest.approx((precision[k], recall[k], f1[k]))
        assert (report.name, report.count) == (NAMES[k], count[k])
    assert found.without == ()


def test_classes_without_pictures_are_listed_and_left_out():
    truth, scores = answers(0)
    truth[:, 2] = False
    said = np.zeros_like(truth)
    said[:, :2] = truth[:, :2]
    found = evaluate_multilabel(truth, scores, said, NAMES)
    assert found.without == ("class 2",)
    assert found.classes[2].average_precision is None
    precision = average_precision_score(truth[:, [0, 1, 3, 4, 5]], scores[:, [0, 1, 3, 4, 5]])
    assert found.metrics["mean_average_precision"] == pytest.approx(precision)
    assert found.metrics["macro_f1"] == pytest.approx(2 / 5)  # class 2 neither occurs nor was said
    assert evaluate_multilabel(truth, scores, ~said, NAMES).classes[2].precision == 0


def test_figures_without_any_label_are_json():
    nothing = np.zeros((3, 6))
    metrics = evaluate_multilabel(nothing, nothing, nothing, NAMES).to_dict()
    assert json.loads(json.dumps(metrics)) == metrics
    assert [metrics[name] for name in ("mean_average_precision", "micro_f1", "macro_f1", "exact")] == [None, 0, 0, 1]
    assert metrics["classes"][0]["name"] == "class 0"


def test_shapes_and_scores_are_checked():
    truth, scores = answers(0)
    with pytest.raises(InputError, match=r"must all be \(m, 6\)"):
        evaluate_multilabel(truth, scores[:, :5], truth, NAMES)
    with pytest.raises(InputError, match=r"must all be \(m, 5\)"):
        evaluate_multilabel(truth, scores, truth, NAMES[:5])
    with pytest.raises(InputError, match="not finite"):
        evaluate_multilabel(truth, np.where(scores > 1, np.inf, scores), truth, NAMES)
