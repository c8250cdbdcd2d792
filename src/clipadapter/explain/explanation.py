"""The explanation of one prediction, as data, as sentences, as JSON and as a plot."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from clipadapter.classifier import FewShotClassifier
from clipadapter.data.images import ImageSource, read_image
from clipadapter.encoders import Encoder, plain_encoder
from clipadapter.encoders.rare_patches import BORDER
from clipadapter.errors import ImageError, InputError
from clipadapter.features import FeatureSet, extract
from clipadapter.heads import Head
from clipadapter.heads.transductive import nearest_neighbours
from clipadapter.rendering.plots import BLUE, VERMILION, create_figure, save_plot, set_title, truncate
from clipadapter.utils.blocks import FINAL, RARE_PATCHES, BlockSource
from clipadapter.utils.formatting import html_block, html_table
from clipadapter.utils.pixels import min_jpeg_side
from clipadapter.utils.prediction import Prediction, unit_rows
from clipadapter.utils.registry import unknown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[Any]
MAX_PICTURE_SIDE = 512  # longest side, in pixels, of the picture in an explanation
MIN_RELATIVE_LOGIT_RANGE = 1e-4  # logits that differ by less, relative to the largest, are equal up to rounding
NOT_BY_BLOCK = "no parts of blocks: the logits of this head are not a sum over blocks of features"
NO_SHOTS = "no nearest shots: the model was saved without its shots (--no-support)"


@dataclass(frozen=True)
class Neighbour:
    """A shot that is similar to the picture."""

    similarity: float  # cosine of the features of the shot and of the picture, -1 to 1
    label: str  # its class; several are separated by commas
    source: str  # path of its picture; "shot 3 of cat" if the path is not known
    is_path: bool = False  # whether ``source`` is a path


@dataclass(frozen=True)
class MarginPart:
    """What class text, the shots or a block of features contributes to a prediction."""

    name: str  # "class text", "shots", or that of the block (`clipadapter.utils.blocks`)
    margin: float  # its part of the margin; above 0 it speaks for the class that is explained, below 0 against it
    label: str | None  # the class with the largest logit from this part alone; None if all are equal


@dataclass(frozen=True, eq=False, kw_only=True)
class Explanation:
    """Why a classifier gives its prediction for one picture.

    A single logit has no meaning: adding a number to all logits changes no prediction. So `margin` and its two parts
    are differences between two classes. With several labels per picture, each class is predicted by itself, and
    `margin` is its logit: the class is likely if it is above 0.
    """

    prediction: Prediction  # what the classifier predicts; its source is the picture, as messages call it
    # The class that is explained: the given one, else the predicted one, or the nearest one if the picture is
    # rejected
    label: str
    against: str | None  # the best other class, which ``label`` is compared with; None with several labels per picture
    margin: float  # logit of ``label`` less that of ``against``, before calibration; negative if ``against`` is ahead
    # What class text and the shots contribute, which adds up to ``margin``; empty if the logits of the head are no sum
    parts: tuple[MarginPart, ...] = ()
    # The most similar shots, the nearest first; of several blocks of features ``final`` is compared
    nearest: tuple[Neighbour, ...]
    picture: NDArray[np.uint8]  # (a, b, 3) uint8, the whole picture, reduced if it was large
    square: NDArray[np.uint8] | None  # (s, s, 3) uint8, the input of the encoder; None if that is not known
    # (h, w) a grid over the square: the head's logit of ``label`` less the mean of the others, for the features of each
    # part of the picture; None if the encoder has no features of parts. If all are close, no part stands out
    heat_map: NDArray[np.float64] | None
    notes: tuple[str, ...] = ()  # why values above are None or empty
    # The part of the margin that comes from each block of features, if the head reads several and its logits are a
    # sum over blocks; the parts add up to ``margin``. The heat map is then of the part of ``final``
    blocks: tuple[MarginPart, ...] = ()
    # (h, w) how much each patch differs from the rest of the picture, of root mean square 1: a grid over the square
    # without two patches at each side (`Encoder.rare_patch_map`). It shows where a small defect may be. None if the
    # model reads no block ``rare-patches``
    rare_patches: NDArray[np.float64] | None = None

    @property
    def place(self) -> tuple[float, float] | None:
        """Where to look: shares of the side of the square, from the left and from the top; None if it is not known.

        It is the patch that differs most from the rest, if the model looks for that, else the one with the most
        evidence for the class.
        """
        values, border = (self.heat_map, 0) if self.rare_patches is None else (self.rare_patches, BORDER)
        if values is None:
            return None
        h, w = values.shape
        row, column = divmod(int(values.argmax()), w)
        return (column + border + 0.5) / (w + 2 * border), (row + border + 0.5) / (h + 2 * border)

    def to_dict(self) -> dict[str, Any]:
        """The explanation as JSON values, without the pixels."""
        record, heat, heat_range = self.prediction.record(), None, None
        if self.heat_map is not None:
            low, high = heat_range = [float(self.heat_map.min()), float(self.heat_map.max())]
            heat = ((self.heat_map - low) / max(high - low, 1e-12)).round(4).tolist()
        margins, labels = ([getattr(part, key) for part in self.parts] or [None] * 2 for key in ("margin", "label"))
        return {
            "source": self.prediction.source,
            "prediction": {key: value for key, value in record.items() if key not in ("source", "error")},
            "explained": self.label,
            "against": self.against,
            "margin": self.margin,
            "text": margins[0],
            "shots": margins[1],
            "text_says": labels[0],
            "shots_say": labels[1],
            "blocks": [{"name": part.name, "margin": part.margin, "says": part.label} for part in self.blocks],
            "nearest_shots": [
                {"similarity": shot.similarity, "label": shot.label, "source": shot.source} for shot in self.nearest
            ],
            "heat": heat,  # from 0 to 1, which stand for the ends of the range
            "heat_range": heat_range,
            "rare_patches": None if self.rare_patches is None else self.rare_patches.round(3).tolist(),
            "notes": list(self.notes),
        }

    def plot(self, path: str | Path) -> Path:
        """Plot the picture, the heat map, the parts of the margin and the nearest shots.

        Args:
            path: PNG, PDF or SVG file to write; its folder is created. It is written completely or not at all.

        Raises:
            InputError: if it can't be written.
        """
        shots = self.nearest[:MAX_SHOTS]
        height, width = np.shape(self.picture)[:2]
        # The widths are such that the picture and the square of the heat map have the same height.
        rare_patches = None if self.square is None else self.rare_patches
        widths = [float(np.clip(width / height, 0.5, 1.6)), *[1.2] * (1 if rare_patches is None else 2), 1.15]
        figure_width = WIDTH_INCHES if rare_patches is None else WIDTH_OF_FOUR_PANELS
        heights = [(figure_width - 1.4) / sum(widths) + 1.0]
        width_letters, sentences = int(14 * figure_width), self.detail_sentences()
        details = "\n".join(textwrap.fill(each, width_letters, break_on_hyphens=False) for each in sentences)
        if details:
            heights.append(TEXT_LINE_INCHES * (2 + details.count("\n")))
        if shots:
            heights.append(2.5)
        figure = create_figure(figure_width, sum(heights))
        rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        panels = rows[0].subplots(1, len(widths), width_ratios=widths)
        _show_image(panels[0], self.picture, "the picture")
        _plot_heat_map(panels[1], self)
        if rare_patches is not None and self.square is not None:
            plot_rare_patches(panels[2], rare_patches, self.square)
        _plot_margin(panels[-1], self)
        if details:
            rows[1].text(0.01, 0.9, details, ha="left", va="top", fontsize=8, parse_math=False)
        if shots:
            _plot_shots(rows[-1], shots)
        set_title(figure, f"{Path(self.prediction.source).name}: {self.sentences()[0]}")
        return save_plot(figure, path, "explain")

    def sentences(self) -> list[str]:
        """The prediction, the margin and its parts in words, one sentence per entry."""
        prediction = describe_prediction(self.prediction, multilabel=self.against is None)
        return [prediction, *self.margin_sentences(), *self.detail_sentences()]

    def margin_sentences(self) -> list[str]:
        """The margin and its parts from text and shots."""
        if self.against is None:
            return [f"The logit of '{self.label}' is {self.margin:+.2f}; the label is likely if it is above 0."]
        relation = "leads" if self.margin >= 0 else "is behind"
        lines = [f"'{self.label}' {relation} '{self.against}' by {abs(self.margin):.2f} logits."]
        if self.parts:
            text, shots = self.parts
            lines.append(f"Of that, class text gives {text.margin:+.2f} and the shots {shots.margin:+.2f}.")
            if text.label is not None and shots.label is not None:
                same = text.label == shots.label
                says = "and so would the shots alone" if same else f"the shots alone '{shots.label}'"
                lines.append(f"Class text alone would predict '{text.label}', {says}.")
        return lines

    def detail_sentences(self) -> list[str]:
        """What each block of features contributes, and where the rarest patch is; empty if neither is known."""
        lines = []
        if self.blocks:
            parts = ", ".join(f"{part.name} {part.margin:+.2f}" for part in self.blocks)
            lines.append(f"By block of features: {parts}.")
        if self.rare_patches is not None:
            right, down = self.place or (0.5, 0.5)
            lines.append(
                f"The patch that differs most from the rest of the square is {right:.0%} from the left and {down:.0%} "
                f"from the top, {self.rare_patches.max():.1f} times as far as patches usually are."
            )
        return lines

    def tables(self) -> list[tuple[Sequence[str], Sequence[Sequence[str]]]]:
        """Header and rows of the tables of the blocks and of the nearest shots; those without rows are left out."""
        blocks = [(part.name, f"{part.margin:+.2f}", part.label or "-") for part in self.blocks]
        shots = [(f"{shot.similarity:.3f}", shot.label, shot.source) for shot in self.nearest]
        headers = ("block", "for (+) or against (-)", "alone it says"), ("cosine", "class", "nearest shot")
        return [(header, rows) for header, rows in zip(headers, (blocks, shots), strict=True) if rows]

    def _repr_html_(self) -> str:
        """For notebooks: the sentences and the tables."""
        sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in self.sentences())
        tables = "".join(html_table(header, rows) for header, rows in self.tables())
        return html_block(self.prediction.source, sentences, tables)


def describe_prediction(prediction: Prediction, multilabel: bool = False) -> str:
    """The prediction as a sentence.

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
    if len(prediction.top) > 1 and prediction.top[0][1] < prediction.top[1][1]:
        others += ", since other mistakes cost more"
    unlike = f" It is unlike every class: {prediction.reason}." if prediction.unlike_every_class else ""
    return f"It is classified as {scores[0]}{others}.{unlike}"


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
    feature = extract(encoder, [image]).features[:, 0]  # as by `classify`: each pass may decode at another size
    first = encoder.passes()[0].info
    picture = read_image(image, shrink_to=min_jpeg_side(first.precision, first.image_size))
    logits = head.logits(feature).astype(np.float64)
    order, k = np.argsort(-logits[0], kind="stable").tolist(), names.index(str(class_name or prediction.nearest))
    other = None if head.task_ == "multilabel" else order[1] if k == order[0] else order[0]

    def measure(name: str, rows: Array) -> MarginPart:
        """What logits (1, c) say about the class."""
        own = rows[0].astype(np.float64)
        if other is None:
            return MarginPart(name, float(own[k]), None)
        differ = np.ptp(own) > MIN_RELATIVE_LOGIT_RANGE * max(1.0, float(np.abs(own).max()))
        return MarginPart(name, float(own[k] - own[other]), names[int(own.argmax())] if differ else None)

    by_source, by_block, notes = _split_logits(model, feature, logits)
    heat_map, note_on_map = compute_heat_map(encoder, head, picture, k, feature)
    support = model.support_
    rows, cosines = nearest_rows(feature[:, : encoder.info.text_dim], support.final, neighbours)
    shots = zip(rows[0].tolist(), cosines[0].tolist(), strict=True)
    nearest = tuple(Neighbour(cosine, *name_shot(support, i)) for i, cosine in shots)
    note_on_shots = "" if nearest or not neighbours else NO_SHOTS
    tower = plain_encoder(encoder).tower()
    reduced = picture.copy()
    reduced.thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE))
    return Explanation(
        prediction=prediction,
        label=names[k],
        against=None if other is None else names[other],
        margin=measure("sum", logits).margin,
        parts=tuple(measure(name, rows) for name, rows in by_source.items()),
        nearest=nearest,
        picture=np.asarray(reduced),
        square=None if tower is None else tower.pixels.to_square(picture),
        heat_map=heat_map,
        notes=tuple(note for note in (*notes, note_on_map, note_on_shots) if note),
        blocks=tuple(measure(name, rows) for name, rows in by_block.items()),
        rare_patches=compute_rare_patch_map(encoder, image),
    )


