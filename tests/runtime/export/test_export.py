"""What is written, what is refused, and what is left behind."""

import copy
import json
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from PIL import Image

from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import ArtifactError, DataError, InputError
from clipadapter.features import FeatureSet
from clipadapter.runtime import ExportMetadata, Predictor
from clipadapter.runtime.engines.formats import get_format
from clipadapter.runtime.export import export_model
from clipadapter.runtime.export.evaluation import find_faults
from clipadapter.runtime.export.exporter import choose_pictures, working_folder
from clipadapter.runtime.export.graph import ModelGraph
from clipadapter.uncertainty import UncertaintyOptions

FORMATS = {name: get_format(name).suffix for name in ("onnx", "openvino")}


@pytest.fixture
def write(tmp_path):
    """A function that exports a model into the test's folder."""
    return lambda model, format="onnx", **more: export_model(
        model, tmp_path / f"model{FORMATS[format]}", format=format, **more
    )


def older_files(folder, format):
    """What stands where a model is written to, and must stay if it can't be: the contents, by the names."""
    for suffix in (".onnx",) if format == "onnx" else (".bin", ".xml"):
        (folder / f"model{suffix}").write_bytes(f"older {suffix}".encode())
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@pytest.mark.parametrize(
    ("format", "source", "calibration"),
    [
        ("onnx", "uint8", "temperature"),
        ("onnx", "float", "vector"),
        ("openvino", "uint8", "none"),
        ("openvino", "float", "temperature"),
    ],
)
def test_all_outputs_are_the_model_s(format, source, calibration, fitted, draw, write):
    model = fitted("auto", reject=0.1, calibration=calibration)
    done = write(model, format, input=source)
    predictor, (pictures, _) = Predictor(done.path), draw(4, seed=3)
    pictures.append(np.full((40, 40, 3), 128, np.uint8))
    found = predictor.run(np.stack([predictor.preprocess(picture) for picture in pictures]))
    features = model.encoder_.encode_images([Image.fromarray(picture) for picture in pictures]).numpy()
    logits = model.head_.logits(features)
    likely = model.uncertainty_.probabilities(logits)
    np.testing.assert_allclose(found.features, features, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.probabilities, likely, atol=1e-5)
    np.testing.assert_allclose(found.ood_scores, model.uncertainty_.rejector.scores(features, logits), rtol=1e-3)
    np.testing.assert_allclose(
        found.ood_score_parts, model.uncertainty_.rejector.part_scores(features, logits), rtol=1e-3, atol=1e-4
    )
    assert predictor.predict(pictures) == model.predict(pictures)
    assert predictor.predict(pictures)[-1] is None


def test_any_runtime_sees_names_shapes_and_classes(fitted, write):
    done = write(fitted("zero-shot", reject=0.1))
    assert done.size_bytes == done.path.stat().st_size
    onnx.checker.check_model(onnx.load(done.path), full_check=True)
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    assert (source.name, source.type, source.shape) == ("squares", "tensor(uint8)", ["n", 32, 32, 3])
    ranks = {output.name: len(output.shape) for output in session.get_outputs()}
    assert ranks == {"features": 2, "logits": 2, "probabilities": 2, "ood_scores": 1, "ood_score_parts": 2}
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["class_names"]) == ["blue", "green", "red"]
    about = ExportMetadata.from_json(told["clipadapter"])
    assert about.class_names == ("blue", "green", "red")
    assert (about.encoder["name"], about.head["name"], about.precision) == ("toy", "zero-shot", "fp32")
    assert about.provenance["shots"] == {"blue": 6, "green": 6, "red": 6}
    assert about.parity["agreement"] == 1.0
    facts = json.loads(told["clipadapter"])
    assert set(facts["reject"]) >= {"0.1", "0.2"}
    assert [each["name"] for each in facts["inputs"]] == ["squares"]
    assert "blocks" not in facts and "blocks" not in facts["parity"]


def test_openvino_has_the_same_description(fitted, write):
    done = write(fitted("zero-shot"), "openvino", input="float")
    assert [path.suffix for path in done.files] == [".bin", ".xml"]
    model = openvino.Core().read_model(done.path)
    assert model.input("pixels").partial_shape.to_string() == "[?,3,32,32]"
    about = ExportMetadata.from_json(str(model.get_rt_info(["clipadapter"]).astype(str)))
    assert (about.input, about.class_names) == ("float", ("blue", "green", "red"))
    assert json.loads(model.get_rt_info(["class_names"]).astype(str)) == ["blue", "green", "red"]


