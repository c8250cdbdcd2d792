import json
import shutil

import pytest

from clipadapter.classifier import FewShotClassifier
from clipadapter.runtime.export import export_model


def test_an_exported_file_is_measured_as_its_model(probe, noisy_squares, tmp_path, run):
    exported = export_model(FewShotClassifier.load(probe), tmp_path / "probe.onnx").path
    test_copy = shutil.copytree(noisy_squares / "test", tmp_path / "new")
    (test_copy / "red" / "broken.png").write_text("no picture")
    model = json.loads(run("eval", probe, noisy_squares, "--no-curve", "--json", "--out", tmp_path / "one").stdout)
    result = run("eval", exported, test_copy, "--parity", probe, "--json", "--out", tmp_path / "two")
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["n_test"] == 6 and [skipped["path"][-10:] for skipped in figures["skipped"]] == ["broken.png"]
    for name in ("accuracy", "log_loss", "calibration_error"):
        assert figures[name] == pytest.approx(model["model"][name], abs=1e-5)
    assert figures["parity"]["agreement"] == 1.0 and figures["parity"]["cosine_least"] > 0.9999
    written = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert written.pop("written_by") == "clipadapter eval wrote this file and may replace it"
    assert written == {name: value for name, value in figures.items() if name != "files"}
    text = run("eval", exported, noisy_squares, "--out", tmp_path / "three").stdout
    assert text.startswith("6 pictures of noisy") and "compared" not in text
