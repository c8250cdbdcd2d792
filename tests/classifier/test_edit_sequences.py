"""Random sequences of edits equal a fit from scratch; benchmarks/service/edit_sequences.py runs ten thousand."""

import importlib.util
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from clipadapter import FewShotClassifier

EDITS = Path(__file__).parents[2] / "benchmarks" / "service" / "_edits.py"
SPEC = importlib.util.spec_from_file_location("edits", EDITS)
edits = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(edits)


def noise(count):
    """Pictures, no two alike."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (count, 1, 1, 3))
    return list(np.clip(colours + rng.integers(-60, 61, (count, 8, 8, 3)), 0, 255).astype(np.uint8))


class OfPictures(edits.Edits):
    """The same with pictures, an encoder that sees them, and the classifier that people have."""

    heads = ("gda:stream", "rail", "nearest-mean", "tip-adapter")
    pictures = noise(edits.POOL + edits.QUERIES)

    def classifier(self):
        return FewShotClassifier("toy", edits.head(self.head), cache=None)

    def loaded(self, folder):
        return FewShotClassifier.load(folder, cache=None)


def run(machine, examples, steps, number=0):
    machine.done = edits.Counter()
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        seed(number)(machine),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=[Phase.generate],
            database=None,
            suppress_health_check=checks,
        ),
    )
    return machine.done


def test_pictures_changed_in_any_order_give_what_a_fit_from_scratch_gives():
    done = run(OfPictures, 3, 8)
    assert done["sequences"] >= 3 and done["comparisons"] > 10 and done["answers"] > 50


def test_rows_of_a_table_do_too_and_every_kind_of_change_is_tried():
    """Of ten sequences one in ten lacks a kind of change, so that more are made then."""
    kinds = {"add_class", "add_examples", "correct", "remove_class", "rename_class", "undo", "save", "load", "refused"}
    done = edits.Counter()
    for number in range(10):
        done += run(type("Prototypes", (edits.Edits,), {"every_step": False}), 10, 10, number)
        if kinds <= set(done):
            return
    raise AssertionError(done)
