import base64
import io

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from clipadapter.report._thumbnails import SIDE, thumbnails
from clipadapter.report.projection import draw_map
from clipadapter.report.uncertainty import ask, strangeness


def test_nearest_shots_are_those_of_scikit_learn(report, model):
    brute = NearestNeighbors(n_neighbors=3, metric="cosine").fit(model.support_.plain)
    distance, rows = brute.kneighbors(np.asarray(report.evaluation.test.plain))
    assert report.rows.cosine == pytest.approx(1 - distance, abs=1e-5)
    assert (report.rows.nearest == rows).mean() > 0.9  # but for ties


def test_the_surest_mistakes_come_first(report):
    rows = report.rows
    assert {rows.test[i].name.split("/")[1] for i in rows.mistakes} == {"<i>ü\"'0.png", "<i>ü\"'1.png"}
    sure = [rows.probabilities[i].max() for i in rows.mistakes]
    assert sure == sorted(sure, reverse=True)


def test_names_do_not_tell_where_the_folder_lies(report, tmp_path_factory):
    assert str(tmp_path_factory.getbasetemp()) not in report.to_html()


def test_sets_and_rejections_are_counted(report):
    told, answers, labels = report.sure.to_dict(), report.sure.answers, report.rows.labels
    inside = [bool(answers.sets[i, labels[i]]) for i in range(15)]
    assert told["sets"]["found"] == pytest.approx(sum(inside) / 15)
    assert told["sets"]["mean_size"] == pytest.approx(sum(int(k) for k in answers.sets.sum(axis=1)) / 15)
    assert told["reject"] == {"asked": 0.05, "found": pytest.approx(np.mean(answers.rejected))}


def test_background_is_told_by_auroc(report):
    known, strange = strangeness(report.sure.answers), strangeness(report.sure.background)
    truth = [0] * 15 + [1] * 3
    assert report.sure.to_dict()["background"]["auroc"] == pytest.approx(roc_auc_score(truth, [*known, *strange]))


def test_rates_are_those_asked_for(model, report):
    X = report.evaluation.test.plain
    found = ask(model, X, report.logits, report.rows.labels, reject=0.2, coverage=0.7)
    assert (found.reject, found.coverage) == (0.2, 0.7)


def test_pca_is_that_of_scikit_learn_but_for_scale():
    X = np.random.default_rng(0).normal(size=(30, 8))
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    expected, found = PCA(2).fit_transform(unit), draw_map(X[:20], X[20:]).views["PCA"]
    for axis in range(2):
        assert abs(np.corrcoef(expected[:, axis], found[:, axis])[0, 1]) == pytest.approx(1)
    assert found.min() >= 0 and found.max() <= 1


def test_the_map_is_the_same_every_time_and_finds_groups():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(20, 6)) * 0.05 + centre for centre in np.eye(6)[:3]])
    first, second = (draw_map(X[:30], X[30:]).views["t-SNE"] for _ in range(2))
    assert np.array_equal(first, second)
    group = np.arange(60) // 20
    _, near = NearestNeighbors(n_neighbors=4).fit(first).kneighbors(first)
    assert (group[near] == group[:, None]).all()


def test_many_points_are_sampled_by_their_share(monkeypatch):
    monkeypatch.setattr("clipadapter.report.projection.MOST", 20)
    X = np.random.default_rng(0).normal(size=(80, 4))
    found = draw_map(X[:60], X[60:])
    assert (found.rows < 60).sum() == 15 and len(set(found.rows)) == 20


@pytest.mark.parametrize(("m", "width", "views"), [(3, 4, ["PCA"]), (3, 1, []), (12, 2, ["t-SNE", "PCA"])])
def test_few_points_and_narrow_features_give_what_there_is(m, width, views):
    X = np.random.default_rng(0).normal(size=(m, width))
    assert list(draw_map(X, X[:0]).views) == views


def test_thumbnails_are_small_and_stop_at_the_budget(tmp_path):
    for i in range(4):
        Image.effect_noise((300, 200), 50).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in (0, 9, 1, 2, 3)]  # 9 is not there
    everything = thumbnails(paths, 10**9)
    assert everything[1] == "" and all(everything[:1] + everything[2:])
    image = Image.open(io.BytesIO(base64.b64decode(everything[0])))
    assert (image.format, max(image.size)) == ("JPEG", SIDE)
    some = thumbnails(paths, len(everything[0]) + len(everything[2]))
    assert some == [everything[0], "", everything[2], "", ""]
