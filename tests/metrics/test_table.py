import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

from clipadapter.errors import InputError
from clipadapter.metrics import METRICS, check_metrics, evaluate, metrics_shown

NAMES = ["a", "b", "c", "unused"]


@pytest.fixture
def evaluation():
    """40 pictures, most of class "a", some predicted wrongly, none of class "unused", and their predicted labels."""
    rng = np.random.default_rng(0)
    labels = rng.choice(3, size=40, p=[0.7, 0.2, 0.1])
    logits = rng.normal(size=(40, 4))
    logits[np.arange(40), labels] += 1.5
    names = [NAMES[label] for label in labels]
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return evaluate(names, logs, NAMES), names, [NAMES[k] for k in logits.argmax(axis=1)]


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_metrics_are_those_of_scikit_learn(evaluation):
    result, labels, predicted = evaluation
    assert {*labels} == {"a", "b", "c"}
    assert result.metrics["accuracy"] == accuracy_score(labels, predicted)
    assert result.metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert result.metrics["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    np.testing.assert_array_equal(result.confusion, confusion_matrix(labels, predicted, labels=NAMES))


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"accuracy": 0.5, "balanced": 0.5}, "there is no metric 'balanced'; known: accuracy, balanced_accuracy"),
        ({"accuracy": 1.1}, "accuracy can't be"),
        ({"log_loss": -0.1}, "log-loss can't be"),
        ({"log_loss": float("nan")}, "log-loss can't be"),
        ({"accuracy": 0.5, "log_loss": 0.5}, "metrics are missing: macro_f1"),
    ],
)
def test_metrics_that_a_file_cannot_have_are_refused(values, error):
    recorded = metrics_shown("record", "single-label")
    check_metrics({"accuracy": 0.5, "macro_f1": 0.5, "log_loss": 0.5}, recorded)  # others may be missing
    with pytest.raises(InputError, match=error):
        check_metrics(values, recorded)


def test_numbers_are_shown_in_the_unit_of_the_metric():
    assert [METRICS[name].heading for name in ("accuracy", "log_loss")] == ["accuracy %", "log-loss"]
    titles = [METRICS[name].title_with_unit for name in ("accuracy", "log_loss", "brier")]
    assert titles == ["accuracy in %", "log-loss in nats", "Brier score"]
    assert (METRICS["accuracy"].format(0.12345), METRICS["log_loss"].format(0.3)) == ("12.3", "0.300")
