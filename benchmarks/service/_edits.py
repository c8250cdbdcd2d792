"""Every order of changes of a model, beside a plain list of (picture, label) that another is fitted to from scratch."""

import random
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from clipadapter import FewShotClassifier
from clipadapter.classifier.reader import Reader
from clipadapter.errors import InputError
from clipadapter.features import Extraction
from clipadapter.heads import create_head

NAMES = ["red", "green", "blue", "yellow", "cyan", "magenta"]
POOL, QUERIES, WIDTH = 40, 8, 32
NEAR = 1e-5


def features(seed=0):
    """Features (n, d) of the pool, then of the queries; all different, none of length one."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(NAMES), WIDTH))
    rows = centres[np.arange(POOL + QUERIES) % len(NAMES)] + 0.7 * rng.normal(size=(POOL + QUERIES, WIDTH))
    return (rows * rng.uniform(0.5, 2.0, (len(rows), 1))).astype(np.float32)


def head(name):
    """An unfitted head; "gda:stream" is one with the parameter ``stream``."""
    name, _, flag = name.partition(":")
    return create_head(name, **({flag: True} if flag else {}))


class TableReader(Reader):
    """A reader whose pictures are rows of a table: picture 7 is the path "7"."""

    table = features()

    def at(self, pictures, text):
        return self

    def extract(self, images, views=None, *, strict=False):
        rows = self.table[[int(str(image)) for image in images]]
        return Extraction(rows[:, None], list(range(len(rows))), [], len(rows), 0)


class FromTable(FewShotClassifier):
    """A classifier of such pictures."""

    @property
    def _reader(self):
        return TableReader(**vars(super()._reader))


class Edits(RuleBasedStateMachine):
    """A model that is changed, and what it must be.

    A version is its content's number, its classes in their order, and its shots as (number of a picture, label).
    """

    heads = ("prototype",)
    pictures = [Path(str(i)) for i in range(POOL + QUERIES)]
    """The pool, then the queries."""
    every_step = True
    """Compare with a fit from scratch after each step, not at the end alone."""
    done: Counter = Counter()

    def classifier(self):
        """An unfitted model."""
        return FromTable("toy", head(self.head), cache=None)

    def loaded(self, folder):
        """The model in a folder."""
        return FromTable.load(folder, cache=None)

    @initialize(data=st.data(), which=st.integers(0, 99), seed=st.integers(0, 999))
    def fit(self, data, which, seed):
        self.head = self.heads[which % len(self.heads)]
        # Where the pictures are what is tried, which of them hardly matters: they come by a seed, so that this is fast.
        self.rng = random.Random(seed)
        self.place = tempfile.TemporaryDirectory()
        self.folder, self.saved = Path(self.place.name) / "model", None
        names = NAMES[: data.draw(st.integers(2, 5))]
        rows = [(picture, name) for name in names for picture in self.fresh(self.rng.randint(1, 3), rows=())]
        rows = list(dict(rows).items())
        while len({name for _, name in rows}) < len(names):
            rows = list(zip(self.rng.sample(range(POOL), len(names)), names, strict=True))
        self.versions = [(1, tuple(names), tuple(rows))]
        self.model = self.scratch()
        self.model.history_  # noqa: B018 (a history begins where it is asked for)
        self.done["sequences"] += 1

    def fresh(self, count, rows=None):
        """Pictures that are no shots."""
        used = {picture for picture, _ in (self.now[1] if rows is None else rows)}
        free = [picture for picture in range(POOL) if picture not in used]
        return self.rng.sample(free, min(count, len(free)))

    @property
    def now(self):
        """Classes and shots."""
        return self.versions[-1][1:]

    def scratch(self):
        """A model that is fitted to the plain list."""
        names, rows = self.now
        images, labels = [self.pictures[i] for i, _ in rows], [name for _, name in rows]
        return self.classifier().fit(images, labels, list(names))

    def become(self, names, rows, what):
        self.versions.append((len(self.versions) + 1, tuple(names), tuple(rows)))
        self.step(what)

    def step(self, what):
        self.done[what] += 1
        if self.every_step:
            self.compare()

    @rule(count=st.integers(1, 3))
    def add_class(self, count):
        names, rows = self.now
        free = [name for name in NAMES if name not in names]
        more = self.fresh(count)
        if free and more:
            name = self.rng.choice(free)
            self.model.add_class(name, [self.pictures[i] for i in more])
            self.become((*names, name), (*rows, *((i, name) for i in more)), "add_class")

    @rule(count=st.integers(1, 3), again=st.booleans())
    def add_examples(self, count, again):
        names, rows = self.now
        more = [(i, self.rng.choice(names)) for i in self.fresh(count)]
        known = [self.rng.choice(rows)] if again else []  # a shot that comes again is none
        if more:
            images, labels = zip(*[*known, *more], strict=True)
            self.model.add_examples([self.pictures[i] for i in images], labels)
            self.become(names, (*rows, *more), "add_examples")

    @rule(count=st.integers(1, 3), besides=st.booleans())
    def correct(self, count, besides):
        names, rows = self.now
        some = self.rng.sample(range(len(rows)), min(count, len(rows)))
        labels = {rows[i][0]: self.rng.choice(names) for i in some}
        more = {i: self.rng.choice(names) for i in self.fresh(1)} if besides else {}
        after = [(i, labels.get(i, name)) for i, name in rows] + list(more.items())
        if len({name for _, name in after}) > 1:
            corrections = {**labels, **more}
            self.model.correct([self.pictures[i] for i in corrections], list(corrections.values()))
            if tuple(after) == rows:
                assert self.model.history_.version == len(self.versions)  # nothing was changed
            else:
                self.become(names, after, "correct")

    @rule(place=st.integers(0, 5))
    def remove_class(self, place):
        names, rows = self.now
        name = names[place % len(names)]
        left = [row for row in rows if row[1] != name]
        if len(names) == 2 or not left:
            self.refused(lambda: self.model.remove_class(name))
        elif len({label for _, label in left}) > 1:
            self.model.remove_class(name)
            self.become([one for one in names if one != name], left, "remove_class")

    @rule(place=st.integers(0, 5))
    def rename_class(self, place):
        names, rows = self.now
        name, free = names[place % len(names)], [one for one in NAMES if one not in names]
        if free:
            new = self.rng.choice(free)
            self.model.rename_class(name, new)
            after = [(i, new if label == name else label) for i, label in rows]
            self.become([new if one == name else one for one in names], after, "rename_class")

    @rule()
    def what_can_not_be_is_refused(self):
        names, rows = self.now
        picture, name = self.rng.choice(rows)
        other = next(one for one in names if one != name)
        self.refused(lambda: self.model.add_examples([self.pictures[picture]], [other]))
        self.refused(lambda: self.model.rename_class(name, other))
        self.refused(lambda: self.model.undo(len(self.versions) + 1))

    def refused(self, act):
        try:
            act()
        except InputError:
            self.step("refused")
        else:
            raise AssertionError("was not refused")

    @rule()
    def undo(self):
        content = self.versions[-1][0]
        if content == 1:
            self.refused(self.model.undo)
        else:
            self.went(None, self.versions[content - 2])

    @rule(to=st.integers(0, 999))
    def undo_to(self, to):
        to = to % len(self.versions) + 1
        if self.versions[to - 1][0] != self.versions[-1][0]:
            self.went(to, self.versions[to - 1])

    def went(self, to, goal):
        if self.versions.index(goal) + 1 not in self.model.history_.stored_versions():
            self.refused(lambda: self.model.undo(to))
            return
        self.model.undo(to)
        self.versions.append(goal)
        self.step("undo")

    @rule()
    def save(self):
        self.model.save(self.folder)
        self.saved = list(self.versions)
        self.step("save")

    @precondition(lambda self: self.saved is not None)
    @rule()
    def load(self):
        self.model, self.versions = self.loaded(self.folder), list(self.saved)
        self.step("load")

    def compare(self):
        """The model is what a fit from scratch gives, and nothing is lost."""
        names, rows = self.now
        model, expected = self.model, self.scratch()
        assert model.class_names_ == names == expected.class_names_
        np.testing.assert_array_equal(model.support_.X, expected.support_.X)
        assert model.support_.y == tuple(name for _, name in rows)
        assert [one.content for one in model.history_.changes] == [content for content, _, _ in self.versions]
        queries = self.pictures[POOL:]
        logits, expected_logits = model.logits(queries), expected.logits(queries)
        np.testing.assert_allclose(logits, expected_logits, atol=NEAR, rtol=NEAR)
        best = np.sort(expected_logits, axis=1)
        # Where two classes have nearly equal logits, rounding can change the prediction.
        is_clear = best[:, -1] - best[:, -2] > 2 * NEAR * np.abs(best).max()
        assert is_clear.any() or len(set(map(tuple, expected_logits.tolist()))) == 1
        predicted = [each.predict_proba(queries).argmax(axis=1) for each in (model, expected)]
        predictions = zip(*predicted, is_clear, strict=True)
        assert all(one == other for one, other, clear in predictions if clear)
        self.done["comparisons"] += 1
        self.done["of them updated exactly"] += bool(getattr(model.head_, "is_updatable", False))
        self.done["answers"] += int(is_clear.sum())

    def teardown(self):
        if hasattr(self, "place"):
            try:
                self.compare()
            finally:
                self.place.cleanup()
