"""Every format of the table can be named, found by its suffix, and checked."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from clipadapter.errors import InputError, MissingExtraError, install_command
from clipadapter.runtime.engines import backend_info
from clipadapter.runtime.engines.base import BACKENDS
from clipadapter.runtime.engines.export_format import EXPORT_PRECISIONS
from clipadapter.runtime.engines.formats import (
    export_suffixes,
    find_format,
    get_format,
    is_exported,
    list_inference_backends,
    list_openers,
    load_formats,
)
from clipadapter.runtime.predictor import _choose_backend


@pytest.mark.parametrize("name", load_formats())
def test_a_format_is_complete(name, tmp_path, monkeypatch):
    form = get_format(name)
    assert form.name == name and form.title and form.summary and form.modules and form.extra
    assert backend_info(list_openers(name)[0]).cls.format is form
    assert set(form.precisions) <= set(EXPORT_PRECISIONS)
    assert all(re.fullmatch(r"\.[a-z]+", suffix) for suffix in (form.suffix, *form.companion_suffixes))
    assert find_format(tmp_path / f"MODEL{form.suffix.upper()}") is form
    assert is_exported(tmp_path / f"model{form.suffix}") and not is_exported(tmp_path / form.suffix.removeprefix("."))
    with pytest.raises(InputError, match="precision of .* is fp32.*, not 'fp64'"):
        form.check_convertible("fp64")
    monkeypatch.setitem(sys.modules, form.modules[0], None)
    with pytest.raises(MissingExtraError, match=re.escape(install_command(form.extra))):
        form.check_convertible("fp32")


def test_no_two_formats_share_a_suffix():
    suffixes = [*export_suffixes(), *(s for each in load_formats().values() for s in each.companion_suffixes)]
    assert len(set(suffixes)) == len(suffixes) and not is_exported(Path("model.bin"))


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [({"openvino"}, "openvino"), ({"onnxruntime", "openvino"}, "onnxruntime"), (set(), "onnxruntime")],
)
def test_the_first_installed_backend_is_chosen(installed, chosen, tmp_path, monkeypatch):
    (tmp_path / "model.onnx").touch()
    list_inference_backends()  # imports the backends
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name in installed else None)
    assert _choose_backend(tmp_path / "model.onnx", "auto") == chosen


def test_the_backend_of_another_package_adds_its_format_and_opens_files_of_others(monkeypatch):
    class Other(backend_info("onnxruntime").cls):
        format = replace(get_format("onnx"), name="other", suffix=".other")
        opens = ("openvino",)

    monkeypatch.setattr(BACKENDS, "_entries", dict(BACKENDS._entries))
    BACKENDS.register("other")(Other)
    load_formats.cache_clear()
    try:
        assert "other" in load_formats()
        assert find_format(Path("model.other")) is Other.format
        assert list_inference_backends()[:2] == ["onnxruntime", "openvino"]
        assert [list_openers(name) for name in ("onnx", "openvino", "other")] == [
            ["onnxruntime", "openvino"],
            ["openvino", "other"],
            ["other"],
        ]
    finally:
        load_formats.cache_clear()


def test_the_table_loads_neither_numpy_nor_torch_nor_a_runtime():
    code = (
        "import sys; from clipadapter.runtime.engines.formats import load_formats; load_formats();"
        "print(sorted({'numpy', 'torch', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
