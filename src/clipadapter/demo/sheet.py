"""A sheet of test pictures: the answer for each, whether it is right, and the place to look at, marked and enlarged."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.classifier import FewShotClassifier
from clipadapter.data import Dataset, Sample
from clipadapter.errors import ImageError
from clipadapter.explain import Explanation, explain
from clipadapter.rendering.plots import BLUE, GREY, VERMILION, create_figure, darken, save_plot, set_title, truncate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
SHEET_PICTURES, SHEET_MISTAKES = 9, 3
"""Pictures that are drawn at random from all, and beside them from those that are wrong."""
SQUARE_INCHES, GAP_INCHES, CAPTION_INCHES, TITLE_INCHES = 1.75, 0.22, 0.52, 0.72
BORDER_INCHES = 0.06
"""Between a picture and its enlarged place."""
MIN_WIDTH_INCHES = 9.0
"""Below, the title would not fit."""
PLACE_SHARE = 0.2
"""Side of the enlarged place, as a share of the side of the picture."""
RIGHT_COLOUR, WRONG_COLOUR = BLUE, VERMILION
RIGHT_SIGN, WRONG_SIGN = "✓", "✗"
"""Signs beside the colours, for readers who can't tell these apart."""
PLACE_COLOUR = "#f0e442"
"""Yellow of Okabe and Ito's palette, which the other two colours are from."""


@dataclass(frozen=True, eq=False)
class SheetAnswer:
    """The answer for one picture of the sheet."""

    path: Path
    truth: str  # its class
    explanation: Explanation

    @property
    def is_right(self) -> bool:
        """Whether the answer is the true class."""
        return self.explanation.prediction.label == self.truth

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        prediction = self.explanation.prediction
        return {
            "path": str(self.path),
            "class": self.truth,
            "answer": prediction.label,
            "probability": prediction.probability,
            "right": self.is_right,
        }


def explain_some(model: FewShotClassifier, test: Dataset, count: int = SHEET_PICTURES) -> list[SheetAnswer]:
    """Explain the answers for pictures that are drawn at random, the same number of each class as far as possible.

    Pictures that can't be read are passed over.
    """
    samples = _draw_by_class(test.samples)
    answers: list[SheetAnswer] = []
    for sample in samples:
        if len(answers) == count:
            break
        try:
            explanation = explain(model, sample.path, neighbours=0)
        except ImageError:
            continue
        answers.append(SheetAnswer(sample.path, str(sample.label), explanation))
    order = {name: i for i, name in enumerate(test.class_names)}
    return sorted(answers, key=lambda answer: order[answer.truth])


def _draw_by_class(samples: Sequence[Sample]) -> list[Sample]:
    """The samples in a random order in which classes take turns."""
    rng, by_class = random.Random(0), dict[str | None, list[Sample]]()
    for sample in rng.sample(samples, len(samples)):
        by_class.setdefault(sample.label, []).append(sample)
    rounds = max(map(len, by_class.values()), default=0)
    return [group[i] for i in range(rounds) for group in by_class.values() if i < len(group)]


def draw_sheet(answers: Sequence[SheetAnswer], path: str | Path, title: str) -> Path:
    """Draw pictures with answers, and beside each its place to look at (`Explanation.place`), enlarged."""
    across, rows = 2 if any(answer.explanation.place for answer in answers) else 1, -(-len(answers) // COLUMNS)
    # All positions are given: captions are wider than the pictures, and the automatic layout would make room for them.
    cell_width, cell_height = across * (SQUARE_INCHES + BORDER_INCHES) + GAP_INCHES, SQUARE_INCHES + CAPTION_INCHES
    width = max(MIN_WIDTH_INCHES, COLUMNS * cell_width + GAP_INCHES)
    height = TITLE_INCHES + rows * cell_height
    figure = create_figure(width, height)
    figure.set_layout_engine("none")
    for i, answer in enumerate(answers):
        left, bottom = GAP_INCHES + i % COLUMNS * cell_width, (rows - 1 - i // COLUMNS) * cell_height + GAP_INCHES
        picture, place = (
            figure.add_axes(
                ((left + shift) / width, bottom / height, SQUARE_INCHES / width, SQUARE_INCHES / height),
                xticks=[],
                yticks=[],
            )
            for shift in (0, SQUARE_INCHES + BORDER_INCHES)
        )
        _draw_answer(picture, answer)
        _draw_place(picture, place, answer.explanation)
    set_title(figure, title)
    return save_plot(figure, path)


def _draw_place(picture: Axes, enlarged: Axes, explanation: Explanation) -> None:
    """Mark the place in the picture, and show it enlarged."""
    if explanation.place is None or explanation.square is None:
        enlarged.remove()
        return
    from matplotlib.patches import Rectangle

    pixels = len(explanation.square)
    side = max(2, round(PLACE_SHARE * pixels))
    x, y = (min(max(round(share * pixels - side / 2), 0), pixels - side) for share in explanation.place)
    picture.add_patch(Rectangle((x - 0.5, y - 0.5), side, side, fill=False, edgecolor=PLACE_COLOUR, linewidth=2))
    enlarged.imshow(explanation.square[y : y + side, x : x + side], interpolation="bicubic")
    enlarged.spines[:].set(color=PLACE_COLOUR, linewidth=3)


def _draw_answer(axes: Axes, answer: SheetAnswer) -> None:
    prediction = answer.explanation.prediction
    colour, sign = (RIGHT_COLOUR, RIGHT_SIGN) if answer.is_right else (WRONG_COLOUR, WRONG_SIGN)
    pixels = answer.explanation.picture if answer.explanation.square is None else answer.explanation.square
    axes.imshow(pixels)
    axes.spines[:].set(color=colour, linewidth=3)
    name = truncate(prediction.label or "none of these", 30)
    text: dict[str, Any] = {
        "xycoords": "axes fraction",
        "textcoords": "offset points",
        "annotation_clip": False,
        "parse_math": False,
    }
    axes.annotate(
        f"{sign} {name}  {prediction.probability:.2f}",
        (0, 1),
        xytext=(0, 15),
        fontsize=9,
        fontweight="bold",
        color=darken(colour),
        **text,
    )
    axes.annotate(f"true: {truncate(answer.truth, 32)}", (0, 1), xytext=(0, 4), fontsize=8, color=GREY, **text)
