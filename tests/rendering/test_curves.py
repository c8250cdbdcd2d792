"""Lines that are labelled at their end."""

import numpy as np
import pytest

from clipadapter.rendering.plots import Curve, create_figure, draw_curves, render_plot, spread


@pytest.mark.parametrize("values", [[1.0] * 6, [0.0, 0.1, 5.0, 9.9, 10.0], [10.0, 10.0, 10.0]])
def test_labels_keep_their_distance_and_their_limits(values):
    heights = spread(values, gap=1.0, low=0.0, high=10.0)
    assert np.diff(heights).min() >= 1 - 1e-9
    assert min(heights) >= 0 and max(heights) <= 10


def test_all_labels_are_on_the_page():
    figure = create_figure(8, 4.8)
    axes = figure.add_subplot()
    x = np.arange(3.0)
    curves = [
        Curve(f"a method with a long name {i}  50.{i}", x, np.full(3, 50 + i / 10), None, "#0072B2") for i in range(6)
    ]
    draw_curves(axes, curves)
    render_plot(figure, "png")  # the layout is made when it is drawn
    page = figure.bbox
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == 6
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1 for box in boxes)
    assert all(below.y1 <= above.y0 + 1 for below, above in zip(boxes, boxes[1:], strict=False))


def test_bands_are_seen_as_a_whole():
    axes = create_figure(4, 3).add_subplot()
    draw_curves(axes, [Curve("a", np.arange(2.0), np.array([1.0, 2.0]), np.array([5.0, 0.0]), "#0072B2")])
    low, high = axes.get_ylim()
    assert low < -4 and high > 6
