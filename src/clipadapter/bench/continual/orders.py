"""The tasks of a stream, and their order."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from clipadapter.bench.run import FrozenModel
from clipadapter.errors import InputError


class Order(FrozenModel):
    """An order of tasks.

    Args:
        name: its name in tables.
        data: data sets in their order; empty for the order in which the user named them.
        shuffle: "none"; "classes": the seed shuffles the classes within each data set, and the order of the data sets
            stays; "all": the seed shuffles the tasks, too.
    """

    name: str
    data: list[str] = Field(default_factory=list)
    shuffle: Literal["none", "classes", "all"] = "none"


ORDERS = {
    "given": Order(name="as given"),
    "classes": Order(name="classes by seed", shuffle="classes"),
    "seed": Order(name="by seed", shuffle="all"),
}
"""Orders for any data sets."""


class StreamRules(FrozenModel):
    """How data sets become a stream of tasks, and among which classes heads predict.

    Args:
        task_known: heads predict among the classes of the picture's task (MTIL); else among those of all tasks
            (X-TAIL).
        classes_per_task: about how many classes a task has; each data set is divided as evenly as possible. 0 makes
            each data set one task.
        orders: of the tasks; there is a stream for each.
        same_names: how classes of several data sets with the same name are treated. "share": they are one class,
            learned from the shots of all, and its text is the mean of theirs; "apart": each is a separate class,
            called "NAME (DATA SET)".
    """

    task_known: bool = False
    classes_per_task: int = Field(default=0, ge=0)
    orders: list[Order] = Field(default_factory=lambda: [ORDERS["given"]], min_length=1)
    same_names: Literal["share", "apart"] = "share"

    def title(self, order: Order) -> str:
        """The name of a stream in tables. Plans store it, so it must not change."""
        return order.name + (f", about {self.classes_per_task} classes a task" if self.classes_per_task else "")


def count_tasks(classes: int, classes_per_task: int) -> int:
    """The number of tasks that a data set is divided into.

    >>> count_tasks(101, 20), count_tasks(3, 20), count_tasks(101, 0)
    (5, 1, 1)
    """
    return max(1, round(classes / classes_per_task)) if classes_per_task else 1


def order_tasks(
    sets: Mapping[str, Sequence[str]], rules: StreamRules, order: Order, seed: int
) -> list[tuple[str, str, list[str]]]:
    """The tasks of a stream: (name, data set, classes). ``sets`` has classes by data set, in the order of the user.

    >>> rules = StreamRules(classes_per_task=2)
    >>> sets = {"pets": ["ant", "cat", "cow", "dog"], "cars": ["bus", "van"]}
    >>> for task in order_tasks(sets, rules, ORDERS["given"], seed=1):
    ...     print(task)
    ('pets 1/2', 'pets', ['ant', 'cat'])
    ('pets 2/2', 'pets', ['cow', 'dog'])
    ('cars', 'cars', ['bus', 'van'])
    """
    rng = random.Random(seed)
    tasks = []
    for name in _in_order(list(sets), order):
        classes = list(sets[name])
        n = count_tasks(len(classes), rules.classes_per_task)
        if n > 1 and order.shuffle != "none":
            rng.shuffle(classes)
        for i in range(n):
            task_classes = classes[i * len(classes) // n : (i + 1) * len(classes) // n]
            tasks.append((name if n == 1 else f"{name} {i + 1}/{n}", name, task_classes))
    if order.shuffle == "all":
        rng.shuffle(tasks)
    return tasks


def _in_order(names: Sequence[str], order: Order) -> list[str]:
    if not order.data:
        return list(names)
    unordered = [name for name in names if name not in order.data]
    if unordered:
        raise InputError(
            f"the order '{order.name}' lacks {', '.join(unordered)}; it has: {', '.join(order.data)}. "
            "With --order given the data sets come in the order in which you name them"
        )
    return [name for name in order.data if name in names]
