"""Random sequences of steps, compared with a model of two dictionaries."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from clipadapter.data.folders import read_folder
from clipadapter.errors import InputError
from clipadapter.studio import Project
from clipadapter.studio.pictures import Upload

NAMES = ("cat", "Cat", "a/b", "..", "test", "train", "con", "猫")
HEAD = b"P6 1 1 255\n"  # the smallest picture that there is


def picture(number):
    return Upload(f"../{number}", HEAD + bytes([number, 0, 0]))


class Steps(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.root = Path(tempfile.mkdtemp())
        self.project = Project(self.root / "p")
        self.classes, self.unlabelled, self.history = {}, set(), []

    def number(self, one):
        return one.path.read_bytes()[len(HEAD)]

    def remember(self):
        self.history.append(({name: set(each) for name, each in self.classes.items()}, set(self.unlabelled)))

    def where(self, number):
        return next((name for name, each in self.classes.items() if number in each), None)

    def key(self, number):
        return next(one.key for one in self.project.contents.pictures() if self.number(one) == number)

    @rule(name=st.sampled_from(NAMES))
    def add_class(self, name):
        if name.casefold() in {other.casefold() for other in self.classes}:
            try:
                self.project.add_class(name)
            except InputError:
                return
            raise AssertionError(name)
        self.remember()
        assert self.project.add_class(name) == name
        self.classes[name] = set()

    @precondition(lambda self: self.classes)
    @rule(data=st.data(), numbers=st.lists(st.integers(0, 9), max_size=3))
    def add(self, data, numbers):
        name = data.draw(st.sampled_from(sorted(self.classes)))
        new = {number for number in numbers if self.where(number) is None}
        result = self.project.add_pictures(name, [picture(number) for number in numbers])
        assert len(result.added) == len(new)
        if new:
            self.remember()
            self.classes[name] |= new
            self.unlabelled -= new

    @rule(numbers=st.lists(st.integers(0, 9), max_size=3))
    def add_unlabelled(self, numbers):
        new = {number for number in numbers if self.where(number) is None} - self.unlabelled
        self.project.add_pictures(None, [picture(number) for number in numbers])
        if new:
            self.remember()
            self.unlabelled |= new

    @precondition(lambda self: self.classes and (self.unlabelled or any(self.classes.values())))
    @rule(data=st.data())
    def label(self, data):
        name = data.draw(st.sampled_from(sorted(self.classes)))
        number = data.draw(st.sampled_from(sorted(self.unlabelled.union(*self.classes.values()))))
        key, before = self.key(number), self.where(number)
        if before != name:
            self.remember()
            self.unlabelled.discard(number)
            for each in self.classes.values():
                each.discard(number)
            self.classes[name].add(number)
        self.project.label_pictures([key], name)

    @precondition(lambda self: any(self.classes.values()))
    @rule(data=st.data())
    def remove(self, data):
        number = data.draw(st.sampled_from(sorted(set().union(*self.classes.values()))))
        self.remember()
        self.project.remove_pictures([self.key(number)])
        self.classes[self.where(number)].discard(number)

    @precondition(lambda self: self.classes)
    @rule(data=st.data(), new=st.sampled_from(NAMES))
    def rename_class(self, data, new):
        old = data.draw(st.sampled_from(sorted(self.classes)))
        if new.casefold() in {other.casefold() for other in self.classes if other != old}:
            return
        if new != old:
            self.remember()
            self.classes[new] = self.classes.pop(old)
        self.project.rename_class(old, new)

    @precondition(lambda self: self.classes)
    @rule(data=st.data())
    def remove_class(self, data):
        name = data.draw(st.sampled_from(sorted(self.classes)))
        self.remember()
        self.project.remove_class(name)
        del self.classes[name]

    @rule()
    def undo(self):
        assert bool(self.project.undo()) == bool(self.history)
        if self.history:
            self.classes, self.unlabelled = self.history.pop()

    @rule()
    def restart(self):
        self.project.close()
        self.project = Project(self.root / "p")

    @invariant()
    def all_is_as_expected(self):
        if not hasattr(self, "project"):
            return
        contents = self.project.contents
        classes = {name: {self.number(one) for one in each} for name, each in contents.classes.items()}
        assert classes == self.classes
        assert {self.number(one) for one in contents.unlabelled} == self.unlabelled
        assert list(self.root.iterdir()) == [self.root / "p"]  # nothing was written beside the project
        labelled = [sample for sample in read_folder(self.root / "p").dataset.samples if sample.label is not None]
        assert len(labelled) == sum(map(len, self.classes.values()))

    def teardown(self):
        if hasattr(self, "project"):
            self.project.close()
            shutil.rmtree(self.root)


Steps.TestCase.settings = settings(
    max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
test_steps = Steps.TestCase
