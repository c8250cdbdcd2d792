"""The group itself: commands found by their files, help, errors, exit codes."""

import re
import shlex
import shutil
import sys
import unicodedata
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest
from PIL import Image

from clipadapter import __version__
from clipadapter.cli import commands
from clipadapter.cli.app import app, main

from ..configs import rewrite_config

COMMANDS = app.list_commands(click.Context(app))
HELLO = """
from clipadapter.cli.declarations import cli_command


@cli_command("clipadapter hello")
def command(out):
    "Greet."
    out.note("a note")
    out.result({"said": "hello"}, "hello")
"""


def test_a_new_command_is_one_file_and_one_line_of_the_table(tmp_path, monkeypatch, run):
    (tmp_path / "hello.py").write_text(HELLO)
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    monkeypatch.setitem(commands.SECTIONS["Start"], "hello", "Greet.")
    monkeypatch.delitem(sys.modules, "clipadapter.cli.commands.hello", raising=False)
    assert "\n  hello    Greet.\n" in run("--help").stdout
    assert run("hello", "--help").stdout.endswith("Example: clipadapter hello\n")
    assert run("hello").stdout == "hello\n"
    assert run("hello").stderr == "a note\n"
    assert run("hello", "-q").stderr == ""
    assert run("hello", "--json").stdout == '{\n "said": "hello"\n}\n'


def test_the_help_imports_no_command_and_fits_80_columns(monkeypatch, run):
    monkeypatch.setattr(app, "get_command", None)
    assert max(map(len, run("--help").stdout.splitlines())) < 80


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("fit", "--out --encoder --quality --head --shots --test-fraction --reject --class-names --json --help"),
        ("bench run", "--data --encoder --heads --shots --seeds --out --workers --device --dry-run --json --help"),
    ],
)
def test_a_long_help_begins_with_the_options_that_a_person_needs_first_and_has_all(words, first, run):
    text = run(*words.split(), "--help").stdout
    listed = text.split("Options:\n")[1].split("\n\n")[0]
    assert re.findall(r"^  (?:-\w, )?(--[a-z-]+)", listed, re.MULTILINE) == first.split()
    command = app
    for word in words.split():
        command = command.get_command(None, word)
    assert all(f"{option} " in text for param in command.params for option in param.opts if option[:2] == "--")


def test_modules_of_the_package_are_the_commands():
    files = {path.stem for path in Path(commands.__file__).parent.glob("[!_]*")}
    assert {commands.SHARED_MODULES.get(name, name) for name in COMMANDS} == files
    assert all(app.get_command(None, name).name == name for name in commands.SHARED_MODULES)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_writes_json_can_be_quiet_has_a_summary_and_an_example_that_can_be_run(name, run):
    command = app.get_command(click.Context(app), name)
    assert {"--json", "--quiet"} <= {option for param in command.params for option in param.opts}
    assert command.get_short_help_str(limit=200)
    (example,) = re.findall(r"^ *Example: (.*)$", run(name, "--help").stdout, re.MULTILINE)
    program, named, *args = shlex.split(example)
    assert (program, named) == ("clipadapter", name)
    command.make_context(name, args)  # parses, and runs nothing


def test_a_program_or_a_group_without_a_command_shows_its_help(run):
    assert run().exit_code == 2 and "Usage:" in run().output
    for group in ("data", "bench"):
        shown = run(group).output
        assert "Commands:" in shown and "Error" not in shown


def test_version_option(run):
    assert run("--version").stdout.split()[-1] == __version__


def test_a_typo_in_a_command_suggests_the_closest_name(run):
    result = run("pedict", "model", "photo.jpg")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "no command is called 'pedict'. Did you mean 'predict'?" in result.stderr


def test_debug_raises(tmp_path, run):
    result = run("--debug", "scan", tmp_path / "nothing")
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "DataError"


def test_the_entry_point_is_main():
    (point,) = entry_points(group="console_scripts", name="clipadapter")
    assert point.load() is main


