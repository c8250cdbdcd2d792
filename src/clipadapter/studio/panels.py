"""The panels of the page as HTML. Every text that a person can choose is escaped."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

from clipadapter.classifier.encoder_choice import QUALITIES, blocks_of_quality, relative_cost
from clipadapter.data.thumbnails import encode_thumbnails, thumbnail_url
from clipadapter.encoders import Encoder
from clipadapter.rendering.html import create_environment
from clipadapter.rendering.method_colours import method_style
from clipadapter.studio.actions import Tab
from clipadapter.studio.model import MORE_SHOTS, LearningCurve
from clipadapter.studio.pictures import Contents, PictureFile
from clipadapter.studio.session import Session, SessionState
from clipadapter.utils.blocks import RARE_PATCHES, BlockSource
from clipadapter.utils.files import Stamp, printable
from clipadapter.utils.formatting import format_count, format_list

PACKAGE = "clipadapter.studio"
PANELS = ("status", "classes", "queue", "prediction", "accuracy", "quality")
SMALL_PIXELS, LARGE_PIXELS = 96, 360  # longest sides of the pictures on the page
CLASS_PICTURES, OPEN_CLASS_PICTURES = 8, 400  # most pictures that are shown of a class, and of the open class
MAX_UNLABELLED_PICTURES = 200  # most unlabelled pictures that are shown at once
PAGE_PICTURES = 240  # most pictures of all classes together; each class shows one at least
RECOMMENDED_SHOTS_PER_CLASS = 4  # fewer pictures in a class make the page ask for more
MAX_CACHED_THUMBNAILS = 4000  # thumbnails in memory, a few kilobytes each
THUMBNAIL_JPEG_QUALITY = 75


class Panels:
    """Renders the panels of a page."""

    def __init__(self, session: Session) -> None:
        self.session, self._environment = session, create_environment(PACKAGE)
        self._thumbnails: OrderedDict[tuple[Stamp, int], str] = OrderedDict()  # data URLs by file and longest side
        self._quality_options = quality_options(session.encoder, session.other_encoders)

    def render_changed(self, tab: Tab) -> dict[str, str]:
        """Return the HTML of the panels that differ from what the tab shows."""
        state, contents = self.session.state, self.session.project.contents
        # Classes and pictures that do not exist any more are closed.
        tab.open_picture = "" if contents.label(tab.open_picture) is None else tab.open_picture
        tab.open_class = tab.open_class if tab.open_class in contents.classes else ""
        tab.renamed_class = tab.renamed_class if tab.renamed_class in contents.classes else ""
        values, changed = self._values(tab, state, contents), {}
        for name in PANELS:
            html = self._environment.get_template(f"{name}.html").render(values)
            digest = blake2b(html.encode(), digest_size=16).digest()
            if tab.panel_digests.get(name) != digest:
                changed[name], tab.panel_digests[name] = html, digest
        tab.rendered_versions = (state.version, contents.revision)
        return changed

    def render_help(self) -> str:
        """Return the HTML of the head of the page."""
        return self._environment.get_template("help.html").render(session=self.session, printable=printable)

    def _values(self, tab: Tab, state: SessionState, contents: Contents) -> dict[str, Any]:
        """What the templates of all panels read."""
        session = self.session
        unlabelled = {one.key: one for one in contents.unlabelled}
        queue = [unlabelled[key] for key in state.queue if key in unlabelled]
        guess = state.guesses.get(queue[0].key) if queue else None
        has_guess = guess is not None and guess[0] in contents.classes
        nearest = tab.prediction.nearest if tab.prediction else ()
        nearest = tuple(one for one in nearest if contents.label(one.source) is not None)
        doubts = state.model.doubts if state.model is not None else {}
        classifier = state.model.classifier if state.model is not None and session.learns_unlabelled else None
        outcome = classifier.head_.describe_unlabelled() if classifier is not None and state.pool else ""
        return {
            "tab": tab,
            "state": state,
            "contents": contents,
            "session": session,
            "next_step": suggest_next_step(contents, has_guess, state.is_saved(contents)),
            "cards": self._cards(tab, state, contents, doubts),
            "doubts": doubts,
            "groups": self._unlabelled_groups(state, contents) if tab.shows_unlabelled else [],
            "queue": queue,
            "guess": guess,
            "nearest": [(one, contents.picture(one.source)) for one in nearest],
            "small_urls": partial(self._urls, SMALL_PIXELS),
            "large_urls": partial(self._urls, LARGE_PIXELS),
            "printable": printable,
            "plot": None if state.curve is None else plot_curve(state.curve),
            "more_shots": MORE_SHOTS,
            "width": PLOT_WIDTH,
            "height": PLOT_HEIGHT,
            "percent": lambda share: round(100 * share),
            "left_out": format_list(session.classes_without_pictures(), 3),
            "method_style": method_style(session.head),
            "options": self._quality_options,
            "pool_outcome": f"{format_count(len(state.pool), 'picture')} tried: {outcome}." if outcome else "",
        }

    def _cards(self, tab: Tab, state: SessionState, contents: Contents, doubts: Mapping[str, str]) -> Iterator[Any]:
        """Pictures of each class: readable ones, of them those to show, and unreadable ones."""
        max_pictures = max(1, min(CLASS_PICTURES, PAGE_PICTURES // max(len(contents.classes), 1)))
        for name, pictures in contents.classes.items():
            readable = [one for one in pictures if one.key not in state.unreadable]
            doubtful_first = sorted(readable, key=lambda one: (one.key not in doubts, -one.stamp[3]))  # then the newest
            visible = doubtful_first[: OPEN_CLASS_PICTURES if name == tab.open_class else max_pictures]
            unreadable = [one for one in pictures if one.key in state.unreadable]
            yield {"name": name, "readable": readable, "visible": visible, "unreadable": unreadable}

    def _unlabelled_groups(
        self, state: SessionState, contents: Contents
    ) -> list[tuple[str, list[tuple[PictureFile, float]]]]:
        """Group unlabelled pictures by predicted class: (picture, probability) each, the most probable first."""
        groups: dict[str, list[tuple[PictureFile, float]]] = {name: [] for name in (*contents.classes, "")}
        readable = [one for one in contents.unlabelled if one.key not in state.unreadable]
        for picture in readable[:MAX_UNLABELLED_PICTURES]:
            name, probability = state.guesses.get(picture.key, ("", 0.0))
            groups[name if name in groups else ""].append((picture, probability))
        return [(name, sorted(each, key=lambda member: -member[1])) for name, each in groups.items() if each]

    def _urls(self, max_side: int, pictures: Sequence[PictureFile]) -> dict[str, str]:
        """A data URL by the key of each picture, made once; empty if it can't be read. The page needs no file."""
        paths = {(one.stamp, max_side): one.path for one in pictures if (one.stamp, max_side) not in self._thumbnails}
        thumbnails = encode_thumbnails(list(paths.values()), max_side, THUMBNAIL_JPEG_QUALITY)
        self._thumbnails.update(zip(paths, map(thumbnail_url, thumbnails), strict=True))
        urls = {picture.key: self._thumbnails[picture.stamp, max_side] for picture in pictures}
        while len(self._thumbnails) > MAX_CACHED_THUMBNAILS:
            self._thumbnails.popitem(last=False)
        return urls


