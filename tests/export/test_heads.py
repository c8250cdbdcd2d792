"""Every head that is a function of features answers from a file as it does from the model."""

import numpy as np
import pytest

from clipadapter.backends.formats import get_format
from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import InputError
from clipadapter.export import export_model
from clipadapter.heads import head_info, list_heads
from clipadapter.runtime import Predictor

NOT = {"cocoop": "no fixed function of features"}
"""Heads that can't be exported, and what they say."""
OF_EACH_FAMILY = ("auto", "clip-adapter", "coop", "clip-lora", "gda", "knn", "rail", "tip-adapter", "zlap")
"""Heads that are written in both formats: both are made of the same operations of torch."""
FORMATS = {name: get_format(name).suffix for name in ("onnx", "openvino")}
SEVERAL = [name for name in list_heads() if head_info(name).cls.multilabel]


@pytest.mark.parametrize(
    ("head", "format"),
    [*((name, "onnx") for name in list_heads() if name not in NOT), *((name, "openvino") for name in OF_EACH_FAMILY)],
)
def test_a_head_answers_alike_for_any_number_of_pictures(head, format, fitted, encoder_for, folders, draw, tmp_path):
    model = fitted(head, encoder_for(head, folders))
    done = export_model(model, tmp_path / f"model{FORMATS[format]}", format=format)
    assert done.parity["agreement"] == 1.0
    predictor, (pictures, _) = Predictor(done.path), draw(3, seed=2)
    squares = np.stack([predictor.preprocess(picture) for picture in pictures])
    wanted = model.logits(pictures)
    for n in (1, 2, 9):
        found = predictor.run(squares[:n])
        np.testing.assert_allclose(found.logits, wanted[:n], atol=1e-4 * wanted.std(), rtol=1e-4)
        np.testing.assert_allclose(found.probabilities, model.uncertainty_.probabilities(wanted[:n]), atol=1e-4)


@pytest.mark.parametrize("head", ["auto", "bdc-adapter", "tip-adapter", "gda", "zlap"])
def test_a_class_without_a_shot(head, fitted, draw, tmp_path):
    pictures, labels = draw(3)
    model = FewShotClassifier("toy", head, cache=None, seed=1)
    more = {"unlabelled": draw(4, seed=1)[0]} if head_info(head).cls.transductive else {}
    model.fit(pictures, labels, ["red", "yellow", "green", "blue"], **more)
    predictor = Predictor(export_model(model, tmp_path / "model.onnx").path)
    others, _ = draw(2, seed=3)
    np.testing.assert_allclose(predictor.predict_proba(others), model.predict_proba(others), atol=1e-5)


@pytest.mark.parametrize("head", SEVERAL)
def test_several_labels_a_picture(head, fitted, draw, tmp_path):
    model = fitted(head, several=True)
    predictor = Predictor(export_model(model, tmp_path / "model.onnx").path)
    pictures, _ = draw(3, seed=2)
    assert predictor.predict(pictures) == model.predict(pictures)
    found = predictor.run(np.stack([predictor.preprocess(picture) for picture in pictures]))
    np.testing.assert_allclose(found.probabilities, model.predict_proba(pictures), atol=1e-5)


@pytest.mark.parametrize(("head", "why"), NOT.items())
def test_a_head_that_is_none_says_why(head, why, fitted, draw, tmp_path):
    model = fitted(head, n=1)
    for format, suffix in FORMATS.items():
        with pytest.raises(InputError, match=why):
            export_model(model, tmp_path / f"model{suffix}", format=format)
    assert not list(tmp_path.iterdir())
