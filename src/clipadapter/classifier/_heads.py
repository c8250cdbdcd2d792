"""The head that a classifier was told to fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipadapter.errors import InputError
from clipadapter.heads import Head, create_head


def make_head(head: str | Head, params: Mapping[str, Any] | None, seed: int, progress: bool) -> Head:
    """The head itself, or a new one by name.

    Args:
        head: a head, or a registered name.
        params: of a head by name.
        seed: given to a head by name that takes one, if ``params`` has none.
        progress: likewise.

    Raises:
        InputError: if there are parameters beside a head that is made already, or the head has no such parameter.
        UnknownNameError: if no head has the name.
    """
    if isinstance(head, Head):
        if params:
            raise InputError("head_params go with a head's name; set them on the head that was given instead")
        return head
    given = dict(params or {})
    made = create_head(head, **given)
    known = made.get_params(deep=False)
    for name, value in (("seed", seed), ("progress", progress)):
        if name in known and name not in given:
            made.set_params(**{name: value})
    return made