def test_an_error_of_the_layout_prints_the_command_to_repeat(tmp_path, run, write_squares):
    for part in ("shots", "test"):
        write_squares(tmp_path / "my data" / part, 1)
    data = tmp_path / "my data"
    for arguments, meant in (
        (["fit", data, "--out", "model", "--encoder", "toy"], "shots"),
        (["doctor", data, "--encoder", "toy"], "shots"),
    ):
        result = run(*arguments)
        words = shlex.split(result.stderr.split("Repeat with: ")[1])
        assert result.exit_code == 1
        assert words == ["clipadapter", *(str(data / meant if word == data else word) for word in arguments)]


def test_warnings_about_files_come_once_per_kind_at_the_end(tmp_path, run, write_squares):
    data = write_squares(tmp_path / "data", 2)
    for name in ("blue", "red"):
        frames = [Image.new("RGB", (9, 9), colour) for colour in (name, "white")]
        frames[0].save(data / name / "a.gif", save_all=True, append_images=frames[1:])
    (data / "red" / "gone.png").symlink_to("nowhere.png")
    result = run("fit", data, "--out", tmp_path / "model", "--encoder", "toy", "--head", "zero-shot")
    assert result.exit_code == 0
    warned = [line.split(": ")[1] for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert warned == [
        "links to files that do not exist, perhaps because their content was not fetched, are left out",
        "pictures with several pages or frames, of which the first is read",
    ]
    assert f": 2 ({data / 'blue' / 'a.gif'}, {data / 'red' / 'a.gif'})" in result.stderr
    assert "frames" not in run("predict", tmp_path / "model", data / "red" / "a.gif", "-q").stderr
    assert "frames" in run("predict", tmp_path / "model", data / "red" / "a.gif").stderr


def test_the_largest_picture_is_an_option_that_ends_with_the_command(squares, run):
    assert run("scan", squares).exit_code == 0
    refused = run("scan", squares, "--max-pixels", 2000, "--strict")
    assert refused.exit_code == 1
    assert "too large: 0.00205 million pixels (limit 0.002; --max-pixels or set_max_pixels raises it)" in refused.stdout
    assert run("scan", squares, "--strict").exit_code == 0


NAME_FROM_ELSEWHERE = "red\x1b]0;title\x07\nfake  1.000  \u202e\x9b2J\x7f"
"""It would change the title, make a row, turn the direction of the text and clear the screen."""


def renamed(value):
    """The class "red" with that name, anywhere in JSON values."""
    if isinstance(value, dict):
        return {renamed(key): renamed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item) for item in value]
    return NAME_FROM_ELSEWHERE if value == "red" else value


@pytest.mark.skipif(sys.platform == "win32", reason="files can't have such names")
@pytest.mark.parametrize(
    "words",
    [
        "predict MODEL PICTURE --top 3",
        "predict MODEL MISSING",
        "explain MODEL PICTURE",
        "history MODEL",
        "correct MODEL PICTURE --label blue",
        "scan DATA",
        "doctor DATA --encoder toy",
        "predict MODEL PICTURE --wrong-CLASS",
    ],
)
def test_no_name_makes_a_line_or_a_control_character_in_the_output(words, squares, model, tmp_path, run):
    outputs = []
    for name in ("red", NAME_FROM_ELSEWHERE):
        place = tmp_path / str(len(outputs))
        shutil.copytree(model, place / "model")
        (place / "data").mkdir()
        for colour in ("blue", "green"):
            shutil.copytree(squares / colour, place / "data" / colour)
        shutil.copytree(squares / "red", place / "data" / "red")
        (place / "data" / "red" / "0.png").rename(place / "data" / "red" / f"{name}.png")
        (place / "data" / "red" / f"broken {name}.png").write_bytes(b"no picture")
        if name != "red":
            rewrite_config(place / "model" / "config.json", lambda config: config.update(renamed(config)))
        parts = {"MODEL": place / "model", "DATA": place / "data", "CLASS": name}
        parts |= {"PICTURE": place / "data" / "red" / f"{name}.png", "MISSING": place / f"missing {name}.png"}
        command = words.split()
        for key, part in parts.items():
            command = [word.replace(key, str(part)) for word in command]
        outputs.append(run(*command))
    plain, escaped = outputs
    assert escaped.exit_code == plain.exit_code
    for stream in ("stdout", "stderr"):
        text = getattr(escaped, stream)
        assert text.count("\n") == getattr(plain, stream).count("\n")
        assert not {unicodedata.category(letter) for letter in text.replace("\n", "")} & {"Cc", "Cf", "Zl", "Zp"}
