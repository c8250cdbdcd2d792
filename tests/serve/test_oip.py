"""The Open Inference Protocol, by its specification; the module names the sources."""

import json
import struct

import numpy as np
import pytest

from clipadapter import __version__
from clipadapter.serve import Limits

from .colours import BLUE, GREY, RED, SIDE, Colours, base64_of, picture, refused, several

URL = "/v2/models/colours/infer"
SQUARE = np.zeros((2, SIDE, SIDE, 3), np.uint8)
SQUARE[0, ..., 0] = 255
SQUARE[1, ..., 2] = 255


def squares(data, shape=(2, SIDE, SIDE, 3), **changes):
    return {"inputs": [{"name": "squares", "shape": list(shape), "datatype": "UINT8", "data": data, **changes}]}


def images(*pictures, **changes):
    data = [base64_of(one) for one in pictures]
    return {"inputs": [{"name": "images", "shape": [len(data)], "datatype": "BYTES", "data": data, **changes}]}


def binary(question, tail):
    """A request with bytes after its JSON."""
    head = json.dumps(question).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    return {"content": head + tail, "headers": headers}


def outputs(response):
    assert response.status_code == 200, response.text
    return {one["name"]: one for one in response.json()["outputs"]}


def test_server_metadata(serve):
    client = serve()
    facts = {"name": "clipadapter", "version": __version__, "extensions": ["binary_tensor_data"]}
    assert client.get("/v2").json() == client.get("/v2/").json() == facts
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"live": True, "ready": True}
    client.app.state.server.is_stopping = True
    assert client.get("/v2/health/ready").status_code == 503
    assert client.get("/v2/health/live").status_code == 200


def test_model_metadata_has_inputs_and_outputs(serve):
    client = serve()
    found = client.get("/v2/models/colours").json()
    assert found["inputs"] == [
        {"name": "squares", "datatype": "UINT8", "shape": [-1, 4, 4, 3]},
        {"name": "images", "datatype": "BYTES", "shape": [-1]},
    ]
    names = [one["name"] for one in found["outputs"]]
    assert names == ["logits", "probabilities", "ood_scores", "features", "labels"]
    (version,) = found["versions"]
    assert client.get(f"/v2/models/colours/versions/{version}").json() == found
    ready = {"name": "colours", "ready": True}
    assert client.get("/v2/models/colours/ready").json() == ready
    assert client.get(f"/v2/models/colours/versions/{version}/ready").json() == ready
    assert outputs(client.post(f"/v2/models/colours/versions/{version}/infer", json=images(RED)))
    for path in ("", "/ready"):
        assert refused(client.get(f"/v2/models/colours/versions/1{path}"), 404, f"the version {version}")
        assert refused(client.get(f"/v2/models/nix{path}"), 404)
    assert refused(client.post("/v2/models/colours/versions/1/infer", json=images(RED)), 404)


def test_the_ood_score_is_an_output_only_if_the_model_can_reject(serve):
    client = serve(model=Colours(several()))
    assert "ood_scores" not in [one["name"] for one in client.get("/v2/models/colours").json()["outputs"]]
    assert "ood_scores" not in outputs(client.post(URL, json=images(RED)))
    assert refused(client.post(URL, json={**images(RED), "outputs": [{"name": "ood_scores"}]}), 400)


@pytest.mark.parametrize("data", [SQUARE.ravel().tolist(), SQUARE.tolist()], ids=["flat", "nested"])
def test_squares_are_predicted(serve, data):
    answer = serve().post(URL, json={"id": "42", **squares(data)})
    body, found = answer.json(), outputs(answer)
    assert body["id"] == "42" and body["model_name"] == "colours" and len(body["model_version"]) == 12
    assert list(found) == ["logits", "probabilities", "ood_scores", "labels"]
    assert found["logits"] == {"name": "logits", "datatype": "FP32", "shape": [2, 3], "data": [10, 0, 0, 0, 0, 10]}
    wanted = np.exp([10.0, 0.0, 0.0]) / np.exp([10.0, 0.0, 0.0]).sum()
    np.testing.assert_allclose(found["probabilities"]["data"][:3], wanted, rtol=1e-6)
    assert found["ood_scores"] == {"name": "ood_scores", "datatype": "FP32", "shape": [2], "data": [0, 0]}
    assert found["labels"] == {"name": "labels", "datatype": "BYTES", "shape": [2], "data": ["red", "blue"]}


