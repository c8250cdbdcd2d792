"""Models by name. A changed file is loaded while the old model still serves, and replaces it if it is sound.

It is first opened in a child process, so that a file that crashes or hangs a backend does not end the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from clipadapter.data.images import stop_decoding
from clipadapter.errors import ArtifactError, ClipAdapterError, InputError, MissingExtraError, needs_training
from clipadapter.runtime import Predictor
from clipadapter.runtime.cached import cached_export
from clipadapter.runtime.engines.formats import (
    DEFAULT_FORMAT,
    check_file,
    companion_files,
    export_suffixes,
    get_format,
    is_exported,
    is_intact,
)
from clipadapter.runtime.isolated import stop_children, try_in_child
from clipadapter.runtime.model_folder import CONFIG_FILE
from clipadapter.serve.batching import Batcher
from clipadapter.serve.limits import Limits, RequestRefused
from clipadapter.serve.logs import Metrics, log_event
from clipadapter.utils.files import Stamp, explain_missing, quote_path, stamp_files
from clipadapter.utils.parallel import count_cores

REFRESH_SECONDS = 1.0  # time between two checks of the files
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
Stamps = tuple[Stamp, ...] | None  # of the files of a model; None if one is gone
VERSION_CHARS = 12  # of the SHA-256 that a model's file ends with


class ServedModels:
    """All models that are served.

    Args:
        specs: each an exported file, a folder of exported files, the folder of a saved model, or ``name=path`` with the
            path of an exported file or a saved model.
        limits: of batches and queues.
        backend: "auto", "onnxruntime" or "openvino".
        threads: that run a graph; all cores if not given.

    Raises:
        ClipAdapterError: if one can't be served.
    """

    def __init__(
        self, specs: Sequence[str], limits: Limits | None = None, *, backend: str = "auto", threads: int | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self.pool = ThreadPoolExecutor(count_cores(), "clipadapter-pictures")
        # One thread, which mostly waits for a decoding process: slow pictures delay each other and no others.
        self.slow_pool = ThreadPoolExecutor(1, "clipadapter-slow-pictures")
        self._specs = list(specs)
        self._backend, self._threads = backend, threads
        self._models: dict[str, ServedModel] = {}
        # By name: stamps of the files that were loaded, or could not be, and those that the last check saw.
        self._stamps: dict[str, tuple[Stamps, Stamps]] = {}
        for source in read_sources(self._specs):
            stamp = source.stamp()
            self._stamps[source.name] = stamp, stamp
            self._add(self._load(source))

    @property
    def names(self) -> list[str]:
        """Names of all models, sorted."""
        return sorted(self._models)

    def get(self, name: str | None = None) -> ServedModel:
        """A model by its name, or the only one."""
        models = self._models
        if name is None and len(models) != 1:
            text = f"several models are served ({', '.join(self.names)}): name one, as in /v1/models/NAME/predict"
            raise RequestRefused(400, text)
        name = next(iter(models)) if name is None else name
        model = models.get(name)
        if model is None:
            text = f"no model is called {name[:100]!r}; served are: {', '.join(self.names) or 'none'}"
            raise RequestRefused(404, text)
        return model

    async def watch(self) -> None:
        """Check the files for changes, again and again."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
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
            tried, last = self._stamps.get(name, (None, None))
            is_change = stamp == last and stamp != tried
            self._stamps[name] = (stamp if is_change else tried), stamp
            if is_change:
                self._apply_change(name, source if stamp is not None else None)

    def close(self) -> None:
        """End all threads once accepted pictures have their results."""
        stop_children()  # a changed file that hangs would hold the process
        for model in list(self._models.values()):
            model.batcher.close(timeout=5)
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
        """Load the changed file of a model, or note that it is gone."""
        old = self._models.get(name)
        if source is not None:
            try:
                new = self._load(source, old, is_changed=True)
            except Exception as error:  # whatever is wrong with a new file, the old model is served
                text = str(error) if isinstance(error, ClipAdapterError) else f"{type(error).__name__}: {error}"
                # Clients read it: the folder of the file is left out.
                reason = text.replace(str(source.path), source.path.name).replace(str(source.path.parent), "...")
                self.metrics.loads.labels(name, "failed").inc()
                log_event("model could not be loaded", logging.ERROR, model=name, reason=reason, kept=old is not None)
                if old is not None:
                    old.error = f"its new file could not be loaded, the previous model is served: {reason}"
                return
            new.error = None
            if new is not old:
                self._add(new)
                if old is not None:
                    old.batcher.close()
        elif old is not None and old.source.is_from_folder:
            del self._models[name]
            old.batcher.close()
            self.metrics.pending.remove(name)
            log_event("model removed, its file is gone", model=name)
        elif old is not None:
            old.error = "its file is gone; the loaded model is still served"
            log_event("model file is gone, the loaded model is still served", logging.ERROR, model=name)

    def _open(self, path: Path, is_changed: bool) -> Predictor:
        if is_changed:
            try_in_child(path, self._backend)
        return Predictor(path, backend=self._backend, threads=self._threads)

    def _load(self, source: ModelSource, old: ServedModel | None = None, is_changed: bool = False) -> ServedModel:
        """Load a model and run it once; the old one if the file is the same."""
        path = source.exported_file()
        version = check_file(path)[:VERSION_CHARS]
        if old is not None and old.version == version:
            return old
        predictor = self._open(path, is_changed)
        batcher = Batcher(predictor, self.limits, self.metrics, source.name, self.pool, self.slow_pool)
        return ServedModel(source, version, predictor, batcher)

    def _add(self, model: ServedModel) -> None:
        self._models[model.name] = model
        self.metrics.pending.labels(model.name).set_function(lambda: model.batcher.pending)
        self.metrics.loads.labels(model.name, "loaded").inc()
        log_event("model loaded", model=model.name, version=model.version, classes=len(model.predictor.class_names))


