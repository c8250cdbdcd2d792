import json
from importlib.metadata import version


def test_version(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = json.loads(run("version", "--json").stdout)
    assert found["torch"] == version("torch")
    assert found["cache"] == str(tmp_path / "clipadapter")
    names = {"clipadapter", "python", "torch", "open_clip_torch", "scikit-learn", "onnxruntime", "openvino", "cache"}
    assert set(found) == names
