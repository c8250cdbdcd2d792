import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from clipadapter.report.report import measure_uncertainty, project_features, rejection_scores


def test_nearest_shots_are_those_of_scikit_learn(report, model):
    brute = NearestNeighbors(n_neighbors=3, metric="cosine").fit(model.support_.plain)
    distance, rows = brute.kneighbors(np.asarray(report.evaluation.test.plain))
    assert report.pictures.cosine == pytest.approx(1 - distance, abs=1e-5)
    assert (report.pictures.nearest == rows).mean() > 0.9  # except for ties


def test_mistakes_with_the_highest_confidence_come_first_and_names_do_not_contain_the_folder(report, tmp_path_factory):
    pictures, score = report.pictures, report.evaluation.model
    assert {pictures.test[i].name.split("/")[1] for i in score.mistakes} == {"<i>ü\"'0.png", "<i>ü\"'1.png"}
    confidences = [score.probabilities[i].max() for i in score.mistakes]
    assert confidences == sorted(confidences, reverse=True)
    assert str(tmp_path_factory.getbasetemp()) not in report.to_html()


def test_sets_rejections_and_outliers_are_measured(report, model, outliers):
    data, answers, labels = report.uncertainty, report.answers, report.evaluation.model.labels
    inside = [bool(answers.sets[i, labels[i]]) for i in range(15)]
    assert data["sets"]["measured"] == pytest.approx(sum(inside) / 15)
    assert data["sets"]["mean_size"] == pytest.approx(sum(int(k) for k in answers.sets.sum(axis=1)) / 15)
    assert data["reject"] == {"requested": 0.05, "measured": pytest.approx(np.mean(answers.rejected))}
    X = model.extract_features(outliers, ["none"] * 3, ["none"], views=1).plain
    of_outliers = model.uncertainty_.answer(model.head_.logits(X), X)
    scores = [*rejection_scores(answers), *rejection_scores(of_outliers)]
    truth = [0] * 15 + [1] * 3
    assert data["outliers"]["auroc"] == pytest.approx(roc_auc_score(truth, scores))


def test_rates_can_be_given(model, report):
    X = report.evaluation.test.plain
    _, rates = measure_uncertainty(model, X, report.evaluation.model, reject=0.2, coverage=0.7)
    assert (rates["reject"]["requested"], rates["sets"]["requested"]) == (0.2, 0.7)


def test_pca_is_that_of_scikit_learn_except_for_scale():
    X = np.random.default_rng(0).normal(size=(30, 8))
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    expected, points = PCA(2).fit_transform(unit), project_features(X[:20], X[20:]).views["PCA"]
    for axis in range(2):
        assert abs(np.corrcoef(expected[:, axis], points[:, axis])[0, 1]) == pytest.approx(1)
    assert points.min() >= 0 and points.max() <= 1


def test_many_points_are_sampled_in_proportion(monkeypatch):
    monkeypatch.setattr("clipadapter.report.report.MAX_POINTS", 20)
    X = np.random.default_rng(0).normal(size=(80, 4))
    projection = project_features(X[:60], X[60:])
    assert (projection.rows < 60).sum() == 15 and len(set(projection.rows)) == 20


@pytest.mark.parametrize(("m", "width", "views"), [(6, 4, ["PCA"]), (3, 4, []), (3, 1, []), (12, 2, ["t-SNE", "PCA"])])
def test_few_points_and_narrow_features_have_fewer_views(m, width, views):
    X = np.random.default_rng(0).normal(size=(m, width))
    assert list(project_features(X, X[:0]).views) == views
