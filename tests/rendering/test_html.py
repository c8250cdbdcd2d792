import pytest
from jinja2 import UndefinedError

from clipadapter.rendering.html import create_environment, read_asset


def test_values_are_escaped_undefined_names_are_errors_and_all_packages_share_the_base_style():
    environment = create_environment("clipadapter.doctor")
    template = environment.from_string("<p>{{ name }}</p>")
    assert template.render(name="<b>") == "<p>&lt;b&gt;</p>"
    with pytest.raises(UndefinedError):
        template.render()
    css = read_asset("clipadapter.doctor", "base.css")
    assert "color-scheme: light dark" in css
    assert environment.from_string("{{ css }}").render(css=css) == css
