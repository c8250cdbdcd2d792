"""Lines that are labelled at their end, and files of plots: written completely or not at all, as PNG, PDF and SVG."""

import re

import matplotlib
import numpy as np
import pytest
from PIL import Image

from clipadapter.errors import InputError
from clipadapter.rendering.plots import (
    Curve,
    create_figure,
    draw_curves,
    parse_plot_formats,
    render_plot,
    save_plot,
    save_plots,
    spread,
)


@pytest.fixture
def figure():
    figure = create_figure(4, 3)
    figure.suptitle("β-carotene <b> & 喵", parse_math=False)
    return figure


def test_a_figure_is_written_in_the_format_of_its_suffix_and_settings_of_matplotlib_do_not_change(figure, tmp_path):
    before = dict(matplotlib.rcParams)
    files = save_plots(figure, tmp_path / "new" / "v1.2 plot", "eval", ["png", "pdf", "svg"])
    assert dict(matplotlib.rcParams) == before
    assert [path.name for path in files] == ["v1.2 plot.png", "v1.2 plot.pdf", "v1.2 plot.svg"]
    with Image.open(files[0]) as image:
        assert (image.format, image.size) == ("PNG", (600, 450))
    pdf, svg = files[1].read_bytes(), files[2].read_text(encoding="utf-8")
    # Text is text, and its font is embedded; in PDF files as TrueType.
    assert pdf.startswith(b"%PDF") and b"/FontFile2" in pdf and b"/ToUnicode" in pdf and b"/Type3" not in pdf
    assert "β-carotene &lt;b&gt; &amp; 喵</text>" in svg
    assert re.search(r"@font-face \{ font-family: 'DejaVu Sans'; src: url\(data:font/woff;base64,d09GR", svg)


def test_other_formats_and_a_path_that_cannot_be_written_are_errors(figure, tmp_path):
    with pytest.raises(InputError, match=r"plot.jpg does not end with .png, .pdf, .svg"):
        save_plot(figure, tmp_path / "plot.jpg", "eval")
    for text in ("", " , ", "png,jpg"):
        with pytest.raises(InputError, match="plots are written as png, pdf, svg"):
            parse_plot_formats(text)
    (tmp_path / "plot.png").mkdir()
    with pytest.raises(InputError, match="can't write"):
        save_plot(figure, tmp_path / "plot.png", "eval")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


@pytest.mark.parametrize("values", [[1.0] * 6, [0.0, 0.1, 5.0, 9.9, 10.0], [10.0, 10.0, 10.0]])
def test_labels_keep_their_distance_and_their_limits(values):
    heights = spread(values, gap=1.0, low=0.0, high=10.0)
    assert np.diff(heights).min() >= 1 - 1e-9
    assert min(heights) >= 0 and max(heights) <= 10


def test_all_labels_are_on_the_page():
    figure = create_figure(8, 4.8)
    axes = figure.add_subplot()
    x = np.arange(3.0)
    names = [f"a method with a long name {i}  50.{i}" for i in range(6)]
    draw_curves(axes, [Curve(name, x, np.full(3, 50 + i / 10), None, "#0072B2") for i, name in enumerate(names)])
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
