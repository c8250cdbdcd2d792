"""A fitted model, exported by the server itself, answers as it does."""

import json

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from clipadapter import FewShotClassifier
from clipadapter.serve import ServedModels, create_app
from clipadapter.uncertainty import UncertaintyOptions

pytest.importorskip("onnx")


@pytest.fixture
def shots(tmp_path):
    rng = np.random.default_rng(0)
    paths, labels = [], []
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200)), ("green", (30, 200, 30))):
        for i in range(4):
            pixels = np.clip(np.array(colour) + rng.integers(-30, 30, (50, 40, 3)), 0, 255).astype(np.uint8)
            paths.append(tmp_path / f"{name}{i}.png")
            Image.fromarray(pixels).save(paths[-1])
            labels.append(name)
    return paths, labels


def test_a_saved_model_predicts_as_the_classifier(shots, tmp_path):
    paths, labels = shots
    model = FewShotClassifier(encoder="toy", uncertainty=UncertaintyOptions(reject=0.1)).fit(paths, labels)
    model.save(tmp_path / "saved")
    wanted = model.classify(paths, top=3)
    with TestClient(create_app(ServedModels([str(tmp_path / "saved")]))) as client:
        files = [("images", (path.name, path.read_bytes())) for path in paths]
        found = client.post("/v1/models/saved/predict", files=files, data={"top": 3}).json()["predictions"]
        described = client.get("/v1/models/saved").json()
    assert [one["label"] for one in found] == [one.label for one in wanted]
    assert [one["reason"] for one in found] == [one.reason for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one["probability"], other.probability, rtol=1e-4)
    assert described["classes"] == list(model.class_names_) and described["can"]["reject"]
    assert described["encoder"] == "toy[final,inner]" and str(tmp_path) not in json.dumps(described)
