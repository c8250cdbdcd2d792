"""Streams of tasks on features: what is learned when, what is asked, what is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from clipadapter.bench import StreamTask, learn_task_stream, table
from clipadapter.bench.protocols.stream import StreamOfTasks
from clipadapter.bench.run import ContinualResult
from clipadapter.bench.streams import choose_mode
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import ExactIncrementalHead, TextFeatures, create_head, fidelity_of, head_info
from clipadapter.heads.knn import Knn
from clipadapter.heads.support import remap_rows
from clipadapter.heads.zero_shot import ZeroShot
from clipadapter.metrics.continual import continual_metrics

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")


class Means(ExactIncrementalHead):
    """Cosine to the mean of a class's shots; to its text where there is none."""

    needs_text = True

    def _init_sums(self, shots):
        self.sums_ = torch.zeros(shots.n_classes, shots.views.shape[2])

    def _update_sums(self, shots, sign):
        self.sums_ = self.sums_.index_add(0, shots.labels, sign * shots.views[:, 0])

    def _remap_sums(self, origin):
        self.sums_ = remap_rows(self.sums_, origin)

    def _solve_from_sums(self, text, scale):
        empty = (self.counts_ == 0)[:, None]
        self.rows_ = torch.nn.functional.normalize(torch.where(empty, text, self.sums_), dim=1)

    def _logits(self, X):
        return torch.nn.functional.normalize(X, dim=1) @ self.rows_.T


class Last(Means):
    """Forgets all but the shots that came last."""

    def _add_shots(self, shots):
        self.counts_ = torch.bincount(shots.labels, minlength=shots.n_classes)
        self._init_sums(shots)
        super()._add_shots(shots)


def pictures(names, n, seed, spread=0.9):
    rng = np.random.default_rng(seed)
    y = [name for name in names for _ in range(n)]
    X = np.eye(8)[[NAMES.index(name) for name in y]] + spread * rng.standard_normal((len(y), 8)) / np.sqrt(8)
    return FeatureSet(X, tuple(y), NAMES, {"encoder": "made up", "fingerprint": "f", "data": "animals"})


@pytest.fixture
def text():
    rng = np.random.default_rng(5)
    return TextFeatures(NAMES, np.eye(6, 8) + 0.5 * rng.standard_normal((6, 8)), logit_scale=20.0)


@pytest.fixture
def tasks():
    """Three tasks of two classes."""
    pairs = (("ant", "bee"), ("cat", "dog"), ("elk", "fox"))
    return [StreamTask(f"task {i}", pictures(own, 5, i), pictures(own, 20, 10 + i)) for i, own in enumerate(pairs)]


def loop(make, tasks, text, joint, known):
    """The matrix in plain loops."""
    accuracies, head = [], make()
    for t, task in enumerate(tasks):
        if joint:
            X = np.concatenate([one.support.X for one in tasks[: t + 1]])
            head = make().fit(X, [label for one in tasks[: t + 1] for label in one.support.y], text=text)
        elif t == 0:
            head.fit(task.support.X, task.support.y, text=text)
        else:
            head.partial_fit(task.support.X, task.support.y, text=text)
        row = []
        for other in tasks:
            right = 0
            for x, label in zip(other.test.X, other.test.y, strict=True):
                logits = head.logits(x[None])[0]
                own = [i for i, name in enumerate(NAMES) if not known or name in other.test.y]
                right += NAMES[max(own, key=lambda i: logits[i])] == label
            row.append(right / len(other.test))
        accuracies.append(row)
    return accuracies


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    ("make", "joint"), [(Means, False), (Last, False), (Means, True), (Knn, True), (ZeroShot, True)]
)
def test_the_matrix_is_that_of_plain_loops(make, joint, known, tasks, text):
    (run,) = learn_task_stream({"it": make()}, tasks, text, task_known=known, joint=["it"] if joint else [])
    assert run.error is None
    assert run.stream.joint is joint
    np.testing.assert_allclose(run.continual.accuracy, loop(make, tasks, text, joint, known))


