"""The explanation of one prediction, as data, as sentences, as JSON and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipadapter.classifier import FewShotClassifier
from clipadapter.data.images import ImageSource, read_image, source_name
from clipadapter.encoders import Encoder
from clipadapter.errors import ImageError, InputError
from clipadapter.explain.plot import plot_explanation
from clipadapter.features import FeatureSet
from clipadapter.heads import Head
from clipadapter.pixels import min_jpeg_side
from clipadapter.prediction import Prediction
from clipadapter.registry import unknown

Array = NDArray[Any]
MAX_PICTURE_SIDE = 512
"""Longest side, in pixels, of the picture in an explanation."""
MIN_RELATIVE_LOGIT_RANGE = 1e-4
"""Logits that differ by less, relative to the largest, are equal up to rounding."""
NOT_ADDITIVE = "no parts of text and shots: the logits of this head are not the sum of both"
MULTILABEL = "no parts of text and shots: the bias of each label of a multi-label head is learned"
NO_SHOTS = "no nearest shots: the model was saved without its shots (--no-support)"


@dataclass(frozen=True)
class Neighbour:
    """A shot that is similar to the picture.

    Args:
        similarity: cosine of the features of the shot and of the picture, -1 to 1.
        label: its class; several are separated by commas.
        source: path of its picture; "shot 3 of cat" if the path is not known.
        is_path: whether ``source`` is a path.
    """

    similarity: float
    label: str
    source: str
    is_path: bool = False


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a classifier gives its prediction for one picture.

    A single logit has no meaning: adding a number to all logits changes no prediction. So `margin` and its two parts
    are differences between two classes. With several labels per picture, each class is predicted by itself, and
    `margin` is its logit: the class is likely if it is above 0.

    Args:
        source: the picture, as messages call it.
        prediction: what the classifier predicts.
        label: the class that is explained: the given one, else the predicted one, or the nearest one if the picture is
            rejected.
        against: the best other class, which ``label`` is compared with; None with several labels per picture.
        margin: logit of ``label`` less that of ``against``, before calibration; negative if ``against`` is ahead.
        text_margin: the part of the margin from class text alone; None if the logits of the head are not a sum.
        shots_margin: the rest of the margin, learned from the shots: ``text_margin + shots_margin == margin``.
        text_label: the class with the largest logit from text alone; None if all are equal, or there are no parts.
        shots_label: the class with the largest logit from the shots alone; None likewise.
        nearest: the most similar shots, the nearest first.
        picture: (a, b, 3) uint8, the whole picture, reduced if it was large.
        square: (s, s, 3) uint8, the input of the encoder; None if that is not known.
        heat_map: (h, w) in 0..1, a grid over the square: the head's logit of ``label`` less the mean of the others, for
            the features of each part of the picture, scaled from its minimum to its maximum; None if the encoder has no
            features of parts.
        heat_range: minimum and maximum before scaling. If they are close, no part of the picture stands out.
        notes: why values above are None or empty.
    """

    source: str
    prediction: Prediction
    label: str
    against: str | None
    margin: float
    text_margin: float | None
    shots_margin: float | None
    text_label: str | None
    shots_label: str | None
    nearest: tuple[Neighbour, ...]
    picture: NDArray[np.uint8]
    square: NDArray[np.uint8] | None
    heat_map: NDArray[np.float64] | None
    heat_range: tuple[float, float] | None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The explanation as JSON values, without the pixels."""
        record = self.prediction.record()
        return {
            "source": self.source,
            "prediction": {key: value for key, value in record.items() if key not in ("source", "error")},
            "explained": self.label,
            "against": self.against,
            "margin": self.margin,
            "text": self.text_margin,
            "shots": self.shots_margin,
            "text_says": self.text_label,
            "shots_say": self.shots_label,
            "nearest_shots": [
                {"similarity": shot.similarity, "label": shot.label, "source": shot.source} for shot in self.nearest
            ],
            "heat": None if self.heat_map is None else self.heat_map.round(4).tolist(),
            "heat_range": None if self.heat_range is None else list(self.heat_range),
            "notes": list(self.notes),
        }

    def plot(self, path: str | Path, title: str = "") -> Path:
        """Plot the picture, the heat map, the parts of the margin and the nearest shots.

        Args:
            path: PNG, PDF or SVG file to write; its folder is created. It is written completely or not at all.
            title: of the plot; by default the prediction.

        Raises:
            InputError: if it can't be written.
        """
        return plot_explanation(self, path, title)

    def sentences(self) -> list[str]:
        """The prediction, the margin and its parts in words, one sentence per entry."""
        lines = [describe_prediction(self.prediction, multilabel=self.against is None), self._margin_sentence()]
        if self.text_margin is not None and self.shots_margin is not None:
            lines.append(f"Of that, class text gives {self.text_margin:+.2f} and the shots {self.shots_margin:+.2f}.")
            if self.text_label is not None and self.shots_label is not None:
                lines.append(self._parts_sentence())
        return lines

    def _margin_sentence(self) -> str:
        if self.against is None:
            return f"The logit of '{self.label}' is {self.margin:+.2f}; the label is likely if it is above 0."
        relation = "leads" if self.margin >= 0 else "is behind"
        return f"'{self.label}' {relation} '{self.against}' by {abs(self.margin):.2f} logits."

    def _parts_sentence(self) -> str:
        if self.text_label == self.shots_label:
            return f"Class text alone would predict '{self.text_label}', and so would the shots alone."
        return f"Class text alone would predict '{self.text_label}', the shots alone '{self.shots_label}'."


def describe_prediction(prediction: Prediction, multilabel: bool = False) -> str:
    """The prediction as a sentence.

    Args:
        prediction: of one picture.
        multilabel: whether a picture may have several labels.

    >>> describe_prediction(Prediction("x.jpg", "cat", 0.9, (("cat", 0.9), ("dog", 0.1))))
    "It is classified as 'cat' (0.90), before 'dog' (0.10)."
    >>> describe_prediction(Prediction("x.jpg", "dog", 0.4, (("dog", 0.4), ("cat", 0.6))))
    "It is classified as 'dog' (0.40), before 'cat' (0.60), since other mistakes cost more."
    """
    scores = [f"'{name}' ({score:.2f})" for name, score in prediction.top]
    if multilabel:
        labels = ", ".join(f"'{name}'" for name in prediction.labels or ())
        return f"Its labels: {labels or 'none'}. The likeliest: {', '.join(scores[:3])}."
    if prediction.label is None:
        reason = f": {prediction.reason}" if prediction.reason else ""
        return f"It is rejected as none of the classes{reason}. The nearest class: {scores[0]}."
    others = f", before {' and '.join(scores[1:3])}" if scores[1:] else ""
    is_cheapest = len(prediction.top) > 1 and prediction.top[0][1] < prediction.top[1][1]
    return f"It is classified as {scores[0]}{others}{', since other mistakes cost more' if is_cheapest else ''}."


def explain(
    model: FewShotClassifier, image: ImageSource, *, class_name: str | None = None, top: int = 3, neighbours: int = 5
) -> Explanation:
    """Explain the prediction of a classifier for one picture.

    The picture is encoded once or twice more than by `classify`. Its features are not stored.

    Args:
        model: fitted, or loaded.
        image: path, PIL image or array.
        class_name: the class to explain; the predicted one if not given. For another class, the explanation shows why
            it was not predicted.
        top: how many classes the prediction has.
        neighbours: how many of the nearest shots to name, at most.

    Raises:
        InputError: before `fit`, or if ``neighbours`` is negative.
        UnknownNameError: if no class has the name.
        ImageError: if the picture can't be read.

    >>> import numpy as np
    >>> red, blue = (np.full((8, 8, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255]))
    >>> model = FewShotClassifier(encoder="toy", head="tip-adapter", cache=None).fit([red, blue], ["red", "blue"])
    >>> explanation = explain(model, blue)
    >>> explanation.label, explanation.against, explanation.nearest[0].label
    ('blue', 'red', 'blue')
    >>> round(explanation.nearest[0].similarity, 3)
    1.0
    """
    if neighbours < 0:
        raise InputError(f"neighbours must be 0 or more, but is {neighbours}")
    (prediction,) = model.classify([image], top)
    if prediction.error is not None:
        raise ImageError(prediction.source, prediction.error)
    names = tuple(model.class_names_)
    if class_name is not None and class_name not in names:
        raise unknown("class", class_name, list(names))
    encoder, head = model.encoder_, model.head_
    # Decoded at the same size as by `classify`, so that the features are the same.
    picture = read_image(image, shrink_to=min_jpeg_side(encoder.info.precision, encoder.info.image_size))
    feature = encoder.encode_images([picture]).numpy()
    margins, why_no_parts = _split_margin(head, feature, names, class_name or prediction.nearest)
    heat_map, heat_range, why_no_map = compute_heat_map(encoder, head, picture, names.index(margins["label"]))
    nearest = _nearest_shots(model.support_, feature[0], neighbours)
    why_no_shots = "" if nearest or not neighbours else NO_SHOTS
    return Explanation(
        source=source_name(image),
        prediction=prediction,
        **margins,
        nearest=nearest,
        picture=_reduce(picture),
        square=_encoder_input(encoder, picture),
        heat_map=heat_map,
        heat_range=heat_range,
        notes=tuple(note for note in (why_no_parts, why_no_map, why_no_shots) if note),
    )


def _split_margin(
    head: Head, feature: Array, names: Sequence[str], class_name: str | None
) -> tuple[dict[str, Any], str]:
    """The two classes, the margin and its parts from text and shots; and why there are no parts."""
    logits = head.logits(feature)[0].astype(np.float64)
    order = [int(i) for i in np.argsort(-logits, kind="stable")]
    k = order[0] if class_name is None else names.index(class_name)
    no_parts = {"text_margin": None, "shots_margin": None, "text_label": None, "shots_label": None}
    if head.task_ == "multilabel":
        return {"label": names[k], "against": None, "margin": float(logits[k]), **no_parts}, MULTILABEL
    other = order[1] if k == order[0] else order[0]
    margin = float(logits[k] - logits[other])
    classes = {"label": names[k], "against": names[other], "margin": margin}
    text_logits = head.text_logits(feature)
    if text_logits is None:
        return {**classes, **no_parts}, NOT_ADDITIVE
    text = text_logits[0].astype(np.float64)
    text_margin = float(text[k] - text[other])
    parts = {
        "text_margin": text_margin,
        "shots_margin": margin - text_margin,
        "text_label": _best_class(text, names),
        "shots_label": _best_class(logits - text, names),
    }
    return {**classes, **parts}, ""


def _best_class(logits: Array, names: Sequence[str]) -> str | None:
    """The class with the largest logit; None if all are equal up to rounding."""
    scale = max(1.0, float(np.abs(logits).max()))
    return names[int(logits.argmax())] if np.ptp(logits) > MIN_RELATIVE_LOGIT_RANGE * scale else None


def _nearest_shots(support: FeatureSet, feature: Array, count: int) -> tuple[Neighbour, ...]:
    rows = support.plain.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(feature)
    cosines = np.clip(rows @ feature / np.maximum(lengths, np.finfo(np.float64).tiny), -1, 1)
    best = np.argsort(-cosines, kind="stable")[:count]
    return tuple(_neighbour(support, int(i), float(cosines[i])) for i in best)


def _neighbour(support: FeatureSet, i: int, similarity: float) -> Neighbour:
    label = ", ".join(support.class_names_of(i)) or "none of the classes"
    sources = support.provenance.get("sources") or ()
    source = str(sources[i]) if len(sources) == len(support) else ""
    # A picture that was given as pixels has a name too, but no file of that name.
    if Path(source).suffix or (source and Path(source).is_file()):
        return Neighbour(similarity, label, source, is_path=True)
    number = i + 1 if support.targets is not None else support.y[: i + 1].count(support.y[i])
    return Neighbour(similarity, label, f"shot {number} of {label}")


def _reduce(picture: Image.Image) -> NDArray[np.uint8]:
    reduced = picture.copy()
    reduced.thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE))
    return np.asarray(reduced)


def _encoder_input(encoder: Encoder, picture: Image.Image) -> NDArray[np.uint8] | None:
    """(s, s, 3): the square of the picture that is the input of the encoder; None if that is not known."""
    unconverted = getattr(encoder, "plain", encoder)  # the encoder that a backend runs
    tower = unconverted.tower() if isinstance(unconverted, Encoder) else None
    return None if tower is None else tower.pixels.to_square(picture)


HeatMap = tuple[NDArray[np.float64] | None, tuple[float, float] | None, str]


def compute_heat_map(encoder: Encoder, head: Head, picture: Image.Image, k: int) -> HeatMap:
    """Contrast of a class for each part of a picture: the head is applied to the features of each part.

    Args:
        encoder: the one that the head was fitted with.
        head: fitted.
        picture: RGB.
        k: position of the class.

    Returns:
        (h, w) in 0..1, the contrast scaled from its minimum to its maximum; these two; and "". Or None, None, and why
        there is no heat map.
    """
    name = encoder.info.name
    if len(encoder.info.blocks) > 1:
        return None, None, f"no heat map: the features of {name} are those of several blocks"
    if head.needs_tower_to_predict:
        return None, None, "no heat map: this head would run the text tower once for each part of the picture"
    patches = encoder.patch_features(picture)
    if patches is None:
        return None, None, f"no heat map: {name} has no features of parts of a picture"
    h, w, d = patches.shape
    values = class_contrast(head.logits(patches.reshape(h * w, d).numpy()), k).reshape(h, w)
    low, high = float(values.min()), float(values.max())
    return (values - low) / max(high - low, 1e-12), (low, high), ""


def class_contrast(logits: NDArray[Any], k: int) -> NDArray[np.float64]:
    """Logits (m, c) of one class less the mean of the others: (m,).

    >>> class_contrast(np.array([[5.0, 1.0, 3.0], [0.0, 2.0, 2.0]]), 0)
    array([ 3., -2.])
    """
    values = logits.astype(np.float64)
    others = (values.sum(axis=1) - values[:, k]) / (values.shape[1] - 1)
    return np.asarray(values[:, k] - others)
