"""One picture and a fitted classifier to an `Explanation`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipadapter.classifier import FewShotClassifier
from clipadapter.data.images import ImageSource, read_image, source_name
from clipadapter.errors import ImageError, InputError
from clipadapter.explain._heat import heat_map, seen_square
from clipadapter.explain.explanation import Explanation, Neighbour
from clipadapter.features import FeatureSet
from clipadapter.heads import Head
from clipadapter.pixels import min_jpeg_side
from clipadapter.registry import unknown

Array = NDArray[Any]
THUMBNAIL = 512
"""Longest side, in pixels, of the picture that is kept to be shown."""
ADDS_NOT_UP = "this head does not add up what class text and what the shots say"
SEVERAL = "with several labels a picture, what text gives can't be told from the bias that each class learned"
NO_SHOTS = "the model was saved without its shots (--no-support)"


def explain(
    model: FewShotClassifier, image: ImageSource, *, class_name: str | None = None, top: int = 3, neighbours: int = 5
) -> Explanation:
    """Why a classifier says what it says of one picture.

    The picture goes through the image tower once or twice more. Its features are not kept beyond what `classify` does.

    Args:
        model: fitted, or loaded.
        image: path, PIL image or array.
        class_name: the class to explain; what the picture is called if not given. Ask for another to see what it lacks.
        top: how many classes the prediction names.
        neighbours: how many of the nearest shots to name, at most.

    Raises:
        InputError: before `fit`, or if ``neighbours`` is negative.
        UnknownNameError: if no class has the name.
        ImageError: if the picture can't be read.

    >>> import numpy as np
    >>> red, blue = (np.full((8, 8, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255]))
    >>> model = FewShotClassifier(encoder="toy", head="tip-adapter", cache=None).fit([red, blue], ["red", "blue"])
    >>> found = explain(model, blue)
    >>> found.label, found.against, found.nearest[0].label, round(found.nearest[0].similarity, 3)
    ('blue', 'red', 'blue', 1.0)
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
    # As large as `classify` unpacks it, so that the features are the same.
    picture = read_image(image, shrink_to=min_jpeg_side(encoder.info.precision, encoder.info.image_size))
    feature = encoder.encode_images([picture]).numpy()
    shares = _shares(head, feature, names, class_name or prediction.nearest)
    heat, heat_range, no_heat = heat_map(encoder, head, picture, names.index(shares["label"]))
    nearest = _nearest(model.support_, feature[0], neighbours)
    notes = [shares.pop("note"), no_heat, "" if nearest or not neighbours else NO_SHOTS]
    return Explanation(
        source=source_name(image),
        prediction=prediction,
        **shares,
        nearest=nearest,
        picture=_thumbnail(picture),
        square=seen_square(encoder, picture),
        heat=heat,
        heat_range=heat_range,
        notes=tuple(note for note in notes if note),
    )


def _thumbnail(picture: Image.Image) -> NDArray[np.uint8]:
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(small)


def _shares(head: Head, feature: Array, names: Sequence[str], asked: str | None) -> dict[str, Any]:
    """Which class against which, by how much, and what class text and shots give of it."""
    logits = head.logits(feature)[0].astype(np.float64)
    order = [int(i) for i in np.argsort(-logits, kind="stable")]
    k = order[0] if asked is None else names.index(asked)
    nothing = {"text": None, "shots": None, "text_says": None, "shots_say": None}
    if head.task_ == "multilabel":
        return {"label": names[k], "against": None, "margin": float(logits[k]), **nothing, "note": SEVERAL}
    other = order[1] if k == order[0] else order[0]
    margin = float(logits[k] - logits[other])
    found = {"label": names[k], "against": names[other], "margin": margin, **nothing, "note": ""}
    given = head.text_logits(feature)
    if given is None:
        return found | {"note": ADDS_NOT_UP}
    text = given[0].astype(np.float64)
    of_text = float(text[k] - text[other])
    parts = {"text": of_text, "shots": margin - of_text}
    return found | parts | {"text_says": _favourite(text, names), "shots_say": _favourite(logits - text, names)}


def _favourite(logits: Array, names: Sequence[str]) -> str | None:
    """The best class, or None if all are alike but for rounding."""
    return names[int(logits.argmax())] if np.ptp(logits) > 1e-4 * max(1.0, float(np.abs(logits).max())) else None


def _nearest(support: FeatureSet, feature: Array, count: int) -> tuple[Neighbour, ...]:
    rows = support.plain.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(feature)
    cosines = np.clip(rows @ feature / np.maximum(lengths, np.finfo(np.float64).tiny), -1, 1)
    best = np.argsort(-cosines, kind="stable")[:count]
    return tuple(_neighbour(support, int(i), float(cosines[i])) for i in best)


def _neighbour(support: FeatureSet, i: int, similarity: float) -> Neighbour:
    text = ", ".join(support.class_names_of(i)) or "none of the classes"
    sources = support.provenance.get("sources") or ()
    source = str(sources[i]) if len(sources) == len(support) else ""
    # A picture that came as pixels has a name, too, but none that finds it.
    if Path(source).suffix or (source and Path(source).is_file()):
        return Neighbour(similarity, text, source, known=True)
    number = i + 1 if support.targets is not None else support.y[: i + 1].count(support.y[i])
    return Neighbour(similarity, text, f"shot {number} of {text}")
