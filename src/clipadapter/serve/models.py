"""Models by name. A changed file is loaded while the old model still serves, and replaces it if it is sound.

It is first opened in a child process, so that a file that crashes or hangs a backend does not end the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clipadapter.backends.checksum import check_file
from clipadapter.data.images import stop_decoding
from clipadapter.errors import ArtifactError, ClipAdapterError
from clipadapter.runtime import ExportMetadata, Predictor, RuntimeModel
from clipadapter.runtime.isolated import stop_children, try_in_child
from clipadapter.serve.batching import Batcher, QueueSlot
from clipadapter.serve.limits import Limits, RequestRefused
from clipadapter.serve.logs import log_event
from clipadapter.serve.metrics import Metrics
from clipadapter.serve.model_sources import MODEL_NAME, FileStamp, ModelSource, file_version, find_sources, read_sources
from clipadapter.utils.parallel import count_cores

REFRESH_SECONDS = 1.0
"""Time between two checks of the files."""
Opener = Callable[[Path], RuntimeModel]


class ServedModels:
    """All models that are served.

    Args:
        specs: models to serve, as `read_sources` reads them.
        limits: of batches and queues.
        backend: "auto", "onnxruntime" or "openvino".
        threads: that run a graph; all cores if not given.
        opener: opens a file, instead of `Predictor`.
        isolated: tries a changed or added file before it is opened here. By default there is none with an `opener`.

    Raises:
        ClipAdapterError: if one can't be served.
    """

    def __init__(
        self,
        specs: Sequence[str],
        limits: Limits | None = None,
        *,
        backend: str = "auto",
        threads: int | None = None,
        opener: Opener | None = None,
        isolated: Callable[[Path], None] | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self.pool = ThreadPoolExecutor(count_cores(), "clipadapter-pictures")
        # One thread, which mostly waits for a decoding process: slow pictures delay each other and no others.
        self.slow_pool = ThreadPoolExecutor(1, "clipadapter-slow-pictures")
        self._specs = list(specs)
        self._open = opener or (lambda path: Predictor(path, backend=backend, threads=threads))
        self._isolated = isolated or (None if opener else partial(try_in_child, backend=backend))
        self._models: dict[str, ServedModel] = {}
        self._stamps: dict[str, FileStamp | None] = {}
        # Stamps that the last check saw for the first time, by name: a change counts when the next check sees it again.
        self._unconfirmed_stamps: dict[str, FileStamp | None] = {}
        for source in read_sources(self._specs):
            self._stamps[source.name] = source.stamp()
            self._add(self._load(source))

    @property
    def names(self) -> list[str]:
        """Names of all models, sorted."""
        return sorted(self._models)

    def get(self, name: str | None = None) -> ServedModel:
        """A model by its name, or the only one."""
        models = self._models
        if name is None and len(models) == 1:
            return next(iter(models.values()))
        if name is None:
            text = f"several models are served ({', '.join(self.names)}): name one, as in /v1/models/NAME/predict"
            raise RequestRefused(400, text)
        model = models.get(name)
        if model is None:
            text = f"no model is called {name[:100]!r}; served are: {', '.join(self.names) or 'none'}"
            raise RequestRefused(404, text)
        return model

    def take_slot(self, name: str | None = None) -> tuple[ServedModel, QueueSlot]:
        """A model and a slot of its queue."""
        while True:
            model = self.get(name)
            slot = model.batcher.take_slot()
            if slot is not None:  # None: a new model replaced this one in between
                return model, slot

    async def watch(self, seconds: float = REFRESH_SECONDS) -> None:
        """Check the files for changes, again and again."""
        while True:
            await asyncio.sleep(seconds)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Check the files once: load changed ones, and remove models whose files are gone.

        A change counts when two checks see the same stamp, so that a file is not loaded while it is being copied.
        """
        sources = self._current_sources()
        for name in {*self._models, *sources}:
            source = sources.get(name)
            if source is None and not self._models[name].source.path.parent.is_dir():
                continue  # a folder that is not mounted for a moment removes no model
            stamp = None if source is None else source.stamp()
            if stamp == self._stamps.get(name):
                self._unconfirmed_stamps.pop(name, None)
            elif name not in self._unconfirmed_stamps or self._unconfirmed_stamps[name] != stamp:
                self._unconfirmed_stamps[name] = stamp
            else:
                del self._unconfirmed_stamps[name]
                self._stamps[name] = stamp
                self._apply_change(name, source if stamp is not None else None)

    def close(self, timeout: float = 5.0) -> None:
        """End all threads once accepted pictures have their results.

        Args:
            timeout: seconds to wait for each model.
        """
        stop_children()  # a changed file that hangs would hold the process
        for model in list(self._models.values()):
            model.batcher.close(timeout)
        # No client waits for the remaining pictures; without this, the interpreter would wait for them at its exit.
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.slow_pool.shutdown(wait=False, cancel_futures=True)
        stop_decoding()

    def _current_sources(self) -> dict[str, ModelSource]:
        """Sources by name. A file that was named on the command line stays one while it is gone."""
        sources = {model.name: model.source for model in self._models.values() if not model.source.is_from_folder}
        for spec in self._specs:
            with contextlib.suppress(ClipAdapterError, OSError):
                for source in find_sources(spec):
                    if source.is_from_folder and MODEL_NAME.fullmatch(source.name):
                        sources.setdefault(source.name, source)
        return sources

    def _apply_change(self, name: str, source: ModelSource | None) -> None:
        old = self._models.get(name)
        if source is not None:
            self._replace(source, old)
        elif old is not None and old.source.is_from_folder:
            del self._models[name]
            old.batcher.close()
            self.metrics.pending.remove(name)
            log_event("model removed, its file is gone", model=name)
        elif old is not None:
            old.error = "its file is gone; the loaded model is still served"
            log_event("model file is gone, the loaded model is still served", logging.ERROR, model=name)

    def _replace(self, source: ModelSource, old: ServedModel | None) -> None:
        try:
            new = self._load(source, old, self._isolated)
        except Exception as error:  # whatever is wrong with a new file, the old model is served
            reason = _without_folder(error, source.path)
            self.metrics.loads.labels(source.name, "failed").inc()
            log_event(
                "model could not be loaded", logging.ERROR, model=source.name, reason=reason, kept=old is not None
            )
            if old is not None:
                old.error = f"its new file could not be loaded, the previous model is served: {reason}"
            return
        if old is not None:
            old.error = None
        if new is not old:
            self._add(new)
            if old is not None:
                old.batcher.close()

    def _load(
        self, source: ModelSource, old: ServedModel | None = None, isolated: Callable[[Path], None] | None = None
    ) -> ServedModel:
        """Load a model and run it once; the old one if the file is the same."""
        path = source.exported_file()
        exported = ModelSource(source.name, path)
        stamp = exported.stamp()
        version = file_version(exported.files)
        if old is not None and old.version == version:
            return old
        if isolated is not None:
            check_file(path)  # finds most damage without starting a process
            isolated(path)
        predictor = self._open(path)
        try:
            outputs = predictor.run(predictor.grey_pictures(1))
        except Exception as error:  # each backend raises its own exceptions
            raise ArtifactError(f"{path} does not run ({str(error).splitlines()[0]}): export it again") from error
        if not np.isfinite(outputs.logits).all():
            raise ArtifactError(f"{path} gives logits that are not finite: export it again")
        if exported.stamp() != stamp:
            raise ArtifactError(f"{path} changed while it was loaded: it is loaded again when it no longer changes")
        batcher = Batcher(predictor, self.limits, self.metrics, source.name, self.pool, self.slow_pool)
        return ServedModel(source, version, predictor, batcher)

    def _add(self, model: ServedModel) -> None:
        self._models[model.name] = model
        self.metrics.pending.labels(model.name).set_function(lambda: model.batcher.pending)
        self.metrics.loads.labels(model.name, "loaded").inc()
        log_event("model loaded", model=model.name, version=model.version, classes=len(model.predictor.class_names))


class ServedModel:
    """A model that is served.

    Attributes:
        error: why its newer file could not be loaded; None if there is none.
    """

    def __init__(self, source: ModelSource, version: str, predictor: RuntimeModel, batcher: Batcher) -> None:
        self.source, self.version, self.predictor, self.batcher = source, version, predictor, batcher
        self.loaded_at = datetime.now(timezone.utc)
        self.error: str | None = None
        self._no_outputs = predictor.run(predictor.grey_pictures(0))

    @property
    def name(self) -> str:
        """Its name in addresses."""
        return self.source.name

    @property
    def metadata(self) -> ExportMetadata | None:
        """The description in its file."""
        metadata: ExportMetadata | None = getattr(self.predictor, "metadata", None)
        return metadata

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse options that it does not support, before its pictures run."""
        if options:
            self.predictor.answer(self._no_outputs, **options)


def _without_folder(error: Exception, path: Path) -> str:
    """The message of an error, without the folder of the file: clients read it."""
    text = str(error) if isinstance(error, ClipAdapterError) else f"{type(error).__name__}: {error}"
    return text.replace(str(path), path.name).replace(str(path.parent), "...")
