"""What a change says that it did; ``outputs_edits.txt`` has the commands that change a model."""

from types import SimpleNamespace

import pytest

from clipadapter.cli.commands.edit import describe_change


@pytest.mark.parametrize(
    ("action", "details", "text"),
    [
        (
            "add-examples",
            {"pictures": 1, "relabelled": 1, "known": 1},
            "1 new picture, 1 shot relabelled, 1 already known",
        ),
        ("add-examples", {"pictures": 2, "relabelled": 3}, "2 new pictures, 3 shots relabelled"),
        ("remove-class", {"class": "cat", "pictures": 1}, "'cat' and its 1 shot"),
        ("remove-class", {"class": "cat", "pictures": 2}, "'cat' and its 2 shots"),
    ],
)
def test_one_picture_is_a_picture_and_two_are_pictures(action, details, text):
    assert describe_change(SimpleNamespace(action=action, facts=details)).endswith(text)
