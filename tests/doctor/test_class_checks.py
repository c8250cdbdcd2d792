import numpy as np
import pytest
from scipy.stats import binom

from clipadapter.doctor.class_checks import names_not_understood, overlaps, same_texts, sizes
from clipadapter.doctor.label_evidence import Evidence
from clipadapter.heads import TextFeatures

NAMES = ("ant", "bee", "cat")


def evidence(labels, learned, by_text=None):
    """Opinions that are sure of one class each."""
    eye = np.eye(3)
    votes = np.zeros((len(labels), 3), np.int64)
    text = None if by_text is None else eye[by_text]
    return Evidence(np.array(labels), eye[learned].astype(float), votes, text, NAMES)


def test_small_empty_and_unequal_classes(shown):
    labels = ["ant"] * 15 + ["bee"] * 3 + ["cat"]
    splits = ["train"] * 18 + ["test"]
    found = {one.kind: one for one in sizes(shown(labels, splits), NAMES, ("train", "test"))}
    assert found["no-shots"].words == "'cat' has no picture in train"
    assert (found["few-shots"].words, found["few-shots"].score) == ("'bee' has 3 pictures in train", 0.25)
    assert found["imbalance"].words == "'bee' has 3 pictures, 'ant' has 15"


def test_equal_classes_of_four_have_no_finding(shown):
    assert list(sizes(shown(["ant"] * 4 + ["bee"] * 19), NAMES[:2], ("all",))) == []


@pytest.mark.parametrize("times", range(1, 8))
def test_classes_overlap_if_a_tenth_is_exceeded_beyond_chance(shown, times):
    labels = [0] * 10 + [1] * 10 + [2] * 10
    learned = labels.copy()
    learned[:times] = [1] * times
    found = list(overlaps(shown([NAMES[i] for i in labels]), evidence(labels, learned), set()))
    beyond = times >= 3 and binom.sf(times - 1, 20, 0.1) <= 0.05
    assert bool(found) == beyond
    if found:
        assert found[0].classes == ("ant", "bee")
        assert found[0].words == f"'ant' and 'bee': {times} of 20 held-out pictures are taken for the other class"
        assert len(found[0].pictures) == times


def test_wrong_labels_are_no_overlap(shown):
    labels = [0] * 10 + [1] * 10
    learned = [1] * 6 + [0] * 4 + [1] * 10
    pictures = shown([NAMES[i] for i in labels])
    assert list(overlaps(pictures, evidence(labels, learned), set(pictures[:6]))) == []


def test_a_name_is_not_understood_if_shots_find_what_text_does_not(shown):
    labels = [0] * 8 + [1] * 8
    learned = labels
    by_text = [2] * 6 + [0] * 2 + [1] * 8
    found = list(names_not_understood(shown([NAMES[i] for i in labels]), evidence(labels, learned, by_text)))
    assert [one.classes for one in found] == [("ant", "cat")]
    assert "finds 2 of its 8 pictures, what was learned from shots 8; most are called 'cat' (6)" in found[0].words


def test_four_pictures_are_too_few_to_say_that_a_name_is_not_understood(shown):
    # Four heads in a row happen by chance once in 16, five once in 32.
    for n, count in ((4, 0), (5, 1)):
        labels = [0] * n + [1] * 5
        found = names_not_understood(shown([NAMES[i] for i in labels]), evidence(labels, labels, [2] * n + [1] * 5))
        assert len(list(found)) == count


def test_a_class_that_shots_dont_find_either_is_no_matter_of_its_name(shown):
    labels = [0] * 8
    found = names_not_understood(shown(["ant"] * 8), evidence(labels, [1] * 8, [2] * 8))
    assert list(found) == []


@pytest.mark.parametrize(("by_text", "count"), [(6, 1), (7, 0)])
def test_a_name_whose_text_finds_more_than_half_is_understood(shown, by_text, count):
    labels = [0] * 12
    found = names_not_understood(shown(["ant"] * 12), evidence(labels, labels, [0] * by_text + [2] * (12 - by_text)))
    assert len(list(found)) == count


def test_without_class_text_no_name_is_judged(shown):
    assert list(names_not_understood(shown(["ant"] * 8), evidence([0] * 8, [0] * 8))) == []


def test_texts_that_say_the_same():
    near = [1.0, 0.05, 0.0]
    found = list(same_texts(TextFeatures(["Faces", "crab", "faces_"], [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])))
    assert [one.classes for one in found] == [("Faces", "faces_")]
    found = list(same_texts(TextFeatures(["ox", "cow", "crab"], [[1.0, 0, 0], near, [0, 0, 1.0]])))
    assert [one.classes for one in found] == [("ox", "cow")]
    assert found[0].score == pytest.approx(1 / np.hypot(1, 0.05))
