"""What an exported file says of itself comes back as it was, or is refused."""

import json

import numpy as np
import pytest

from clipadapter.errors import ArtifactError
from clipadapter.runtime import ExportMetadata
from clipadapter.uncertainty import Calibrator, Conformal, DecisionOptions, Uncertainty, learn_rejector
from clipadapter.utils.pixels import PixelSpec

PIXELS = PixelSpec(224, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "squash", "bilinear")


def trusted():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((24, 5)), np.arange(24) % 3
    rejector = learn_rejector(X, y, 3, logits=rng.standard_normal((24, 3)), text=rng.standard_normal((3, 5)))
    conformal = Conformal(np.sort(rng.random(24)), y, np.zeros(24, np.int64), 3)
    calibrator = Calibrator(2.0, np.ones(3), np.zeros(3), 24)
    return Uncertainty(calibrator, rejector, conformal, DecisionOptions(0.1, 0.8, 1 - np.eye(3)), "folds", 1.25)


ABOUT = ExportMetadata(
    ("a", "b", "ß/ç"), (PIXELS,), trusted().without_arrays(), "float", "int8", {"name": "lite"}, {"name": "auto"}
)


def changed(**changes):
    return json.dumps({**json.loads(ABOUT.to_json()), **changes})


def test_everything_comes_back():
    found = ExportMetadata.from_json(ABOUT.to_json())
    assert found.class_names == ABOUT.class_names and found.inputs == (PIXELS,)
    assert (found.input, found.precision) == ("float", "int8")
    assert (found.encoder, found.head) == ({"name": "lite"}, {"name": "auto"})
    assert found.uncertainty.decisions.reject == 0.1 and found.uncertainty.logit_scale_ratio == 1.25
    for rate in (0.05, 0.3):
        assert found.uncertainty.rejector.threshold(rate) == ABOUT.uncertainty.rejector.threshold(rate)
    np.testing.assert_array_equal(found.uncertainty.conformal.scores, ABOUT.uncertainty.conformal.scores)
    np.testing.assert_array_equal(found.uncertainty.decisions.costs, 1 - np.eye(3))


def test_what_pictures_are_compared_with_stays_in_the_graph():
    arrays = set(json.loads(ABOUT.to_json())["uncertainty_arrays"])
    assert "rejector.held_out_scores" in arrays
    assert not {"rejector.text", "rejector.means", "rejector.basis"} & arrays


@pytest.mark.parametrize("number", [0, 2, 9])
def test_another_format_is_refused_in_one_sentence(number):
    with pytest.raises(ArtifactError, match=f"format {number}, this version reads 1: update clipadapter"):
        ExportMetadata.from_json(changed(format=number))


def trusted_otherwise(**changes):
    return changed(uncertainty={**json.loads(ABOUT.to_json())["uncertainty"], **changes})


def spoiled(**changes):
    arrays = json.loads(ABOUT.to_json())["uncertainty_arrays"]
    arrays["rejector.held_out_scores"] |= changes
    return changed(uncertainty_arrays=arrays)


WRONG_PIXELS = ({"size": 10**9}, {"size": 8.5}, {"mean": ["a", "b", "c"]}, {"std": [float("nan")] * 3})
WRONG_ARRAYS = ({"data": "AAAA"}, {"data": "%%%"}, {"shape": [10**12, 10**12]}, {"shape": [-1, 3]}, {"dtype": "|O"})


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "null", "{}", "[" * 100_000),
        *(changed(class_names=names) for names in (["a"], ["a", 2, "c"], ["a", "b"], ["a", "b", "a"])),
        *(changed(format=number) for number in ("1", True)),
        *(changed(inputs=inputs) for inputs in ([], [{"pixels": {"size": 224}}])),
        *(changed(inputs=[{"pixels": {**PIXELS.to_dict(), **wrong}}]) for wrong in WRONG_PIXELS),
        *(changed(input=value) for value in ([], "bytes")),
        *(changed(precision="fp8"), changed(encoder=3), changed(uncertainty=None), changed(uncertainty_arrays={})),
        trusted_otherwise(calibrator={"temperature": 10**400, "n": 1}),
        trusted_otherwise(calibrator={"temperature": 1.0, "n": float("inf")}),
        trusted_otherwise(logit_scale_ratio=10**400),
        trusted_otherwise(conformal={"by_class": False, "method": "cv+", "n_classes": 3}),
        *(spoiled(**wrong) for wrong in WRONG_ARRAYS),
    ],
)
def test_damage_is_refused(text):
    with pytest.raises(ArtifactError):
        ExportMetadata.from_json(text)
