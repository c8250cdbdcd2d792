"""Groups of options: one declaration gives the option, its default and the field of the object."""

from dataclasses import dataclass

import click
import pytest
from click.testing import CliRunner

from clipadapter.cli.encoder_options import EncoderOptions, ModelEncoderOptions
from clipadapter.cli.options import field_option, late_choice, option, option_group


@dataclass(frozen=True)
class Size:
    width: int = option("--width", default=3, type=int, help="Width in pixels.")
    names: tuple[str, ...] = option("--name", default=(), multiple=True)
    height: int = 7


def call(decorator, *args):
    """Run a command with a decorator; the result is what the command gets."""
    received = {}

    @click.command(context_settings={"show_default": True})
    @decorator
    def command(**values):
        received.update(values)

    result = CliRunner().invoke(command, args)
    assert result.exit_code == 0, result.output
    return received or result.output


def test_a_group_is_one_object_with_defaults():
    assert call(option_group("size", Size)) == {"size": Size()}
    assert call(option_group("size", Size), "--width", "5", "--name", "a", "--name", "b") == {
        "size": Size(5, ("a", "b"))
    }


def test_the_default_is_in_the_help():
    assert "--width INTEGER  Width in pixels.  [default: 3]" in call(option_group("size", Size), "--help")


def test_a_field_without_an_option_is_no_option():
    assert "height" not in call(option_group("size", Size), "--help")


def test_a_command_can_offer_a_part_of_a_group():
    assert "--name" not in call(option_group("size", Size, only=("width",)), "--help")
    assert call(option_group("size", Size, only=("width",)), "--width", "4") == {"size": Size(4)}


def test_one_field_can_be_an_option_by_itself():
    assert call(field_option(Size, "width"), "--width", "4") == {"width": 4}


def test_a_fitted_model_has_its_own_encoder_by_default():
    group = option_group("encoder", ModelEncoderOptions)
    assert [call(group, *line)["encoder"].uris for line in ((), ("--encoder", "lite"))] == [(), ("lite",)]


def test_several_encoders_may_be_named():
    group = option_group("encoder", EncoderOptions, without=["quality"])
    lines = ((), ("--encoder", "lite", "--encoder", "toy"))
    assert [call(group, *line)["encoder"].uris for line in lines] == [("auto",), ("lite", "toy")]


def test_no_cache_overrides_a_cache_file(tmp_path):
    group = option_group("encoder", EncoderOptions)
    assert call(group)["encoder"].store == "auto"
    assert call(group, "--cache", str(tmp_path / "a"))["encoder"].store == tmp_path / "a"
    assert call(group, "--cache", str(tmp_path / "a"), "--no-cache")["encoder"].store is None


def test_the_names_of_a_late_choice_are_listed_only_when_they_are_needed():
    listings = []

    def list_names():
        listings.append(1)
        return ["red", "blue"]

    decorator = click.option("--colour", type=late_choice(list_names), default="red")
    assert not listings
    assert call(decorator, "--colour", "blue") == {"colour": "blue"}
    assert "--colour [red|blue]" in call(decorator, "--help")
    with pytest.raises(AssertionError, match="'pink' is not one of 'red', 'blue'"):
        call(decorator, "--colour", "pink")


def test_an_unknown_option_may_be_a_parameter_of_the_head(run):
    result = run("fit", "shots", "--weight-decay", "0.1")
    assert result.exit_code == 2
    assert "A parameter of a head is given as --set weight_decay=VALUE." in result.stderr
    assert "--set" not in run("predict", "model", "photo.jpg", "--epochs", "3").stderr