# ---- Texts and plots ----


def quality_options(encoder: Encoder, others: Sequence[Encoder] = ()) -> dict[str, str]:
    """The positions of the switch, the cheapest first: what the model looks at and what that costs, by name."""
    fast, standard, best = (tuple(blocks_of_quality(encoder, others, quality)) for quality in QUALITIES)
    inner = "Also inner layers, which show textures and small parts. Takes hardly more time."
    sources = [BlockSource.parse(name) for name in best]
    sizes = " or ".join(map(str, sorted({source.size for source in sources if source.size is not None})))
    has_patches = any(source.layer == RARE_PATCHES for source in sources)
    defects = " It also looks for small, unusual parts, such as defects." if has_patches else ""
    ratio = relative_cost(encoder, others, best) / relative_cost(encoder, others, fast)
    second = (
        f"Also the picture at {sizes} pixels, where details are clearer, and mirrored.{defects} Takes about "
        f"{ratio:.0f} times as long per picture."
    )
    return {
        "fast": "The final feature of each encoder: what is in the picture as a whole. Takes the least time.",
        "standard": "The same as fast for this encoder." if standard == fast else inner,
        "best": "The same as standard for this encoder." if best == standard else second,
    }


@dataclass(frozen=True)
class NextStep:
    """What to do next. The page has one filled button, the one for this."""

    text: str  # one sentence or two
    button: str  # "add-class", "upload", "label", "save" or "download"
    class_name: str = ""  # class of the button, if there is one per class


