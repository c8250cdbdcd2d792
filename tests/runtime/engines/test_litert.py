"""LiteRT: metadata in an archive at the end of the file; and exports where the converter is installed."""

import importlib.util
import zipfile

import numpy as np
import pytest

from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import ArtifactError
from clipadapter.runtime import Predictor
from clipadapter.runtime.engines.formats import append_checksum, check_file
from clipadapter.runtime.engines.litert import append_archive, read_archive
from clipadapter.runtime.export import export_model

GRAPH = b"\x1c\x00\x00\x00TFL3" + bytes(range(256))
"""Stands for a graph."""
needs_litert = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("litert_torch", "ai_edge_litert")),
    reason="needs the extra litert",
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(GRAPH)
    append_archive(path, {"clipadapter": '{"a": 1}', "class_names": '["ä", "b"]'})
    append_checksum(path)
    return path


def test_the_graph_comes_first_and_other_programs_read_the_archive_and_its_comment_which_is_the_checksum(file):
    assert file.read_bytes().startswith(GRAPH)
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["clipadapter.json", "class_names.json"]
        assert archive.read("class_names.json").decode() == '["ä", "b"]'
        assert archive.comment.decode() == check_file(file) == file.read_bytes()[-64:].decode()


def test_an_archive_without_an_entry_is_an_error(file):
    assert read_archive(file.read_bytes(), ["clipadapter"]) == {"clipadapter": '{"a": 1}'}
    with pytest.raises(KeyError):
        read_archive(file.read_bytes(), ["signature"])
    with pytest.raises(zipfile.BadZipFile):
        read_archive(GRAPH, ["clipadapter"])


@needs_litert
def test_a_graph_of_another_program_is_refused(tmp_path):
    (tmp_path / "model.tflite").write_bytes(GRAPH)
    append_checksum(tmp_path / "model.tflite")
    with pytest.raises(ArtifactError, match="was not written by 'clipadapter export'"):
        Predictor(tmp_path / "model.tflite")


@needs_litert
@pytest.mark.slow
@pytest.mark.parametrize("source", ["uint8", "float"])
@pytest.mark.parametrize("head", ["zero-shot", "clip-adapter", "tip-adapter", "gda", "auto"])
def test_a_file_predicts_as_its_model(head, source, tmp_path):
    rng, colours = np.random.default_rng(0), np.repeat(np.array([[200, 30, 30], [30, 30, 200]]), 4, axis=0)
    pictures = [np.clip(c + rng.integers(-30, 30, (40, 40, 3)), 0, 255).astype(np.uint8) for c in colours]
    model = FewShotClassifier("toy", head, cache=None, backend="torch", precision="fp32")
    model.fit(pictures, ["red"] * 4 + ["blue"] * 4)
    result = export_model(model, tmp_path / "model.tflite", format="litert", input=source, pictures=pictures)
    assert result.parity["agreement"] == 1.0
    predictor = Predictor(result.path)
    assert predictor.backend == "litert"
    np.testing.assert_allclose(predictor.predict_proba(pictures), model.predict_proba(pictures), atol=1e-4)
