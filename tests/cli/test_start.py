"""What needs no computing starts without the libraries that take seconds to import."""

import subprocess
import sys

import pytest

WRONG = (
    "ft",
    "fit nowhere --out m",
    "fit shots --out m --encoder lit",
    "fit shots --out m --encoder open_clip:ViT-B-32/opnai",
    "fit shots --out m --head clip-adaptor",
    "fit shots --out m --set alhpa=1",
    "fit shots --out m --head gda --grid alhpa=1,2",
    "predict nowhere a.jpg",
    "eval nowhere shots",
    "compare shots --encoder lit",
    "compare shots --heads gda,clip-adaptor",
    "compare shots --heads gda --set alhpa=1",
    "fit shots --out m --head stata",
    "fit shots --out m --head knn --unlabelled shots",
    "fit shots --out m --unlabelled nowhere",
    "compare nowhere",
    "doctor nowhere",
    "explain nowhere a.jpg",
    "history nowhere",
    "undo nowhere",
    "remove-class nowhere red",
    "studio shots --head clip-adaptor",
    "bench run few-shto --data shots",
    "bench run backbones --encoder open_clip:ViT-B-32/opnai",
    "bench status few-shto",
    "bench report few-shto",
)
LISTS = ("heads", "scan shots", "data list", "bench list", "bench status")
SLOW_MODULES = {"torch", "sklearn", "scipy", "open_clip", "timm", "transformers", "matplotlib", "gradio", "pandas"}

RUN = """
import sys
from click.testing import CliRunner
from clipadapter.cli.app import app
slow, lines, codes = set(sys.argv[1].split()), sys.argv[3:], set(map(int, sys.argv[2].split()))
for line in lines:
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code in codes, (line, result.exit_code, result.output)
    assert not slow & set(sys.modules), (line, sorted(slow & set(sys.modules)))
"""


def run_together(lines, codes, without):
    """Run commands in one new process, which must not import some modules."""
    args = [sys.executable, "-c", RUN, " ".join(without), codes, *lines]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def shots(noisy_squares, tmp_path, monkeypatch):
    (tmp_path / "shots").symlink_to(noisy_squares / "train", target_is_directory=True)
    monkeypatch.chdir(tmp_path)


def test_a_wrong_command_line_is_refused_before_torch_is_imported(shots):
    run_together(WRONG, "1 2", SLOW_MODULES)


def test_lists_are_printed_without_torch(shots):
    run_together(LISTS, "0", SLOW_MODULES)


def test_a_fit_a_prediction_and_an_edit_import_no_scikit_learn_and_an_undo_no_torch(shots):
    fit = "fit shots --out m --encoder toy --head gda"
    lines = (fit, "predict m shots --backend torch", "rename-class m red crimson")
    run_together(lines, "0", {"sklearn", "pandas", "matplotlib", "huggingface_hub.hf_api"})
    run_together(("undo m", "history m"), "0", SLOW_MODULES)
