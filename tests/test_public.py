"""The public face: names exist, importing costs nothing, the version is one."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import clipadapter

ROOT = Path(__file__).parents[1]
PACKAGES = [
    "",
    ".artifact",
    ".bench",
    ".data",
    ".doctor",
    ".encoders",
    ".explain",
    ".features",
    ".heads",
    ".metrics",
    ".pretraining",
    ".report",
    ".testing",
    ".trust",
]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_in_all_exists(package):
    module = importlib.import_module(f"clipadapter{package}")
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'FewShotClasifier'"):
        _ = clipadapter.FewShotClasifier


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, clipadapter; print(sorted({'torch', 'numpy', 'sklearn', 'open_clip', 'PIL'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


LARGE = {"ray", "tensorboard", "mlflow", "wandb"}
"""For clusters and teams; nobody wants them by the way."""


def test_every_extra_is_in_all():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.optional-dependencies]")[1].split("[project.scripts]")[0]
    extras = set(re.findall(r"^([a-z]+) = ", section, re.MULTILINE))
    named = re.search(r'^all = \["clipadapter\[([a-z,]+)\]"\]', section, re.MULTILINE)[1]
    assert set(named.split(",")) == extras - {"all", "test"} - LARGE
