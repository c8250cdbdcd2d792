"""The options that several commands share, and their types: one table that the commands draw from.

A constant such as `seed_option` is one option. The options that belong together are the fields of a dataclass, whose
methods turn their values into what the library takes. They have no equality and repr, which take half of the time of
importing them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import click

from clipadapter import data, encoders, features, heads, persistence, runtime
from clipadapter.cli.declarations import flag, option
from clipadapter.cli.output import Output
from clipadapter.errors import DataError, InputError
from clipadapter.heads.registry import HEADS
from clipadapter.runtime.engines import PRECISIONS, list_backends
from clipadapter.utils.devices import check_device, describe_device
from clipadapter.utils.files import MAX_PIXELS
from clipadapter.utils.parsing import parse_json
from clipadapter.utils.registry import unknown

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.uncertainty import Uncertainty, UncertaintyOptions

PLOT_SUFFIXES = (".png", ".pdf", ".svg")
PAGE_SUFFIXES = (".html", ".htm")
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")

# ---- Types ----


class Parsed(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """The type of an option whose text a function turns into the value, before the command imports torch."""

    # A `click.BadParameter` of the function is an error of usage (exit code 2), other errors are the command's own (1).
    # Choices are listed only when the help is printed, since listing plug-ins takes long.

    def __init__(self, parse: Callable[[Any], Any], choices: Callable[[], Iterable[str]] | None = None) -> None:
        self.name, self._parse, self._choices = "value", parse, choices

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """The choices for the help."""
        return self._choices and f"[{'|'.join(self._choices())}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value of a text; a default that is a value already stays."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except click.BadParameter as error:
            self.fail(error.message, param, ctx)


def late_choice(list_names: Callable[[], Iterable[str]]) -> Parsed:
    """A choice whose names are listed when they are needed."""
    return Parsed(lambda text: click.Choice(list(list_names())).convert(text, None, None), list_names)


def _parse_fraction(text: str) -> float:
    """A number between 0 and 1. A percentage is refused; the message says which fraction it would be."""
    try:
        fraction = float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number: give a fraction such as 0.05") from None
    if not 0 < fraction < 1:
        hint = f": {fraction:g} % is {fraction / 100:g}" if 1 <= fraction < 100 else ""
        raise click.BadParameter(f"{text} is not between 0 and 1{hint}")
    return fraction


def _parse_encoder(text: str) -> str:
    encoders.check_uri(text)
    return text


def _parse_head(text: str) -> str:
    HEADS.check(text)
    return text


def _parse_heads(text: str) -> list[str] | None:
    """Names, each once; None for "all", as in suites."""
    if text.strip() == "all":
        return None
    return [_parse_head(name) for name in dict.fromkeys(filter(None, map(str.strip, text.split(","))))]


def parse_counts(text: str) -> list[int]:
    """The different numbers of a text, sorted.

    >>> parse_counts("4,1,16")
    [1, 4, 16]
    """
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = [0]
    if counts[0] < 1:
        raise click.BadParameter(f"expected numbers of 1 or more such as 1,2,4, but got '{text}'")
    return counts


def parse_value(text: str) -> Any:
    """Parse the value of a parameter: a JSON scalar, else the text itself.

    >>> [parse_value(text) for text in ("0.2", "true", "cosine", "[1]")]
    [0.2, True, 'cosine', '[1]']
    """
    if text in ("NaN", "Infinity", "-Infinity"):
        return float(text)
    try:
        value = parse_json(text, "the value")
    except DataError:
        return text
    return text if isinstance(value, dict | list) else value


def _parse_setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set takes key=value, such as seed=1, but got '{text}'")
    return key, parse_value(value)


def _parse_grid(text: str) -> tuple[str, list[Any]]:
    key, equals, values = text.partition("=")
    if not equals:
        raise InputError(f"--grid takes key=value,value,... such as alpha=0.5,1,2, but got '{text}'")
    return key, [parse_value(value) for value in values.split(",")]


def _parse_plot_formats(text: str) -> tuple[str, ...]:
    from clipadapter.rendering.plots import parse_plot_formats

    try:
        return parse_plot_formats(text)
    except InputError as error:
        raise click.BadParameter(str(error)) from error


def _parse_views(text: Any) -> int | str:
    if text == "per-epoch":
        return "per-epoch"
    try:
        return int(COUNT.convert(text, None, None))
    except click.BadParameter:
        raise click.BadParameter(f"{text!r} is neither a number of 1 or more nor per-epoch") from None


COUNT = click.IntRange(1)
File = Annotated[Path, click.Path(dir_okay=False, path_type=Path)]
Count = Annotated[int, COUNT]
CountFromZero = Annotated[int, click.IntRange(0)]
ALL = sys.maxsize  # a number that no list exceeds
CountOrAll = Annotated[int, Parsed(lambda text: ALL if text == "all" else COUNT.convert(text, None, None))]
FolderOrUri = Annotated[Path | str, Parsed(lambda text: text if "://" in text else Path(text))]
"""A folder, or a URI such as ``s3://bucket/folder``, which a path would change."""
EncoderUri = Annotated[str, Parsed(_parse_encoder)]
BackendName = Annotated[str, late_choice(lambda: ["auto", *list_backends()])]
Counts = Annotated[list[int], Parsed(parse_counts)]
Fraction = Annotated[float, Parsed(_parse_fraction)]
HeadName = Annotated[str, Parsed(_parse_head)]
HeadNames = Annotated[list[str], Parsed(_parse_heads)]

