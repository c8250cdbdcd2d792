"""Text features of single prompts: every copy of `TextFeatures` keeps them, and only heads that read them get them."""

import pickle

import numpy as np
import pytest

from clipadapter.errors import InputError
from clipadapter.heads import TextFeatures, create_head
from clipadapter.heads.support import SupportSet

PROMPTS = [[[3.0, 4.0]], [[0.0, 2.0], [5.0, 0.0]]]
UNIT = {"dog": [[0.6, 0.8]], "cat": [[0.0, 1.0], [1.0, 0.0]]}


def text(**options):
    return TextFeatures(["dog", "cat"], [[3.0, 4.0], [1.0, 1.0]], prompts=PROMPTS, **options)


def assert_has(features, expected):
    assert features.prompts is not None
    assert len(features.prompts) == len(expected)
    for rows, wanted in zip(features.prompts, expected, strict=True):
        np.testing.assert_allclose(rows, np.reshape(wanted, (-1, 2)), atol=1e-7)


def test_prompts_are_unit_rows_in_the_dtype_of_the_embeddings():
    assert_has(text(), UNIT.values())
    assert {rows.dtype for rows in text().prompts} == {np.dtype(np.float32)}
    exact = TextFeatures(["a", "b"], np.eye(2), prompts=[[[1.0, 2.0]], [[2.0, 1.0]]])
    assert {rows.dtype for rows in exact.prompts} == {np.dtype(np.float64)}


@pytest.mark.parametrize(
    "copied",
    [
        lambda one: one.with_tower(lambda: None),
        lambda one: one.with_order("given"),
        lambda one: one.with_order("sorted"),
        lambda one: pickle.loads(pickle.dumps(one)),
        lambda one: one.with_prompts(one.prompts),
    ],
)
def test_copies_keep_them(copied):
    assert_has(copied(text()), UNIT.values())


def test_they_move_with_their_classes():
    assert_has(text().arranged(["cat", "dog"]), [UNIT["cat"], UNIT["dog"]])
    assert_has(text().numbered(), [UNIT["cat"], UNIT["dog"]])


def test_they_can_not_be_changed_through_the_array_that_was_given():
    rows = np.eye(2, dtype=np.float32)
    one = TextFeatures(["a", "b"], np.eye(2, dtype=np.float32), prompts=[rows, rows])
    rows[:] = 7.0
    np.testing.assert_array_equal(one.prompts[0], np.eye(2))
    assert not one.prompts[0].flags.writeable


def test_without_them_the_embedding_is_the_only_prompt():
    plain = TextFeatures(["a", "b"], [[3.0, 4.0], [np.nan, np.nan]])
    assert plain.prompts is None
    np.testing.assert_allclose(plain.prompt_rows[0], [[0.6, 0.8]], rtol=1e-6)
    assert plain.prompt_rows[1].shape == (0, 2)


def test_a_class_without_text_has_no_prompt():
    rows = [[3.0, 4.0], [np.nan, np.nan]]
    assert_has(pickle.loads(pickle.dumps(TextFeatures(["a", "b"], rows, prompts=[[[3.0, 4.0]], np.empty((0, 2))]))),
               [[[0.6, 0.8]], []])  # fmt: skip
    with pytest.raises(InputError, match="prompts of 'b' need no row, as the class has no text"):
        TextFeatures(["a", "b"], rows, prompts=PROMPTS)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[[1.0, 2.0]]], "one array for each of 2 classes, but are 1"),
        ([[[1.0, 2.0]], []], "prompts of 'cat' need one row or more of width 2, but have shape \\(0,\\)"),
        ([[[1.0, 2.0]], [[1.0, 2.0, 3.0]]], "of width 2, but have shape \\(1, 3\\)"),
        ([[[1.0, 2.0]], [[0.0, 0.0]]], "a prompt of 'cat' is zero"),
        ([[[1.0, 2.0]], [[np.nan, 0.0]]], "a prompt of 'cat' is zero or not finite"),
    ],
)
def test_wrong_prompts_are_refused(prompts, message):
    with pytest.raises(InputError, match=message):
        TextFeatures(["dog", "cat"], np.eye(2), prompts=prompts)


class Recorder(type(create_head("zero-shot"))):
    """Keeps the checked shots."""

    def _fit(self, shots: SupportSet) -> None:
        super()._fit(shots)
        self.shots = shots


class Reader(Recorder):
    reads_prompts = True


def test_a_head_that_reads_them_gets_them_in_the_order_of_its_classes():
    X, y = np.eye(2), ["dog", "cat"]
    for row, wanted in zip(Reader().fit(X, y, text=text()).shots.prompts, [UNIT["cat"], UNIT["dog"]], strict=True):
        np.testing.assert_allclose(row, wanted, atol=1e-6)
    assert Recorder().fit(X, y, text=text()).shots.prompts == ()
