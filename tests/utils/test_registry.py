"""What a registry reads from source files is what an import registers."""

import inspect

import pytest

from clipadapter.bench.protocols import PROTOCOLS
from clipadapter.encoders import Encoder
from clipadapter.encoders.registry import ENCODERS
from clipadapter.errors import UnknownNameError
from clipadapter.heads.registry import HEADS, Fidelity
from clipadapter.runtime.engines.base import BACKENDS
from clipadapter.utils.registry import Registry, unknown

REGISTRIES = {registry.kind: registry for registry in (BACKENDS, ENCODERS, HEADS, PROTOCOLS)}


@pytest.mark.parametrize("registry", REGISTRIES.values(), ids=REGISTRIES)
def test_every_name_that_is_read_has_a_class_with_this_summary(registry):
    assert len(registry.list()) > 1
    for entry in map(registry.info, registry.list()):
        assert entry.cls.__module__.startswith("clipadapter.") and registry.name_of(entry.cls) is not None
        assert entry.summary and entry.summary == entry.cls.__doc__.strip().split("\n")[0]


@pytest.mark.parametrize("declared", [*map(HEADS.info, HEADS.list())], ids=HEADS.list())
def test_the_declaration_of_a_head_states_what_the_class_states(declared):
    cls = declared.cls
    assert cls.__doc__.endswith(f"Fidelity: {Fidelity.of(declared.docstring, declared.facts)}\n")
    assert list(declared.parameters) == list(inspect.signature(cls).parameters)
    for name in ("transductive", "accepts_unlabelled", "needs_text", "tunes_encoder", "needs_tower"):
        assert declared.attributes[name] is getattr(cls, name)


@pytest.mark.parametrize("name", ENCODERS.list())
def test_the_methods_of_an_encoder_are_read_with_those_of_its_bases(name):
    cls = ENCODERS.info(name).cls
    for method in ("text_tower", "tunable_copy", "prompt_places"):
        assert ENCODERS.overrides(name, method, "Encoder") == (getattr(cls, method) is not getattr(Encoder, method))


def test_a_plug_in_declares_what_its_class_has():
    class Base:
        transductive = True

    class Member(Base):
        """One line."""

    registry = Registry("member", "clipadapter.nothing")
    registry.register("own", paper="a paper")(Member)
    declared = registry.info("own")
    assert (declared.summary, dict(declared.facts)) == ("One line.", {"paper": "a paper"})
    assert declared.attributes["transductive"] and declared.cls is Member
    with pytest.raises(UnknownNameError, match="no parameter of own is called 'size'"):
        registry.check_parameter("own", "size")


def test_the_name_of_a_class_is_looked_up_without_an_import_of_other_members(monkeypatch):
    cls = HEADS.info("tip-adapter").cls
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"imports {name}"))
    assert (HEADS.name_of(cls), HEADS.name_of(int)) == ("tip-adapter", None)


def test_a_name_in_capitals_gets_the_hint_of_the_same_letters():
    with pytest.raises(UnknownNameError, match="'CLIP-Adapter'. Did you mean 'clip-adapter'?"):
        HEADS.check("CLIP-Adapter")
    with pytest.raises(UnknownNameError, match="'hatt'. Did you mean 'Hat'?"):
        raise unknown("class", "hatt", ["Hat", "Shoe"])
