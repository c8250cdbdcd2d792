"""What the documents show is run."""

import re

import pytest
from PIL import Image

from .pages import ROOT, marked, read_page, run_command

README = read_page("README.md")
TRUST = read_page("docs/trust.md")


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The folders that the README speaks of, of plain coloured pictures."""
    colours = {"tabby_cat": (200, 120, 30), "beagle": (30, 60, 200)}
    for folder, count in (("shots", 4), ("test", 2)):
        for name, colour in colours.items():
            for i in range(count):
                path = tmp_path / folder / name / f"{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40 + i, 40), tuple(c + 5 * i for c in colour)).save(path)
    (tmp_path / "more" / "terrier").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (40 + i, 40), (240, 240, 200 + 5 * i)).save(tmp_path / "more" / "terrier" / f"{i}.jpg")
    Image.new("RGB", (50, 50), (200, 120, 30)).save(tmp_path / "photo.jpg")
    for name in ("street.jpg", "hall.jpg"):
        Image.new("RGB", (50, 50), (128, 128, 128)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_python(code):
    """Run a block in this process, where warnings are errors."""
    exec(compile(code, "page", "exec"), {"__name__": "__main__"})


@pytest.mark.slow
def test_the_readme_runs_from_top_to_bottom(pictures):
    for block in marked(README):
        if block.language == "python":
            run_python(block.code)
        else:
            for line in block.code.splitlines():
                # Two heads once: without --heads the command compares all (tests/cli/commands/test_compare.py).
                run_command(line.replace("--shots 1,4 --seeds 2", "--shots 1 --seeds 1 --heads knn,tip-adapter"))
    assert (pictures / "model" / "config.json").is_file()


def test_the_commands_of_the_first_page_are_in_the_readme():
    commands = {line.split("#")[0].strip() for block in marked(README) for line in block.code.splitlines()}
    (block,) = marked(read_page("docs/index.md"))
    assert {line.split("#")[0].strip() for line in block.code.splitlines()} <= commands


@pytest.mark.slow
def test_python_of_the_page_on_trust_runs(pictures):
    for block in marked(TRUST):
        run_python(block.code)


def test_the_page_on_scikit_learn_runs():
    run_python("".join(block.code for block in marked(read_page("docs/guides/with-scikit-learn.md"))))


def test_the_set_up_commands_are_the_ones_that_ci_runs():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert (
        'bash -c "${command%&&*}"' in script and 'bash -c "${command##*&&}"' in script
    )  # before and after the last &&
    (line,) = [line for line in README.splitlines() if "python -m pytest" in line]
    assert line.endswith("&& .venv/bin/python -m pytest")


def test_links_lead_somewhere():  # those of docs/ are followed in the built site: tests/test_site.py
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_instructions_for_agents_stay_short():
    assert len((ROOT / "AGENTS.md").read_text(encoding="utf-8").splitlines()) <= 30