def test_metrics_are_computed_from_the_matrix_and_zero_shot(tasks, text):
    (run,) = learn_task_stream({"it": Last()}, tasks, text)
    (plain,) = learn_task_stream({"zero-shot": ZeroShot()}, tasks, text)
    assert run.continual.zero_shot == plain.continual.accuracy[0] == plain.continual.accuracy[2]
    assert run.continual.metrics == continual_metrics(run.continual.accuracy, plain.continual.accuracy[0])
    assert plain.continual.metrics.mean("forward_transfer") == plain.continual.metrics.mean("forgetting") == 0
    # The record's own figures are means over the tasks at the end.
    last = run.continual.steps[-1].metrics
    assert run.metrics.accuracy == pytest.approx(run.continual.metrics.mean("last"))
    assert run.metrics.accuracy == pytest.approx(np.mean([m.accuracy for m in last]))
    assert run.metrics["log_loss"] == pytest.approx(np.mean([m["log_loss"] for m in last]))
    assert run.seconds.fit == pytest.approx(sum(step.seconds for step in run.continual.steps))
    assert run.continual.metrics.mean("forgetting") > 0.1
    record = run.continual.model_dump()
    for damaged in ({"zero_shot": [0.5]}, {"steps": record["steps"][:2]}, {"steps": []}):
        with pytest.raises(ValidationError, match="must measure all|at least 1 item"):
            ContinualResult.model_validate({**record, **damaged})


def test_an_incremental_head_gets_each_shot_once_and_stores_no_more_while_joint_fits_store_all(tasks, text):
    label_batches = []

    class Spy(Means):
        def _update_sums(self, shots, sign):
            label_batches.append(shots.views.shape[0])
            super()._update_sums(shots, sign)

    runs = learn_task_stream({"means": Spy(), "anew": Spy(), "zero-shot": ZeroShot()}, tasks, text, joint=["anew"])
    assert label_batches == [10, 10, 10, 10, 20, 30]
    sizes = {run.head: [step.size for step in run.continual.steps] for run in runs}
    assert sizes["means"] == [6 + 1 + 2 * 6 * 8] * 3  # counts, whether there was text, sums and rows
    assert sizes["anew"] == [103 + 10 * 8, 103 + 20 * 8, 103 + 30 * 8]
    assert len(set(sizes["zero-shot"])) == 1


def test_shots_are_drawn_by_the_seed(tasks, text):
    one, again, other, same = learn_task_stream({"a": Means(), "b": Knn()}, tasks, text, shots=2, seeds=[1, 2])
    assert one.rows == again.rows != other.rows == same.rows
    assert [task.shots for task in one.stream.tasks] == [4, 4, 4]
    labels = [label for task in tasks for label in task.support.y]
    assert [labels[row] for row in one.rows] == [name for name in NAMES for _ in range(2)]
    assert (one.shots, one.n_classes, one.n_test) == (2, 6, 120)


def test_a_class_may_come_again(tasks, text):
    tasks[2] = StreamTask("again", pictures(("ant", "fox"), 4, 7), pictures(("ant", "fox"), 6, 8))
    (run,) = learn_task_stream({"it": Means()}, tasks, text)
    X, y = np.concatenate([task.support.X for task in tasks]), sum((task.support.y for task in tasks), ())
    everything = Means().fit(X, y, text=text)
    right = [float((everything.predict(task.test.X) == np.array(task.test.y)).mean()) for task in tasks]
    np.testing.assert_allclose(run.continual.accuracy[-1], right)


def test_records_are_made_once_and_depend_on_all_settings(tasks, text, tmp_path):
    file = tmp_path / "runs.jsonl"

    def keys(given=tasks, heads=None, **more):
        record = learn_task_stream(heads or {"knn": Knn()}, given, text, records=file, **more)
        return tuple(run.key for run in record)

    first = keys()
    assert keys() == first
    assert len(file.read_text().splitlines()) == 1
    other_test = StreamTask("task 2", tasks[2].support, pictures(("elk", "fox"), 20, 99))
    options = ({"task_known": True}, {"shots": 2}, {"shots": 2, "seeds": [2]}, {"heads": {"knn": Knn(k=1)}})
    others = [keys(**more) for more in options]
    others += [keys(given) for given in (tasks[::-1], tasks[:2], [*tasks[:2], other_test])]
    assert len({first, *others}) == 8
    assert keys(heads={"renamed": Knn()}) == first
    assert len(file.read_text().splitlines()) == 8
    # Whether it goes on or is fitted anew is another run, even where both end in the same head.
    plan = [learn_task_stream({"it": Means()}, tasks, text, joint=joint)[0].key for joint in ((), ("it",))]
    assert plan[0] != plan[1]


