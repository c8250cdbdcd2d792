"""An exported file proves itself where it is opened: once per machine, and an altered one is refused."""

import base64
import json
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from clipadapter.errors import ArtifactError
from clipadapter.runtime import ExportMetadata, Predictor
from clipadapter.runtime.engines.export_format import METADATA_KEY
from clipadapter.runtime.engines.formats import append_checksum
from clipadapter.runtime.export import export_model
from clipadapter.runtime.golden import LIMITS, differences, draw_squares, proof_file
from clipadapter.serve.models import ServedModels
from clipadapter.utils.pixels import PixelSpec

onnx = pytest.importorskip("onnx")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clipadapter" / "golden"


@pytest.fixture(scope="module")
def exported(fitted, draw, tmp_path_factory):
    """A file of a linear probe, which is cheap to make."""
    path = tmp_path_factory.mktemp("golden") / "model.onnx"
    export_model(fitted("linear-probe"), path, pictures=draw(2)[0])
    return path


def rewrite(source, target, *, weights=lambda values: values, facts=lambda facts: facts):
    """Write a file with other weights or metadata, and the checksum that belongs to them."""
    model = onnx.load(source)
    for each in model.graph.initializer:
        values = onnx.numpy_helper.to_array(each)
        if values.dtype == np.float32 and values.size > 1:
            each.CopyFrom(onnx.numpy_helper.from_array(weights(values).astype(np.float32), each.name))
    own = {one.key: one.value for one in model.metadata_props}
    own[METADATA_KEY] = json.dumps(facts(json.loads(own[METADATA_KEY])))
    onnx.helper.set_model_props(model, own)
    onnx.save(model, target)
    append_checksum(target)
    return target


def runs_of(monkeypatch):
    """A list that each run of a graph is added to."""
    runs, run = [], Predictor.run
    monkeypatch.setattr(Predictor, "run", lambda self, squares: runs.append(len(squares)) or run(self, squares))
    return runs


def test_the_first_opening_computes_the_golden_outputs_and_the_second_none(exported, cache, monkeypatch):
    runs = runs_of(monkeypatch)
    first = Predictor(exported)
    assert runs == [1, 1] and len(list(cache.iterdir())) == 1
    Predictor(exported)
    assert runs == [1, 1]
    assert max(differences(first.metadata.golden, first.compute_golden()).values()) < LIMITS["fp32"] / 10
    assert len(json.dumps(json.loads(first.metadata.to_json())["golden"])) < 8192


def test_a_rewritten_file_is_opened(exported, tmp_path):
    """What the next tests alter is the only reason for their errors."""
    assert Predictor(rewrite(exported, tmp_path / "same.onnx")).class_names == Predictor(exported).class_names


@pytest.mark.parametrize("kind", ["all", "noise"])
def test_weights_that_were_altered_by_two_percent_are_noticed(kind, exported, tmp_path, cache):
    def alter(values):
        noise = np.random.default_rng(0).standard_normal(values.shape)
        return values * (1.02 if kind == "all" else 1 + 0.02 * noise)

    path = rewrite(exported, tmp_path / "altered.onnx", weights=alter)
    words = r"other outputs here .*differ by \d+\.\d%, more than 0\.1% .*--precision fp32"
    for open_it in (Predictor, lambda path: ServedModels([str(path)])):
        with pytest.raises(ArtifactError, match=words):
            open_it(path)
    assert not cache.exists()


@pytest.mark.parametrize("damage", ["none", "a block", "shape", "not a number", "text"])
def test_damaged_golden_outputs_are_a_damaged_file(damage, exported, tmp_path):
    def spoil(facts):
        golden = facts["golden"]
        if damage == "none":
            golden.clear()
        elif damage == "a block":
            golden["other"] = golden.pop("final")
        elif damage == "shape":
            rows = np.zeros((2, 5), "<f4")
            golden["final"] = {"dtype": "<f4", "shape": [2, 5], "data": base64.b64encode(rows.tobytes()).decode()}
        elif damage == "not a number":
            rows = np.full(golden["final"]["shape"], np.nan, "<f4")
            golden["final"]["data"] = base64.b64encode(rows.tobytes()).decode()
        else:
            facts["golden"] = "none"
        return facts

    with pytest.raises(ArtifactError, match="damaged"):
        Predictor(rewrite(exported, tmp_path / "damaged.onnx", facts=spoil))


def test_another_file_runtime_or_instruction_set_is_proved_again(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    names = [proof_file("a", "one 1.0"), proof_file("b", "one 1.0"), proof_file("a", "one 1.1")]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    names.append(proof_file("a", "one 1.0"))
    assert len(set(names)) == 4


def test_where_nothing_can_be_remembered_the_file_is_opened(exported, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    runs = runs_of(monkeypatch)
    Predictor(exported), Predictor(exported)
    assert runs == [1, 1, 1, 1]


def test_the_golden_pictures_are_equal_everywhere():
    pictures = draw_squares([PixelSpec(64, (0.5,) * 3, (0.5,) * 3)])
    assert [each.shape for each in pictures] == [(64, 64, 3)] * 2
    assert sha256(np.stack(pictures).tobytes()).hexdigest()[:16] == "9c8606a67e242690"


def test_golden_outputs_come_back(exported):
    about = Predictor(exported).metadata
    found = ExportMetadata.from_json(replace(about, parity={}).to_json()).golden
    assert set(found) == {"final", "logits"}
    for name, rows in about.golden.items():
        np.testing.assert_array_equal(found[name], rows)