def _split_logits(
    model: FewShotClassifier, feature: Array, logits: Array
) -> tuple[dict[str, Array], Mapping[str, Array], list[str]]:
    """The parts of logits (1, c) from class text and shots, and those from each block; and why there are none."""
    head, notes = model.head_, []
    text = None if head.task_ == "multilabel" else head.text_logits(feature)
    if head.task_ == "multilabel":
        notes.append("no parts of text and shots: the bias of each label of a multi-label head is learned")
    elif text is None:
        notes.append("no parts of text and shots: the logits of this head are not the sum of both")
    has_blocks = len(model.encoder_.info.blocks) > 1
    by_block = (head.block_logits(feature) or {}) if has_blocks else {}
    if has_blocks and not by_block:
        notes.append(NOT_BY_BLOCK)
    return {} if text is None else {"class text": text, "shots": logits - text}, by_block, notes


# ---- Nearest shots ----


def nearest_rows(queries: Array, rows: Array, count: int) -> tuple[Array, Array]:
    """(m, k) rows with the largest cosine to each query, the nearest first, and these cosines; k is at most n."""
    unit_queries, units = (torch.from_numpy(unit_rows(each)) for each in (queries, rows))
    cosines, nearest = nearest_neighbours(unit_queries, units, count)
    return nearest.numpy(), cosines.clamp(-1, 1).numpy()