class ServedModel:
    """A model that is served."""

    def __init__(self, source: ModelSource, version: str, predictor: Predictor, batcher: Batcher) -> None:
        self.source, self.name, self.version = source, source.name, version
        self.predictor, self.batcher = predictor, batcher
        self.loaded_at = datetime.now(timezone.utc)
        self.error: str | None = None  # why its newer file could not be loaded; None if there is none
        self.no_outputs = predictor.run(predictor.grey_pictures(0))  # the first run: it may fail


# ---- From what the command line names to files ----


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from."""

    name: str  # of the model, in addresses
    path: Path  # an exported file, or the folder of a saved model
    is_from_folder: bool = False  # it was found in a folder, so that the model is removed when the file is

    def stamp(self) -> Stamps:
        """Changes when the files do."""
        if is_exported(self.path):
            return stamp_files([self.path, *companion_files(self.path)])
        return stamp_files([self.path / CONFIG_FILE])  # it has the hashes of the others

    def exported_file(self) -> Path:
        """The exported file. A saved model is exported once, into the cache folder."""
        if is_exported(self.path):
            return self.path
        target = cached_export(self.path, DEFAULT_FORMAT)
        if is_intact(target):
            return target
        try:
            from clipadapter.classifier import FewShotClassifier
            from clipadapter.runtime.export import export_model

            export_model(FewShotClassifier.load(self.path), target)
        except (MissingExtraError, ModuleNotFoundError) as error:
            reason = error if isinstance(error, MissingExtraError) else needs_training(error, "exporting a saved model")
            if reason is None:
                raise
            file = f"{self.path.name}{get_format(DEFAULT_FORMAT).suffix}"
            raise MissingExtraError(
                f"{self.path} is a saved model, which must be exported before it is served, and that is not possible "
                f"here ({reason}). Where it was fitted: clipadapter export {quote_path(self.path)} --out "
                f"{quote_path(file)}; then serve that file"
            ) from error
        return target


def read_sources(specs: Sequence[str]) -> list[ModelSource]:
    """The sources of models, in the order of their specifications."""
    sources: dict[str, ModelSource] = {}
    for spec in specs:
        for source in find_sources(spec):
            if not MODEL_NAME.fullmatch(source.name):
                raise InputError(
                    f"{source.name!r} can't be a model's name, which has letters, digits and . _ - only: "
                    f"give it a name, as in pets={source.path}"
                )
            if source.name in sources:
                raise InputError(
                    f"{sources[source.name].path} and {source.path} are both called {source.name!r}: "
                    "give one another name, as in other=PATH"
                )
            sources[source.name] = source
    return list(sources.values())


def find_sources(spec: str) -> list[ModelSource]:
    """The sources of one specification; names are not checked."""
    name, path = "", Path(spec)
    if not path.exists() and "=" in spec:
        name, _, after = spec.partition("=")
        path = Path(after)
    if not path.exists():
        wanted = "an exported file, a folder of them, or a saved model"
        raise ArtifactError(f"there is no file or folder {path}{explain_missing(path, wanted)}")
    if path.is_file() and is_exported(path):
        return [ModelSource(name or path.stem, path)]
    if (path / CONFIG_FILE).is_file():
        return [ModelSource(name or path.resolve().name, path)]
    files = sorted(file for file in path.iterdir() if is_exported(file) and file.is_file()) if path.is_dir() else []
    if not files:
        raise ArtifactError(
            f"{path} is neither an exported file ({' or '.join(export_suffixes())}), nor a folder of them, nor a saved "
            "model: 'clipadapter export' writes an exported file"
        )
    if name:
        raise InputError(f"{name!r} can't name the {len(files)} files in {path}: their file names are their names")
    return [ModelSource(file.stem, file, is_from_folder=True) for file in files]