def test_the_record_of_a_failed_head_names_the_last_task(tasks, text):
    class Tired(Means):
        def _remap_sums(self, origin):
            raise ValueError("enough")

    tired, fine = learn_task_stream({"tired": Tired(), "fine": Means()}, tasks, text)
    assert tired.error == "ValueError: enough (after 1 of 3 tasks)"
    assert tired.continual is None and tired.metrics is None
    assert fine.error is None


def seen(task, views=1, **provenance):
    """The task, its shots in some views of another origin."""
    own = task.support
    X = own.X if views == 1 else np.stack([own.X] * views, axis=1)
    return replace(task, support=FeatureSet(X, own.y, own.class_names, provenance))


@pytest.mark.parametrize(
    ("heads", "change", "error"),
    [
        ([], lambda tasks: tasks, "nothing to run"),
        (["knn"], lambda tasks: [], "nothing to run"),
        (["transclip"], lambda tasks: tasks, "transclip is fitted to all test pictures together"),
        (["knn"], lambda tasks: tasks[:1] * 2, "different names, but are task 0, task 0"),
        (["knn"], lambda tasks: [tasks[0], seen(tasks[1], fingerprint="g")], "features of one encoder"),
        (["knn"], lambda tasks: [tasks[0], seen(tasks[1], 2)], "must have one shape"),
        (["knn"], lambda tasks: [seen(tasks[0], 2), seen(tasks[1], 2, crop="coop")], "one crop scale, but have tip"),
    ],
)
def test_what_makes_no_stream_is_refused(heads, change, error, tasks, text):
    with pytest.raises(InputError, match=error):
        learn_task_stream({name: create_head(name) for name in heads}, change(tasks), text)


def test_a_head_learns_as_it_can():
    class Choosy(Means):
        def __init__(self, stream=False):
            self.stream = stream

    assert choose_mode("knn", Knn(), None) == "joint"
    assert choose_mode("means", Means(), None) == "stream"
    assert choose_mode("means", Means(), "joint") == "joint"
    assert choose_mode("choosy", Choosy(), None) == "joint"
    assert choose_mode("choosy", Choosy(stream=True), None) == "stream"
    with pytest.raises(InputError, match='knn can\'t continue.*mode = "joint"'):
        choose_mode("knn", Knn(), "stream")
    with pytest.raises(InputError, match="choosy can't continue.*stream = true"):
        choose_mode("choosy", Choosy(), "stream")
    with pytest.raises(InputError, match="clip-lora tunes the encoder"):
        StreamOfTasks().check_head("clip-lora", head_info("clip-lora").cls)


def test_the_table_marks_the_best_of_the_incremental_heads(tasks, text):
    heads = {"zero-shot": ZeroShot(), "means": Means(), "last": Last(), "knn": Knn()}
    runs = learn_task_stream(heads, tasks, text, seeds=[1, 2])
    title, *lines = table(runs).splitlines()
    assert title == "5 shots"
    assert lines[0].split() == ["head", "learns", "Transfer", "Average", "Last", "forgetting", "forward", "transfer"]
    assert [line.split()[0] for line in lines[1:5]] == ["zero-shot", "means", "last", "knn"]
    assert ["nothing" in lines[1], "task by task" in lines[2], "joint" in lines[4]] == [True] * 3
    means = next(run for run in runs if run.head == "means")
    assert f"•{100 * means.continual.metrics.mean('last'):.1f} ± 0.0" in lines[2]
    assert "•" not in lines[4]
    assert "Mean ± sample standard deviation over 2 seeds (1, 2)." in lines
    assert ["‡" in line.split() for line in lines[1:5]] == [False, False, False, True]
    assert f"‡ knn: {fidelity_of('knn')}" in lines