def suggest_next_step(contents: Contents, has_guess: bool = False, is_saved: bool = False) -> NextStep:
    """Return what to do next."""
    classes = contents.classes
    if not classes:
        return NextStep("Name your first class, such as “tabby cat”, and press Enter.", "add-class")
    if len(classes) == 1:
        return NextStep("Name a second class: a model chooses between classes.", "add-class")
    if has_guess:
        return NextStep("Label the picture under “Label next”: is its prediction correct?", "label")
    smallest = min(classes, key=lambda name: len(classes[name]))
    if not any(classes.values()):
        text = "Add a few pictures to each class. You can already try a picture: the class names are enough."
        return NextStep(text, "upload", smallest)
    if not classes[smallest]:
        return NextStep(f"Add a few pictures to “{smallest}” too.", "upload", smallest)
    if len(classes[smallest]) < RECOMMENDED_SHOTS_PER_CLASS:
        reason = f"with {RECOMMENDED_SHOTS_PER_CLASS} or more per class, predictions are better"
        return NextStep(f"Add pictures to “{smallest}”: {reason}.", "upload", smallest)
    if not is_saved:
        return NextStep("Try pictures, correct wrong labels, and save the model when it is good enough.", "save")
    return NextStep("The model is saved. Download it, or go on: every change can be saved again.", "download")


PLOT_WIDTH, PLOT_HEIGHT = 400, 150


def plot_curve(curve: LearningCurve) -> dict[str, Any]:
    """Return a learning curve as shapes of a figure of `PLOT_WIDTH` by `PLOT_HEIGHT`, from the upper left.

    ``points`` has (x, y, label of the axis, description) of the measured points, at equal distances, and ``forecast``
    that of the forecast, if it is shown; ``band`` is a polygon from the interval of the last point to its interval.
    """
    count = len(curve.points) + curve.shows_gain
    step = PLOT_WIDTH / max(count - 1, 1)

    def place(i: int, accuracy: float, shots: float) -> tuple[float, float, str, str]:
        text = f"{shots:.0f}"
        about = "" if shots == round(shots) else "about "  # a mean over classes, or over folds
        tick, description = (text, f"{about}{text} per class") if shots else ("names", "names alone")
        return round(i * step, 1), _plot_y(accuracy), tick, f"{description}: {100 * accuracy:.0f} %"

    points = tuple(place(i, point.accuracy, point.shots_per_class) for i, point in enumerate(curve.points))
    forecast = curve.forecast
    if not curve.shows_gain or forecast is None or forecast.low is None or forecast.high is None:
        return {"points": points, "forecast": None}
    x, y, tick, text = place(count - 1, forecast.value, curve.forecast_shots)
    text = f"{text}, 95 % interval {100 * forecast.low:.0f} to {100 * forecast.high:.0f} % (forecast)"
    low, high = curve.points[-1].interval
    corners = ((points[-1][0], high), (x, forecast.high), (x, forecast.low), (points[-1][0], low))
    band = " ".join(f"{left},{_plot_y(accuracy)}" for left, accuracy in corners)
    return {"points": points, "forecast": (x, y, tick, text), "band": band}


def _plot_y(accuracy: float) -> float:
    return round(PLOT_HEIGHT * (1 - accuracy), 1)
