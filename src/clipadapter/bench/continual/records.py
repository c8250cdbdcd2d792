"""What a record says of a stream: tasks that come one after the other, and what is known of each after each."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from clipadapter.bench.continual.metrics import ContinualMetrics, continual_metrics
from clipadapter.bench.record_parts import Metrics, Part


class Task(Part):
    """One task of a stream.

    Args:
        name: what tables call it.
        part: name of the test part that has its test pictures.
        classes: its classes; a class may be in several tasks.
        shots: how many shots it brings, of all its classes together.
    """

    name: str
    part: str
    classes: list[str] = Field(min_length=1)
    shots: int = Field(ge=0)


class Stream(Part):
    """How tasks come, and how a head learns them.

    Args:
        task_known: whether an answer is among the classes of the picture's own task, as if someone said which it is
            (MTIL); else it is among the classes of all tasks (X-TAIL).
        joint: whether the head is fitted anew to the shots of all tasks so far; else it goes on from what it learned,
            and sees the shots of the new task alone.
        tasks: the tasks in the order in which they are learned.
    """

    task_known: bool
    joint: bool
    tasks: list[Task] = Field(min_length=1)

    def rows_of(self, rows: Sequence[int]) -> list[list[int]]:
        """The rows of each task, of all drawn rows in the order of the tasks.

        >>> tasks = [Task(name=name, part="test", classes=[name], shots=n) for name, n in (("a", 1), ("b", 2))]
        >>> Stream(task_known=False, joint=False, tasks=tasks).rows_of([7, 8, 9])
        [[7], [8, 9]]
        """
        found, start = [], 0
        for task in self.tasks:
            found.append(list(rows[start : start + task.shots]))
            start += task.shots
        return found


class Step(Part):
    """What came of learning one task.

    Args:
        seconds: of this fit.
        size: how many numbers are kept to answer and to go on: those of the head, and for one that is fitted anew each
            time the features of all shots so far.
        metrics: figures on every task, learned or not, in the order of the tasks.
    """

    seconds: float
    size: int
    metrics: list[Metrics]


class ContinualResult(Part):
    """What came of a stream of T tasks.

    Args:
        zero_shot: accuracy of the class text alone on each task; None if a class has no text.
        steps: T, one after each task.
    """

    zero_shot: list[float] | None = None
    steps: list[Step]

    @property
    def accuracy(self) -> list[list[float]]:
        """(T, T): row t, column i is the accuracy on task i after task t."""
        return [[one.accuracy for one in step.metrics] for step in self.steps]

    @property
    def metrics(self) -> ContinualMetrics:
        """Transfer, Average, Last, forgetting and forward transfer."""
        return continual_metrics(self.accuracy, self.zero_shot)
