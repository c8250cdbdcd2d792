"""Models by name; a changed file is loaded beside the one that answers, and takes its place when it is sound.

It is opened in a child process first, so that a file that crashes or hangs a backend does not end the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from clipadapter.data.images import stop_decoding
from clipadapter.errors import ArtifactError, ClipAdapterError
from clipadapter.parallel import count_cores
from clipadapter.runtime import About, Predictor, RuntimeModel
from clipadapter.runtime._checksum import check_file
from clipadapter.runtime._isolated import IsolatedOpener
from clipadapter.serve.batching import Batcher, Place
from clipadapter.serve.limits import Limits, Refused
from clipadapter.serve.logs import tell
from clipadapter.serve.metrics import Metrics
from clipadapter.serve.model_sources import NAME, Source, Stamp, digest, read_sources, sources_of

EVERY = 1.0
"""Seconds between two looks at the files."""
Opener = Callable[[Path], RuntimeModel]


class Model:
    """A model that answers.

    Args:
        source: where it comes from.
        version: tells its file from others.
        predictor: answers.
        batcher: runs what comes.

    Attributes:
        error: why its newer file could not be loaded; None if there is none.
    """

    def __init__(self, source: Source, version: str, predictor: RuntimeModel, batcher: Batcher) -> None:
        self.source, self.version, self.predictor, self.batcher = source, version, predictor, batcher
        self.loaded = datetime.now(timezone.utc)
        self.error: str | None = None
        self._none = predictor.run(np.zeros((0, self.side, self.side, 3), np.uint8))

    @property
    def name(self) -> str:
        """What it is asked for by."""
        return self.source.name

    @property
    def side(self) -> int:
        """Of its squares, in pixels."""
        return self.predictor.pixels.size

    @property
    def about(self) -> About | None:
        """What its file says of itself."""
        found: About | None = getattr(self.predictor, "about", None)
        return found

    def check(self, asked: Mapping[str, Any]) -> None:
        """Refuse what it can't say, before the work.

        Raises:
            InputError: if something is asked for that was not learned.
        """
        if asked:
            self.predictor.answers(self._none, **asked)


class Models:
    """All that are served.

    Args:
        texts: what is to be served, as `read_sources` takes it.
        limits: of batches and queues.
        backend: "auto", "onnxruntime" or "openvino".
        threads: that run a graph; all cores if not given.
        opener: opens a file, instead of `Predictor`.
        isolated: tries a file that changed or was added, before it is opened here; one of `opener` is not tried.

    Raises:
        ClipAdapterError: if one can't be served.
    """

    def __init__(
        self,
        texts: Sequence[str],
        limits: Limits | None = None,
        *,
        backend: str = "auto",
        threads: int | None = None,
        opener: Opener | None = None,
        isolated: IsolatedOpener | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self.pool = ThreadPoolExecutor(count_cores(), "clipadapter-pictures")
        # One thread, which waits for a process: slow formats wait for each other and for nobody else.
        self.slow_pool = ThreadPoolExecutor(1, "clipadapter-slow-pictures")
        self._texts = list(texts)
        self._open = opener or (lambda path: Predictor(path, backend=backend, threads=threads))
        self._isolated = isolated or (None if opener else IsolatedOpener(backend))
        self._models: dict[str, Model] = {}
        self._stamps: dict[str, Stamp | None] = {}
        self._changing: dict[str, Stamp | None] = {}
        for source in read_sources(self._texts):
            self._stamps[source.name] = source.stamp()
            self._put(self._load(source))

    @property
    def names(self) -> list[str]:
        """Of all, sorted."""
        return sorted(self._models)

    def get(self, name: str | None = None) -> Model:
        """A model by its name, or the only one.

        Raises:
            Refused: if there is none of the name, or several and no name.
        """
        models = self._models
        if name is None and len(models) == 1:
            return next(iter(models.values()))
        if name is None:
            raise Refused(
                400, f"several models are served ({', '.join(self.names)}): ask one, as /v1/models/NAME/predict"
            )
        model = models.get(name)
        if model is None:
            raise Refused(404, f"no model is called {name[:100]!r}; served are: {', '.join(self.names) or 'none'}")
        return model

    def enter(self, name: str | None = None) -> tuple[Model, Place]:
        """A model and a place in its queue.

        Raises:
            Refused: if there is no such model, or its queue is full.
        """
        while True:
            model = self.get(name)
            place = model.batcher.enter()
            if place is not None:
                return model, place

    async def watch(self, every: float = EVERY) -> None:
        """Look at the files again and again."""
        while True:
            await asyncio.sleep(every)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Look at the files once: load what changed, drop what went.

        A change counts when two looks saw the same, so that a file that is being copied is left until it is whole.
        """
        wanted = self._wanted()
        for name in {*self._models, *wanted}:
            source = wanted.get(name)
            if source is None and not self._models[name].source.path.parent.is_dir():
                continue  # a folder that can't be seen takes nothing with it
            seen = None if source is None else source.stamp()
            if seen == self._stamps.get(name):
                self._changing.pop(name, None)
            elif name not in self._changing or self._changing[name] != seen:
                self._changing[name] = seen
            else:
                del self._changing[name]
                self._stamps[name] = seen
                self._change(name, source if seen is not None else None)

    def close(self, wait: float = 5.0) -> None:
        """End all threads once what was taken in is answered.

        Args:
            wait: seconds for each model.
        """
        if self._isolated is not None:
            self._isolated.stop()
        for model in list(self._models.values()):
            model.batcher.close(wait)
        # What is left was not answered in time: nobody waits for it, and the interpreter would until it is done.
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.slow_pool.shutdown(wait=False, cancel_futures=True)
        stop_decoding()

    def _wanted(self) -> dict[str, Source]:
        """What is there now; a file that was named stays wanted while it is gone."""
        found = {model.name: model.source for model in self._models.values() if not model.source.found}
        for text in self._texts:
            with contextlib.suppress(ClipAdapterError, OSError):
                for source in sources_of(text):
                    if source.found and NAME.fullmatch(source.name):
                        found.setdefault(source.name, source)
        return found

    def _change(self, name: str, source: Source | None) -> None:
        old = self._models.get(name)
        if source is not None:
            self._replace(source, old)
        elif old is not None and old.source.found:
            del self._models[name]
            old.batcher.close()
            self.metrics.forget_queue(name)
            tell("model dropped, its file is gone", model=name)
        elif old is not None:
            old.error = "its file is gone; the one that was loaded still answers"
            tell("model file is gone, the old one answers", logging.ERROR, model=name)

    def _replace(self, source: Source, old: Model | None) -> None:
        try:
            new = self._load(source, old, self._isolated)
        except Exception as error:  # whatever is wrong with a new file, the old one goes on
            reason = _without_folder(error, source.path)
            self.metrics.loaded(source.name, "failed")
            tell("model could not be loaded", logging.ERROR, model=source.name, reason=reason, kept=old is not None)
            if old is not None:
                old.error = f"its new file could not be loaded, the one before answers: {reason}"
            return
        if old is not None:
            old.error = None
        if new is not old:
            self._put(new)
            if old is not None:
                old.batcher.close()

    def _load(self, source: Source, old: Model | None = None, isolated: IsolatedOpener | None = None) -> Model:
        """Load a model and let it answer once; the old one if the file is the same.

        Raises:
            ArtifactError: if it does not run.
        """
        path = source.exported()
        files = Source(source.name, path)
        before = files.stamp()
        version = digest(files.files)
        if old is not None and old.version == version:
            return old
        if isolated is not None:
            check_file(path)  # most damage is seen without starting a process
            isolated.try_file(path)
        predictor = self._open(path)
        side = predictor.pixels.size
        try:
            outputs = predictor.run(np.full((1, side, side, 3), 128, np.uint8))
        except Exception as error:  # backends raise what they like
            raise ArtifactError(f"{path} does not run ({str(error).splitlines()[0]}): export it again") from error
        if not np.isfinite(outputs.logits).all():
            raise ArtifactError(f"{path} gives logits that are not finite: export it again")
        if files.stamp() != before:
            raise ArtifactError(f"{path} changed while it was loaded: it is loaded again when it stays as it is")
        batcher = Batcher(predictor, self.limits, self.metrics.of_model(source.name), self.pool, self.slow_pool)
        return Model(source, version, predictor, batcher)

    def _put(self, model: Model) -> None:
        self._models[model.name] = model
        self.metrics.watch_queue(model.name, lambda: model.batcher.waiting)
        self.metrics.loaded(model.name, "loaded")
        tell("model loaded", model=model.name, version=model.version, classes=len(model.predictor.class_names))


def _without_folder(error: Exception, path: Path) -> str:
    """What is wrong, without where the file lies on this machine."""
    text = str(error) if isinstance(error, ClipAdapterError) else f"{type(error).__name__}: {error}"
    return text.replace(str(path), path.name).replace(str(path.parent), "...")
