import pytest
from jinja2 import UndefinedError

from clipadapter.rendering.html import create_environment, read_asset


@pytest.fixture
def environment():
    return create_environment("clipadapter.doctor")


def test_values_are_escaped_and_undefined_names_are_errors(environment):
    template = environment.from_string("<p>{{ name }}</p>")
    assert template.render(name="<b>") == "<p>&lt;b&gt;</p>"
    with pytest.raises(UndefinedError):
        template.render()


def test_all_packages_share_the_base_style(environment):
    css = read_asset("clipadapter.doctor", "base.css")
    assert "color-scheme: light dark" in css
    assert environment.from_string("{{ css }}").render(css=css) == css
