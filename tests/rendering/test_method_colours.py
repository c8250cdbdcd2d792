"""One colour per method, which colour-blind people can distinguish."""

from itertools import combinations

import numpy as np
import pytest

from clipadapter.heads import list_heads
from clipadapter.rendering.method_colours import METHOD_STYLES, assign_styles, method_style

# Severity 1.0 of Machado, Oliveira and Fernandes (2009), table 1: what each kind of colour blindness sees.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
"""sRGB to CIE XYZ, IEC 61966-2-1."""


def linear(colour):
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    x, y, z = np.cbrt(np.maximum(TO_XYZ @ np.clip(rgb, 0, 1), 1e-4) / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(colour, page):
    a, b = (float(TO_XYZ[1] @ linear(one)) + 0.05 for one in (colour, page))
    return max(a, b) / min(a, b)


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("theme", ["colour", "dark"])
def test_any_two_colours_can_be_distinguished(sight, theme):
    # Okabe and Ito's own palette has 16 by this measure; a difference of 2.3 can just be noticed.
    points = [lab(SIGHT[sight] @ linear(one)) for one in {getattr(style, theme) for style in METHOD_STYLES.values()}]
    assert min(np.linalg.norm(a - b) for a, b in combinations(points, 2)) > 15


def test_colours_stand_out_from_their_page():
    for style in METHOD_STYLES.values():
        assert contrast(style.colour, "#ffffff") > 2.2
        assert contrast(style.dark, "#1b1e23") > 4.5


def test_every_head_has_an_entry_or_a_style_by_its_name():
    for name in [*list_heads(), "my-own-head"]:
        assert method_style(name) == method_style(name)
    own = ("clip-adapter", "auto", "linear-probe", "zero-shot")
    others = {style.colour for name, style in METHOD_STYLES.items() if name not in own}
    assert len({method_style(name).colour for name in own} - others) == 4


def test_the_colour_of_a_method_does_not_depend_on_the_other_lines():
    alone, among = assign_styles(["gda"]), assign_styles(["clip-adapter", "clip-adapter", "knn", "gda"])
    assert alone[0] == among[-1]
    assert len({style.colour for style in among}) == 4
