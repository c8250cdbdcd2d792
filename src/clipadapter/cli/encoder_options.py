"""Options that say which encoder is used, and how it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from clipadapter.backends import PRECISIONS, list_backends
from clipadapter.cli.options import COUNT, ENCODER_URI, FILE, late_choice, max_pixels_option, option
from clipadapter.cli.output import CONTINUE, START_AGAIN, Output
from clipadapter.errors import InputError
from clipadapter.utils.devices import check_device, describe_device

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.encoders import Encoder
    from clipadapter.runtime import Predictor

device_option = option(
    "--device",
    default="cpu",
    help="Where the encoder computes: cpu, cuda, cuda:1, mps, xpu, or auto for a GPU if there is one.",
    heading="Encoder",
)
QUALITIES = click.Choice(["fast", "standard", "best"])


@dataclass(frozen=True)
class BackendOptions:
    """Which encoders are used, and how they run."""

    HEADING: ClassVar[str] = "Encoder"
    uris: tuple[str, ...] = ()
    device: str = device_option
    backend: str = option(
        "--backend",
        default="auto",
        type=late_choice(lambda: ["auto", *list_backends()]),
        help="Runtime of the image tower. auto: the fastest here.",
    )
    precision: str = option(
        "--precision",
        default="auto",
        type=click.Choice(["auto", *PRECISIONS]),
        help="Precision of the image tower. auto: the fastest that is close enough to fp32 on your pictures.",
    )
    batch_size: int = option(
        "--batch-size", default=32, type=COUNT, metavar="N", help="Number of pictures that are encoded at once."
    )
    cache: Path | None = option("--cache", type=FILE, help="Feature store; by default in the user's cache folder.")
    no_cache: bool = option("--no-cache", default=False, is_flag=True, help="Store no features.")
    max_pixels: int = max_pixels_option

    @property
    def store(self) -> str | Path | None:
        """The feature store, as `FewShotClassifier` takes it."""
        return None if self.no_cache else self.cache or "auto"

    @property
    def kept(self) -> str:
        """What is kept if the command is interrupted, and how to go on."""
        return START_AGAIN if self.no_cache else CONTINUE

    @property
    def run_parameters(self) -> dict[str, Any]:
        """The parameters of `FewShotClassifier` that say how an encoder runs, without the device."""
        names = ("backend", "precision", "batch_size")
        return {**{name: getattr(self, name) for name in names}, "cache": self.store}


@dataclass(frozen=True)
class EncoderOptions(BackendOptions):
    """The encoders of a new model, and how much of what they see is used."""

    uris: tuple[str, ...] = option(
        "--encoder",
        default=("auto",),
        type=ENCODER_URI,
        multiple=True,
        metavar="URI",
        help="Encoder; 'clipadapter encoders' lists them. auto: CLIP ViT-B/32 if it is available, else lite. May be "
        "repeated: the head auto looks at pictures with all of them, and the first one gives the class text.",
    )
    quality: str = option(
        "--quality",
        default="auto",
        type=click.Choice(["auto", *QUALITIES.choices]),
        help="How much of a picture the head auto looks at. fast: the final feature. standard: inner layers of the "
        "same pass too. best: a second look too, larger and mirrored, in several times the time. auto: fit takes best "
        "where held-out shots gain much by it; else it is standard.",
    )

    def open(self, out: Output) -> list[Encoder]:
        """Open the encoders. A note prints which one "auto" took."""
        from clipadapter.encoders import create_encoder

        device = find_device(self.device)
        encoders = [create_encoder(uri, device) for uri in self.uris]
        if "auto" in self.uris:
            note_encoders(encoders, out)
        return encoders

    def open_first(self, out: Output) -> Encoder:
        """Open the encoder, for commands that use one."""
        if len(self.uris) > 1:
            raise InputError(f"this command uses one encoder, but {len(self.uris)} are named: {', '.join(self.uris)}")
        return self.open(out)[0]

    def create_classifier(self, out: Output, **params: Any) -> FewShotClassifier:
        """Open the encoders, and create a classifier with them and further parameters of `FewShotClassifier`."""
        from clipadapter.classifier import FewShotClassifier

        encoders = self.open(out)
        return FewShotClassifier(encoders, quality=self.quality, progress=out.progress, **self.run_parameters, **params)


@dataclass(frozen=True)
class ModelEncoderOptions(BackendOptions):
    """Where the encoders of a fitted model are, and how they run."""

    uris: tuple[str, ...] = option(
        "--encoder",
        default=(),
        type=ENCODER_URI,
        multiple=True,
        metavar="URI",
        help="Where the encoder of the model is now, if its weights were moved; all of them, if it has several.",
    )

    @property
    def is_default(self) -> bool:
        """Whether no option requires the full model: predictions without torch are possible."""
        return (self.uris, self.device, self.backend, self.precision) == ((), "cpu", "auto", "auto")

    def load(self, folder: Path, **params: Any) -> FewShotClassifier:
        """Load the model in a folder, with further parameters of `FewShotClassifier`."""
        from clipadapter.persistence import read_config

        read_config(folder)  # refuses a wrong folder before torch is imported
        from clipadapter.classifier import FewShotClassifier

        encoder, device = list(self.uris) or None, find_device(self.device)
        return FewShotClassifier.load(folder, encoder=encoder, device=device, **{**self.run_parameters, **params})

    def open_exported(self, path: Path) -> Predictor:
        """Open an exported file, unless an option requires the full model."""
        from clipadapter.runtime import Predictor

        if (self.uris, self.device, self.precision) != ((), "cpu", "auto"):
            raise InputError(
                f"{path.name} contains its encoder as it was exported, for the CPU: leave out --encoder, --device and "
                "--precision, or give the folder of the model"
            )
        return Predictor(path, backend=self.backend)


def find_device(name: str) -> str:
    """Return the device of a name. A note prints what "auto" takes."""
    device = check_device(name)
    context = click.get_current_context(silent=True)
    if name == "auto" and context is not None:
        description = "cpu (no GPU that PyTorch can use)" if device == "cpu" else device
        description = describe_device(device) if device.startswith("cuda") else description
        Output(quiet=context.params.get("quiet", False)).note(f"device: {description}")
    return device


def note_encoders(encoders: Sequence[Encoder], out: Output) -> None:
    """Note what the user should know about each encoder."""
    for encoder in encoders:
        out.note(f"encoder {encoder.info.name}: {encoder.info.note}" if encoder.info.note else "")


def note_backend(opened: Encoder, used: Encoder, out: Output, changed: str = "image tower") -> None:
    """Note which backend runs the image tower, or how it was tuned, if it is not the encoder that was opened.

    A tuned encoder may differ in the text tower only, so that the caller says what changed.
    """
    if used.info.note != opened.info.note:
        out.note(f"{changed}: {used.info.note.removeprefix(opened.info.note).lstrip('; ')}")
