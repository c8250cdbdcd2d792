"""A model that looks at pictures in two sizes: files of pictures as ever, tensors with one input per size."""

import json

import numpy as np
import pytest

from clipadapter.pixels import PixelSpec, unpack_squares
from clipadapter.runtime import Outputs
from clipadapter.serve import Limits

from .colours import BLUE, RED, SIDE, Colours, base64_of, refused

URL = "/v2/models/colours/infer"
SMALL, LARGE = np.zeros((2, SIDE, SIDE, 3), np.uint8), np.zeros((2, 6, 6, 3), np.uint8)
SMALL[0, ..., 0] = LARGE[0, ..., 0] = 255
SMALL[1, ..., 2] = LARGE[1, ..., 1] = 255


class TwoSizes(Colours):
    """Logits are ten times the mean of each channel over both squares."""

    further_inputs = (PixelSpec(6, (0.0,) * 3, (1.0,) * 3),)

    def run(self, squares):
        small, large = (part.mean(axis=(1, 2)).reshape(-1, 3) / 255 for part in unpack_squares(squares, self.inputs))
        self.batches.append(len(squares))
        return Outputs(5 * (small + large), small, 1 - small.max(axis=1, keepdims=True, initial=0))


@pytest.fixture
def client(serve):
    return serve(Limits(max_pictures=2, queue=4), model=TwoSizes())


def tensor(name, rows, **changes):
    return {"name": name, "datatype": "UINT8", "shape": list(rows.shape), "data": rows.tolist(), **changes}


def logits(response):
    assert response.status_code == 200, response.text
    return next(each["data"] for each in response.json()["outputs"] if each["name"] == "logits")


def test_metadata_have_an_input_for_each_size(client):
    assert client.get("/v2/models/colours").json()["inputs"] == [
        {"name": "squares", "datatype": "UINT8", "shape": [-1, 4, 4, 3]},
        {"name": "squares_6", "datatype": "UINT8", "shape": [-1, 6, 6, 3]},
        {"name": "images", "datatype": "BYTES", "shape": [-1]},
    ]


def test_squares_come_in_any_order_as_numbers_or_bytes(client):
    tensors = [tensor("squares", SMALL), tensor("squares_6", LARGE)]
    expected = [10, 0, 0, 0, 5, 5]
    assert logits(client.post(URL, json={"inputs": tensors})) == expected
    assert logits(client.post(URL, json={"inputs": tensors[::-1]})) == expected
    parts = [
        {
            **{key: value for key, value in each.items() if key != "data"},
            "parameters": {"binary_data_size": rows.nbytes},
        }
        for each, rows in zip(tensors[::-1], (LARGE, SMALL), strict=True)
    ]
    for inputs, tail in ((parts, LARGE.tobytes() + SMALL.tobytes()), ([tensors[0], parts[0]], LARGE.tobytes())):
        head = json.dumps({"inputs": inputs}).encode()
        headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
        assert logits(client.post(URL, content=head + tail, headers=headers)) == expected


def test_files_of_pictures_are_prepared_in_both_sizes(client):
    data = [base64_of(RED), base64_of(BLUE)]
    images = {"inputs": [{"name": "images", "shape": [2], "datatype": "BYTES", "data": data}]}
    assert logits(client.post(URL, json=images)) == [10, 0, 0, 0, 0, 10]
    answer = client.post("/v1/models/colours/predict", files=[("images", ("red.png", RED))])
    assert answer.json()["predictions"][0]["label"] == "red"


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([tensor("squares", SMALL)], "inputs must be all of 'squares', 'squares_6', each once, or 'images' alone"),
        ([tensor("squares", SMALL)] * 2, "each once"),
        ([tensor("squares", SMALL), tensor("squares_8", LARGE)], "no input 'squares_8', but 'squares' and 'squares_6'"),
        ([tensor("squares", SMALL), tensor("squares_6", SMALL)], "squares_6 must have the shape ['n', 6, 6, 3]"),
        (
            [tensor("squares", SMALL), tensor("squares_6", LARGE[:1])],
            "same number of pictures, but there are 2 of squares, 1 of squares_6",
        ),
        ([], "inputs must be a list of tensors"),
        ([tensor("squares", SMALL)] * 3, "inputs must be a list of tensors"),
        ([tensor("squares", SMALL), 5], "inputs must be a list of tensors"),
        ([tensor("squares", SMALL), {"name": "images"}], "or 'images' alone, but are squares, images"),
        ([tensor("squares", SMALL), {"shape": [1]}], "no input 'None'"),
    ],
)
def test_what_does_not_fit_is_refused(inputs, words, client):
    assert refused(client.post(URL, json={"inputs": inputs}), 400, words)


def test_the_limit_of_pictures_holds_for_each_input(client):
    many = np.zeros((3, 6, 6, 3), np.uint8)
    inputs = [tensor("squares", SMALL), tensor("squares_6", many)]
    assert refused(client.post(URL, json={"inputs": inputs}), 413, "2")
