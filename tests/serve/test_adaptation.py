"""Test-time adaptation is off unless it is switched on; then pictures change later answers until a reset."""

import numpy as np
import pytest

from clipadapter.adaptation import TdaCache
from clipadapter.errors import InputError
from clipadapter.prediction import softmax
from clipadapter.serve import ServedModels

from .colours import BLUE, GREY, NAMES, RED, Colours, base64_of, picture, refused, several

PICTURES = [RED, BLUE, picture((200, 60, 60)), picture((120, 120, 100)), GREY]


def ask(client, *pictures, **options):
    answer = client.post("/v1/predict", json={"images": [base64_of(one) for one in pictures], "top": 3, **options})
    assert answer.status_code == 200, answer.text
    return answer.json()


def probabilities(answer):
    rows = [{one["label"]: one["score"] for one in prediction["top"]} for prediction in answer["predictions"]]
    return np.array([[row[name] for name in NAMES] for row in rows])


def outputs_of(pictures):
    """What the model gives for each picture alone."""
    model = Colours()
    return [model.run(model.preprocess("", data)[None]) for data in pictures]


def test_it_is_off_by_default(serve):
    client = serve()
    first, second = ask(client, *PICTURES), ask(client, *PICTURES)
    assert first == second and first["adaptation"] is None
    assert client.get("/v1/models/colours").json()["adaptation"] is None
    assert refused(client.delete("/v1/models/colours/adaptation"), 404, "--adapt tda")


def test_answers_are_those_of_a_cache_that_sees_the_same_stream(serve):
    client, cache = serve(adapt="tda"), TdaCache(3)
    for outputs, data in zip(outputs_of(PICTURES), PICTURES, strict=True):
        answer = ask(client, data)
        logits = outputs.logits - np.log(np.exp(outputs.logits).sum(axis=1, keepdims=True))
        expected = softmax(cache.adapt(outputs.features, logits))
        np.testing.assert_allclose(probabilities(answer), expected, atol=1e-6)
        assert answer["adaptation"] == "tda"
    about = client.get("/v1/models/colours").json()["adaptation"]
    assert about == {"method": "tda", "items": len(cache), "max_items": 15, "max_bytes": cache.max_bytes(3)}


def test_a_reset_forgets_the_pictures(serve):
    client = serve(adapt="tda")
    first = ask(client, PICTURES[3])
    ask(client, *PICTURES[:3])
    assert ask(client, PICTURES[3]) != first
    forgotten = client.delete("/v1/models/colours/adaptation").json()
    assert forgotten["model"] == "colours" and forgotten["forgotten"] > 0
    assert ask(client, PICTURES[3]) == first
    assert refused(client.delete("/v1/models/nix/adaptation"), 404, "nix")


def test_a_reset_needs_the_token(serve):
    client = serve(adapt="tda", token="secret")
    assert refused(client.delete("/v1/models/colours/adaptation"), 401, "token")


def test_rejection_goes_by_what_was_learned_without_adaptation(serve):
    plain, adapted = serve(), serve(adapt="tda", model=Colours())
    ask(adapted, *PICTURES)
    for answer in (ask(plain, GREY, RED, reject=0.1), ask(adapted, GREY, RED, reject=0.1)):
        assert [one["label"] for one in answer["predictions"]] == [None, "red"]


def test_metrics_count_items_and_resets(serve):
    client = serve(adapt="tda")
    ask(client, *PICTURES)
    items = client.get("/v1/models/colours").json()["adaptation"]["items"]
    assert f'clipadapter_adaptation_items{{model="colours"}} {float(items)}' in client.get("/metrics").text
    client.delete("/v1/models/colours/adaptation")
    text = client.get("/metrics").text
    assert 'clipadapter_adaptation_items{model="colours"} 0.0' in text
    assert 'clipadapter_adaptation_resets_total{model="colours"} 1.0' in text


def test_pictures_whose_class_it_changed_are_counted(serve):
    client = serve(adapt="tda")
    # Nearly red, then a picture between red and green that is a little more green.
    ask(client, *[picture((140, 128, 0))] * 3)
    answer = ask(client, picture((128, 130, 0)))
    assert answer["predictions"][0]["label"] == "red"
    assert 'clipadapter_adapted_pictures_total{model="colours"} 1.0' in client.get("/metrics").text


def test_a_model_with_several_labels_is_refused(files):
    with pytest.raises(InputError, match=r"colours\.onnx can't be adapted: .* multi-label"):
        ServedModels([str(files / "colours.onnx")], opener=lambda path: Colours(several()), adapt="tda")
