"""What the documents show is run."""

import re

import pytest
from PIL import Image

from .pages import ROOT, marked, read_page, run_command, shorten_training

README = read_page("README.md")
TRUST = read_page("docs/trust.md")


COLOURS = {"dress": (200, 120, 30), "hat": (30, 60, 200), "pants": (40, 180, 60), "shoes": (220, 40, 140)}


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The folders that the README speaks of, of plain coloured pictures."""
    for folder, count in (("shots", 8), ("test", 2)):
        for name, colour in COLOURS.items():
            for i in range(count):
                path = tmp_path / folder / name / f"{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40 + i, 40), tuple(c + 5 * (i % 5) for c in colour)).save(path)
    Image.new("RGB", (50, 50), COLOURS["hat"]).save(tmp_path / "photo.jpg")
    for name in ("street.jpg", "hall.jpg"):
        Image.new("RGB", (50, 50), (128, 128, 128)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    shorten_training(monkeypatch)
    return tmp_path


def words_of(line):
    """A line of output without its numbers, and without marks and spaces, whose number depends on them."""
    return re.sub(r"[\d.,•±\s]+", " ", line).strip()


def sessions(code):
    """The commands of a session on a terminal, each with the lines that it prints up to a line of dots."""
    for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        command, *lines = part.rstrip().splitlines()
        yield command, [words_of(line) for line in lines if line not in ("", "...")]


def run_python(code):
    """Run a block in this process, where warnings are errors."""
    exec(compile(code, "page", "exec"), {"__name__": "__main__"})


@pytest.mark.slow
def test_the_readme_runs_from_top_to_bottom_and_shows_what_is_printed(pictures):
    for block in marked(README):
        if block.language == "python":
            run_python(block.code)
            continue
        for command, lines in sessions(block.code):
            printed = run_command(command.replace("--seeds 3", "--seeds 2")).stdout.splitlines()
            assert [words_of(line) for line in printed if line][: len(lines)] == lines
    assert (pictures / "model" / "config.json").is_file()


def test_the_readme_fits_on_a_few_screens_and_says_first_what_lite_is_for():
    assert len(README.splitlines()) <= 120
    assert README.index("`lite` is for trying") < README.index("--encoder lite")


@pytest.mark.slow
def test_the_commands_of_the_first_page_run_and_fit_a_narrow_screen(pictures):
    (block,) = marked(read_page("docs/index.md"))
    for line in block.code.splitlines():
        assert len(line) <= 40, line  # what a page of 390 pixels shows of a line of code
        run_command(line)


@pytest.mark.slow
def test_python_of_the_page_on_trust_runs(pictures):
    for block in marked(TRUST):
        run_python(block.code)


@pytest.mark.slow
def test_the_page_on_scikit_learn_runs_from_pictures(pictures):
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


@pytest.mark.parametrize(("page", "folder"), [("SECURITY.md", ""), ("docs/architecture.md", "src/clipadapter")])
def test_named_files_exist(page, folder):
    for name in re.findall(r"`([a-z_0-9/]+\.py)`", read_page(page)):
        assert (ROOT / folder / name).is_file() or (ROOT / name).is_file(), f"{page} names {name}"


def test_instructions_for_agents_stay_short():
    assert len((ROOT / "AGENTS.md").read_text(encoding="utf-8").splitlines()) <= 30