def name_shot(support: FeatureSet, i: int) -> tuple[str, str, bool]:
    """A shot's class (several are separated by commas), path and True; without a path "shot 3 of cat" and False."""
    label = ", ".join(support.class_names_of(i)) or "none of the classes"
    sources = support.provenance.get("sources") or ()
    source = str(sources[i]) if len(sources) == len(support) else ""
    # A picture that was given as pixels has a name too, but no file of that name.
    if Path(source).suffix or (source and Path(source).is_file()):
        return label, source, True
    number = i + 1 if support.targets is not None else support.y[: i + 1].count(support.y[i])
    return label, f"shot {number} of {label}", False


# ---- Maps of the picture ----


def compute_heat_map(
    encoder: Encoder, head: Head, picture: Image.Image, k: int, feature: Array
) -> tuple[NDArray[np.float64] | None, str]:
    """Contrast of a class for each part of a picture, by the head on the features of each part; and a note on it."""
    if head.needs_tower_to_predict:
        return None, "no heat map: this head would run the text tower once for each part of the picture"
    has_blocks = len(encoder.info.blocks) > 1
    patches = plain_encoder(encoder).patch_features(picture)
    if patches is None:
        return None, f"no heat map: {plain_encoder(encoder).info.name} has no features of parts of a picture"
    h, w, d = patches.shape
    rows, note = patches.reshape(h * w, d).numpy(), ""
    if has_blocks:  # only ``final`` has features of each part of a picture
        by_block = head.block_logits(np.concatenate([rows, np.repeat(feature[:, d:], h * w, axis=0)], axis=1))
        if by_block is None:
            return None, f"no heat map: {NOT_BY_BLOCK}"
        logits, note = by_block[FINAL].astype(np.float64), "the heat map shows what the block final contributes"
    else:
        logits = head.logits(rows).astype(np.float64)
    # The logit of the class less the mean of the others.
    contrast = logits[:, k] - (logits.sum(axis=1) - logits[:, k]) / (logits.shape[1] - 1)
    return contrast.reshape(h, w), note


