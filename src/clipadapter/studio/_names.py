"""What a person calls a class, and the folder that its pictures lie in."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from hashlib import blake2b

from clipadapter.data.dataset import SPLIT_ALIASES
from clipadapter.errors import InputError

LONGEST = 120
"""Letters of a class name."""
_BYTES = 100
"""Of a folder's name: file systems take 255, and some of that is for what is written beside it."""
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(10))})


def checked_name(text: str, taken: Collection[str] = ()) -> str:
    r"""A class name as it is kept: one line, no spaces around, composed letters.

    Args:
        text: what was typed.
        taken: names of the other classes.

    Raises:
        InputError: if nothing is left, it is too long, or a class is called so already, but for capitals.

    >>> checked_name("  tabby\n cat ")
    'tabby cat'
    """
    kept = "".join(letter if unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co") else " " for letter in text)
    name = unicodedata.normalize("NFC", " ".join(kept.split()))
    if not name:
        raise InputError("a class needs a name: type one, such as 'tabby cat'")
    if len(name) > LONGEST:
        raise InputError(f"the name of a class has at most {LONGEST} letters, but this has {len(name)}: shorten it")
    same = [other for other in taken if _alike(other) == _alike(name)]
    if same:
        raise InputError(f"there is a class '{same[0]}' already: give another name")
    return name


def folder_name(name: str, taken: Collection[str] = ()) -> str:
    """A folder for a class: the name itself where every system takes it and data sets read it as a class.

    Slashes, leading dots, names of devices, names of parts such as "test", and what is too long are changed.

    Args:
        name: of the class.
        taken: what lies beside it.

    >>> folder_name("tabby cat"), folder_name("a/b"), folder_name("..")
    ('tabby cat', 'a_b', '_')
    """
    plain = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", unicodedata.normalize("NFC", name)).strip(" ")
    plain = re.sub(r"^\.+", "_", plain).rstrip(". ") or "_"
    plain = plain.encode(errors="replace").decode()
    if plain.partition(".")[0].strip().casefold() in _DEVICES or plain.casefold() in SPLIT_ALIASES:
        plain += "_"
    if len(plain.encode()) > _BYTES:
        cut = plain.encode()[: _BYTES - 9].decode(errors="ignore").rstrip(". ")
        plain = f"{cut}-{blake2b(name.encode(errors='replace'), digest_size=4).hexdigest()}"
    others, found, number = {_alike(other) for other in taken}, plain, 2
    while _alike(found) in others:
        found, number = f"{plain}-{number}", number + 1
    return found


def _alike(name: str) -> str:
    """The same text for names that some system takes for one: capitals and the way accents are written don't count."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())
