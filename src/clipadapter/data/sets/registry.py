"""The registry of benchmark data sets."""

from __future__ import annotations

from collections.abc import Callable

from clipadapter.data.sets.base import BenchmarkSet
from clipadapter.registry import Registry

SETS: Registry[BenchmarkSet] = Registry("data set", "clipadapter.data.sets", read_source=False)
list_sets = SETS.list
set_info = SETS.info
create_set = SETS.create


def register_set(name: str) -> Callable[[type[BenchmarkSet]], type[BenchmarkSet]]:
    """Class decorator that gives a data set its public name.

    Raises:
        InputError: if another class has the name.
    """

    def decorate(cls: type[BenchmarkSet]) -> type[BenchmarkSet]:
        cls.name = name
        return SETS.register(name)(cls)

    return decorate


def find_set(name: str) -> BenchmarkSet | None:
    """The data set of this name; None if there is none.

    >>> find_set("dtd").templates
    'dtd'
    >>> find_set("shots/") is None
    True
    """
    return create_set(name) if name in list_sets() else None
