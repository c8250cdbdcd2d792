"""An exported file answers, without torch; a damaged one is refused with what to do."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from clipadapter.errors import ArtifactError, DataWarning, ImageError, InputError, MissingExtraError, install_command
from clipadapter.runtime import ExportMetadata, Predictor
from clipadapter.runtime.engines.formats import append_checksum, get_format
from clipadapter.uncertainty import Uncertainty, learn_rejector
from clipadapter.utils.pixels import PixelSpec

from ..test_public import BLOCKED
from .conftest import NAMES, SIDE, graph

onnx = pytest.importorskip("onnx")

ENDING = get_format("onnx").checksum_ending[0]
PIXELS = PixelSpec(SIDE, (0.0,) * 3, (1.0,) * 3)


def rejector():
    """Rejects what has no strong colour: its one part is one minus the cosine to the nearest class text."""
    rows = np.repeat(np.eye(3), 8, axis=0) + 0.02 * np.arange(24)[:, None]
    return learn_rejector(rows, np.repeat([0, 1], 12), 3, text=np.eye(3)).without_arrays()


def about(**changes):
    facts = {"class_names": NAMES, "inputs": (PIXELS,), "uncertainty": Uncertainty(rejector=rejector())}
    return ExportMetadata(**{**facts, **changes})


def plain(colour, side=8):
    return np.full((side, side, 3), colour, np.uint8)


RED, GREEN, GREY = plain([255, 0, 0]), plain([0, 255, 0]), plain([20, 20, 20])


@pytest.fixture
def predictor(write):
    return Predictor(write(about().to_json()))


def test_no_squares_give_outputs_of_the_same_widths(predictor):
    some, none = (predictor.run(np.zeros((n, 4, 4, 3), np.uint8)) for n in (1, 0))
    for name in ("logits", "features", "ood_score_parts", "probabilities", "ood_scores"):
        assert getattr(none, name).shape == (0, *getattr(some, name).shape[1:]), name


def test_one_picture_gives_one_row_in_every_form(predictor, tmp_path):
    path = tmp_path / "red.png"
    Image.fromarray(RED).save(path)
    expected = predictor.predict([RED])
    for one in (str(path), path, tmp_path, RED, RED[None], Image.fromarray(RED)):
        assert predictor.predict(one) == expected and len(predictor.classify(one)) == 1
        np.testing.assert_allclose(predictor.predict_proba(one), predictor.predict_proba([RED]), rtol=1e-5)
    assert predictor.predict(iter([path])) == expected


def test_wrong_arguments_are_refused(predictor):
    with pytest.raises(InputError, match="batch_size must be 1 or more"):
        list(predictor.iter_predictions([RED], batch_size=0))
    with pytest.raises(InputError, match="can't make prediction sets"):
        predictor.classify([RED], coverage=0.9)
    for shape, kind in (((4, 4, 3), np.uint8), ((1, 3, 4, 4), np.uint8), ((1, 4, 4, 3), np.float32)):
        with pytest.raises(InputError, match=r"takes squares \(n, 4, 4, 3\) of uint8"):
            predictor.run(np.zeros(shape, kind))


def test_animations_are_named_in_one_warning_after_the_answers(predictor, tmp_path):
    for name in ("a.gif", "b.gif"):
        frames = [Image.fromarray(pixels) for pixels in (RED, GREEN)]
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.warns(DataWarning, match="of which the first is read: 2 ") as caught:
        assert predictor.predict([tmp_path / "a.gif", RED, tmp_path / "b.gif"]) == ["red"] * 3
    assert len(caught) == 1


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_what_is_strange_is_rejected_by_the_graphs_score(backend, write):
    pytest.importorskip(backend)
    predictor = Predictor(write(about().to_json()), backend=backend)
    red, grey = predictor.classify([RED, GREY], reject=0.1)
    assert red.label == "red" and red.reason is None
    assert grey.label is None and grey.nearest in NAMES and "less like any class name" in grey.reason
    assert predictor.classify([GREY])[0].label is not None  # nothing is rejected unless asked


def test_a_bad_file_costs_only_its_own_answer(predictor, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    bad, red = predictor.classify([tmp_path / "bad.jpg", RED])
    assert bad.error == "not an image" and bad.label is None and red.label == "red"
    for ask in (predictor.predict, predictor.predict_proba):
        with pytest.raises(ImageError, match="no such file"):
            ask([RED, tmp_path / "none.jpg"])


def test_order_is_kept_over_many_batches_of_which_a_few_are_read_ahead(predictor):
    colours, taken = np.random.default_rng(0).integers(0, 3, 50), []

    def pictures():
        for k in colours:
            taken.append(k)
            yield plain(255 * np.eye(3, dtype=np.uint8)[k])

    found = predictor.iter_predictions(pictures(), batch_size=7)
    first = next(found)
    assert len(taken) <= 21
    assert [answer.label for answer in (first, *found)] == [NAMES[k] for k in colours]


def test_pictures_before_a_pause_are_answered_before_the_next_is_asked_for(predictor):
    answered = []

    def pausing():
        for i in range(12):
            if i in (0, 1, 7):
                yield None
                yield None  # still nothing
                assert len(answered) == i
            yield RED

    for prediction in predictor.iter_predictions(pausing(), batch_size=5):
        answered.append(prediction.label)
    assert answered == [NAMES[0]] * 12


def test_float_input_is_normalised_as_the_spec_says(write):
    # Mean 0.5 and deviation 0.5 put 255 to 1 and 0 to -1.
    spec = PixelSpec(4, (0.5,) * 3, (0.5,) * 3)
    model = Predictor(write(about(input="float", inputs=(spec,), uncertainty=Uncertainty()).to_json(), input="float"))
    np.testing.assert_allclose(model.run(model.preprocess(RED)[None]).features, [[1.0, -1.0, -1.0]], atol=1e-6)


def test_an_openvino_pair_that_is_written_over_does_not_change_a_model_that_is_open(write, tmp_path):
    model = Predictor(write(about().to_json(), "model.xml"))
    size = (tmp_path / "model.bin").stat().st_size
    with (tmp_path / "model.bin").open("r+b") as weights:
        weights.write(bytes(size))
    assert model.predict([RED, GREEN]) == ["red", "green"]


def test_neither_torch_nor_scikit_learn_is_imported(write, tmp_path):
    Image.fromarray(RED).save(tmp_path / "red.png")
    code = BLOCKED + "from clipadapter.cli.app import main\nmain()"
    words = ["predict", write(about().to_json()), tmp_path / "red.png", "--json"]
    out = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout)["label"] == "red"


def test_what_is_no_graph_is_refused(tmp_path):
    for name, backend in (("model.onnx", "ONNX Runtime"), ("model.xml", "OpenVINO")):
        (tmp_path / name).write_bytes(b"nothing")
        append_checksum(tmp_path / name)
        with pytest.raises(ArtifactError, match=f"can't be opened by {backend}"):
            Predictor(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("modle.onnx", r"there is no file .*modle.onnx. Did you mean '.*model.onnx'\?"),
        ("x" * 300 + ".onnx", "can't be opened: File name too long"),
        ("", "clipadapter export"),
    ],
)
def test_a_path_without_a_file_says_what_to_do(name, words, tmp_path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ArtifactError, match=words):
        Predictor(tmp_path / name)


@pytest.mark.parametrize(
    ("description", "options", "words"),
    [
        (None, {}, "not written by 'clipadapter export'"),
        (about().to_json(), {"logits": 2}, "metadata"),
        (about().to_json(), {"leave_out": ("features",)}, "metadata"),
        (about().to_json(), {"leave_out": ("probabilities",)}, "metadata"),
        (about().to_json(), {"leave_out": ("ood_score_parts", "ood_scores")}, "ood_score_parts"),
    ],
)
def test_a_graph_that_does_not_fit_its_metadata_is_refused(description, options, words, write):
    with pytest.raises(ArtifactError, match=words):
        Predictor(write(description, **options))


def with_two_inputs(graph):
    graph.input.add().CopyFrom(graph.input[0])
    graph.input[1].name = "squares_8"


def without_inputs(graph):
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((1, SIDE, SIDE, 3), np.uint8), "squares"))
    del graph.input[:]


def with_logits_of_the_batch(graph):
    for node in graph.node:
        node.input[:] = ["each" if name == "logits" else name for name in node.input]
        node.output[:] = ["each" if name == "logits" else name for name in node.output]
    graph.node.append(onnx.helper.make_node("ReduceMean", ["each"], ["logits"], axes=[0], keepdims=1))


def with_weights_that_are_not_finite(graph):
    (weight,) = (each for each in graph.initializer if each.name == "weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full((3, 3), np.nan, np.float32), "weight"))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("change", "side", "words"),
    [
        (with_two_inputs, 4, "does not fit its metadata"),
        (without_inputs, 4, "does not fit its metadata"),
        (with_logits_of_the_batch, 4, r"gives logits \(1, 3\) for 2 pictures"),
        (with_weights_that_are_not_finite, 4, "values that are not finite"),
        (lambda graph: None, 8, "can't be run on 2 pictures"),
    ],
)
def test_a_graph_that_does_not_give_the_answers_of_each_picture_is_refused(backend, change, side, words, tmp_path):
    pytest.importorskip(backend)
    model = graph(about(inputs=(PixelSpec(side, (0.0,) * 3, (1.0,) * 3),), uncertainty=Uncertainty()).to_json())
    change(model.graph)
    onnx.save(model, tmp_path / "model.onnx")
    append_checksum(tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match=words):
        Predictor(tmp_path / "model.onnx", backend=backend).predict([RED, GREEN])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_file_that_is_no_text_where_it_describes_itself_is_refused(backend, write):
    pytest.importorskip(backend)
    path = write("MARK")
    path.write_bytes(path.read_bytes()[: -len(ENDING) - 64].replace(b"MARK", b"\xff\xff\xff\xff"))
    append_checksum(path)
    with pytest.raises(ArtifactError, match="can't be opened"):
        Predictor(path, backend=backend)


def test_wrong_and_missing_backends_are_refused(write, tmp_path, monkeypatch):
    path = write(about().to_json())
    with pytest.raises(InputError, match="backend must be auto"):
        Predictor(path, backend="torch")
    (tmp_path / "model.xml").write_text("<net/>")
    with pytest.raises(InputError, match=r"run by openvino, not by onnxruntime"):
        Predictor(tmp_path / "model.xml", backend="onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=re.escape(install_command("onnx"))):
        Predictor(path, backend="onnxruntime")


def test_onnx_runtime_keeps_no_record_of_its_use(write, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    code = "import sys; from clipadapter.runtime import Predictor; Predictor(sys.argv[1]).predict_proba([])"
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    command = [sys.executable, "-c", code, str(write(about().to_json()))]
    subprocess.run(command, check=True, env=environment)
    assert not list(home.rglob("*")), "it writes a data base there, and sends it when it can"