@pytest.mark.parametrize("format", FORMATS)
def test_int8_is_the_tower_s_alone_quiet_and_tells_nobody(format, folders, fitted, draw, tmp_path, capfd, monkeypatch):
    model, tried = fitted("auto", f"open_clip:local-dir:{folders['tiny']}", reject=0.1), []
    pictures, _ = draw(20, seed=4)
    path = tmp_path / f"ready{FORMATS[format]}"  # the name of an intermediate file
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: tried.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: tried.append(args) or [])
    handlers, disabled = list(logging.root.handlers), logging.root.manager.disable
    capfd.readouterr()
    done = export_model(model, path, format=format, precision="int8", pictures=pictures)
    said = capfd.readouterr()
    assert (said.out, said.err, tried) == ("", "", [])
    assert (logging.root.handlers, logging.root.manager.disable) == (handlers, disabled)
    assert sorted(tmp_path.iterdir()) == sorted(done.files)
    assert done.parity["cosine_least"] < 0.999999  # something was quantised
    assert (done.parity["pictures"], done.parity["n"]) == ("given", 60)
    if format == "onnx":
        nodes = onnx.load(path).graph.node
        behind, values = [], {"features"}
        for node in nodes:
            if values & set(node.input):
                behind.append(node.op_type)
                values |= set(node.output)
        assert behind and not [kind for kind in behind if "Quantize" in kind]
        assert [node for node in nodes if node.op_type == "QuantizeLinear"]
    predictor = Predictor(path)
    assert predictor.metadata.precision == "int8"
    found = predictor.run(np.stack([predictor.preprocess(picture) for picture in pictures[:4]]))
    np.testing.assert_allclose(found.logits, model.head_.logits(found.features), rtol=1e-3, atol=1e-3)


SPOILT = {
    "was not written: logits differ by .* more than 0.001": (1, lambda logits: logits + 0.1 * logits.std()),
    "logits differ": (1, lambda logits: logits + logits.mean(dim=0)),  # of the batch
    "was not written": (1, lambda logits: torch.stack([logits[0], logits[1]]) + logits),  # a graph for two pictures
    "probabilities differ by": (2, lambda likely: likely * 0.99),
    "'none of these' differ by": (-1, lambda scores: scores + 1),  # parts that don't add up
}
"""By what the error says: the output of a graph that is not the model's, and what it is instead."""


@pytest.mark.parametrize(("words", "format"), [*((words, "onnx") for words in SPOILT), ("logits differ", "openvino")])
def test_a_wrong_file_is_not_written(words, format, fitted, write, monkeypatch, tmp_path):
    model = fitted("auto", reject=0.1)
    before = older_files(tmp_path, format)
    whole, (place, change) = ModelGraph.forward, SPOILT[words]

    def forward(self, *pictures):
        outputs = [*whole(self, *pictures)]
        outputs[place] = change(outputs[place])
        return tuple(outputs)

    monkeypatch.setattr(ModelGraph, "forward", forward)
    with pytest.raises(ArtifactError, match=words):
        write(model, format)
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before


def test_names_are_any_text_and_no_path_is_told(draw, write, tmp_path):
    names = ['a "b" <c>', "ü & \\n", "日本"]
    pictures, labels = draw(2)
    paths = [tmp_path / f"secret-{i}.png" for i in range(6)]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    called = [names[("red", "green", "blue").index(label)] for label in labels]
    model = FewShotClassifier("toy", "prototype", cache=None).fit(paths, called, names)
    for format in FORMATS:
        done = write(model, format)
        assert done.parity["pictures"] == "shots"
        assert Predictor(done.path).predict(pictures) == called
        assert not [path for path in done.files if b"secret" in path.read_bytes()]


