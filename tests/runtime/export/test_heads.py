"""Every head that is a function of features answers from a file as it does from the model."""

import numpy as np
import pytest

from clipadapter.heads import head_info, list_heads
from clipadapter.runtime import Predictor
from clipadapter.runtime.engines.formats import get_format
from clipadapter.runtime.export import export_model

NOT = ("cocoop",)
"""Heads that can't be exported; tests/cli/commands/test_export.py has what is said."""
IN_OPENVINO = ("auto", "clip-lora", "gda", "knn", "rail", "tip-adapter", "zlap")
"""Heads of other operations of torch that are written in both formats."""
CLASS_WITHOUT_SHOT = ("auto", "bdc-adapter", "gda", "tip-adapter", "zlap")
"""Heads of families that treat such a class apart."""
FORMATS = {name: get_format(name).suffix for name in ("onnx", "openvino")}
SEVERAL = [name for name in list_heads() if head_info(name).cls.multilabel]


def encoder_for(head, folders):
    """The toy, or what else a head needs."""
    cls = head_info(head).cls
    if cls.reads == "second-encoder":
        return "toy[final,toy/final]"
    return f"open_clip:local-dir:{folders['tiny']}" if cls.tunes_encoder else "toy"


@pytest.mark.parametrize(
    ("head", "format"),
    [*((name, "onnx") for name in list_heads() if name not in NOT), *((name, "openvino") for name in IN_OPENVINO)],
)
def test_a_head_answers_alike_for_any_number_of_pictures(head, format, fitted, folders, draw, tmp_path):
    names = ("red", "yellow", "green", "blue") if head in CLASS_WITHOUT_SHOT and format == "onnx" else None
    model = fitted(head, encoder_for(head, folders), names=names, calibration="none")
    done = export_model(model, tmp_path / f"model{FORMATS[format]}", format=format)
    assert done.parity["agreement"] == 1.0
    predictor, (pictures, _) = Predictor(done.path), draw(3, seed=2)
    squares = np.stack([predictor.preprocess(picture) for picture in pictures])
    wanted = model.logits(pictures)
    for n in (1, 2, 9):
        found = predictor.run(squares[:n])
        np.testing.assert_allclose(found.logits, wanted[:n], atol=1e-4 * wanted.std(), rtol=1e-4)
        np.testing.assert_allclose(found.probabilities, model.uncertainty_.probabilities(wanted[:n]), atol=1e-4)


@pytest.mark.parametrize("head", SEVERAL)
def test_several_labels_a_picture(head, fitted, draw, tmp_path):
    model = fitted(head, several=True)
    predictor = Predictor(export_model(model, tmp_path / "model.onnx").path)
    pictures, _ = draw(3, seed=2)
    assert predictor.predict(pictures) == model.predict(pictures)
    found = predictor.run(np.stack([predictor.preprocess(picture) for picture in pictures]))
    np.testing.assert_allclose(found.probabilities, model.predict_proba(pictures), atol=1e-5)
