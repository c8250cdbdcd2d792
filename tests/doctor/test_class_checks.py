import numpy as np
import pytest
from scipy.stats import binom

from clipadapter.doctor.diagnosis import (
    LabelEvidence,
    check_class_sizes,
    find_class_overlaps,
    find_same_texts,
    find_unknown_names,
)
from clipadapter.heads import TextFeatures

NAMES = ("ant", "bee", "cat")


def make_evidence(labels, held_out, zero_shot=None):
    """Predictions that are certain of one class each."""
    eye = np.eye(3)
    votes = np.zeros((len(labels), 3), np.int64)
    text = None if zero_shot is None else eye[zero_shot]
    return LabelEvidence(np.array(labels), eye[held_out].astype(float), votes, text, NAMES)


def test_small_empty_and_unequal_classes_are_found(make_pictures):
    labels = ["ant"] * 15 + ["bee"] * 3 + ["cat"]
    splits = ["train"] * 18 + ["test"]
    found = check_class_sizes(make_pictures(labels, splits), NAMES, ("train", "test"))
    findings = {finding.kind: finding for finding in found}
    assert findings["no-shots"].message == "'cat' has no picture in train"
    assert (findings["few-shots"].message, findings["few-shots"].score) == ("'bee' has 3 pictures in train", 0.25)
    assert findings["imbalance"].message == "'bee' has 3 pictures, 'ant' has 15"
    assert list(check_class_sizes(make_pictures(["ant"] * 4 + ["bee"] * 19), NAMES[:2], ("all",))) == []
    only_test = check_class_sizes(make_pictures(["ant"], ["test"]), NAMES, ("train", "test"))  # train is unreadable
    assert [finding.kind for finding in only_test] == ["no-shots"] * 3


@pytest.mark.parametrize("count", range(1, 8))
def test_classes_overlap_if_significantly_more_than_a_tenth_is_confused(make_pictures, count):
    labels = [0] * 10 + [1] * 10 + [2] * 10
    held_out = labels.copy()
    held_out[:count] = [1] * count
    pictures = make_pictures([NAMES[i] for i in labels])
    findings = list(find_class_overlaps(pictures, make_evidence(labels, held_out), set()))
    is_significant = count >= 3 and binom.sf(count - 1, 20, 0.1) <= 0.05
    assert bool(findings) == is_significant
    if findings:
        assert (findings[0].classes, len(findings[0].pictures)) == (("ant", "bee"), count)
        words = f"'ant' and 'bee': {count} of 20 held-out pictures are predicted as the other class"
        assert findings[0].message == words
    wrong_labels = set(pictures[:count])  # wrong labels are not counted as confusions
    assert list(find_class_overlaps(pictures, make_evidence(labels, held_out), wrong_labels)) == []


def test_a_name_is_unknown_if_shots_predict_what_text_does_not(make_pictures):
    labels = [0] * 8 + [1] * 8
    zero_shot = [2] * 6 + [0] * 2 + [1] * 8
    pictures = make_pictures([NAMES[i] for i in labels])
    (finding,) = find_unknown_names(pictures, make_evidence(labels, labels, zero_shot))
    assert finding.classes == ("ant", "cat")
    words = "by its text 2 of its 8 pictures are recognised, by shots 8; most are predicted as 'cat' (6)"
    assert words in finding.message


@pytest.mark.parametrize(
    ("held_out", "zero_shot", "count"),
    [
        # Four heads in a row happen by chance once in 16, five once in 32.
        ([0] * 4, [2] * 4, 0),
        ([0] * 5, [2] * 5, 1),
        ([1] * 8, [2] * 8, 0),  # shots do not predict the class either
        ([0] * 12, [0] * 6 + [2] * 6, 1),
        ([0] * 12, [0] * 7 + [2] * 5, 0),  # text predicts more than half
        ([0] * 8, None, 0),  # there is no class text
    ],
)
def test_a_name_is_unknown_by_a_sign_test_and_if_text_predicts_half_at_most(held_out, zero_shot, count, make_pictures):
    n = len(held_out)
    evidence = make_evidence([0] * n + [1] * 5, held_out + [1] * 5, zero_shot and zero_shot + [1] * 5)
    pictures = make_pictures(["ant"] * n + ["bee"] * 5)
    assert len(list(find_unknown_names(pictures, evidence))) == count


def test_equal_texts_and_spellings_are_found():
    near = [1.0, 0.05, 0.0]
    findings = list(find_same_texts(TextFeatures(["Faces", "crab", "faces_"], [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])))
    assert [finding.classes for finding in findings] == [("Faces", "faces_")]
    findings = list(find_same_texts(TextFeatures(["ox", "cow", "crab"], [[1.0, 0, 0], near, [0, 0, 1.0]])))
    assert [finding.classes for finding in findings] == [("ox", "cow")]
    assert findings[0].score == pytest.approx(1 / np.hypot(1, 0.05))