def compute_rare_patch_map(encoder: Encoder, image: ImageSource) -> NDArray[np.float64] | None:
    """How much each patch differs from the rest of the picture; None if the features have no block ``rare-patches``."""
    for each in encoder.passes():
        info = each.info
        if any(BlockSource.parse(block.name).layer == RARE_PATCHES for block in info.blocks):
            picture = read_image(image, shrink_to=min_jpeg_side(info.precision, info.image_size))
            distances = plain_encoder(each).rare_patch_map(picture, info.image_size)
            return None if distances is None else distances.double().numpy()
    return None


# ---- Plot ----

WIDTH_INCHES = 10.5
WIDTH_OF_FOUR_PANELS = 14.0
TEXT_LINE_INCHES = 0.2
MAX_SHOTS = 5  # nearest shots that are drawn; `Explanation.to_dict` has all
SHOT_SIDE = 192  # longest side of a drawn shot in pixels
MIN_RARE_DISTANCE, MAX_USUAL_DISTANCE = 1.0, 2.0
"""Of the map of rare patches: the first colour is the distance of an ordinary patch. The last colour is at least the
second value, so that a picture without rare patches has no strong colours."""
MISSING_GREY = 225


def _show_image(axes: Axes, pixels: Any, title: str, **options: Any) -> None:
    axes.imshow(pixels, **options)
    axes.set_anchor("N")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_axis_off()


