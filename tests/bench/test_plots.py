from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax

from clipadapter.bench import draw_confusion_matrix, draw_learning_curve, plots, projection
from clipadapter.bench.plots import learning_curve_figure
from clipadapter.errors import InputError
from clipadapter.metrics import evaluate
from clipadapter.rendering.heat_map import worst_classes

from ..imports import recorded


def result(names, n=300):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, len(names)))
    logits[np.arange(n), np.arange(n) % len(names)] += 3
    return evaluate([names[i % len(names)] for i in range(n)], log_softmax(logits, axis=1), names)


def test_a_learning_curve_is_a_picture_of_sane_size(make_run, tmp_path):
    runs = [make_run(f"head {i}", n, seed) for i in range(12) for n in (1, 4) for seed in (1, 2)]
    path = draw_learning_curve([*runs, make_run("failed", error="E: no")], tmp_path / "new" / "curve.png", "a $5 title")
    with Image.open(path) as image:
        assert image.format == "PNG" and 800 < image.width < 2000 and 500 < image.height < 2000


def test_five_lines_are_named_and_zero_shot_is_a_star_at_0_shots(make_run):
    names = ["clip-adapter", "auto", "linear-probe", "zero-shot", *(f"method {i}" for i in range(20))]
    runs = [
        make_run(name, n, seed, accuracy=0.5 + i / 100)
        for i, name in enumerate(names)
        for n in (1, 4)
        for seed in (1, 2)
    ]
    (axes,) = learning_curve_figure(runs).axes
    named = {text.get_text().split("  ")[0] for text in axes.texts}
    # The named methods, and the best of the others.
    assert named == {"clip-adapter", "auto ‡", "linear-probe", "zero-shot", "method 19", "method 18"}
    assert axes.get_title(loc="left") == "mean ± sd of 2 draws; grey: 18 other heads"
    stars = [line for line in axes.lines if line.get_marker() == "*"]
    assert [float(x) for line in stars for x in line.get_xdata()] == [axes.get_xticks()[0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "4"]


@pytest.mark.parametrize("c", [2, 101])
def test_a_confusion_matrix_stays_readable(tmp_path, c):
    path = draw_confusion_matrix(result([f"class number {i}" for i in range(c)]), tmp_path / "confusion.png", "title")
    with Image.open(path) as image:
        assert image.format == "PNG" and 500 < image.width < 2500 and 400 < image.height < 2500


def test_any_class_name_can_be_drawn(tmp_path):
    draw_confusion_matrix(
        result(["$x$ and $y", "猫", "a very long name " * 5, "a_b^c{}"]), tmp_path / "c.png", "50 % of $x"
    )


def test_the_worst_classes_are_those_in_most_mistakes():
    confusion = np.array([[9, 0, 0, 1], [0, 9, 1, 0], [0, 4, 6, 0], [0, 0, 0, 9]])
    assert worst_classes(confusion, limit=2) == [1, 2]
    assert worst_classes(confusion, limit=4) == [0, 1, 2, 3]


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't write"):
        draw_confusion_matrix(result(["a", "b"]), tmp_path / "file" / "c.png")


def test_pyplot_is_not_imported(tmp_path):
    X = np.random.default_rng(0).normal(size=(8, 4))
    evaluation = evaluate("ab", np.log([[0.9, 0.1], [0.6, 0.4]]), "ab")
    with recorded("matplotlib.pyplot") as imported:
        for module in (plots, projection):
            exec(Path(module.__file__).read_text(), {"__name__": module.__name__})  # what is imported at the top
        projection.draw_projection(X, X, list("aabbaabb"), "ab", tmp_path / "p.png", method="pca")
        plots.draw_confusion_matrix(evaluation, tmp_path / "c.png")
    assert imported == []


def test_a_plot_can_be_made_if_every_run_failed(make_run, tmp_path):
    assert draw_learning_curve([make_run(error="E: no")], tmp_path / "curve.png").is_file()
