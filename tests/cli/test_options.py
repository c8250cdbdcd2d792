"""Groups of options: one declaration gives the option, its default and the field of the object."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from click.testing import CliRunner

from clipadapter.cli.declarations import argument, cli_command, option, options_of
from clipadapter.cli.options import Count, EncoderOptions, File, HeadOptions, ModelEncoderOptions, late_choice
from clipadapter.heads.clip_adapter import ClipAdapter


@dataclass(frozen=True)
class Size:
    width: int = option("--width", default=3, type=int, help="Width in pixels.")
    names: tuple[str, ...] = option("--name", default=(), multiple=True)
    height: int = 7


@dataclass(frozen=True)
class Values:
    folder: Path = argument()
    file: File | None = argument()
    count: Count = option("--count", default=3)
    colour: Literal["red", "blue"] | None = option("--colour")
    names: tuple[str, ...] = option("--name")


def call(declared, *args):
    """Run a command with one declared parameter; the result is what the command gets."""
    received = {}

    @cli_command("")
    def command(it=declared, **_):
        received.update(it=it)

    result = CliRunner().invoke(command, args, show_default=True)
    assert result.exit_code == 0, result.output
    return received.get("it", result.output)


def test_a_group_is_one_object_with_defaults():
    assert call(options_of(Size)) == Size()
    assert call(options_of(Size), "--width", "5", "--name", "a", "--name", "b") == Size(5, ("a", "b"))


def test_the_help_has_the_default_of_an_option_and_no_field_without_one():
    text = call(options_of(Size), "--help")
    assert re.search(r"--width INTEGER  Width in pixels.  \[default: 3\]", text) and "height" not in text


def test_a_command_can_offer_a_part_of_a_group():
    assert "--name" not in call(options_of(Size, only=("width",)), "--help")
    assert call(options_of(Size, only=("width",)), "--width", "4") == Size(4)


def test_an_option_and_an_argument_are_declared_as_defaults():
    assert call(option("--width", type=int, default=3), "--width", "4") == 4
    assert call(argument(type=int), "4") == 4


def test_an_annotation_says_the_type_of_a_value_whether_it_may_be_left_out_and_whether_there_are_several():
    assert call(options_of(Values), "a", "--name", "b", "--name", "c") == Values(Path("a"), None, 3, None, ("b", "c"))
    for wrong in ((), ("a", "--count", "0"), ("a", "--colour", "green")):
        with pytest.raises(AssertionError, match="Usage:"):
            call(options_of(Values), *wrong)


def test_several_encoders_may_be_named_and_a_fitted_model_has_its_own_by_default():
    group = options_of(EncoderOptions, without=["quality"])
    lines = ((), ("--encoder", "lite", "--encoder", "toy"))
    assert [call(group, *line).uris for line in lines] == [("auto",), ("lite", "toy")]
    group, lines = options_of(ModelEncoderOptions), ((), ("--encoder", "lite"))
    assert [call(group, *line).uris for line in lines] == [(), ("lite",)]


def test_settings_override_a_recipe_or_a_preset():
    for recipe in ("official", "paper"):
        expected = getattr(ClipAdapter, recipe)(epochs=3, seed=5).get_params()
        chosen = HeadOptions("clip-adapter", settings=(("epochs", 3), ("seed", 5)), recipe=recipe)
        assert chosen.create().get_params() == expected
    params = HeadOptions("tip-adapter", settings=(("beta", 9),), preset="dtd").parameters()
    assert (params["alpha"], params["beta"]) == (2, 9)


def test_no_cache_overrides_a_cache_file(tmp_path):
    group = options_of(EncoderOptions)
    assert call(group).store == "auto"
    assert call(group, "--cache", str(tmp_path / "a")).store == tmp_path / "a"
    assert call(group, "--cache", str(tmp_path / "a"), "--no-cache").store is None


def test_the_names_of_a_late_choice_are_listed_only_when_they_are_needed():
    listings = []

    def list_names():
        listings.append(1)
        return ["red", "blue"]

    declared = option("--colour", type=late_choice(list_names), default="red")
    assert not listings
    assert call(declared, "--colour", "blue") == "blue"
    assert "--colour [red|blue]" in call(declared, "--help")
    with pytest.raises(AssertionError, match="'pink' is not one of 'red', 'blue'"):
        call(declared, "--colour", "pink")
