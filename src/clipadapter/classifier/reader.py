"""A reader turns pictures into features and prompts into class text. Of heads it knows those that tune an encoder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from typing_extensions import Self

from clipadapter.classifier import encoder_choice
from clipadapter.classifier.encoder_choice import NamedEncoders
from clipadapter.classifier.inputs import Label, open_store
from clipadapter.data.images import ImageSource
from clipadapter.encoders import Encoder, EncoderInfo, open_blocks, plain_encoder, select_encoder_blocks
from clipadapter.errors import ImageError
from clipadapter.features import (
    Extraction,
    FeatureStore,
    ViewCost,
    ViewSpec,
    choose_backend,
    encode_classes,
    extract,
    stream_features,
)
from clipadapter.heads import Head, TextFeatures
from clipadapter.persistence import Model

PLAIN = ViewSpec()
PictureFeatures = Generator[Sequence[tuple[ImageSource, NDArray[Any] | ImageError]], None, None]


@dataclass(frozen=True)
class Running:
    """How a reader runs."""

    backend: str = "auto"
    precision: str = "auto"
    cache: str | Path | None = "auto"  # of the feature store; None stores nothing
    batch_size: int = 32
    progress: bool = False


@dataclass(frozen=True, eq=False)
class Reader:
    """Open encoders, the blocks of features that they give, and how they run. Its methods give another reader."""

    encoder: Encoder  # gives the blocks of features
    others: tuple[Encoder, ...] = ()  # further encoders that blocks can come from
    named: tuple[str, ...] = ()  # blocks of the encoder as it was opened
    tuned: Encoder | None = None  # the encoder with the weights that a head tuned
    is_chosen: bool = False  # whether backend and precision are those of the pictures
    running: Running = Running()

    @classmethod
    def open(cls, encoder: NamedEncoders, device: str) -> Self:
        """The encoders that one argument names; the one of the class text comes first."""
        first, *others = encoder_choice.open_encoders(encoder, device)
        return cls(first, tuple(others), encoder_choice.block_names(first))

    @classmethod
    def of_model(cls, model: Model, encoder: NamedEncoders | None, device: str, running: Running) -> Self:
        """The encoder of a saved model; of a tuner, also the one with its weights."""
        opened = encoder_choice.open_saved_encoders(model, encoder, device, running.backend, running.precision)
        return cls(opened[0], (), encoder_choice.block_names(opened[0]), opened[1], is_chosen=True, running=running)

    # ---- What it is ----

    @property
    def active(self) -> Encoder:
        """The encoder that reads pictures."""
        return self.encoder if self.tuned is None else self.tuned

    @property
    def saved_info(self) -> EncoderInfo:
        """Facts that a saved model keeps: those of the encoder before a head tuned it."""
        info = self.active.info
        return info if self.tuned is None else encoder_choice.info_of_base(self.encoder.info, info)

    # ---- Others like it ----

    def with_blocks(self, names: Sequence[str]) -> Self:
        """With these blocks of features."""
        return replace(self, encoder=open_blocks(self.active, names, list(self.others)))

    def with_second_look(self, names: Sequence[str]) -> Self:
        """With these blocks, of plain encoders, whose backend is chosen anew."""
        encoder = open_blocks(plain_encoder(self.encoder), names, list(self.others))
        return replace(self, encoder=encoder, is_chosen=False)

    def with_used_blocks(self, names: Collection[str]) -> Self:
        """With those of its blocks that have these names."""
        return replace(self, encoder=select_encoder_blocks(self.active, names))

    def at(self, pictures: Sequence[ImageSource], text: Callable[[], TextFeatures]) -> Self:
        """With the backend and precision for these pictures. They are chosen once; a tuned encoder keeps its own."""
        if self.is_chosen or self.tuned is not None:
            return self
        own = self.running
        with self.store() as store:
            encoder = choose_backend(
                self.encoder,
                pictures,
                backend=own.backend,
                precision=own.precision,
                text=text if self.encoder.has_text else None,
                store=store,
                progress=own.progress,
            )
        return replace(self, encoder=encoder, is_chosen=True)

    def tuned_by(
        self,
        head: Head,
        images: Sequence[ImageSource],
        labels: Sequence[Label],
        prompts: Mapping[str, Sequence[str]],
        views: ViewSpec,
        *,
        strict: bool,
    ) -> Self:
        """With the encoder as a head tunes it on labelled pictures."""
        own = self.running
        how: Any = {"backend": own.backend, "precision": own.precision, "strict": strict}
        plain, tuned = encoder_choice.tune_encoder(self.encoder, head, images, labels, prompts, views, **how)
        return replace(self, encoder=plain, tuned=tuned)

    def faster(self, pictures: Sequence[ImageSource]) -> Self:
        """With a faster backend in fp32, if it runs in torch and pays for so many pictures."""
        is_torch = (self.active.info.backend, self.active.info.precision) == ("torch", "fp32")
        # A model that was fitted to few pictures runs in torch: a trial of others would have outlasted the fit.
        if self.tuned is not None or self.running.backend != "auto" or not is_torch:
            return self
        with self.store() as store:
            encoder = choose_backend(
                self.encoder, pictures, precision="fp32", store=store, progress=self.running.progress
            )
        return replace(self, encoder=encoder)

    # ---- What it reads ----

    def store(self) -> AbstractContextManager[FeatureStore | None]:
        """The feature store, opened; None if nothing is stored."""
        return open_store(self.running.cache)

    def extract(self, images: Sequence[ImageSource], views: ViewSpec = PLAIN, *, strict: bool = False) -> Extraction:
        """Features of some views of each picture; those that can't be read are left out, unless it is strict."""
        own = self.running
        with self.store() as store:
            return extract(
                self.active,
                images,
                store=store,
                views=views,
                batch_size=own.batch_size,
                progress=own.progress,
                strict=strict,
            )

    def features(self, images: Sequence[ImageSource]) -> NDArray[Any]:
        """Features (m, d) of plain pictures, all of which must be readable."""
        return self.extract(images, strict=True).features[:, 0]

    def stream(self, pictures: Any, views: ViewSpec) -> PictureFeatures:
        """Features of any number of pictures, batch by batch; see `clipadapter.features.stream_features`."""
        with self.store() as store:
            yield from stream_features(
                self.active, pictures, store=store, views=views, batch_size=self.running.batch_size
            )

    def encode(self, prompts: Mapping[str, Sequence[str]]) -> TextFeatures:
        """Class text from prompts by class."""
        with self.store() as store:
            return encode_classes(self.active, prompts, store)

    def view_cost(self, n_pictures: int, views: ViewSpec) -> ViewCost:
        """What the views of so many pictures cost."""
        return ViewCost(n_pictures, views.count, self.active.info.dim, cached=self.running.cache is not None)
