import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import cross_val_predict

from clipadapter.doctor import Finding, diagnosis
from clipadapter.doctor.diagnosis import LabelEvidence, collect_label_evidence, find_label_errors
from clipadapter.doctor.pictures import nearest_neighbours
from clipadapter.features import FeatureSet
from clipadapter.heads import TextFeatures

NAMES = ("ant", "bee", "cat", "dog")


@pytest.fixture
def clusters():
    """Features of four clear clusters of ten, their true labels, and class text at their centres."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 10)
    centres = np.eye(6)[:4] * 4 + 1
    X = (centres[y] + rng.normal(0, 0.5, (40, 6))).astype(np.float32)
    return X, y, TextFeatures(NAMES, centres - centres.mean(0), logit_scale=20)


def collect(X, y, text):
    features = FeatureSet(X, tuple(NAMES[i] for i in y), NAMES)
    return collect_label_evidence(features, text, nearest_neighbours(X))


def names(findings, kind="wrong-label"):
    return [finding.pictures[0].name for finding in findings if finding.kind == kind]


def test_wrong_labels_in_clear_clusters_are_found_unless_the_head_finds_them_nearly_as_likely(clusters, make_pictures):
    X, y, text = clusters
    y = y.copy()
    y[3], y[25] = 2, 0
    pictures, evidence = make_pictures([NAMES[i] for i in y]), collect(X, y, text)
    findings = list(find_label_errors(pictures, evidence))
    assert sorted(names(findings)) == ["25.png", "3.png"]
    first = next(finding for finding in findings if finding.pictures[0].name == "3.png")
    assert first.classes == ("cat", "ant") and first.score > 0.9
    assert "labelled 'cat'" in first.message and "looks like 'ant'" in first.message
    for own, count in ((0.25, 0), (0.2, 1)):  # four classes: the other must be more than four times as likely
        evidence.held_out[3] = (0.9, 0, own, 0)
        assert len(list(find_label_errors(pictures, evidence))) == 1 + count  # the other one is 25.png


def test_the_order_of_the_classes_does_not_matter(clusters):
    X, y, text = clusters
    evidence = collect(X, y, text)
    reversed_text = TextFeatures(NAMES[::-1], text.embeddings[::-1], text.logit_scale)
    reversed_evidence = collect_label_evidence(
        FeatureSet(X, tuple(NAMES[i] for i in y), NAMES[::-1]), reversed_text, nearest_neighbours(X)
    )
    np.testing.assert_array_equal(reversed_evidence.labels, 3 - evidence.labels)
    np.testing.assert_allclose(reversed_evidence.zero_shot, evidence.zero_shot[:, ::-1], rtol=1e-4, atol=1e-6)
    assert (reversed_evidence.held_out.argmax(axis=1) == reversed_evidence.labels).all()


def test_without_class_text_wrong_labels_are_found_and_there_are_columns_for_all_classes(clusters, make_pictures):
    X, y, _ = clusters
    rows = y != 1  # no picture of the second class
    held = collect(X[rows], y[rows], None).held_out
    assert (held[:, 1] == 0).all()
    assert (held.argmax(axis=1) == y[rows]).all()
    y = y.copy()
    y[3] = 2
    evidence = collect(X, y, None)
    assert evidence.zero_shot is None
    assert names(find_label_errors(make_pictures([NAMES[i] for i in y]), evidence)) == ["3.png"]


def test_held_out_predictions_are_those_of_discriminant_analysis_and_five_neighbours_vote(clusters):
    X, y, text = clusters
    other = cross_val_predict(LinearDiscriminantAnalysis(), X, y, cv=8)
    evidence = collect(X, y, text)
    assert evidence.is_held_out.all()
    np.testing.assert_array_equal(evidence.held_out.argmax(axis=1), other)
    nearest = nearest_neighbours(X)[1][:, :5]
    for i in (0, 17, 39):
        assert evidence.votes[i].tolist() == [sum(y[j] == k for j in nearest[i]) for k in range(4)]


@pytest.mark.parametrize(
    ("n_classes", "own_votes", "kind"),
    [(2, 2, "wrong-label"), (2, 3, None), (4, 1, "wrong-label"), (4, 2, None)]
    + [(6, 0, "wrong-label"), (6, 1, "doubtful-label"), (6, 2, None)]
    + [(19, 0, "wrong-label"), (20, 0, None)],  # text ranks the wrong label first, which counts from 20 classes on
)
def test_a_label_that_more_neighbours_have_than_by_chance_is_not_likely_wrong(
    n_classes, own_votes, kind, make_pictures
):
    """Four pictures of each class are as their labels say; one more is labelled as the second, and is of the first."""
    names = tuple(f"class {k}" for k in range(n_classes))
    labels, true = np.append(np.repeat(np.arange(n_classes), 4), 1), np.append(np.repeat(np.arange(n_classes), 4), 0)
    held_out = np.full((len(labels), n_classes), 0.01)
    held_out[np.arange(len(labels)), true] = 1 - 0.01 * (n_classes - 1)
    votes = np.eye(n_classes, dtype=np.int64)[true] * 5
    votes[-1, :2] = 5 - own_votes, own_votes
    supporting_text = np.eye(n_classes)[labels]
    evidence = LabelEvidence(labels, held_out, votes, supporting_text, names)
    findings = list(find_label_errors(make_pictures([names[k] for k in labels]), evidence))
    assert [finding.kind for finding in findings] == [kind] * (kind is not None)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_most_wrong_labels_of_few_classes_are_found(n_classes, make_pictures):
    """20 pictures of each class, of which every tenth has a wrong label, and class text that means nothing."""
    rng, n_found, n_right = np.random.default_rng(1), 0, 0
    for _ in range(3):
        true = np.repeat(np.arange(n_classes), 20)
        X = (np.eye(6)[true] * 4 + rng.normal(0, 0.5, (len(true), 6)) + 1).astype(np.float32)
        y = true.copy()
        y[::10] = (y[::10] + 1) % n_classes
        text = TextFeatures(NAMES[:n_classes], rng.normal(size=(n_classes, 6)), logit_scale=0.1)
        features = FeatureSet(X, tuple(NAMES[i] for i in y), NAMES[:n_classes])
        evidence = collect_label_evidence(features, text, nearest_neighbours(X))
        found = names(find_label_errors(make_pictures([NAMES[i] for i in y]), evidence))
        n_found += len(found)
        n_right += len({f"{i}.png" for i in range(0, len(true), 10)} & set(found))
    assert n_right >= 0.75 * 3 * 2 * n_classes and n_right >= 0.75 * n_found


def test_between_classes_that_overlap_a_label_is_only_doubtful(monkeypatch, make_pictures):
    pairs, pictures = (("ant", "bee"), ("bee", "ant"), ("ant", "cat")), make_pictures(["ant", "bee", "ant"])
    errors = [Finding("wrong-label", 1.0, "", (one,), pair) for one, pair in zip(pictures, pairs, strict=True)]
    overlap = Finding("overlap", 0.5, "", (), ("ant", "bee"))
    monkeypatch.setattr(diagnosis, "find_label_errors", lambda *_: errors)
    monkeypatch.setattr(diagnosis, "find_class_overlaps", lambda _, evidence, wrong_labels: [overlap])
    suspects, overlaps = diagnosis.find_suspected_labels(pictures, None)
    assert [finding.kind for finding in suspects] == ["doubtful-label", "doubtful-label", "wrong-label"]
    assert overlaps == [overlap]


def test_the_only_picture_of_a_class_is_doubtful_if_text_and_a_neighbour_agree_on_another(make_pictures):
    labels = np.array([0, 1, 1, 1])
    held = np.array([[np.nan] * 2, [0.01, 0.99], [0.01, 0.99], [0.01, 0.99]])
    text = np.array([[0.02, 0.98], [0.1, 0.9], [0.1, 0.9], [0.1, 0.9]])
    pictures = make_pictures(["ant", "bee", "bee", "bee"])

    def find(vote):
        votes = np.array([[0, vote], [0, 3], [0, 3], [0, 3]])
        return list(find_label_errors(pictures, LabelEvidence(labels, held, votes, text, NAMES[:2])))

    assert names(find(1), "doubtful-label") == ["0.png"]
    assert find(0) == []


@pytest.mark.parametrize("counts", [(1, 1), (2, 1), (1, 0), (3, 0)])
def test_a_few_pictures_are_checked_without_an_error(counts, make_pictures):
    y = np.repeat(np.arange(2), counts)
    X = np.random.default_rng(0).normal(size=(len(y), 6)).astype(np.float32)
    for text in (TextFeatures(NAMES, np.random.default_rng(1).normal(size=(4, 6))), None):
        list(find_label_errors(make_pictures([NAMES[i] for i in y]), collect(X, y, text)))
