from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax

from clipadapter.bench import plots
from clipadapter.bench.plots import draw_dots, draw_efficiency, draw_learning_curve
from clipadapter.bench.study import pivot_runs
from clipadapter.metrics import evaluate
from clipadapter.rendering.plots import confusion_figure, save_plot

from ..imports import recorded


def result(names, n=300):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, len(names)))
    logits[np.arange(n), np.arange(n) % len(names)] += 3
    return evaluate([names[i % len(names)] for i in range(n)], log_softmax(logits, axis=1), names)


def test_five_lines_are_named_and_zero_shot_is_a_star_at_0_shots(make_run):
    names = ["clip-adapter", "auto", "linear-probe", "zero-shot", *(f"method {i}" for i in range(20))]
    draws = [(n, seed) for n in (1, 4) for seed in (1, 2)]
    runs = [make_run(name, *draw, accuracy=0.5 + i / 100) for i, name in enumerate(names) for draw in draws]
    (axes,) = draw_learning_curve(pivot_runs(runs)).axes
    named = {text.get_text().split("  ")[0] for text in axes.texts}
    # The named methods, and the best of the others.
    assert named == {"clip-adapter", "auto ‡", "linear-probe", "zero-shot", "method 19", "method 18"}
    assert axes.get_title(loc="left") == "mean ± sd of 2 draws; grey: 18 other heads"
    stars = [line for line in axes.lines if line.get_marker() == "*"]
    assert [float(x) for line in stars for x in line.get_xdata()] == [axes.get_xticks()[0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "4"]


@pytest.mark.parametrize("draw", [draw_dots, draw_efficiency, draw_learning_curve])
def test_a_point_is_a_mean_in_per_cent_on_a_band_of_one_standard_deviation(make_run, draw):
    runs = [make_run("clip-adapter", shots, seed, 0.5 + seed / 10) for shots in (1, 4) for seed in (1, 2, 3)]
    table = pivot_runs(runs if draw is draw_learning_curve else runs[:3])  # 60, 70 and 80 %
    (axes,) = draw(table).axes
    centres = [tuple(map(float, line.get_xydata()[0])) for line in axes.lines if line.get_marker() not in ("", "None")]
    bands = [path.vertices for band in axes.collections for path in band.get_paths()]
    across = 0 if draw is draw_dots else 1
    assert [centre[across] for centre in centres] == pytest.approx([70.0])
    assert (bands[0].min(axis=0)[across], bands[0].max(axis=0)[across]) == pytest.approx((60.0, 80.0))
    if draw is draw_dots:
        assert [text.get_text() for text in axes.texts] == ["70.0"]


@pytest.mark.parametrize(
    "names",
    [["a", "b"], [f"class number {i}" for i in range(101)], ["$x$ and $y", "猫", "a very long name " * 5, "a_b^c{}"]],
)
def test_a_confusion_matrix_of_any_classes_stays_readable(tmp_path, names):
    with Image.open(
        save_plot(confusion_figure(result(names), "50 % of $x"), tmp_path / "confusion.png", "eval")
    ) as image:
        assert image.format == "PNG" and 500 < image.width < 2500 and 400 < image.height < 2500


def test_pyplot_is_not_imported(make_run, tmp_path):
    with recorded("matplotlib.pyplot") as imported:
        exec(Path(plots.__file__).read_text(), {"__name__": plots.__name__})  # what is imported at the top
        save_plot(draw_learning_curve(pivot_runs([make_run()]), "a $5 title"), tmp_path / "c.png", "eval")
        save_plot(confusion_figure(result(["a", "b"])), tmp_path / "c.png", "eval")
    assert imported == []


def test_a_plot_can_be_made_if_every_run_failed(make_run, tmp_path):
    assert save_plot(
        draw_learning_curve(pivot_runs([make_run(error="E: no")])), tmp_path / "curve.png", "eval"
    ).is_file()
