"""ZERO counts the votes of confident views."""

from collections import Counter

import numpy as np
import pytest

from clipadapter.adaptation import vote
from clipadapter.adaptation.zero import count_votes
from clipadapter.errors import InputError


def votes_by_loops(views, n_kept):
    """Sort by entropy, count the first ones; the next ones break a tie."""
    views = sorted(views, key=lambda p: -sum(q * np.log(q) for q in p))
    choices = [max(range(len(p)), key=lambda k: p[k]) for p in views]
    votes = Counter(choices[:n_kept])
    tied = [k for k in votes if votes[k] == max(votes.values())]
    if len(tied) > 1:
        more = [k for k in choices[n_kept:] if k in tied]
        votes[more[0] if more else max(tied, key=lambda k: views[0][k])] += 1
    return [votes[k] for k in range(len(views[0]))]


@pytest.mark.parametrize("n_kept", [1, 3, 5, 7, 10])
def test_votes_are_those_of_plain_loops(n_kept):
    p = np.random.default_rng(0).dirichlet([0.6] * 4, (50, 10))
    expected = [votes_by_loops(list(views), n_kept) for views in p]
    np.testing.assert_array_equal([count_votes(views, n_kept) for views in np.log(p)], expected)
    assert sum(np.sort(row)[-1] == np.sort(row)[-2] for row in np.array(expected)) == 0


def test_a_tie_is_broken_by_the_next_confident_view_and_without_one_by_the_most_confident():
    four, two = [[0.97, 0.03], [0.04, 0.96], [0.2, 0.8], [0.6, 0.4]], [[0.2, 0.8], [0.9, 0.1]]
    np.testing.assert_array_equal(count_votes(np.log(four), 2), [1, 2])
    np.testing.assert_array_equal(count_votes(np.log(two), 2), [2, 1])


def test_votes_decide_the_class_and_all_views_its_probability():
    p = np.random.default_rng(1).dirichlet([0.6] * 5, (80, 16))
    classes, probabilities = vote(np.log(p))
    np.testing.assert_array_equal(classes, [np.argmax(votes_by_loops(list(views), 4)) for views in p])
    np.testing.assert_allclose(probabilities, p.mean(axis=1))
    assert (classes != probabilities.argmax(axis=1)).any()


def test_no_picture_gives_no_row_and_other_shapes_are_refused():
    classes, probabilities = vote(np.zeros((0, 3, 2)))
    assert classes.shape == (0,) and probabilities.shape == (0, 2)
    for shape in ((3, 2), (1, 0, 2)):
        with pytest.raises(InputError, match="one view or more"):
            vote(np.zeros(shape))
