"""A session: one thread learns from a project whenever it changes; any thread can read the results.

Features of pictures are computed once, through the feature store, and kept while the studio runs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.classifier import FewShotClassifier
from clipadapter.classifier.encoder_choice import (
    QUALITIES,
    block_names,
    blocks_to_read,
    check_quality,
    open_encoders,
    relative_cost,
)
from clipadapter.classifier.inputs import open_store
from clipadapter.data import class_prompts
from clipadapter.data.images import ImageSource
from clipadapter.encoders import Encoder, open_blocks
from clipadapter.errors import ArtifactError, ClipAdapterError, InputError
from clipadapter.features import FeatureSet, choose_backend, encode_classes, extract
from clipadapter.heads import create_head, head_info
from clipadapter.runtime.engines.formats import check_file
from clipadapter.studio.model import (
    ExplainedPrediction,
    LearningCurve,
    ProjectModel,
    explain_prediction,
    fit_project_model,
    learning_curve,
)
from clipadapter.studio.pictures import Contents, PictureFile
from clipadapter.studio.project import Project
from clipadapter.studio.selection import select_for_labelling
from clipadapter.utils.files import Stamp, path_without_links, printable

Array = NDArray[Any]
QUALITY_SETTING = "quality"  # name of the setting of a project that remembers the quality
FIRST_QUALITY = "standard"
UNLABELLED_SETTING = "learn_unlabelled"
"""Name of the setting that remembers whether the model learns from unlabelled pictures: "yes" or nothing."""
EXPORT_SETTING = "exported"
"""Name of the setting that remembers the checksum of the exported file: another file is not replaced."""
QUEUE_PICTURES = 8  # pictures that are selected for labelling at a time
FIRST_PICTURES = 4 * QUEUE_PICTURES  # unlabelled pictures after which the first queue is selected
PICTURES_PER_MATRIX = 1024
"""Unlabelled pictures that are predicted at once: all blocks of thousands of pictures would be copied."""
MAX_UNLABELLED = 1024  # unlabelled pictures that the model may learn from; of more, some are taken at equal distances
FIT_TIMEOUT_SECONDS = 60.0  # how long `Session.save_model` waits until the last change is learned
MAX_PARITY_PICTURES = 64  # pictures on which an exported file is compared with the model
PICTURES_PER_STEP = 16
"""Pictures between two reports of progress, where a computation can stop, if each takes one pass through a tower."""
MIN_PICTURES_PER_STEP = 4  # the same if each takes many passes


@dataclass(frozen=True, eq=False)
class SessionState:
    """What is known at one moment; immutable."""

    version: int = 0  # number of this state; another state has another number
    activity: str = ""  # what is being computed, in words; empty if nothing is
    progress: float | None = None  # done part of the activity, 0..1; None if that is not known
    error: str = ""  # why something could not be computed
    revision: int = -1  # revision of the contents that the model was fitted to
    quality: str = ""  # quality of the features that the model was fitted to
    learns_unlabelled: bool = False  # whether the model was to learn from unlabelled pictures
    pool: tuple[str, ...] = ()  # keys of the unlabelled pictures that the fit was given
    model: ProjectModel | None = None  # fitted to these contents; None if there are fewer than two classes
    curve: LearningCurve | None = None  # learning curve; None until it is measured
    # (class, probability) of the unlabelled pictures, by key
    guesses: dict[str, tuple[str, float]] = field(default_factory=dict)
    queue: tuple[str, ...] = ()  # keys of the pictures to label next; some may have a label by now
    unreadable: dict[str, str] = field(default_factory=dict)  # why pictures can't be read, by key
    fit_number: int = 0  # number of fits so far; another model has another number
    saved_fit: int = 0  # number of the last model that was saved

    @property
    def learned_from(self) -> tuple[int, str, bool]:
        """What the model was fitted to; another model has another value."""
        return self.revision, self.quality, self.learns_unlabelled

    def is_saved(self, contents: Contents) -> bool:
        """Whether the saved model knows these contents."""
        return self.model is not None and self.saved_fit == self.fit_number and self.revision == contents.revision


class _Superseded(Exception):
    """The project changed, so the current computation is not needed any more."""


def check_head(head: str) -> None:
    """Refuse a head that can't be fitted again after every picture."""
    kind = head_info(head).cls
    if kind.needs_tower or kind.tunes_encoder or kind.transductive or kind.reads == "unprojected":
        raise InputError(f"'{head}' can't be fitted again after every picture: use auto, clip-adapter or another")