# ---- Single options ----

seed_option = option("--seed", "Seed of all random choices.", default=0)
seeds_option = option("--seeds N", "How many times shots are drawn, with the seeds 1 to N.", type=COUNT, default=3)
folds_option = option(
    "--folds N", "Folds of the cross-validation, if there is no test folder.", type=click.IntRange(2), default=5
)
title_option = option("--title TEXT", "Title of plots; by default what they show.", default="", show_default=False)
plot_format_option = option(
    "--plot-format FORMAT,...",
    "Files of each plot: png, pdf, svg or several.",
    type=Parsed(_parse_plot_formats),
    multiple=False,
    default="png",
)
split_option = option("--split NAME", "Split of the data: train, val or test.")
strict_option = flag("--strict", "Fail at the first picture that can't be read.", heading="")
device_option = option(
    "--device",
    "Where the encoder computes: cpu, cuda, cuda:1, mps, xpu, or auto for a GPU if there is one.",
    default="cpu",
    heading="Encoder",
)
class_names_option = option(
    "--class-names",
    'JSON file with readable class names: {"folder": "name", ...}.',
    heading="Class names and text",
)
crop_option = option(
    "--crop",
    "Area of the random crops: tip (default) for 0.5 to 1 of the picture, coop for 0.08 to 1.",
    heading="Views",
)


def _limit_pixels(ctx: click.Context, param: click.Parameter, value: int) -> int:
    """Set the size of the largest picture that the process reads, until the command ends."""
    if value != MAX_PIXELS:
        data.set_max_pixels(value)
        ctx.call_on_close(data.set_max_pixels)
    return value


max_pixels_option = option(
    "--max-pixels N",
    "Larger pictures are refused; 108000000 reads those of a phone with 108 megapixels.",
    type=COUNT,
    default=MAX_PIXELS,
    callback=_limit_pixels,
)
"""A command need not use its value."""

# ---- Encoders ----


@dataclass(frozen=True, eq=False, repr=False)
class BackendOptions:
    """Which encoders are used, and how they run."""

    HEADING: ClassVar[str] = "Encoder"
    uris: tuple[str, ...] = ()
    device: str = device_option
    backend: BackendName = option("--backend", "Runtime of the image tower. auto: the fastest here.", default="auto")
    precision: str = option(
        "--precision",
        "Precision of the image tower. auto: the fastest that is close enough to fp32 on your pictures.",
        type=click.Choice(["auto", *PRECISIONS]),
        default="auto",
    )
    batch_size: Count = option("--batch-size N", "Number of pictures that are encoded at once.", default=32)
    cache: File | None = option("--cache", "Feature store; by default in the user's cache folder.")
    no_cache: bool = flag("--no-cache", "Store no features.")
    max_pixels: int = max_pixels_option

    @property
    def store(self) -> str | Path | None:
        """The feature store, as `FewShotClassifier` takes it."""
        return None if self.no_cache else self.cache or "auto"

    @property
    def run_parameters(self) -> dict[str, Any]:
        """The parameters of `FewShotClassifier` that say how an encoder runs, without the device."""
        names = ("backend", "precision", "batch_size")
        return {**{name: getattr(self, name) for name in names}, "cache": self.store}


