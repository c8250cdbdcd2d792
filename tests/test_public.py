"""The public face: names exist, importing costs nothing, the version is one."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import clipadapter
from clipadapter.errors import install_command

ROOT = Path(__file__).parents[1]
PACKAGES = """adaptation bench data doctor encoders explain features heads metrics monitor persistence
pretraining report runtime runtime.export serve studio testing uncertainty"""


@pytest.mark.parametrize("package", ["", *PACKAGES.split()])
def test_every_name_in_all_exists(package):
    module = importlib.import_module(f"clipadapter.{package}".rstrip("."))
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'FewShotClasifier'"):
        _ = clipadapter.FewShotClasifier


def test_importing_the_package_and_its_data_sets_loads_nothing_heavy():
    heavy = {"torch", "numpy", "sklearn", "open_clip", "PIL", "pyarrow"}
    code = f"import sys, clipadapter.data; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


LARGE = {"litert", "ray"}
"""For clusters and phones; nobody wants them by the way."""


def test_every_extra_is_in_all():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.optional-dependencies]")[1].split("[project.scripts]")[0]
    extras = set(re.findall(r"^([a-z]+) = ", section, re.MULTILINE))
    named = re.search(r'^all = \["clipadapter\[([a-z,]+)\]"\]', section, re.MULTILINE)[1]
    by_others = {"train", "heic"}  # lite and onnx bring them
    assert set(named.split(",")) == extras - {"all", "benchmarks", "docs", "test"} - by_others - LARGE


def closure(name):
    """Requirements of an extra, with those of the extras that it names."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines = re.search(rf"^{name} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)[1]
    found = set()
    for requirement in re.findall(r'"([^"]+)"', lines):
        own = re.fullmatch(r"clipadapter\[([a-z,]+)\]", requirement)
        found |= set().union(*map(closure, own[1].split(","))) if own else {re.split(r"[>=;\[]", requirement)[0]}
    return found


@pytest.mark.parametrize("extra", ["dependencies", "serve"])
def test_what_answers_with_an_exported_model_is_installed_without_torch(extra):
    heavy = {"torch", "torchvision", "open_clip_torch", "scikit-learn", "scipy", "transformers", "matplotlib"}
    assert closure(extra) and not closure(extra) & heavy


@pytest.mark.parametrize("extra", ["lite", "demo", "onnx", "openvino", "litert", "studio", "all"])
def test_whoever_trains_needs_one_extra(extra):
    assert closure("train") <= closure(extra)


BLOCKED = """
import sys
from clipadapter.errors import TRAIN
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in TRAIN:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocked())
"""


def test_what_needs_training_says_what_to_install(tmp_path):
    code = BLOCKED + "from clipadapter.cli.app import main\nmain()"
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / name / "1.png")
    command = [sys.executable, "-c", code, "fit", str(tmp_path / "pictures"), "--out", str(tmp_path / "model")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 1 and found.stdout == ""
    assert found.stderr == (
        "error: clipadapter fit needs the part of clipadapter that learns, which is not installed: "
        f"{install_command('lite')}\n"
    )
    code = BLOCKED + "from clipadapter import FewShotClassifier"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingExtraError: FewShotClassifier needs" in found.stderr