class Session:
    """Learns from a project whenever it changes."""

    def __init__(
        self,
        project: Project,
        encoder: str | Encoder | Sequence[str | Encoder] = "auto",
        head: str = "auto",
        quality: str | None = None,
        **params: Any,
    ) -> None:
        self.encoder, *self.other_encoders = open_encoders(encoder, params.get("device", "cpu"))
        if not self.encoder.has_text:
            raise InputError(
                f"the studio starts from class names, but {self.encoder.info.name} has no text tower: name another "
                "encoder, or one that has a text tower beside it"
            )
        self.project, self.head, self._params = project, head, params
        # Beside the project: where the model is saved if a person chooses no other folder, and is exported
        self.default_model_folder = project.root.with_name(f"{project.root.name}-model")
        self.export_file = project.root.with_name(f"{project.root.name}-model.onnx")
        # Why the two choices of the page make no difference; empty if they do
        kind, own_name = head_info(head).cls, self.encoder.info.name
        only_labelled = f"The head '{head}' learns from labelled pictures only."
        self.why_no_unlabelled = "" if kind.accepts_unlabelled else only_labelled
        same = f"The head '{head}' uses the same features of {own_name} at each position: there is nothing to choose."
        self.why_no_choice = "" if kind.reads == "all" and len(block_names(self.encoder)) == 1 else same
        settings = project.settings()
        self.learns_unlabelled = settings.get(UNLABELLED_SETTING) == "yes" and not self.why_no_unlabelled
        # What was chosen; the model has it as soon as the features are computed
        remembered = settings.get(QUALITY_SETTING, "")
        self.quality = remembered if remembered in QUALITIES else FIRST_QUALITY
        if quality is not None and check_quality(quality, QUALITIES) != self.quality:
            project.save_setting(QUALITY_SETTING, quality)
            self.quality = quality
        self._caches: dict[tuple[str, ...], FeatureCache] = {}
        # Those of the present model; those of another quality take their place when all labelled pictures have them.
        self._features = self._cache_of(self.quality)
        self.state = SessionState()
        self._skipped: set[str] = set()
        self._condition = threading.Condition()
        self._wake, self._is_closed = threading.Event(), False
        self._is_busy = True
        self._thread = threading.Thread(target=self._run, name="clipadapter studio", daemon=True)
        self._wake.set()
        self._thread.start()

    def close(self) -> None:
        """Stop computing and close the project."""
        self._is_closed = True
        self._wake.set()
        self._thread.join()
        self.project.close()

    def notify_change(self) -> None:
        """Tell the session that the project changed. It stops the current computation and starts again."""
        with self._condition:
            self._is_busy = True
        self._wake.set()

    def wait_until_idle(self, timeout: float = 60.0) -> bool:
        """Wait until nothing is left to compute. Return False after the timeout in seconds."""
        with self._condition:
            return self._condition.wait_for(lambda: not self._is_busy, timeout)

    def set_quality(self, quality: str) -> None:
        """Choose what the model looks at. Until the features are computed, predictions come from the model so far."""
        check_quality(quality, QUALITIES)
        if self.why_no_choice:
            raise InputError(self.why_no_choice.rstrip("."))
        if quality != self.quality:
            self.project.save_setting(QUALITY_SETTING, quality)
            self.quality = quality
            self.notify_change()

    def learn_unlabelled(self, is_on: bool) -> None:
        """Choose whether the model may learn from the unlabelled pictures. It does if held-out pictures show a gain."""
        if is_on and self.why_no_unlabelled:
            raise InputError(self.why_no_unlabelled.rstrip("."))
        if is_on != self.learns_unlabelled:
            self.project.save_setting(UNLABELLED_SETTING, "yes" if is_on else "")
            self.learns_unlabelled = is_on
            self.notify_change()

    def skip_picture(self, key: str) -> None:
        """Move a picture to the end of the pictures to label."""
        self._skipped.add(key)
        with self._condition:
            queue = tuple(other for other in self.state.queue if other != key)
            self._publish(queue=queue)
        self.notify_change()

    def predict(self, image: ImageSource) -> ExplainedPrediction:
        """Predict the class of a picture and explain it."""
        model = self.state.model
        if model is None:
            raise InputError("a prediction needs two classes: name two classes first")
        return explain_prediction(model, image, self.project.contents, self._features.encoder)

    def save_model(self, folder: str | Path | None = None) -> Path:
        """Save the model, and return its folder."""
        target = self.default_model_folder if folder is None else self._check_model_folder(str(folder).strip())
        fit_number, classifier = self._current_model()
        saved = classifier.save(target)
        self._publish(saved_fit=fit_number)
        return saved

    def _check_model_folder(self, text: str) -> Path:
        if not text or "\0" in text:
            raise InputError("the model needs a folder: type the path of a new or empty one")
        root = self.project.root
        try:
            target = root.parent / Path(text).expanduser()
        except RuntimeError as error:  # "~name" of an unknown person
            raise InputError(f"there is no folder {text}: {error}") from error
        if Path(os.path.realpath(target)).is_relative_to(os.path.realpath(root)):
            raise InputError(
                f"{printable(target)} is inside the project, where folders are classes: choose another one"
            )
        return target

    def export_model(self) -> Path:
        """Write the model as one ONNX file, `export_file`; see `clipadapter.runtime.export.export_model`."""
        from clipadapter.runtime.export import export_model

        file, checksum = path_without_links(self.project.root.parent, self.export_file.name), None
        if file.exists():
            with suppress(ArtifactError):
                checksum = check_file(file)
            if checksum is None or checksum != self.project.settings().get(EXPORT_SETTING):
                raise InputError(
                    f"{printable(file)} is not a file that the studio of this project exported, or was changed since: "
                    "move it away, then export again"
                )
        _, classifier = self._current_model()
        paths = [picture.path for _, picture in self.project.contents.labelled()]
        file = Path(export_model(classifier, self.export_file, pictures=paths[:MAX_PARITY_PICTURES]).path)
        self.project.save_setting(EXPORT_SETTING, check_file(file))
        return file

    def classes_without_pictures(self) -> list[str]:
        """Return the classes without a readable picture: the model knows them by their names alone."""
        classes = self.project.contents.classes
        return [name for name, pictures in classes.items() if not any(map(self._features.has, pictures))]

    def _current_model(self) -> tuple[int, FewShotClassifier]:
        """Wait until the last change is learned. Return the number of the model and its classifier."""
        if self._is_outdated():
            self.notify_change()
        with self._condition:
            self._condition.wait_for(lambda: not self._is_busy or not self._is_outdated(), FIT_TIMEOUT_SECONDS)
        if self._is_outdated():
            reason = self.state.error or f"{self.state.activity or 'learning'} takes long: save again when it is done"
            raise InputError(f"the last change is not learned yet ({reason})")
        state = self.state
        classifier = None if state.model is None else state.model.small_classifier
        if classifier is None:
            raise InputError("there is nothing to save yet: name two classes and add pictures to them")
        return state.fit_number, classifier

    def _is_outdated(self) -> bool:
        """Whether the model was fitted to other contents than the present ones, or by other choices."""
        return self.state.learned_from != (self.project.contents.revision, self.quality, self.learns_unlabelled)

    def _cache_of(self, quality: str) -> FeatureCache:
        """The features that the head reads at a quality."""
        encoder, others = self.encoder, self.other_encoders
        names = tuple(blocks_to_read(encoder, others, [create_head(self.head)], quality, block_names(encoder)))
        if names not in self._caches:
            cost = relative_cost(encoder, others, names)
            self._caches[names] = FeatureCache(open_blocks(encoder, names, others), self._params, cost)
        return self._caches[names]

    # ---- The computing thread ----

    def _run(self) -> None:
        while not self._is_closed:
            self._wake.wait()
            self._wake.clear()
            error = ""
            try:
                self._compute(self.project.contents)
            except _Superseded:
                continue
            except ClipAdapterError as problem:
                error = str(problem)
            except Exception as problem:  # the page reports it, and the next change starts a new attempt
                error = f"{type(problem).__name__}: {problem}"
            with self._condition:
                self._is_busy = self._wake.is_set()
                self._publish(activity="", progress=None, error=error)

    def _compute(self, contents: Contents) -> None:
        """Learn from the labelled pictures first, then select what to label, then measure."""
        labelled, activity = [picture for _, picture in contents.labelled()], "reading the labelled pictures"
        quality = self.quality
        features, model = self._cache_of(quality), self.state.model
        if features is not self._features and model is not None and model.classifier is not None:
            # The features of another quality take a while: until then, new labels are learned as before.
            if contents.revision != self.state.revision:
                self._extract(self._features, labelled, activity)
                self._fit(contents, self.state.quality)
            activity = f"reading the labelled pictures for “{quality}”"
        self._extract(features, labelled, activity)
        self._features = features
        if self.state.learned_from != (contents.revision, quality, self.learns_unlabelled):
            self._fit(contents, quality)
        done, step = 0, FIRST_PICTURES
        while done < len(contents.unlabelled) or not done:
            part = contents.unlabelled[done : done + step]
            self._extract(features, part, "reading the unlabelled pictures", contents.unlabelled)
            self._select_queue(contents)  # looks at all pictures so far: doubling the step keeps that cheap
            done, step = done + step, 2 * step
        is_learned = self.state.model is not None and self.state.model.classifier is not None
        if is_learned and self.state.pool != tuple(one.key for one in self._pool(contents)):
            self._fit(contents, quality)  # again, with the pictures whose features were missing before
            self._select_queue(contents)
        test = [picture for pictures in contents.test.values() for picture in pictures]
        self._extract(features, test, "reading the test pictures")
        self._measure(contents)

    def _extract(
        self, features: FeatureCache, pictures: Sequence[PictureFile], activity: str, whole: Sequence[PictureFile] = ()
    ) -> None:
        """Compute missing features, and publish the progress in the whole, of which the pictures may be a part."""
        whole = whole or pictures

        def report() -> None:
            progress = 1 - len(features.missing(whole)) / max(len(whole), 1)
            errors, present = features.errors, self.project.contents.pictures()
            unreadable = {one.key: errors[one] for one in present if one in errors}
            self._publish(activity=activity, progress=progress, unreadable=unreadable)
            self._check_superseded()

        features.compute(pictures, list(self.project.contents.classes), report)

    def _fit(self, contents: Contents, quality: str) -> None:
        names, learns_unlabelled = list(contents.classes), self.learns_unlabelled
        model, pool = None, self._pool(contents)
        if len(names) >= 2:
            self._publish(activity="learning", progress=None)
            params = {key: value for key, value in self._params.items() if key not in ("backend", "precision")}
            classifier = FewShotClassifier(self._features.encoder, self.head, **params)
            shots, unlabelled = self._readable(contents.classes, names), self._features.matrix(pool) if pool else None
            model = fit_project_model(classifier, classifier.encode_classes(names), shots, unlabelled=unlabelled)
        old = self.state.model
        has_old_classes = model is not None and old is not None and model.text.labels == old.text.labels
        queue = self.state.queue if has_old_classes else ()
        self._check_superseded()
        self._publish(
            revision=contents.revision,
            quality=quality,
            learns_unlabelled=learns_unlabelled,
            pool=tuple(one.key for one in pool),
            model=model,
            fit_number=self.state.fit_number + 1,
            queue=queue,
            curve=None,
        )

    def _select_queue(self, contents: Contents) -> None:
        """Predict all unlabelled pictures that have features; select a new queue if the last one is used up."""
        unlabelled = [picture for picture in contents.unlabelled if self._features.has(picture)]
        model = self.state.model
        # Pictures without features of the present quality keep their prediction until these are computed.
        keys = {picture.key for picture in contents.unlabelled}
        guesses = {} if model is None else {k: guess for k, guess in self.state.guesses.items() if k in keys}
        uncertainty = np.ones(len(unlabelled))
        if model is not None and unlabelled:
            parts = (unlabelled[i : i + PICTURES_PER_MATRIX] for i in range(0, len(unlabelled), PICTURES_PER_MATRIX))
            p = np.concatenate([model.probabilities(self._features.matrix(part)) for part in parts])
            best = p.argmax(axis=1)
            guesses |= {
                picture.key: (model.text.labels[k], float(row[k]))
                for picture, k, row in zip(unlabelled, best, p, strict=True)
            }
            second, first = np.sort(p, axis=1)[:, -2:].T
            uncertainty = 1 - (first - second)
        queue = tuple(key for key in self.state.queue if key in keys)
        if not queue and unlabelled:
            rows = [i for i, picture in enumerate(unlabelled) if picture.key not in self._skipped]
            if not rows:
                self._skipped.clear()
                rows = list(range(len(unlabelled)))
            # Pictures are compared by the block ``final``, which comes first.
            final = self._features.matrix(unlabelled)[:, : self.encoder.info.text_dim]
            labelled = self._readable(contents.classes, list(contents.classes)).final
            selected = select_for_labelling(final[rows], uncertainty[rows], QUEUE_PICTURES, labelled)
            queue = tuple(unlabelled[rows[i]].key for i in selected)
        self._check_superseded()
        self._publish(guesses=guesses, queue=queue)

    def _measure(self, contents: Contents) -> None:
        model = self.state.model
        if model is None or model.classifier is None or self.state.curve is not None:
            return
        self._publish(activity="measuring", progress=None)
        test = self._readable(contents.test, model.text.labels)
        self._publish(curve=learning_curve(model, test, self._check_superseded))

    def _pool(self, contents: Contents) -> list[PictureFile]:
        """The unlabelled pictures that the model learns from: none if it does not."""
        if not self.learns_unlabelled:
            return []
        pictures = [picture for picture in contents.unlabelled if self._features.has(picture)]
        rows = np.linspace(0, len(pictures) - 1, min(len(pictures), MAX_UNLABELLED)).round().astype(int)
        return [pictures[i] for i in rows]

    def _readable(self, classes: Mapping[str, Sequence[PictureFile]], names: Sequence[str]) -> FeatureSet:
        """The features of the pictures of some classes that have them; ``names`` are those of all classes."""
        rows = [(one, name) for name, members in classes.items() for one in members if self._features.has(one)]
        info, pictures = self._features.encoder.info, [one for one, _ in rows]
        encoder = {"encoder": info.name, "fingerprint": info.fingerprint}
        provenance = {**encoder, "sources": [one.key for one in pictures], "skipped": [], "views": 1}
        X, labels = self._features.matrix(pictures), tuple(name for _, name in rows)
        return FeatureSet(X, labels, tuple(names), provenance, blocks=info.blocks)

    def _check_superseded(self) -> None:
        if self._wake.is_set():
            raise _Superseded

    def _publish(self, **changes: Any) -> None:
        with self._condition:
            self.state = replace(self.state, version=self.state.version + 1, **changes)
            self._condition.notify_all()


