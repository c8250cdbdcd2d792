"""A project and what is learned from it: one thread computes, everybody may ask."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clipadapter.classifier import FewShotClassifier
from clipadapter.data.images import ImageSource
from clipadapter.encoders import Encoder, create_encoder
from clipadapter.errors import ClipAdapterError, InputError
from clipadapter.heads import head_info
from clipadapter.studio._answer import Answer, answer
from clipadapter.studio._features import Features
from clipadapter.studio._learning import Learned, Point, curve, learn
from clipadapter.studio._pictures import Picture
from clipadapter.studio._project import OWN, Project
from clipadapter.studio._reading import Contents
from clipadapter.studio._suggest import margins, suggest

BATCH = 8
"""Pictures that are suggested at a time."""
PATIENCE = 60.0
"""Seconds that are waited for what was changed to be learned, before a model is saved."""


@dataclass(frozen=True, eq=False)
class State:
    """What is known now; never changed.

    Args:
        number: another one is not the same.
        doing: what is being computed, in words; empty if nothing is.
        share: how much of that is done, 0..1; None if that is not known.
        error: why something could not be computed.
        revision: of the contents that were learned from.
        learned: from these; None while there are not two classes.
        points: of the learning curve.
        on_test: whether they are of the part "test".
        guesses: (class, probability) by key of the unlabelled pictures.
        queue: keys of those to label next.
        unreadable: why a picture can't be read, by its key.
    """

    number: int = 0
    doing: str = ""
    share: float | None = None
    error: str = ""
    revision: int = -1
    learned: Learned | None = None
    points: tuple[Point, ...] = ()
    on_test: bool = False
    guesses: dict[str, tuple[str, float]] = field(default_factory=dict)
    queue: tuple[str, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict)


class _Overtaken(Exception):
    """Something was changed: what is being computed is not wanted any more."""


class Session:
    """Learns from a project whenever it was changed.

    Args:
        project: an open one.
        encoder: a URI, or an open encoder.
        head: a registered name; one that is fitted to features in a moment.
        params: further parameters of `FewShotClassifier`, such as ``cache``, ``device``, ``backend`` or ``templates``.

    Raises:
        InputError: if the head trains through a tower, or sees the pictures that it answers for.
        EncoderUnavailableError: if the encoder's weights can't be had.
    """

    def __init__(self, project: Project, encoder: str | Encoder = "auto", head: str = "auto", **params: Any) -> None:
        kind = head_info(head).cls
        if kind.needs_tower or kind.tunes_encoder or kind.transductive or kind.reads_unprojected:
            raise InputError(f"'{head}' can't be fitted anew after every picture: take auto, clip-adapter or another")
        opened = create_encoder(encoder, params.get("device", "cpu")) if isinstance(encoder, str) else encoder
        self.project, self.encoder, self._head, self._params = project, opened, head, params
        self._features = Features(opened, params.pop("backend", "auto"), params.pop("precision", "auto"), params)
        self.state = State()
        self._skipped: set[str] = set()
        self._known = threading.Condition()
        self._wake, self._stopped = threading.Event(), False
        self._busy = True
        self._thread = threading.Thread(target=self._run, name="clipadapter studio", daemon=True)
        self._wake.set()
        self._thread.start()

    def close(self) -> None:
        """Stop computing, and let others open the project."""
        self._stopped = True
        self._wake.set()
        self._thread.join()
        self.project.close()

    def changed(self) -> None:
        """Have the project looked at again; what is being computed is given up for it."""
        with self._known:
            self._busy = True
        self._wake.set()

    def wait(self, timeout: float = 60.0) -> bool:
        """Wait until all that can be computed is; whether it is."""
        with self._known:
            return self._known.wait_for(lambda: not self._busy, timeout)

    def skip(self, key: str) -> None:
        """Ask for this picture later, after all others."""
        self._skipped.add(key)
        with self._known:
            queue = tuple(other for other in self.state.queue if other != key)
            self._publish(queue=queue)
        self.changed()

    def queue(self) -> tuple[str, ...]:
        """Keys of the pictures to label next that have no label by now."""
        waiting = {one.key for one in self.project.contents.pool}
        return tuple(key for key in self.state.queue if key in waiting)

    def answer(self, image: ImageSource) -> Answer:
        """What is said of a picture now, and why.

        Raises:
            ImageError: if it can't be read.
            InputError: while there are not two classes.
        """
        learned = self.state.learned
        if learned is None:
            raise InputError("name two classes first: then a picture can be told to be of one of them")
        return answer(learned, image, self.project.contents, self._features)

    def save(self) -> Path:
        """Write the model into the project's ``.studio/model``; the folder.

        Raises:
            InputError: if nothing was learned yet, or it can't be written.
        """
        return self._fitted().save(self.project.root / OWN / "model")

    def export(self) -> Path:
        """Write the model as one ONNX file that answers without this package; see `clipadapter.export.export_model`.

        Raises:
            InputError: if nothing was learned yet, or the head can't be exported.
            MissingExtraError: if what writes such files is not installed.
        """
        from clipadapter.export import export_model

        model, folder = self._fitted(), self.project.root / OWN / "export"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shots = [one.path for _, one in self.project.contents.shots()]
        return Path(export_model(model, folder / "model.onnx", pictures=shots[:64]).path)

    def by_name_alone(self) -> list[str]:
        """Classes without a picture that can be read: a model knows them by their names."""
        classes = self.project.contents.classes
        return [name for name, each in classes.items() if not any(map(self._features.has, each))]

    def _fitted(self) -> FewShotClassifier:
        if self._behind():
            self.changed()
        with self._known:
            self._known.wait_for(lambda: not self._busy or not self._behind(), PATIENCE)
        if self._behind():
            why = self.state.error or f"{self.state.doing or 'learning'} takes long: save again when that is done"
            raise InputError(f"what was changed last is not learned yet ({why})")
        learned = self.state.learned
        if learned is None or learned.model is None:
            raise InputError("there is nothing to save yet: name two classes and put pictures into them")
        return learned.model

    def _behind(self) -> bool:
        """Whether what was learned is of other contents than there are."""
        return self.state.revision != self.project.contents.revision

    def _run(self) -> None:
        while not self._stopped:
            self._wake.wait()
            self._wake.clear()
            error = ""
            try:
                self._compute(self.project.contents)
            except _Overtaken:
                continue
            except ClipAdapterError as problem:
                error = str(problem)
            except Exception as problem:  # the page must say what broke, and go on with the next change
                error = f"{type(problem).__name__}: {problem}"
            with self._known:
                self._busy = self._wake.is_set()
                self._publish(doing="", share=None, error=error)

    def _compute(self, contents: Contents) -> None:
        """The shots first, then what is asked for next, then what is good to know."""
        shots = list(contents.shots())
        self._extract([one for _, one in shots], "reading the labelled pictures")
        if contents.revision != self.state.revision:
            self._learn(contents)
        ready, step = 0, 4 * BATCH
        while ready < len(contents.pool) or not ready:
            self._extract(contents.pool[ready : ready + step], "reading the unlabelled pictures", contents.pool)
            self._suggest(contents)  # of all that are there: twice as many each time keeps that cheap
            ready, step = ready + step, 2 * step
        test = [(name, one) for name, each in contents.test.items() for one in each]
        self._extract([one for _, one in test], "reading the test pictures")
        self._measure(contents, test)

    def _extract(self, wanted: Sequence[Picture], doing: str, of: Sequence[Picture] | None = None) -> None:
        total = len(of if of is not None else wanted)
        for done in self._features.fill(wanted, [*self.project.contents.classes]):
            share = done / total if of is None else self._features.share(of)
            with self._known:
                self._publish(doing=doing, share=share, unreadable=self._features.reasons(self.project.contents))
            self._go_on()

    def _learn(self, contents: Contents) -> None:
        names = list(contents.classes)
        learned = None
        if len(names) >= 2:
            with self._known:
                self._publish(doing="learning", share=None)
            shots = [(name, one) for name, one in contents.shots() if self._features.has(one)]
            model = FewShotClassifier(self._features.encoder, self._head, **self._params)
            features = self._features.matrix([one for _, one in shots])
            text = model.encode_classes(names)
            learned = learn(model, text, [one.key for _, one in shots], features, [name for name, _ in shots])
        queue = self.state.queue
        if self.state.learned is None or learned is None or learned.names != self.state.learned.names:
            queue = ()
        self._go_on()
        with self._known:
            self._publish(revision=contents.revision, learned=learned, queue=queue, points=())

    def _suggest(self, contents: Contents) -> None:
        """Guesses for all unlabelled pictures whose features are there; a new batch if the last one is used up."""
        pool = [one for one in contents.pool if self._features.has(one)]
        X, learned = self._features.matrix(pool), self.state.learned
        guesses: dict[str, tuple[str, float]] = {}
        doubt = [1.0] * len(pool)
        if learned is not None and pool:
            p = learned.probabilities(X)
            best = p.argmax(axis=1)
            guesses = {one.key: (learned.names[k], float(row[k])) for one, k, row in zip(pool, best, p, strict=True)}
            doubt = (1 - margins(p)).tolist()
        queue = self.queue()
        if not queue and pool:
            rows = [i for i, one in enumerate(pool) if one.key not in self._skipped]
            if not rows:
                self._skipped.clear()
                rows = list(range(len(pool)))
            known = self._features.matrix([one for _, one in contents.shots() if self._features.has(one)])
            picked = suggest(X[rows], [doubt[i] for i in rows], BATCH, known)
            queue = tuple(pool[rows[i]].key for i in picked)
        self._go_on()
        with self._known:
            self._publish(guesses=guesses, queue=queue)

    def _measure(self, contents: Contents, test: Sequence[tuple[str, Picture]]) -> None:
        learned = self.state.learned
        if learned is None or learned.model is None or self.state.points:
            return
        shots = [(name, one) for name, one in contents.shots() if self._features.has(one)]
        X, labels = self._features.matrix([one for _, one in shots]), [name for name, _ in shots]
        test = [(name, one) for name, one in test if self._features.has(one)]
        judge = (self._features.matrix([one for _, one in test]), [name for name, _ in test]) if test else None
        with self._known:
            self._publish(doing="measuring", share=None)
        points: list[Point] = []
        for point in curve(learned, X, labels, judge):
            self._go_on()
            points.append(point)
        with self._known:
            self._publish(points=tuple(points), on_test=judge is not None)

    def _go_on(self) -> None:
        if self._wake.is_set():
            raise _Overtaken

    def _publish(self, **changes: Any) -> None:
        """Call it with the condition held."""
        self.state = replace(self.state, number=self.state.number + 1, **changes)
        self._known.notify_all()
