"""How faithful heads are to their sources: every head of ours says so, and what it says is what tests compare."""

import inspect
import re
from pathlib import Path
from typing import ClassVar

import pytest

from clipadapter.errors import InputError
from clipadapter.heads import Fidelity, Head, TrainedHead, fidelity_of, head_info, list_heads, register_head
from clipadapter.heads.base import HEADS
from clipadapter.heads.registry import FIDELITY_KINDS

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("name", list_heads())
def test_a_head_states_its_fidelity_once_and_that_it_was_checked_only_where_a_test_has_released_code(name):
    cls, found = head_info(name).cls, fidelity_of(name)
    assert found.kind in FIDELITY_KINDS and found.kind != "not stated"
    assert found.statement.endswith(".")
    assert (cls.__doc__ or "").count(f"\n\nFidelity: {found}\n") == 1
    folder, module = cls.__module__.split(".")[1:3]
    test = TESTS / folder / f"test_{module}.py"
    compared = test.is_file() and re.search(r"golden\(|released_shots\(", test.read_text(encoding="utf-8"))
    assert found.kind in ("verified", "partial") if compared else found.kind != "verified"
    assert not compared or re.search(r"\bcode\b", found.statement)


@pytest.fixture
def forget():
    """Takes heads of a test out of the registry again."""
    before = dict(HEADS._entries)
    yield
    HEADS._entries = before


def test_a_head_of_another_package_need_not_state_its_fidelity(forget):
    @register_head("test-only-silent")
    class Silent(Head):
        """Says nothing."""

    HEADS.register("test-only-direct")(type("Direct", (Silent,), {"__doc__": "Registered without the decorator."}))
    assert fidelity_of("test-only-silent") == fidelity_of("test-only-direct") == Fidelity("not stated", "")
    assert fidelity_of("there is no such head") == Fidelity()
    assert Fidelity().is_as_published
    assert str(Fidelity()) == "Not stated."


def test_a_docstring_describes_each_parameter_once_its_own_before_inherited_ones(forget):
    @register_head("test-only-trained")
    class Trained(TrainedHead):
        """Trained in some way.

        Args:
            width: of something, described
                on two lines.
            lr: a rate of another meaning.

        The end.
        """

        width: int = 3

    described = re.findall(r"^    (\w+): (.*)$", Trained.__doc__, re.MULTILINE)
    assert [name for name, _ in described[:2]] == ["width", "lr"]
    assert sorted(name for name, _ in described) == sorted(inspect.signature(Trained).parameters)
    assert dict(described)["lr"] == "a rate of another meaning."
    assert dict(described)["batch_size"] == "shots per step."
    assert Trained.__doc__.endswith("\n\nThe end.\n\nFidelity: Not stated.\n")


@pytest.mark.parametrize("text", ["faithful", "verified", "verified: no full stop", "literal: It is the same."])
def test_malformed_fidelity_is_refused(text, forget):
    cls = type("Wrong", (Head,), {"__doc__": f"Says it in another form.\n\nFidelity: {text}"})
    with pytest.raises(InputError, match="fidelity is 'KIND: sentences.' with a kind out of verified, paper, partial"):
        register_head("test-only-wrong")(cls)
    assert "test-only-wrong" not in HEADS.list()
    with pytest.raises(InputError, match="end it with 'Fidelity: KIND: sentences.'"):
        register_head("test-only-wrong", fidelity="own: Not of the docstring.")


def test_annotated_constants_and_learned_attributes_are_no_parameters(forget):
    @register_head("test-only-plain")
    class Plain(Head):
        needs_text: ClassVar[bool] = True
        weight_: int
        width: int = 3

    assert list(inspect.signature(Plain).parameters) == ["width"]
    assert head_info("test-only-plain").summary == ""


@pytest.mark.parametrize("name", ["clip-adapter", "taskres"])
def test_a_published_method_with_a_recipe_of_this_project_is_not_as_published(name):
    assert not fidelity_of(name).is_as_published and "a recipe of this project" in str(fidelity_of(name))
    assert fidelity_of(name).kind == "verified"
    cls = head_info(name).cls
    assert not fidelity_of(name, cls().get_params()).is_as_published
    published = [cls.from_recipe(recipe) for recipe in cls.recipes] + [cls.preset(data) for data in cls.presets]
    assert all(fidelity_of(name, head.get_params()).is_as_published for head in published)
    assert not fidelity_of(name, cls.official(logit_adjustment=1.0).get_params()).is_as_published


def test_the_page_of_results_states_the_fidelity_of_heads():
    page = (TESTS.parent / "docs" / "results.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ") and "±" in line}
    heads = {row.rstrip("*‡") for row in rows}
    assert {"auto", "hoso"} <= heads
    assert {row.rstrip("*‡") for row in rows if row.endswith("‡")} == {
        head for head in heads if not fidelity_of(head).is_as_published
    }
    for head in heads:
        assert (f"| {head} | {fidelity_of(head)} |" in page) != fidelity_of(head).is_as_published, head
