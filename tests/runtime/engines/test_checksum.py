"""An exported file that was altered is refused before a backend opens it."""

import hashlib
import os
import re

import numpy as np
import pytest

from clipadapter.errors import ArtifactError
from clipadapter.runtime import ExportMetadata, Predictor
from clipadapter.runtime.engines import backend_info
from clipadapter.runtime.engines.formats import check_file, companion_files, open_model
from clipadapter.uncertainty import Uncertainty
from clipadapter.utils.pixels import PixelSpec

ABOUT = ExportMetadata(("red", "green", "blue"), (PixelSpec(4, (0.0,) * 3, (1.0,) * 3),), Uncertainty())
RED = np.full((8, 8, 3), [255, 0, 0], np.uint8)


@pytest.fixture
def sealed_onnx(write):
    return write(ABOUT.to_json())


@pytest.fixture
def sealed_pair(write):
    return write(ABOUT.to_json(), "model.xml")


@pytest.fixture
def no_backend(monkeypatch):
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setattr(backend_info(name).cls, "open_file", None)  # to call it is a TypeError


def test_the_last_64_bytes_of_an_onnx_file_are_the_sha256_of_all_before_and_metadata_for_others(sealed_onnx):
    onnx, data = pytest.importorskip("onnx"), sealed_onnx.read_bytes()
    digits = hashlib.sha256(data[:-64]).hexdigest()
    assert data[-64:].decode() == digits == check_file(sealed_onnx) == Predictor(sealed_onnx).sha256
    model = onnx.load(sealed_onnx)
    assert {entry.key: entry.value for entry in model.metadata_props}["sha256"] == digits
    onnx.checker.check_model(model)


def test_a_pair_has_one_checksum_over_weights_and_graph(sealed_pair):
    text, weights = sealed_pair.read_bytes(), sealed_pair.with_suffix(".bin").read_bytes()
    (digits,) = re.findall(rb"<!--sha256 ([0-9a-f]{64})-->$", text)
    assert hashlib.sha256(weights + text[: -len(digits) - 3]).hexdigest() == digits.decode()
    assert Predictor(sealed_pair).predict([RED]) == ["red"]


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".bin"])
@pytest.mark.usefixtures("no_backend")
def test_any_changed_byte_is_noticed_before_a_backend_opens_the_file(suffix, request):
    path = request.getfixturevalue("sealed_onnx" if suffix == ".onnx" else "sealed_pair")
    file = path.with_suffix(suffix)
    data = bytearray(file.read_bytes())
    endings = {".onnx": b"rJ\n\x06sha256\x12@", ".xml": b"<!--sha256 "}
    covered = data.rindex(endings[suffix]) if suffix in endings else len(data)
    for place in (*range(0, covered, max(1, covered // 50)), covered - 1):
        data[place] ^= 1
        file.write_bytes(data)
        with pytest.raises(ArtifactError, match="was altered"):
            Predictor(path)
        data[place] ^= 1


def test_a_graph_is_checked_with_its_weights_also_beside_the_target_of_a_link(sealed_pair, tmp_path, request):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.xml"
    link.symlink_to(sealed_pair)
    assert Predictor(link).sha256 == check_file(sealed_pair)
    assert companion_files(link) == (sealed_pair.with_suffix(".bin"),)
    loop = tmp_path / "elsewhere" / "loop.xml"
    loop.symlink_to(loop.name)
    assert companion_files(loop) == (loop.with_suffix(".bin"),)
    sealed_pair.with_suffix(".bin").unlink()
    request.getfixturevalue("no_backend")
    with pytest.raises(ArtifactError, match="not of one export"):
        Predictor(sealed_pair)


@pytest.mark.parametrize("kind", ["sealed_onnx", "sealed_pair"])
def test_a_file_that_lost_its_checksum_is_refused(kind, request):
    path = request.getfixturevalue(kind)
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"rJ\n\x06sha256" if path.suffix == ".onnx" else b"<!--sha256")])
    with pytest.raises(ArtifactError, match="the SHA-256 at its end is missing"):
        Predictor(path)


def test_a_file_that_changes_while_a_backend_opens_it_is_refused(sealed_onnx, monkeypatch):
    opener = backend_info("onnxruntime").cls
    open_file = opener.open_file

    def open_and_change(path, threads):
        graph = open_file(path, threads)
        path.write_bytes(path.read_bytes() + b"\0")
        return graph

    monkeypatch.setattr(opener, "open_file", open_and_change)
    with pytest.raises(ArtifactError, match="changed while it was opened"):
        Predictor(sealed_onnx)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes and devices as files")
def test_pipes_devices_and_folders_are_no_regular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device", "."):
        with pytest.raises(ArtifactError, match="can't be read .not a regular file."):
            open_model(tmp_path / name)