def test_faults_name_the_limits():
    right = dict.fromkeys(("cosine_least", "cosine_mean", "agreement", "rejected"), 1.0)
    right |= dict.fromkeys(("logits", "ood_scores", "calibration"), 0.0)
    assert find_faults(right, is_exact=True) == []
    for name, value, words in (
        ("cosine_least", 0.99, "smallest cosine of features is 0.99"),
        ("cosine_mean", float("nan"), "their mean nan"),
        ("calibration", 0.002, "probabilities differ by 0.002"),
        ("logits", 0.01, "logits differ by 0.01"),
        ("logits", float("inf"), "logits differ by inf"),
        ("agreement", 0.97, "97.0% of the answers"),
        ("rejected", 0.9, "90.0% of the rejections"),
        ("ood_scores", 0.1, "'none of these' differ by 0.1"),
    ):
        (fault,) = find_faults({**right, name: value}, is_exact=True)
        assert words in fault
    of_int8 = {**right, "cosine_least": 0.985, "cosine_mean": 0.996, "logits": 0.3, "ood_scores": 0.5}
    assert find_faults(of_int8, is_exact=False) == []


def test_a_model_in_bf16_is_written_from_the_plain_tower(folders, draw, write):
    pictures, labels = draw(4)
    model = FewShotClassifier(
        f"open_clip:local-dir:{folders['tiny']}", "prototype", cache=None, backend="torch", precision="bf16"
    ).fit(pictures, labels)
    done = write(model, pictures=pictures)
    exported = Predictor(done.path)
    assert (exported.precision, exported.metadata.encoder["precision"]) == ("fp32", "bf16")
    assert 1e-5 < done.parity["logits"] < 0.1
    assert done.parity["agreement"] == 1.0


def test_sets_by_folds_are_left_out_and_told(fitted, write):
    model = fitted("prototype", coverage=0.9, sets="cv+")
    done = write(model)
    assert "sets by CV+ need the heads of all folds" in done.notes[0]
    assert Predictor(done.path).uncertainty.conformal is None
    other = fitted("prototype", coverage=0.9, sets="cross")
    done = write(other)
    assert done.notes == ()
    pictures = [np.full((40, 40, 3), 90, np.uint8)]
    assert Predictor(done.path).classify(pictures)[0].labels == other.classify(pictures)[0].labels


def test_pictures_are_those_given_else_the_shots_else_drawn(tmp_path):
    none = np.zeros((0, 3), np.float32)
    paths = [tmp_path / f"{i}.png" for i in range(150)]
    for path in paths:
        Image.new("RGB", (9, 9), "red").save(path)
    names = [*map(str, paths[:3]), "array (3, 3)", "gone.png", "a\0b", "x" * 300]
    shots = FeatureSet(none, (), ("a", "b"), {"sources": names})
    found = choose_pictures(None, shots, 16, "fp32")
    assert (found.kind, sorted(found.comparison)) == ("shots", paths[:3])
    assert choose_pictures(paths[5:6], shots, 16, "int8").comparison == paths[5:6]
    found = choose_pictures(tmp_path, shots, 16, "int8")
    assert (found.kind, len(found.comparison), len(found.calibration)) == ("given", 64, 64)
    assert not set(found.comparison) & set(found.calibration)
    found = choose_pictures(paths[:80], shots, 16, "int8")
    assert found.calibration == found.comparison  # 16 others would be too few
    bare = FeatureSet(none, (), ("a", "b"))
    assert choose_pictures(None, bare, 16, "fp32").kind == "drawn"
    for one in (np.zeros((4, 4, 3), np.uint8), Image.new("RGB", (4, 4))):
        assert choose_pictures(one, bare, 16, "fp32").comparison == [one]
    with pytest.raises(DataError, match="there are no pictures to compare"):
        choose_pictures([], bare, 16, "fp32")


def test_pictures_that_cant_be_read_are_left_out_and_batches_of_all_sizes_run(
    fitted, draw, write, monkeypatch, tmp_path
):
    whole, sizes = Predictor.run, []

    def run(self, squares):
        sizes.append(len(squares))
        return whole(self, squares)

    monkeypatch.setattr(Predictor, "run", run)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"none")
    done = write(fitted("auto"), pictures=[bad, *draw(1)[0]])
    assert (done.parity["n"], done.parity_summary[:30]) == (3, "on 3 pictures that were given:")
    assert sizes == [1, 2, 3, 1, 1]  # the golden pictures are last, one by one
    with pytest.raises(DataError, match="none of the 1 pictures"):
        write(fitted("auto"), pictures=[bad])


