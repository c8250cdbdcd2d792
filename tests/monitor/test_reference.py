"""What is usual, by the model's shots."""

import numpy as np

from clipadapter.monitor.reference import from_shots


def test_shots_and_new_pictures_are_asked_by_fits_of_one_kind(world):
    shots, new = [], []
    for _ in range(20):
        model = world.model(k=4, spread=4.0)
        reference = from_shots(model, None, None)
        pictures = world.draw((1 / 3, 1 / 3, 1 / 3), 200, spread=4.0)[0]
        shots.append(reference.probabilities.max(axis=1).mean())
        new.append(reference.again(pictures).max(axis=1).mean())
    assert abs(np.mean(shots) - np.mean(new)) < 0.03


def test_each_new_picture_is_asked_of_one_fold_in_turn(world):
    model = world.model(k=5)
    again = from_shots(model, None, None).again
    pictures = world.draw((1 / 3, 1 / 3, 1 / 3), 12)[0]
    alone = np.concatenate([again(pictures[i : i + 1]) for i in range(12)])  # always the first fold
    found = again(pictures)
    assert np.allclose(found[::5], alone[::5]) and not np.allclose(found, alone)


def test_counts_of_strange_shots_are_those_of_the_threshold(world):
    model = world.model(k=8)
    reference = from_shots(model, 0.2, None)
    scores = model.uncertainty_.rejector.total(model.uncertainty_.rejector.held_out)
    assert reference.rejected == (scores > np.sort(scores)[19]).sum() == 4  # the 20th of 24: ceil(25 * 0.8)
    assert (reference.judged, from_shots(model, None, None).judged) == (24, 0)