def _plot_heat_map(axes: Axes, explanation: Explanation) -> None:
    values = explanation.heat_map
    if values is None or explanation.square is None:
        _show_text(axes, next((note for note in explanation.notes if "heat map" in note), "no heat map"))
        return
    limits = float(values.min()), float(values.max())
    block = ", block final" if explanation.blocks else ""
    title = f"heat map of '{truncate(explanation.label, 24)}'{block}"
    _draw_map(axes, explanation.square, values, limits, title, "logit less the mean of the others")


def plot_rare_patches(axes: Axes, distances: NDArray[np.float64], square: NDArray[np.uint8]) -> None:
    """Draw the map of what differs from the rest of the picture."""
    limits = MIN_RARE_DISTANCE, max(MAX_USUAL_DISTANCE, float(distances.max()))
    _draw_map(axes, square, distances, limits, "what differs from the rest", "distance, usually 1", BORDER)


def _draw_map(
    axes: Axes, square: Any, values: Any, limits: tuple[float, float], title: str, label: str, border: int = 0
) -> None:
    """Draw a grid (h, w) over a square (s, s, 3), of which it lacks so many cells at each side."""
    side = len(square)
    # The picture is drawn in pale grey, so that all colour is that of the map.
    grey = np.asarray(Image.fromarray(square).convert("L"), np.float64)
    _show_image(axes, 128 + grey / 2, title, cmap="gray", vmin=0, vmax=255)
    axes.set_autoscale_on(False)  # the square stays whole, also around a smaller grid
    # The grid covers the area for any number of cells: the outer edges of the cells are those of the area.
    top, left = (border / (cells + 2 * border) * side - 0.5 for cells in values.shape)
    image = axes.imshow(
        values,
        cmap="viridis",
        alpha=0.6,
        extent=(left, side - 1 - left, side - 1 - top, top),
        interpolation="bicubic",
        vmin=limits[0],
        vmax=limits[1],
    )
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.75, aspect=22, pad=0.02)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set_alpha(1)


def _plot_margin(axes: Axes, explanation: Explanation) -> None:
    sentences = explanation.margin_sentences()
    if not explanation.parts:
        notes = [note for note in explanation.notes if "heat map" not in note]
        _show_text(axes, "\n\n".join(sentences + notes))
        return
    values = [*(part.margin for part in explanation.parts), explanation.margin]
    colours = [BLUE if value >= 0 else VERMILION for value in values]
    bars = axes.bar([*(part.name for part in explanation.parts), "sum"], values, color=colours, width=0.6)
    axes.bar_label(bars, fmt="{:+.2f}", padding=3, fontsize=9)
    axes.axhline(0, color="black", linewidth=0.8)
    reach = max(*np.abs(values), 1e-9)
    axes.set_ylim(min(0, *values) - 0.12 * reach, max(0, *values) + 0.12 * reach)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.tick_params(labelsize=9)
    axes.set_box_aspect(1)
    axes.set_anchor("N")
    title = f"lead of '{truncate(explanation.label, 12)}' over '{truncate(str(explanation.against), 12)}'"
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_ylabel("difference of logits", fontsize=8)
    axes.set_xlabel("\n".join(textwrap.wrap(" ".join(sentences[2:]), 44)), fontsize=8, parse_math=False)


def _plot_shots(figure: Any, shots: tuple[Neighbour, ...]) -> None:
    figure.suptitle("the most similar shots, by cosine", fontsize=10, x=0.01, ha="left")
    panels = figure.subplots(1, MAX_SHOTS)
    for axes in panels[len(shots) :]:
        axes.set_axis_off()
    for axes, shot in zip(panels[: len(shots)], shots, strict=True):
        name = Path(shot.source).name if shot.is_path else shot.source
        title = f"{shot.similarity:.3f}  {truncate(shot.label, 18)}\n{truncate(name, 24)}"
        _show_image(axes, read_shot(shot), title)
        axes.title.set_fontsize(9)


def read_shot(shot: Neighbour) -> Any:
    """The pixels of a shot; a grey area if its file is missing, or its path is not known."""
    if shot.is_path:
        with suppress(ImageError):
            picture = read_image(shot.source)
            picture.thumbnail((SHOT_SIDE, SHOT_SIDE))
            return np.asarray(picture)
    return np.full((SHOT_SIDE * 3 // 4, SHOT_SIDE, 3), MISSING_GREY, np.uint8)


def _show_text(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    lines = "\n".join("\n".join(textwrap.wrap(line, 34)) for line in text.split("\n"))
    axes.text(0.5, 0.5, lines, ha="center", va="center", fontsize=9, transform=axes.transAxes, parse_math=False)
