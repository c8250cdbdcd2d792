"""The reference made of a model's shots."""

import numpy as np

from clipadapter.monitor.detection import reference_from_shots

EQUAL_PRIORS = (1 / 3, 1 / 3, 1 / 3)


def test_shots_and_new_pictures_are_predicted_by_fits_of_one_kind(world):
    shot_confidences, new_confidences = [], []
    for _ in range(20):
        model = world.model(k=4, spread=4.0)
        reference = reference_from_shots(model, None, None)
        pictures = world.draw(EQUAL_PRIORS, 200, spread=4.0)[0]
        shot_confidences.append(reference.probabilities.max(axis=1).mean())
        new_confidences.append(reference.held_out.predict(pictures).max(axis=1).mean())
    assert abs(np.mean(shot_confidences) - np.mean(new_confidences)) < 0.03


def test_new_pictures_are_predicted_by_each_fold_in_turn(world):
    predict = reference_from_shots(world.model(k=5), None, None).held_out.predict
    pictures = world.draw(EQUAL_PRIORS, 12)[0]
    by_first_fold = np.concatenate([predict(pictures[i : i + 1]) for i in range(12)])
    together = predict(pictures)
    assert np.allclose(together[::5], by_first_fold[::5]) and not np.allclose(together, by_first_fold)


def test_shots_above_the_threshold_are_counted(world):
    model = world.model(k=8)
    reference = reference_from_shots(model, 0.2, None)
    scores = model.uncertainty_.rejector.weighted_sum(model.uncertainty_.rejector.held_out_scores)
    assert reference.n_rejected == (scores > np.sort(scores)[19]).sum() == 4  # the 20th of 24: ceil(25 * 0.8)
    assert (reference.n_scored, reference_from_shots(model, None, None).n_scored) == (24, 0)
