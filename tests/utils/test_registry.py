"""What a registry reads from source files is what an import registers."""

import ast
import inspect
import subprocess
import sys

import pytest

from clipadapter.backends.registry import BACKENDS
from clipadapter.bench.protocols import PROTOCOLS
from clipadapter.encoders.registry import ENCODERS
from clipadapter.errors import UnknownNameError
from clipadapter.heads.registry import HEADS, Fidelity
from clipadapter.utils.declarations import PackageSource
from clipadapter.utils.registry import unknown

REGISTRIES = {registry.kind: registry for registry in (BACKENDS, ENCODERS, HEADS, PROTOCOLS)}
SOURCE = PackageSource("clipadapter.heads", "clipadapter.tuners")


@pytest.mark.parametrize("registry", REGISTRIES.values(), ids=REGISTRIES)
def test_every_name_that_is_read_has_a_class_with_this_summary(registry):
    declared = {declaration.name: declaration for declaration in registry.declarations()}
    assert len(declared) > 1 and list(declared) == registry.list()
    for name, declaration in declared.items():
        entry = registry.info(name)
        assert entry.cls.__module__.startswith("clipadapter.")
        assert declaration.summary == entry.summary


def test_the_declaration_of_a_head_states_what_the_class_states():
    for declaration in HEADS.declarations():
        cls = HEADS.info(declaration.name).cls
        assert bool(declaration.attributes.get("transductive")) == cls.transductive
        assert Fidelity.of(declaration.facts) == Fidelity.of(HEADS.info(declaration.name).facts)


def test_the_files_of_a_class_and_its_bases_are_parsed_to_read_its_declaration(monkeypatch):
    source, parsed = PackageSource("clipadapter.heads", "clipadapter.tuners"), []
    monkeypatch.setattr(
        "ast.parse", lambda text, *args, parse=ast.parse, **more: parsed.append(text) or parse(text, *args, **more)
    )
    source.declaration("gda")
    assert [text.count("@register_head(") for text in parsed].count(1) == 1 and len(parsed) < 6


def test_names_of_heads_and_encoders_are_read_without_torch():
    code = (
        "import sys\n"
        "from clipadapter.encoders.registry import ENCODERS\n"
        "from clipadapter.heads.registry import HEADS\n"
        "assert 'lite' in ENCODERS.list() and 'gda' in [head.name for head in HEADS.declarations()]\n"
        "assert not {'torch', 'sklearn', 'scipy'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_name_of_a_class_is_found_without_an_import_of_other_members(monkeypatch):
    entry = HEADS.info("tip-adapter")
    monkeypatch.setattr(HEADS, "_entries", {"tip-adapter": entry})
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"imports {name}"))
    assert (HEADS.name_of(entry.cls), HEADS.name_of(int)) == ("tip-adapter", None)


def test_a_name_in_capitals_gets_the_hint_of_the_same_letters():
    with pytest.raises(UnknownNameError, match="'CLIP-Adapter'. Did you mean 'clip-adapter'?"):
        HEADS.check("CLIP-Adapter")
    with pytest.raises(UnknownNameError, match="'hatt'. Did you mean 'Hat'?"):
        raise unknown("class", "hatt", ["Hat", "Shoe"])


@pytest.mark.parametrize("name", HEADS.list())
def test_the_parameters_that_are_read_are_those_of_the_class(name):
    parameters = SOURCE.parameters(name)
    assert sorted(parameters) == sorted(inspect.signature(HEADS.info(name).cls).parameters)


@pytest.mark.parametrize("name", HEADS.list())
def test_the_attributes_that_are_read_are_those_of_the_class(name):
    declared = SOURCE.attributes(name)
    for attribute in ("transductive", "accepts_unlabelled", "needs_text"):
        assert declared[attribute] is getattr(HEADS.info(name).cls, attribute)
