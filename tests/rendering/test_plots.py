"""PNG files of plots: written completely or not at all, without changes of matplotlib's settings."""

import matplotlib
import pytest
from PIL import Image

from clipadapter.errors import InputError
from clipadapter.rendering.plots import create_figure, save_png


def test_a_figure_is_written_with_any_name(tmp_path):
    figure = create_figure(4, 3)
    figure.suptitle("喵", parse_math=False)
    path = save_png(figure, tmp_path / "new" / "plot.png")
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (600, 450))


def test_a_path_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "plot.png").mkdir()
    with pytest.raises(InputError, match="can't write"):
        save_png(create_figure(1, 1), tmp_path / "plot.png")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


def test_settings_of_matplotlib_do_not_change(tmp_path):
    before = dict(matplotlib.rcParams)
    save_png(create_figure(1, 1), tmp_path / "plot.png")
    assert dict(matplotlib.rcParams) == before