def test_pictures_give_the_same_outputs_as_their_squares(serve):
    client = serve(model=None)
    by_picture = outputs(client.post(URL, json=images(RED, BLUE)))
    assert by_picture == outputs(client.post(URL, json=squares(SQUARE.ravel().tolist())))
    tail = b"".join(struct.pack("<I", len(one)) + one for one in (RED, BLUE))
    asked = images(RED, BLUE, parameters={"binary_data_size": len(tail)})
    del asked["inputs"][0]["data"]
    assert by_picture == outputs(client.post(URL, **binary(asked, tail)))


def test_squares_may_be_sent_as_bytes(serve):
    client, data = serve(), SQUARE.tobytes()
    asked = squares(None, parameters={"binary_data_size": len(data)})
    del asked["inputs"][0]["data"]
    assert outputs(client.post(URL, **binary(asked, data))) == outputs(client.post(URL, json=squares(SQUARE.tolist())))


def test_outputs_may_be_sent_as_bytes(serve):
    client = serve()
    asked = {
        **images(RED, BLUE),
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "labels"}, {"name": "logits"}, {"name": "features", "parameters": {"binary_data": False}}],
    }
    answer = client.post(URL, json=asked)
    size = int(answer.headers["inference-header-content-length"])
    head, tail = json.loads(answer.content[:size]), answer.content[size:]
    assert answer.headers["content-type"] == "application/octet-stream"
    labels, logits, features = head["outputs"]
    assert labels["parameters"] == {"binary_data_size": 4 + 3 + 4 + 4} and "data" not in labels
    assert tail[:15] == b"\x03\0\0\0red\x04\0\0\0blue"
    assert logits["parameters"] == {"binary_data_size": 24} and len(tail) == 15 + 24
    np.testing.assert_array_equal(np.frombuffer(tail[15:], "<f4").reshape(2, 3), [[10, 0, 0], [0, 0, 10]])
    assert features["data"] == [1, 0, 0, 0, 0, 1]


def test_only_requested_outputs_are_sent(serve):
    found = outputs(serve().post(URL, json={**images(RED), "outputs": [{"name": "features"}]}))
    assert list(found) == ["features"] and found["features"]["shape"] == [1, 3]


def test_labels_of_rejected_and_multilabel_pictures(serve):
    asked = {**images(GREY, RED), "parameters": {"reject": 0.1}, "outputs": [{"name": "labels"}]}
    assert outputs(serve().post(URL, json=asked))["labels"]["data"] == ["", "red"]
    client = serve(model=Colours(several()))
    found = outputs(client.post(URL, json=images(picture((255, 255, 0)), picture(0))))["labels"]["data"]
    assert sorted(found[0].split("|")) == ["green", "red"] and found[1] == ""


def test_an_unreadable_picture_fails_the_request(serve):
    client = serve()
    assert refused(client.post(URL, json=images(RED, b"nothing")), 422, "picture 1 can't be read: not an image")
    asked = images(RED)
    asked["inputs"][0]["data"] = ["/etc/passwd"]
    assert refused(client.post(URL, json=asked), 422, "paths and addresses are not opened")


