"""Options that say which encoder is used, and how it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipadapter.cli.option_types import COUNT, ENCODER_URI, FILE
from clipadapter.cli.options import MAX_PIXELS_ATTRIBUTES, field_option, option
from clipadapter.cli.output import Output
from clipadapter.errors import InputError

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.encoders import Encoder
    from clipadapter.runtime import Predictor

BACKENDS = click.Choice(["auto", "torch", "openvino", "onnxruntime"])
PRECISIONS = click.Choice(["auto", "fp32", "bf16", "int8"])


@dataclass(frozen=True)
class EncoderOptions:
    """Which encoder is used, and how it runs."""

    uri: str | None = option(
        "--encoder",
        default="auto",
        type=ENCODER_URI,
        metavar="URI",
        help="Encoder; 'clipadapter encoders' lists them. auto: CLIP ViT-B/32 if it is available, else lite.",
    )
    device: str = option("--device", default="cpu", help="Torch device, such as cuda.")
    backend: str = option(
        "--backend",
        default="auto",
        type=BACKENDS,
        help="Runtime of the image tower. auto: the fastest here.",
    )
    precision: str = option(
        "--precision",
        default="auto",
        type=PRECISIONS,
        help="Precision of the image tower. auto: the fastest that is close enough to fp32 on your pictures.",
    )
    batch_size: int = option(
        "--batch-size", default=32, type=COUNT, metavar="N", help="Number of pictures that are encoded at once."
    )
    cache: Path | None = option("--cache", type=FILE, help="Feature store; by default in the user's cache folder.")
    no_cache: bool = option("--no-cache", default=False, is_flag=True, help="Store no features.")
    max_pixels: int = option("--max-pixels", **MAX_PIXELS_ATTRIBUTES)

    @property
    def store(self) -> str | Path | None:
        """The feature store, as `FewShotClassifier` takes it."""
        return None if self.no_cache else self.cache or "auto"

    @property
    def run_parameters(self) -> dict[str, Any]:
        """The parameters of `FewShotClassifier` that say how an encoder runs, without the device."""
        return {
            "backend": self.backend,
            "precision": self.precision,
            "batch_size": self.batch_size,
            "cache": self.store,
        }

    def open(self, out: Output) -> Encoder:
        """Open the encoder. A note prints what the user should know about it.

        Raises:
            InputError: if the device can't be used.
        """
        from clipadapter.encoders import create_encoder

        check_device(self.device)
        encoder = create_encoder(self.uri or "auto", self.device)
        out.note(f"encoder {encoder.info.name}: {encoder.info.note}" if encoder.info.note else "")
        return encoder

    def create_classifier(self, out: Output, **params: Any) -> FewShotClassifier:
        """Open the encoder, and create a classifier with it.

        Args:
            out: for notes and progress bars.
            params: further parameters of `FewShotClassifier`.

        Raises:
            InputError: if the device can't be used.
        """
        from clipadapter.classifier import FewShotClassifier

        return FewShotClassifier(self.open(out), progress=out.progress, **self.run_parameters, **params)


@dataclass(frozen=True)
class ModelEncoderOptions(EncoderOptions):
    """The same for a fitted model, which has an encoder already."""

    uri: str | None = option(
        "--encoder",
        type=ENCODER_URI,
        metavar="URI",
        help="Where the encoder of the model is now, if its weights were moved.",
    )

    @property
    def is_default(self) -> bool:
        """Whether no option requires the full model: predictions without torch are possible."""
        return (self.uri, self.device, self.backend, self.precision) == (None, "cpu", "auto", "auto")

    def load(self, folder: Path, **params: Any) -> FewShotClassifier:
        """Load the model in a folder.

        Args:
            folder: written by ``fit``.
            params: further parameters of `FewShotClassifier`.

        Raises:
            ArtifactError: if there is no valid model, or it was fitted with another encoder.
            InputError: if the device can't be used.
        """
        from clipadapter.persistence import read_config

        read_config(folder)  # refuses a wrong folder before torch is imported
        from clipadapter.classifier import FewShotClassifier

        check_device(self.device)
        return FewShotClassifier.load(folder, encoder=self.uri, device=self.device, **{**self.run_parameters, **params})

    def open_exported(self, path: Path) -> Predictor:
        """Open an exported file.

        Raises:
            InputError: if an option requires the full model.
        """
        from clipadapter.runtime import Predictor

        if (self.uri, self.device, self.precision) != (None, "cpu", "auto"):
            raise InputError(
                f"{path.name} contains its encoder as it was exported, for the CPU: leave out --encoder, --device and "
                "--precision, or give the folder of the model"
            )
        return Predictor(path, backend=self.backend)


def note_backend(opened: Encoder, used: Encoder, out: Output) -> None:
    """Note which backend runs the image tower, if it is not the encoder that was opened."""
    if used.info.note != opened.info.note:
        out.note(f"image tower: {used.info.note.removeprefix(opened.info.note).lstrip('; ')}")


def check_device(device: str) -> None:
    """Refuse a device that torch can't use on this machine.

    Raises:
        InputError: if so.
    """
    import torch

    try:
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"the device '{device}' can't be used on this machine ({error}): give cpu, or leave --device out"
        ) from error


device_option = field_option(EncoderOptions, "device")
