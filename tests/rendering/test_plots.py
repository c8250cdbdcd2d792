"""Files of plots: PNG, PDF and SVG, written completely or not at all, without changes of matplotlib's settings."""

import re

import matplotlib
import pytest
from PIL import Image

from clipadapter.errors import InputError
from clipadapter.rendering.plots import create_figure, parse_plot_formats, save_plot, save_plots


@pytest.fixture
def figure():
    figure = create_figure(4, 3)
    figure.suptitle("β-carotene <b> & 喵", parse_math=False)
    return figure


def test_a_figure_is_written_in_the_format_of_its_suffix(figure, tmp_path):
    files = save_plots(figure, tmp_path / "new" / "v1.2 plot", ["png", "pdf", "svg"])
    assert [path.name for path in files] == ["v1.2 plot.png", "v1.2 plot.pdf", "v1.2 plot.svg"]
    with Image.open(files[0]) as image:
        assert (image.format, image.size) == ("PNG", (600, 450))
    assert files[1].read_bytes().startswith(b"%PDF")


def test_text_in_an_svg_file_is_text_and_its_font_is_embedded(figure, tmp_path):
    svg = save_plot(figure, tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert "β-carotene &lt;b&gt; &amp; 喵</text>" in svg
    assert re.search(r"@font-face \{ font-family: 'DejaVu Sans'; src: url\(data:font/woff;base64,d09GR", svg)


def test_text_in_a_pdf_file_is_text_and_its_font_is_embedded_as_truetype(figure, tmp_path):
    data = save_plot(figure, tmp_path / "plot.pdf").read_bytes()
    assert b"/FontFile2" in data and b"/ToUnicode" in data and b"/Type3" not in data


def test_another_suffix_is_refused(figure, tmp_path):
    with pytest.raises(InputError, match=r"plot.jpg does not end with .png, .pdf, .svg"):
        save_plot(figure, tmp_path / "plot.jpg")


@pytest.mark.parametrize("text", ["", " , ", "png,jpg"])
def test_an_unknown_format_is_refused(text):
    with pytest.raises(InputError, match="plots are written as png, pdf, svg"):
        parse_plot_formats(text)


def test_a_path_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "plot.png").mkdir()
    with pytest.raises(InputError, match="can't write"):
        save_plot(create_figure(1, 1), tmp_path / "plot.png")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


def test_settings_of_matplotlib_do_not_change(tmp_path):
    before = dict(matplotlib.rcParams)
    save_plots(create_figure(1, 1), tmp_path / "plot", ["png", "svg"])
    assert dict(matplotlib.rcParams) == before