def test_wrong_values_are_refused(fitted, tmp_path):
    model = fitted("auto")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "loop.onnx").symlink_to("loop.onnx")
    large = copy.copy(
        model
    )  # torch would write weights beyond 2 GiB into files beside the graph, which do not come along
    large.head_ = copy.copy(model.head_)
    large.head_.state = lambda: {"memory": np.broadcast_to(np.float32(0), (1 << 15, 1 << 14))}
    with pytest.raises(InputError, match="the model has 2.0 GiB of weights"):
        export_model(large, tmp_path / "large.onnx")
    for name, more, words in (
        ("model.onnx", {"format": "tflite"}, "format is onnx.* or .*, not 'tflite'"),
        ("model.onnx", {"precision": "bf16"}, "precision of ONNX is fp32 or int8"),
        ("model.onnx", {"input": "int"}, "input is uint8 or float"),
        ("model.onnx", {"format": "openvino"}, "ends with .xml"),
        ("model.XML", {"format": "openvino"}, "ends with .xml"),  # OpenVINO takes no other spelling
        ("folder.onnx", {}, "not a regular file"),
        *((name, {}, "can't be the name of a file") for name in ("loop.onnx", f"{'x' * 300}.onnx", "a\0b.onnx")),
    ):
        with pytest.raises(InputError, match=words):
            export_model(model, tmp_path / name, **more)
    with pytest.raises(InputError, match="is not fitted"):
        export_model(FewShotClassifier("toy"), tmp_path / "model.onnx")


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of files there")
@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_leaves_the_older_file(format, fitted, write, tmp_path):
    import resource

    model = fitted("auto")
    before = older_files(tmp_path, format)
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        with pytest.raises(ArtifactError, match="can't write .*with room for the model"):
            write(model, format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before


def test_a_link_is_followed_to_a_file_that_is_there(fitted, tmp_path):
    real, link = tmp_path / "new" / "real.onnx", tmp_path / "link.onnx"
    link.symlink_to(real)
    with pytest.raises(InputError, match="link to a file that is not there"):
        export_model(fitted("auto"), link)
    assert os.listdir(tmp_path) == ["link.onnx"]
    real.parent.mkdir()
    real.touch()
    assert export_model(fitted("auto"), link).files == (real,)
    assert link.is_symlink() and os.listdir(real.parent) == ["real.onnx"]


def test_what_a_killed_export_left_goes_after_a_day_at_the_next_one_to_that_file(tmp_path):
    old, new, other = (".model.onnx-export-a1b2c3d4", ".model.onnx-export-b1b2c3d4", ".other.onnx-export-a1b2c3d4")
    for name in (old, new, other, ".model.onnx-export-a_person"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_bytes(b"half")
    for name in (old, other):
        for path in (tmp_path / name / "model.onnx", tmp_path / name):
            os.utime(path, (0, 0))
    with working_folder(tmp_path / "model.onnx"):
        assert not (tmp_path / old).exists()
    assert {path.name for path in tmp_path.iterdir()} == {new, other, ".model.onnx-export-a_person"}


@pytest.mark.filterwarnings("ignore:the shots are left out")
def test_a_saved_model_gives_the_same_file_with_its_costs(fitted, draw, write, tmp_path):
    costs = np.array([[0.0, 1.0, 1.0], [9.0, 0.0, 9.0], [1.0, 1.0, 0.0]])
    model = copy.copy(fitted("auto", reject=0.1))
    model.uncertainty_ = model.uncertainty_.with_defaults(UncertaintyOptions(costs=costs))
    model.save(tmp_path / "saved", support=False)
    done = write(FewShotClassifier.load(tmp_path / "saved", cache=None))
    assert done.parity["pictures"] == "drawn"
    predictor, pictures = Predictor(done.path), draw(3, seed=6)[0]
    assert predictor.metadata.provenance["shots"] == {"blue": 6, "green": 6, "red": 6}
    assert predictor.predict(pictures) == model.predict(pictures)


def test_an_older_pair_stays_where_the_new_one_cant_take_its_place(fitted, write, monkeypatch, tmp_path):
    model = fitted("auto")
    before = older_files(tmp_path, "openvino")
    whole = Path.replace

    def replace(self, target):
        if Path(target) == tmp_path / "model.bin":
            raise PermissionError(13, "in use")
        return whole(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(ArtifactError, match="in use"):
        write(model, "openvino")
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before


def test_more_costs_than_the_metadata_hold_are_refused(fitted, write, monkeypatch, tmp_path):
    monkeypatch.setattr("clipadapter.runtime.export.exporter.MAX_METADATA_CHARACTERS", 1000)
    with pytest.raises(InputError, match="costs of 3 classes: export the model"):
        write(fitted("auto"))
    assert not list(tmp_path.iterdir())
