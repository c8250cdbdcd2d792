"""A head by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipadapter.heads.registry import HEADS

if TYPE_CHECKING:
    from clipadapter.heads.base import Head


def create_head(name: str, **params: Any) -> Head:
    """A new head with these parameters.

    Raises:
        UnknownNameError: if no head, or no parameter of it, has this name.
        InputError: if a parameter is missing.

    >>> create_head("tip-adapter", alpha=2.0).alpha
    2.0
    """
    head: Head = HEADS.create(name, **params)
    return head