# ---- Features ----


class FeatureCache:
    """Features of one quality by the stamps of files, so that a picture that was moved keeps its features."""

    # Blocks that another quality has too are read from the feature store, if there is one.

    def __init__(self, encoder: Encoder, params: Mapping[str, Any], cost: float = 1.0) -> None:
        self.encoder = encoder  # after `compute` in the backend that was chosen
        self._how = {name: params.get(name, "auto") for name in ("backend", "precision")}
        self._params, self._is_backend_chosen = params, self._how == {"backend": "torch", "precision": "fp32"}
        self._pictures_per_step = max(MIN_PICTURES_PER_STEP, round(PICTURES_PER_STEP / cost))
        self._rows: dict[Stamp, Array] = {}
        # Why pictures can't be read. By picture: one that was moved while it was read is read again
        self.errors: dict[PictureFile, str] = {}

    def has(self, picture: PictureFile) -> bool:
        """Whether the features of a picture are computed."""
        return picture.stamp in self._rows

    def missing(self, pictures: Sequence[PictureFile]) -> list[PictureFile]:
        """Return those of the pictures that were not processed."""
        return [one for one in pictures if not self.has(one) and one not in self.errors]

    def matrix(self, pictures: Sequence[PictureFile]) -> Array:
        """Return (n, d) float32 features of pictures that `has` them, all blocks side by side."""
        rows = [self._rows[picture.stamp] for picture in pictures]
        return np.array(rows, np.float32).reshape(len(rows), self.encoder.info.dim)

    def compute(self, pictures: Sequence[PictureFile], class_names: Sequence[str], on_step: Callable[[], None]) -> None:
        """Compute missing features. ``on_step`` is called after each few pictures, and may raise."""
        missing = self.missing(pictures)
        if not missing:
            return
        with open_store(self._params.get("cache", "auto")) as store:
            if not self._is_backend_chosen:  # once: features of two precisions must not be mixed
                base, paths = self.encoder, [picture.path for picture in missing]
                prompts = class_prompts(class_names) if len(class_names) > 1 else None
                text = None if prompts is None else lambda: encode_classes(base, prompts, store)
                self.encoder = choose_backend(base, paths, **self._how, text=text, store=store)
                self._is_backend_chosen = True
            for start in range(0, len(missing), self._pictures_per_step):
                part = missing[start : start + self._pictures_per_step]
                paths = [picture.path for picture in part]
                result = extract(self.encoder, paths, store=store, batch_size=self._params.get("batch_size", 32))
                self._rows.update((part[i].stamp, row[0]) for i, row in zip(result.rows, result.features, strict=True))
                self.errors.update((part[i], reason) for i, _, reason in result.skipped)
                on_step()