FLAT = SQUARE.ravel().tolist()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ([], "JSON object"),
        ({}, "inputs must be a list of one tensor"),
        ({"inputs": []}, "inputs must be"),
        ({"inputs": [1]}, "inputs must be"),
        ({"inputs": squares(FLAT)["inputs"] * 2}, "inputs must be"),
        (squares(FLAT, name="pixels"), "no input 'pixels'"),
        (squares(FLAT, name=None), "no input"),
        (squares(FLAT, name=[]), "no input"),
        (squares(FLAT, datatype="FP32"), "datatype UINT8"),
        (squares(FLAT, datatype=["UINT8"]), "datatype UINT8"),
        (squares(FLAT, (2, 3, SIDE, SIDE)), "must have the shape"),
        (squares(FLAT, (0, SIDE, SIDE, 3)), "n from 1"),
        (squares(FLAT, (-2, SIDE, SIDE, 3)), "n from 1"),
        (squares(FLAT, (2.0, SIDE, SIDE, 3)), "n from 1"),
        (squares(FLAT, (True, SIDE, SIDE, 3)), "n from 1"),
        (squares(FLAT, ()), "n from 1"),
        (images(RED, shape={"a": 1}), "n from 1"),
        (squares(FLAT, (3, SIDE, SIDE, 3)), "96 values"),
        (squares(FLAT, (10**30, SIDE, SIDE, 3)), "at most"),
        (squares(FLAT[:-1]), "95 values"),
        (squares(FLAT[:-1] + [256]), "whole numbers from 0 to 255"),
        (squares(FLAT[:-1] + [-1]), "whole numbers from 0 to 255"),
        (squares(FLAT[:-1] + [10**40]), "whole numbers from 0 to 255"),
        (squares(FLAT[:-1] + [1.5]), "whole numbers from 0 to 255"),
        (squares(FLAT[:-1] + [True]), "whole numbers from 0 to 255"),
        (squares(FLAT[:-1] + ["1"]), "whole numbers from 0 to 255"),
        (squares(FLAT[:-1] + [None]), "whole numbers from 0 to 255"),
        (squares(FLAT[:-1] + [[1]]), "whole numbers from 0 to 255"),
        (squares([FLAT, FLAT]), "192 values"),
        (squares([FLAT[:48], FLAT[48:]]), "nested as the shape"),
        (squares([FLAT[:1], FLAT[1:]]), "nested as the shape"),
        (squares(SQUARE[:, 0].tolist() * 4), "nested as the shape"),
        (squares("abc"), "must be a list"),
        (squares(None), "must be a list"),
        (squares(FLAT, parameters=[]), "must be an object"),
        (squares(FLAT, parameters={"binary_data_size": 96}), "0 bytes follow"),
        (squares(FLAT, parameters={"binary_data_size": "x"}), "0 bytes follow"),
        (images(RED, shape=[2]), "1 values"),
        (images(RED, shape=[1, 1]), "must have the shape"),
        (images(RED, data=[1]), "base64"),
        ({**images(RED), "id": 7}, "id must be a text"),
        ({**images(RED), "id": "x" * 2000}, "id must be a text"),
        ({**images(RED), "parameters": "x"}, "must be an object"),
        ({**images(RED), "parameters": {"reject": 2}}, "reject must be"),
        ({**images(RED), "parameters": {"reject": True}}, "reject must be"),
        ({**images(RED), "parameters": {"binary_data_output": 1}}, "true or false"),
        ({**images(RED), "outputs": "logits"}, "outputs must be"),
        ({**images(RED), "outputs": ["logits"]}, "outputs must be"),
        ({**images(RED), "outputs": [{"name": 1}]}, "outputs must be"),
        ({**images(RED), "outputs": [{"name": "x"}]}, "no output 'x', but logits"),
        ({**images(RED), "outputs": [{"name": "logits"}] * 2}, "requested twice"),
    ],
)
def test_the_error_of_an_invalid_request_names_the_mistake(serve, asked, words):
    response = serve().post(URL, json=asked)
    assert refused(response, 413 if words == "at most" else 400, words)


@pytest.mark.parametrize(
    ("asked", "tail", "length", "words"),
    [
        (squares(None, parameters={"binary_data_size": 96}), b"x" * 95, None, "95 bytes follow"),
        (squares(None, (1, SIDE, SIDE, 3), parameters={"binary_data_size": 96}), b"x" * 96, None, "96 bytes"),
        (images(parameters={"binary_data_size": 3}, shape=[1]), b"abc", None, "break off within a length"),
        (images(parameters={"binary_data_size": 5}, shape=[1]), b"\x09\0\0\0a", None, "9 bytes are announced"),
        (images(parameters={"binary_data_size": 5}, shape=[2]), b"\x01\0\0\0a", None, "not the 2"),
        (images(parameters={"binary_data_size": 6}, shape=[1]), b"\x01\0\0\0ab", None, "not the 1"),
        (images(RED), b"", "0", "Content-Length is 0"),
        (images(RED), b"", "-5", "Content-Length is -5"),
        (images(RED), b"", "99999999", "Content-Length is 99999999"),
        (images(RED), b"", "5", "no JSON"),
    ],
)
def test_the_error_of_invalid_bytes_names_the_mistake(serve, asked, tail, length, words):
    request = binary(asked, tail)
    if length is not None:
        request["headers"]["inference-header-content-length"] = length
    assert refused(serve().post(URL, **request), 400, words)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"inputs": NaN}', b"[" * 100_000, b'{"a":' * 50_000, b'"\\ud800"']
)
def test_invalid_json_is_refused(serve, body):
    assert refused(serve().post(URL, content=body), 400)


def test_too_many_squares_are_refused(serve):
    client = serve(Limits(max_pictures=1))
    assert refused(client.post(URL, json=squares(FLAT)), 413, "1 pictures at most")


def test_long_bodies_are_parsed_in_a_thread(serve):
    assert len(outputs(serve().post(URL, json={**images(RED), "parameters": {"filler": "x" * 100_000}}))) == 4
