"""Every format of the table can be named, found by its suffix, and checked."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from clipadapter.backends import backend_info
from clipadapter.backends.base import BACKENDS
from clipadapter.backends.formats import (
    PRECISIONS,
    export_suffixes,
    find_format,
    get_format,
    is_exported,
    list_formats,
    list_inference_backends,
    load_formats,
)
from clipadapter.errors import InputError, MissingExtraError, install_command

FORMATS = list_formats()


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_complete(name):
    export_format = get_format(name)
    assert export_format.name == name
    assert export_format.title and export_format.summary and export_format.modules and export_format.extra
    assert export_format.backends
    assert set(export_format.precisions) <= set(PRECISIONS)
    for suffix in (export_format.suffix, *export_format.companion_suffixes):
        assert suffix.startswith(".") and suffix == suffix.lower()


def test_no_two_formats_share_a_suffix():
    suffixes = [*export_suffixes(), *(s for name in FORMATS for s in get_format(name).companion_suffixes)]
    assert len(set(suffixes)) == len(suffixes)


@pytest.mark.parametrize("name", FORMATS)
def test_an_exported_file_is_recognised_by_its_suffix(name, tmp_path):
    suffix = get_format(name).suffix
    assert is_exported(tmp_path / f"model{suffix}") and is_exported(tmp_path / f"MODEL{suffix.upper()}")
    assert not is_exported(tmp_path / "model.bin") and not is_exported(tmp_path / suffix.removeprefix("."))
    assert find_format(tmp_path / f"model{suffix}") is get_format(name)


def test_weights_beside_the_target_of_a_link_are_found(tmp_path):
    (tmp_path / "real").mkdir()
    for suffix in (".xml", ".bin"):
        (tmp_path / "real" / f"model{suffix}").touch()
    link = tmp_path / "link.xml"
    link.symlink_to(tmp_path / "real" / "model.xml")
    assert get_format("openvino").existing_files(link) == (tmp_path / "real" / "model.bin", link)
    (tmp_path / "real" / "model.bin").unlink()
    assert get_format("openvino").existing_files(link) == (link,)


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_package_names_the_extra(name, monkeypatch):
    export_format = get_format(name)
    monkeypatch.setitem(sys.modules, export_format.modules[0], None)
    with pytest.raises(MissingExtraError, match=re.escape(install_command(export_format.extra))):
        export_format.check_convertible(export_format.precisions[0])


@pytest.mark.parametrize("name", FORMATS)
def test_a_precision_that_a_format_does_not_have_is_an_error(name):
    with pytest.raises(InputError, match="precision of .* is fp32.*, not 'fp64'"):
        get_format(name).check_convertible("fp64")


def test_the_first_installed_backend_is_chosen(monkeypatch):
    onnx = get_format("onnx")
    for installed, chosen in (
        ({"openvino"}, "openvino"),
        ({"onnxruntime", "openvino"}, "onnxruntime"),
        (set(), "onnxruntime"),
    ):
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name, installed=installed: object() if name in installed else None
        )
        assert onnx.choose_backend() == chosen


def test_the_format_of_another_backend_is_in_the_table(monkeypatch):
    class Other(backend_info("onnxruntime").cls):
        format = replace(get_format("onnx"), name="other", suffix=".other", backends=("other",))

    monkeypatch.setattr(BACKENDS, "_entries", dict(BACKENDS._entries))
    BACKENDS.register("other")(Other)
    load_formats.cache_clear()
    try:
        assert "other" in list_formats()
        assert find_format(Path("model.other")) is Other.format
        assert list_inference_backends()[:2] == ["onnxruntime", "openvino"]
    finally:
        load_formats.cache_clear()


def test_the_table_loads_neither_numpy_nor_torch_nor_a_runtime():
    code = (
        "import sys; from clipadapter.backends.formats import list_formats; list_formats();"
        "print(sorted({'numpy', 'torch', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
