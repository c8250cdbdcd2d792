"""Options that several commands share, and what they stand for.

Options that belong together come as one decorator, which hands them to the command as one object.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipadapter.cli.output import Output, hushed
from clipadapter.errors import InputError

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.data import Dataset
    from clipadapter.encoders import Encoder

Command = Callable[..., None]
Decorator = Callable[[Command], Command]
FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(path_type=Path)


def bundle(name: str, cls: type[Any], *options: Decorator) -> Decorator:
    """A decorator that adds options and hands their values to the command as one object.

    Args:
        name: of the command's argument.
        cls: a dataclass; its fields are named as the options are, one without an option keeps its default.
        options: decorators made by ``click.option``, in the order of the help.
    """

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def wrapped(**values: Any) -> None:
            own = {part.name: values.pop(part.name) for part in fields(cls) if part.name in values}
            function(**{name: cls(**own)}, **values)

        command: Command = wrapped
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def output_options(function: Command) -> Command:
    """``--json`` and ``--quiet``; the command gets them as ``out``. Put it right above the function."""

    @click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="Write nothing but errors to stderr.")
    @functools.wraps(function)
    def wrapped(as_json: bool, quiet: bool, **values: Any) -> None:
        out = Output(as_json, quiet)
        if click.get_current_context().find_root().params.get("debug"):
            function(out=out, **values)
            return
        with hushed(bars=out.progress):
            function(out=out, **values)

    return wrapped


@dataclass(frozen=True)
class Towers:
    """The encoder that is wanted, and how it is run.

    Args:
        encoder: a URI; None for the one that a model was fitted with.
        device: torch device.
        batch_size: pictures encoded at a time.
        cache: file of the feature store; None is the user's.
        no_cache: keep no features.
        backend: what runs the image tower; "auto" is what is fastest here.
        precision: of the image tower; "auto" is what is near enough to fp32 on the pictures.
    """

    encoder: str | None
    device: str = "cpu"
    backend: str = "auto"
    precision: str = "auto"
    batch_size: int = 32
    cache: Path | None = None
    no_cache: bool = False

    @property
    def store(self) -> str | Path | None:
        """The feature store, as `FewShotClassifier` takes it."""
        return None if self.no_cache else self.cache or "auto"

    @property
    def plain(self) -> bool:
        """Whether nothing was asked for that only the full model can do."""
        return (self.encoder, self.device, self.backend, self.precision) == (None, "cpu", "auto", "auto")

    def open(self, out: Output) -> Encoder:
        """The open encoder; a note says what there is to know of it.

        Raises:
            InputError: if the device can't be used.
        """
        from clipadapter.encoders import create_encoder

        check_device(self.device)
        encoder = create_encoder(self.encoder or "auto", self.device)
        out.note(f"encoder {encoder.info.name}: {encoder.info.note}" if encoder.info.note else "")
        return encoder

    @staticmethod
    def tell(opened: Encoder, used: Encoder, out: Output) -> None:
        """Say what runs the image tower, if it is not the plain encoder that was opened."""
        if used.info.note != opened.info.note:
            out.note(f"image tower: {used.info.note.removeprefix(opened.info.note).lstrip('; ')}")

    def load(self, folder: Path, **params: Any) -> FewShotClassifier:
        """The model in a folder.

        Args:
            folder: what ``fit`` wrote.
            params: further parameters of `FewShotClassifier`.

        Raises:
            ArtifactError: if there is no sound model, or the encoder is another.
            InputError: if the device can't be used.
        """
        from clipadapter.persistence import read_config

        read_config(folder)  # a wrong folder is told before anything is loaded
        from clipadapter.classifier import FewShotClassifier

        check_device(self.device)
        return FewShotClassifier.load(
            folder,
            encoder=self.encoder,
            device=self.device,
            backend=self.backend,
            precision=self.precision,
            batch_size=self.batch_size,
            cache=self.store,
            **params,
        )


_DEVICE = click.option("--device", default="cpu", show_default=True, help="Torch device, such as cuda.")
_BACKEND = click.option(
    "--backend",
    type=click.Choice(["auto", "torch", "openvino", "onnxruntime"]),
    default="auto",
    show_default=True,
    help="What runs the image tower; auto is what is fastest here.",
)
_PRECISION = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "int8"]),
    default="auto",
    show_default=True,
    help="Of the image tower; auto is the fastest that is near enough to fp32 on your pictures.",
)
_BATCH_SIZE = click.option(
    "--batch-size",
    type=click.IntRange(1),
    metavar="N",
    default=32,
    show_default=True,
    help="Pictures encoded at a time.",
)
_CACHE = click.option("--cache", type=FILE, help="File that keeps the features; by default in the user's cache folder.")
_NO_CACHE = click.option("--no-cache", is_flag=True, help="Keep no features.")
_ENCODER = click.option(
    "--encoder",
    metavar="URI",
    default="auto",
    show_default=True,
    help="See 'clipadapter encoders'; auto is CLIP ViT-B/32 if it can be had, else lite.",
)
_ENCODER_NOW = click.option(
    "--encoder", metavar="URI", help="Where the model's encoder is now, if its weights were moved."
)

encoder_options = bundle("towers", Towers, _ENCODER, _DEVICE, _BACKEND, _PRECISION, _BATCH_SIZE, _CACHE, _NO_CACHE)
"""``--encoder`` (default auto) and how it is run: device, backend, precision, batch size, cache; as ``towers``."""

model_options = bundle("towers", Towers, _ENCODER_NOW, _DEVICE, _BACKEND, _PRECISION, _BATCH_SIZE, _CACHE, _NO_CACHE)
"""The same beside a fitted model, which knows its encoder; as ``towers``."""

embed_options = bundle("towers", Towers, _ENCODER, _DEVICE, _BACKEND, _PRECISION, _BATCH_SIZE, _CACHE)
"""The same where features must be kept; as ``towers``."""


seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Of all that is drawn.")
split_option = click.option("--split", metavar="NAME", help="Part of the data: train, val or test.")
strict_option = click.option("--strict", is_flag=True, help="Fail at a picture that can't be read.")


def open_dataset(source: Path, split: str | None, default: str | None = None) -> Dataset:
    """Labelled pictures: a part of a data set, or all of it.

    Args:
        source: folder or manifest.
        split: the part that was asked for, or None.
        default: the part that is taken if none was asked for and it is there; else all are.

    Raises:
        DataError: if there are no pictures, one class, no labels, or no such part.
    """
    from clipadapter.data import load_dataset

    dataset = load_dataset(source)
    wanted = split or (default if default in dataset.splits else None)
    part = dataset.split(wanted) if wanted else dataset
    part.label_sets  # noqa: B018 - complains of pictures without one
    return part


def check_page(path: Path | None, *kept: Path, suffix: str = "") -> None:
    """Refuse before the work a file that must not be written.

    Args:
        path: to write; None for none.
        kept: files that are read.
        suffix: that the name must end with.

    Raises:
        InputError: if it is one of those that are read, no ordinary file, or ends otherwise.
    """
    if path is None:
        return
    if suffix and path.suffix.lower() != suffix:
        raise InputError(f"{path} would be no {suffix} file by its name: give a name that ends with {suffix}")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no ordinary file: give another name")
    if any(path.resolve() == other.resolve() for other in kept):
        raise InputError(f"{path} is what is read: give another name for what is written")


def check_device(device: str) -> None:
    """Refuse a device that torch can't use here.

    Raises:
        InputError: if so.
    """
    import torch

    try:
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"the device '{device}' can't be used here ({error}): say cpu, or leave --device out"
        ) from error
