"""What is said of one prediction, as data; as text, JSON and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.explain.plot import draw
from clipadapter.prediction import Prediction


@dataclass(frozen=True)
class Neighbour:
    """A shot that is like the picture.

    Args:
        similarity: cosine of its plain picture's feature and the picture's, -1 to 1.
        label: its class; several with commas between.
        source: where the picture lies, as it was given; "shot 3 of cat" if that is not known.
        known: whether ``source`` is that place.
    """

    similarity: float
    label: str
    source: str
    known: bool = False


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a classifier said what it said of one picture.

    A logit by itself says nothing: adding a number to all of them changes no answer. So `margin` and its two parts are
    differences between two classes. With several labels a picture each class is a question of its own, and `margin` is
    its logit: above zero the classifier leans to yes.

    Args:
        source: the picture, as messages call it.
        prediction: what the classifier says of it.
        label: the class that is explained: the one that was asked for, or what the picture is, or would be, called.
        against: the class it is set against: the best other one; None with several labels a picture.
        margin: logit of ``label`` less that of ``against``, before calibration; negative if ``against`` is ahead.
        text: the part of the margin that class text gives without any shot; None if the head does not add the two up.
        shots: the rest of the margin, learned from the shots; ``text + shots == margin``.
        text_says: the class that text alone would name; None if it prefers none, or is not told apart.
        shots_say: the class that the shots alone would name; likewise.
        nearest: the shots most like the picture, the nearest first.
        picture: (a, b, 3) uint8, the whole picture, shrunk if it was large.
        square: (s, s, 3) uint8, the part of the picture that the encoder sees; None if that is not known.
        heat: (h, w) in 0..1, a grid over the square: the head's logit of ``label`` less the mean of the others' where a
            part of the picture is all there is, from its lowest to its highest value; None if the encoder has no
            such grid.
        heat_range: lowest and highest value before they were stretched to 0..1. A small range says that no part of
            the picture stands out.
        notes: why something above is None or empty.
    """

    source: str
    prediction: Prediction
    label: str
    against: str | None
    margin: float
    text: float | None
    shots: float | None
    text_says: str | None
    shots_say: str | None
    nearest: tuple[Neighbour, ...]
    picture: NDArray[np.uint8]
    square: NDArray[np.uint8] | None
    heat: NDArray[np.float64] | None
    heat_range: tuple[float, float] | None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; the picture is left out."""
        said = self.prediction
        return {
            "source": self.source,
            "prediction": {
                "label": said.label,
                "probability": said.probability,
                "top": [{"label": name, "score": score} for name, score in said.top],
                "nearest": said.nearest,
                "reason": said.reason,
                "labels": None if said.labels is None else list(said.labels),
            },
            "explained": self.label,
            "against": self.against,
            "margin": self.margin,
            "text": self.text,
            "shots": self.shots,
            "text_says": self.text_says,
            "shots_say": self.shots_say,
            "nearest_shots": [
                {"similarity": one.similarity, "label": one.label, "source": one.source} for one in self.nearest
            ],
            "heat": None if self.heat is None else self.heat.round(4).tolist(),
            "heat_range": None if self.heat_range is None else list(self.heat_range),
            "notes": list(self.notes),
        }

    def to_png(self, path: str | Path) -> Path:
        """Draw the picture, where the head looked, what counted, and the nearest shots; whole or not at all.

        Args:
            path: PNG file to write; its folder is made.

        Raises:
            InputError: if it can't be written.
        """
        return draw(self, path)

    def sentences(self) -> list[str]:
        """What `margin` and its parts say, in words, one sentence a line."""
        lines = [verdict(self.prediction, several=self.against is None), _lead(self)]
        if self.text is not None and self.shots is not None:
            lines.append(f"Of that, class text gives {self.text:+.2f} and the shots {self.shots:+.2f}.")
            if self.text_says is not None and self.shots_say is not None:
                lines.append(_alone(self.text_says, self.shots_say))
        return lines


def verdict(said: Prediction, several: bool = False) -> str:
    """The answer as a sentence.

    Args:
        said: the answer.
        several: whether a picture may have several labels.

    >>> verdict(Prediction("x.jpg", "cat", 0.9, (("cat", 0.9), ("dog", 0.1))))
    "It is called 'cat' (0.90), before 'dog' (0.10)."
    >>> verdict(Prediction("x.jpg", "dog", 0.4, (("dog", 0.4), ("cat", 0.6))))
    "It is called 'dog' (0.40), before 'cat' (0.60), since other mistakes cost more."
    """
    scores = [f"'{name}' ({score:.2f})" for name, score in said.top]
    if several:
        has = ", ".join(f"'{name}'" for name in said.labels or ())
        return f"It is said to have {has or 'none of the labels'}; the likeliest: {', '.join(scores[:3])}."
    if said.label is None:
        return f"It is called none of the classes{f': {said.reason}' if said.reason else ''}. Nearest: {scores[0]}."
    before = f", before {' and '.join(scores[1:3])}" if scores[1:] else ""
    cheaper = len(said.top) > 1 and said.top[0][1] < said.top[1][1]
    return f"It is called {scores[0]}{before}{', since other mistakes cost more' if cheaper else ''}."


def _lead(found: Explanation) -> str:
    if found.against is None:
        return f"The logit of '{found.label}' is {found.margin:+.2f}; above 0 the answer leans to yes."
    word = "leads" if found.margin >= 0 else "is behind"
    return f"'{found.label}' {word} '{found.against}' by {abs(found.margin):.2f} logits."


def _alone(text: str, shots: str) -> str:
    if text == shots:
        return f"Class text alone would say '{text}', and so would the shots alone."
    return f"Class text alone would say '{text}', the shots alone '{shots}'."
