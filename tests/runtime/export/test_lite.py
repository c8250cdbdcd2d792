"""Files of `lite`: the lines in docs/export.md, run where neither this package nor torch can be imported; and int8."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipadapter.classifier import FewShotClassifier
from clipadapter.runtime.export import export_model

PAGE = (Path(__file__).parents[3] / "docs" / "export.md").read_text(encoding="utf-8")
CHECK = re.search(r"<!-- check -->\n```sh\n(.*?)```", PAGE, re.DOTALL)[1]
LINES = dict(re.findall(r"<!-- lines: (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))
WITHOUT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("clipadapter", "torch", "open_clip", "timm", "sklearn", "scipy"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
"""
ROTATED = 6
"""EXIF: what is shown must be turned by a quarter."""


@pytest.fixture(scope="module")
def place(opened, draw, tmp_path_factory):
    """A folder with model.onnx, model.xml and photo.jpg, which is neither square nor upright; and the model."""
    folder = tmp_path_factory.mktemp("place")
    model = FewShotClassifier(opened("lite"), "tip-adapter", cache=None, backend="torch", precision="fp32")
    model.fit(*draw(3, size=60))
    pictures = draw(2, seed=5, size=240)[0]
    for name, format in (("model.onnx", "onnx"), ("model.xml", "openvino")):
        export_model(model, folder / name, format=format, pictures=pictures)
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    Image.fromarray(pictures[0][:150]).save(folder / "photo.jpg", exif=exif)
    return folder, model


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_they_answer_as_the_model_does(format, place):
    folder, model = place
    code = WITHOUT + LINES[format]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in done.stdout.splitlines())}
    wanted = dict(zip(model.class_names_, model.predict_proba([folder / "photo.jpg"])[0], strict=True))
    assert list(found) == sorted(wanted, key=wanted.get, reverse=True)
    np.testing.assert_allclose([found[name] for name in wanted], list(wanted.values()), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("format", "suffix"), [("onnx", ".onnx"), ("openvino", ".xml"), ("openvino", ".bin")])
def test_they_refuse_an_altered_file(format, suffix, place, tmp_path):
    for path in place[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    altered = bytearray((tmp_path / f"model{suffix}").read_bytes())
    altered[len(altered) // 2] ^= 1
    (tmp_path / f"model{suffix}").write_bytes(altered)
    done = subprocess.run([sys.executable, "-c", LINES[format]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "altered" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs GNU core utilities")
def test_the_line_for_a_shell_calls_the_file_sound(place):
    done = subprocess.run(["sh", "-c", CHECK], cwd=place[0], capture_output=True, text=True)
    assert done.stdout == "sound\n"


def test_they_are_fifteen():
    assert len([line for line in LINES["onnx"].splitlines() if line]) <= 15
    assert all("clipadapter" not in text.replace('["clipadapter"]', "") for text in LINES.values())


@pytest.mark.slow
def test_int8_passes_the_gate(opened, draw, tmp_path, monkeypatch):
    """On pictures that did not set the ranges, as ONNX, whose int8 is the poorer of the two."""
    model = FewShotClassifier(opened("lite"), "prototype", cache=None, backend="torch", precision="fp32")
    model.fit(*draw(4, size=60))
    limits = {"MAX_COMPARED_PICTURES": {"int8": 12}, "MAX_CALIBRATION_PICTURES": 12, "MIN_CALIBRATION_PICTURES": 12}
    for name, value in limits.items():
        monkeypatch.setattr(f"clipadapter.runtime.export.exporter.{name}", value)
    done = export_model(model, tmp_path / "model.onnx", precision="int8", pictures=draw(8, seed=5, size=60)[0])
    assert (done.parity["n"], done.parity["agreement"]) == (12, 1.0)
    assert 0.98 < done.parity["cosine_least"] < 0.9999
    assert done.size_bytes < 7e6
