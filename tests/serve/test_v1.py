"""Pictures in, class names out."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from clipadapter.cli.app import app
from clipadapter.serve import Limits

from .colours import BLUE, GREY, RED, Colours, ask, described, picture, refused, several

FILES = [("images", ("a.png", RED)), ("images", ("b.png", BLUE))]


@pytest.mark.parametrize("asked", [{}, {"top": 2}, {"reject": 0.1}, {"reject": 0.1, "coverage": 0.8, "top": 1}])
def test_predictions_are_those_of_the_command(serve, files, tmp_path, asked):
    client, paths = serve(model=None), []
    for name, data in (("red.png", RED), ("grey.png", GREY), ("bad.png", b"no picture")):
        (tmp_path / name).write_bytes(data)
        paths.append(tmp_path / name)
    options = [text for name, value in {"top": 5, **asked}.items() for text in (f"--{name}", str(value))]
    said = CliRunner().invoke(app, ["predict", str(files / "colours.onnx"), *map(str, paths), "--json", *options])
    wanted = [json.loads(line) for line in said.stdout.splitlines()]
    form = client.post(
        "/v1/predict", files=[("images", (path.name, path.read_bytes())) for path in paths], data=asked
    ).json()
    plain = ask(client, RED, GREY, b"no picture", **asked).json()
    for place, line in enumerate(wanted):
        assert form["predictions"][place] == {**line, "source": paths[place].name}
        assert plain["predictions"][place] == {**line, "source": f"image {place}"}


def test_files_are_answered_in_their_order_and_one_that_is_unreadable_affects_no_other(client):
    files = [("images", ("a.png", RED)), ("x", ("b.png", RED[:45])), ("y", ("c.png", b"")), ("z", ("d.png", BLUE))]
    answer = client.post("/v1/predict", files=files).json()
    assert answer["model"] == "colours" and len(answer["version"]) == 12
    found = answer["predictions"]
    assert [(one["source"], one["label"]) for one in found] == (
        [("a.png", "red"), ("b.png", None), ("c.png", None), ("d.png", "blue")]
    )
    assert [one["error"] for one in found] == [None, "file is truncated", "file is empty", None]


def test_no_path_or_address_is_opened(client, tmp_path, monkeypatch):
    (tmp_path / "red.png").write_bytes(RED)

    def opened(self, *args, **kwargs):
        raise AssertionError(f"{self} was opened")

    texts = [str(tmp_path / "red.png"), "abcd", "http://localhost/red.png", "file:///red.png", "red.png", "-"]
    files = [("images", (str(tmp_path / "red.png"), b""))]
    with monkeypatch.context() as patch:
        for name in ("open", "read_bytes", "stat"):
            patch.setattr(Path, name, opened)
        found = client.post("/v1/predict", json={"images": texts}).json()["predictions"]
        found += client.post("/v1/predict", files=files).json()["predictions"]
    assert [one["label"] for one in found] == [None] * 7


def test_without_rejection_a_picture_unlike_every_class_is_marked_and_keeps_its_answer(serve):
    model = Colours()
    model.uncertainty = type(model.uncertainty)(
        rejector=model.uncertainty.rejector, decisions=model.uncertainty.decisions.with_changes({"reject": 0.1})
    )
    client = serve(model=model)
    assert ask(client, GREY).json()["predictions"][0]["label"] is None
    grey, red = ask(client, GREY, RED, reject=None).json()["predictions"]
    assert (grey["label"], grey["unlike_every_class"], red["unlike_every_class"]) == (grey["nearest"], True, False)
    assert grey["reason"] is not None and grey["ood_score"] > red["ood_score"]


def test_multilabel_predictions_have_all_labels(serve):
    found = ask(serve(model=Colours(several())), picture((255, 255, 0)), picture(0))
    assert [sorted(one["labels"]) for one in found.json()["predictions"]] == [["green", "red"], []]


def test_options_that_were_not_learned_are_refused_before_pictures_run(serve):
    model = Colours(several())
    client, before = serve(model=model), len(model.batches)
    assert refused(ask(client, RED, reject=0.1), 422, "each class separately")
    assert [size for size in model.batches[before:] if size] == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "images: Field required"),
        ({"images": []}, "images: "),
        ({"images": "abc"}, "images: "),
        ({"images": [1]}, "images.0: "),
        ({"images": [None]}, "images.0: "),
        *(({"images": ["a"], "top": top}, "top: ") for top in (0, 1001, "5", True)),
        *(({"images": ["a"], "reject": rate}, "reject: ") for rate in (0, 1)),
        ({"images": ["a"], "coverage": -0.5}, "coverage: "),
        ({"images": ["a"], "model": "x"}, "the fields are: top, reject, coverage, images"),
        ([], "the body: "),
    ],
)
def test_the_error_of_invalid_json_names_the_value(client, body, words):
    assert refused(client.post("/v1/predict", json=body), 422, words)


@pytest.mark.parametrize("fields", [{"top": "x"}, {"reject": "nan"}, {"reject": "2"}, {"size": "3"}])
def test_the_error_of_an_invalid_field_names_it(client, fields):
    assert refused(client.post("/v1/predict", files=FILES, data=fields), 422, f"{next(iter(fields))}: ")


def test_the_error_for_a_form_without_a_file_shows_how_to_send_one(client):
    answer = client.post("/v1/predict", files=[("images", (None, "photo.jpg"))])
    assert refused(answer, 422, "images came as the text 'photo.jpg'", "-F images=@photo.jpg")


HEAD = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
FIELD = b'--x\r\nContent-Disposition: form-data; name="top"\r\n\r\n'
FORM, END = "multipart/form-data; boundary=x", b"\r\n--x--\r\n"
INVALID_JSON = (b"", b"{", b'{"images": ["a"], "reject": NaN}', b'{"images": ["\\ud800"]}', b"\xff", b"[" * 256)


@pytest.mark.parametrize(
    ("kind", "body", "status", "words"),
    [
        *(("application/json", body, 422, "") for body in INVALID_JSON),
        *((kind, RED, 415, "multipart/form-data") for kind in ("text/plain", "image/png", "")),
        ("application/x-www-form-urlencoded", RED, 415, "multipart/form-data"),
        (FORM, FIELD + b"3" + END, 422, "-F images=@photo.jpg"),
        (FORM, b"", 400, "breaks off"),
        (FORM, b"nothing", 400, "no multipart form"),
        (FORM, HEAD + RED, 400, "breaks off"),
        (FORM, HEAD + RED + b"\r\n" + HEAD + RED, 400, "breaks off"),
        (FORM, FIELD + b"1" * 2000 + END, 400, "maximum size of 1KB"),
        (FORM, (FIELD + b"1\r\n") * 30 + END, 400, "fields"),
        (FORM, b"--y\r\n\r\n--y--\r\n", 400, "no multipart form"),
        ("multipart/form-data; ", HEAD + RED + END, 400, "boundary"),
        (FORM + "x" * 499, HEAD + RED + END, 400, "no multipart form"),
        (FORM, b"--x\r\nContent-Type: image/png\r\n\r\nabc" + END, 400, "Content-Disposition"),
        (FORM, b"--x\r\n" + b"A: b\r\n" * 30 + b"\r\nabc" + END, 400, ""),
        (FORM, b"--x\r\nA: " + b"b" * 9000 + b"\r\n\r\nabc" + END, 400, ""),
    ],
)
def test_a_body_that_can_not_be_read_is_refused(client, kind, body, status, words):
    assert refused(client.post("/v1/predict", content=body, headers={"content-type": kind}), status, words)


def test_too_many_pictures_are_refused(serve):
    client = serve(Limits(max_pictures=2))
    assert refused(client.post("/v1/predict", files=FILES + FILES[:1]), 413, "2 pictures at most")
    assert refused(ask(client, RED, RED, RED), 413, "3 came")
    assert client.post("/v1/predict", files=FILES).status_code == 200


def test_large_pictures_are_refused_before_they_are_decoded(serve):
    client, files = serve(Limits(max_pixels=99)), [("images", ("a", picture(0, n))) for n in (10, 9)]
    for answer in (ask(client, picture(0, 10), picture(0, 9)), client.post("/v1/predict", files=files)):
        large, small = answer.json()["predictions"]
        assert "pixels" in large["error"] and small["error"] is None


def test_with_several_models_a_request_must_name_one(serve, files):
    (files / "other.onnx").write_bytes((files / "colours.onnx").read_bytes())
    client = serve(model=None, specs=[str(files), f"third={files / 'other.onnx'}"])
    assert refused(client.post("/v1/predict", files=FILES), 400, "colours, other, third")
    assert client.post("/v1/models/third/predict", files=FILES).json()["model"] == "third"
    assert refused(client.post("/v1/models/nix/predict", files=FILES), 404, "served are: colours, other, third")


def test_the_description_of_a_model(serve):
    found = described(serve(model=None))
    assert found["classes"] == ["red", "green", "blue"] and found["licence"] == "CC0-1.0"
    assert found["can"] == {"reject": True, "coverage": True} and found["error"] is None
    assert found["ask"]["pictures"] == "/v1/models/colours/predict"