@dataclass(frozen=True, eq=False, repr=False)
class EncoderOptions(BackendOptions):
    """The encoders of a new model, and how much of what they see is used."""

    uris: tuple[EncoderUri, ...] = option(
        "--encoder URI",
        "Encoder; 'clipadapter encoders' lists them. auto: CLIP ViT-B/32 if it is available, else lite. May be "
        "repeated: the head auto looks at pictures with all of them, and the first one gives the class text.",
        default=("auto",),
    )
    quality: Literal["auto", "fast", "standard", "best"] = option(
        "--quality",
        "How much of a picture the head auto looks at. fast: the final feature. standard: inner layers of the "
        "same pass too. best: a second look too, larger and mirrored, in several times the time. auto: fit takes best "
        "where held-out shots gain much by it; else it is standard.",
        default="auto",
    )

    def open(self, out: Output) -> list[encoders.Encoder]:
        """Open the encoders. A note prints which one "auto" took."""
        device = find_device(self.device)
        opened = [encoders.create_encoder(uri, device) for uri in self.uris]
        for encoder in opened if "auto" in self.uris else ():
            note_encoder(encoder, out)
        return opened

    def create_classifier(self, out: Output, **params: Any) -> FewShotClassifier:
        """Open the encoders, and create a classifier with them and further parameters of `FewShotClassifier`."""
        from clipadapter.classifier import FewShotClassifier

        common = {"quality": self.quality, "progress": out.progress, **self.run_parameters}
        return FewShotClassifier(self.open(out), **common, **params)


@dataclass(frozen=True, eq=False, repr=False)
class ModelEncoderOptions(BackendOptions):
    """Where the encoders of a fitted model are, and how they run."""

    uris: tuple[EncoderUri, ...] = option(
        "--encoder URI",
        "Where the encoder of the model is now, if its weights were moved; all of them, if it has several.",
        default=(),
    )

    @property
    def is_default(self) -> bool:
        """Whether no option requires the full model: predictions without torch are possible."""
        return (self.uris, self.device, self.backend, self.precision) == ((), "cpu", "auto", "auto")

    def load(self, folder: Path, **params: Any) -> FewShotClassifier:
        """Load the model in a folder, with further parameters of `FewShotClassifier`."""
        persistence.read_config(folder)  # refuses a wrong folder before torch is imported
        from clipadapter.classifier import FewShotClassifier

        encoder, device = list(self.uris) or None, find_device(self.device)
        return FewShotClassifier.load(folder, encoder=encoder, device=device, **{**self.run_parameters, **params})

    def open_exported(self, path: Path) -> runtime.Predictor:
        """Open an exported file, unless an option requires the full model."""
        if (self.uris, self.device, self.precision) != ((), "cpu", "auto"):
            raise InputError(
                f"{path.name} contains its encoder as it was exported, for the CPU: leave out --encoder, --device and "
                "--precision, or give the folder of the model"
            )
        return runtime.Predictor(path, backend=self.backend)


def find_device(name: str) -> str:
    """Return the device of a name. A note prints what "auto" takes."""
    device = check_device(name)
    context = click.get_current_context(silent=True)
    if name == "auto" and context is not None:
        description = "cpu (no GPU that PyTorch can use)" if device == "cpu" else device
        description = describe_device(device) if device.startswith("cuda") else description
        Output(quiet=context.params.get("quiet", False)).note(f"device: {description}")
    return device


def note_encoder(encoder: encoders.Encoder, out: Output) -> None:
    """Note what the user should know about an encoder."""
    out.note(f"encoder {encoder.info.name}: {encoder.info.note}" if encoder.info.note else "")


def note_backend(opened: encoders.Encoder, used: encoders.Encoder, out: Output, changed: str = "image tower") -> None:
    """Note which backend runs the image tower, or how it was tuned, if it is not the encoder that was opened."""
    if used.info.note != opened.info.note:
        out.note(f"{changed}: {used.info.note.removeprefix(opened.info.note).lstrip('; ')}")


# ---- What a head is fitted to, and which head ----


@dataclass(frozen=True, eq=False, repr=False)
class PromptOptions:
    """The texts that the text tower encodes."""

    HEADING: ClassVar[str] = "Class names and text"
    templates: tuple[str, ...] = option(
        "--templates NAME|TEXT",
        "Template set such as imagenet7, or a template such as 'a sketch of a {}.'. May be repeated.",
        default=("default",),
    )
    descriptions: File | None = option(
        "--descriptions", 'JSON file with sentences in place of the templates: {"class": ["...", ...], ...}.'
    )
    class_names: File | None = class_names_option

    def classifier_parameters(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return the parameters of `FewShotClassifier` about prompts, checked."""
        data.class_prompts(class_names, self.templates)
        descriptions = data.read_descriptions(self.descriptions) if self.descriptions else None
        try:
            data.class_prompts(class_names, self.templates, descriptions)
        except InputError as error:
            raise type(error)(f"{self.descriptions}: {error}") from error
        return {"templates": self.templates, "descriptions": descriptions}


@dataclass(frozen=True, eq=False, repr=False)
class ViewOptions:
    """Views of each shot: how many, and how large a part of the picture a random crop shows."""

    HEADING: ClassVar[str] = "Views"
    views: int | str = option(
        "--views N|per-epoch",
        "Views per picture: the plain one and N - 1 random crops; each training step uses one of them. "
        "per-epoch: a new crop in each epoch, as in the papers; the cost is printed before the fit starts.",
        type=Parsed(_parse_views),
        default=1,
    )
    crop: Literal["tip", "coop"] | None = crop_option

    def spec(self, seed: int) -> features.ViewSpec | features.PerEpochViews:
        """Return a fixed number of views, or one view per epoch."""
        count = self.views if isinstance(self.views, int) else 1
        spec = features.ViewSpec.from_crop(self.crop or "tip", count=count, seed=seed)
        return spec if isinstance(self.views, int) else features.PerEpochViews(spec)


@dataclass(frozen=True, eq=False, repr=False)
class HeadOptions:
    """A head by name, and its parameters."""

    HEADING: ClassVar[str] = "Head"
    name: HeadName = option("--head NAME", "Head to fit; 'clipadapter heads' lists them.", default="auto")
    settings: tuple[tuple[str, Any], ...] = option(
        "--set KEY=VALUE", "Parameter, such as alpha=0.2. May be repeated.", type=Parsed(_parse_setting), default=()
    )
    grids: tuple[tuple[str, list[Any]], ...] = option(
        "--grid KEY=V1,V2,...",
        "Values to try; held-out shots select the best, by fits without --unlabelled. May be repeated.",
        type=Parsed(_parse_grid),
        default=(),
    )
    recipe: Literal["official", "paper"] | None = option(
        "--recipe",
        "Parameters of the authors' code (official) or of the paper. 'clipadapter heads NAME' lists the recipes "
        "of a head.",
    )
    preset: str | None = option(
        "--preset NAME",
        "Published parameters for one data set, such as dtd. 'clipadapter heads NAME' says how they were chosen.",
    )

    def check(self, uris: Sequence[str] = (), is_unlabelled: bool | None = None) -> None:
        """Refuse, without an import of torch, what a head does not take, as far as its declarations show."""
        from clipadapter.encoders.registry import check_trainable

        for key, value in (*self.settings, *((key, value) for key, values in self.grids for value in values)):
            HEADS.check_parameter(self.name, key)
            HEADS.check_value(self.name, key, value)
        declared = HEADS.info(self.name).attributes
        # Of several encoders, the one that is trained is known only when they are open.
        if len(uris) == 1 and (declared.get("tunes_encoder") or declared.get("needs_tower")):
            check_trainable(uris[0], "tunable_copy" if declared.get("tunes_encoder") else "text_tower")
        needs, takes = declared.get("transductive"), declared.get("accepts_unlabelled")
        if needs and is_unlabelled is False:
            raise InputError(f"{self.name} is transductive: give the pictures to classify with --unlabelled FOLDER")
        if is_unlabelled and not (needs or takes):
            raise InputError(f"{self.name} learns from labelled pictures only: leave --unlabelled out")

    def classifier_parameters(self) -> dict[str, Any]:
        """Return the parameters of `FewShotClassifier` about the head, with which it can be fitted."""
        for choice in ({}, *({key: value} for key, values in self.grids for value in values)):
            self.create(**choice)
        return {"head": self.name, "head_params": self.parameters(), "grid": dict(self.grids)}

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the head: those of the preset or recipe, overridden by the settings."""
        cls, chosen = heads.head_info(self.name).cls, dict[str, Any]()
        for kind, name, known in (("preset", self.preset, cls.presets), ("recipe", self.recipe, cls.recipes)):
            if name is not None and name not in known:
                raise unknown(f"{kind} of {self.name}", name, sorted(known))
            chosen.update({} if name is None else known[name])
        if self.preset is not None and self.recipe is not None:
            raise InputError(f"give --preset or --recipe, not both. {cls.preset_note}")
        return {**chosen, **dict(self.settings)}

    def create(self, **changes: Any) -> heads.Head:
        """Create the head, with some parameters changed."""
        head = heads.create_head(self.name, **{**self.parameters(), **changes})
        head.check_parameters()
        return head


# ---- Decisions beside the best class: none of these, a set of classes, unequal costs ----
# They are called arguments, since `clipadapter.uncertainty` has the options that they are turned into.


@dataclass(frozen=True, eq=False, repr=False)
class DecisionArguments:
    """The decisions of one call. What is not given is left to the model."""

    HEADING: ClassVar[str] = "Decisions and uncertainty"
    reject: Fraction | None = option(
        "--reject RATE",
        'Answer "none of these" for pictures unlike the classes. RATE is about the fraction of pictures of the '
        "classes that are rejected too.",
    )
    coverage: Fraction | None = option(
        "--coverage RATE", "Name a set of classes that contains the right one at this rate."
    )
    cost: File | None = option(
        "--cost", "CSV file with the cost of each mistake: rows are true classes, columns answers."
    )
    minimise: str | None = option(
        "--minimise MISTAKE",
        "The mistake to avoid: 'false NAME' or 'missed NAME'; '=N' at the end makes it N times as bad.",
    )

    def decisions(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return the decisions as `FewShotClassifier.classify` takes them."""
        from clipadapter.uncertainty import parse_costs, read_costs

        if self.cost is not None and self.minimise is not None:
            raise InputError("--cost and --minimise both set the costs of mistakes: give one of them")
        costs = None if self.cost is None else read_costs(self.cost, class_names)
        costs = costs if self.minimise is None else parse_costs(self.minimise, class_names)
        decisions = {"reject": self.reject, "coverage": self.coverage, "costs": costs}
        return {name: value for name, value in decisions.items() if value is not None}


@dataclass(frozen=True, eq=False, repr=False)
class UncertaintyArguments(DecisionArguments):
    """The default decisions of a model, and how it learns them."""

    calibration: Literal["auto", "temperature", "vector", "none"] = option(
        "--calibration", "How held-out shots turn logits into probabilities.", default="auto"
    )
    sets: Literal["cross", "cv+", "split"] = option(
        "--sets",
        "How shots are held out for --coverage. cv+ stores one head per fold; split holds out half of the shots.",
        default="cross",
    )
    by_class: bool = flag("--by-class", "Promise the coverage for each class.")
    outliers: Path | None = option("--outliers", "Folder of pictures of none of the classes, as expected in use.")
    negative_labels: bool = flag("--negative-labels", "Detect outliers by the class names of ImageNet too.")

    def options(self, class_names: Sequence[str]) -> UncertaintyOptions:
        """Return the options as `FewShotClassifier` takes them."""
        from clipadapter.uncertainty import UncertaintyOptions

        names = ("calibration", "sets", "by_class", "negative_labels")
        return UncertaintyOptions(**{name: getattr(self, name) for name in names}, **self.decisions(class_names))


def warn_about_rates(uncertainty: Uncertainty, reject: float | None, coverage: float | None, out: Output) -> None:
    """Warn of rates of "none of these" and of sets that the held-out shots can't guarantee."""
    if reject is not None and uncertainty.rejector is not None:
        threshold = uncertainty.rejector.threshold(reject)
        if not threshold.is_attainable:
            out.warn(
                f"{threshold.shots} held-out shots can't set a rate of {100 * reject:g} %: the smallest rate is "
                f"{100 * threshold.min_rate:.2g} %. Beyond that, a normal tail is assumed"
            )
        if threshold.rate_is_upper_bound:
            out.warn("with one shot per class, fewer pictures than this rate will be called none of these")
    conformal = uncertainty.conformal
    if coverage is not None and conformal is not None and (too_few := conformal.explain_shortage(coverage)):
        out.warn(too_few)
