"""Is something on the hub, or already on this machine: asked without ever waiting long."""

from __future__ import annotations

import threading

TIMEOUT = 3.0
"""Seconds that the hub has to answer."""


def cached_file(repo: str, names: list[str]) -> str | None:
    """Path of the first of these files that the hub's cache on this machine has; asks no network.

    Args:
        repo: such as ``laion/CLIP-ViT-B-32-laion2B-s34B-b79K``.
        names: file names, best first.
    """
    from huggingface_hub import try_to_load_from_cache

    for name in names:
        found = try_to_load_from_cache(repo, name)
        if isinstance(found, str):
            return found
    return None


def hub_answers(repo: str, name: str, timeout: float = TIMEOUT) -> bool:
    """Whether the hub knows the repository of a file now.

    Args:
        repo: such as ``laion/CLIP-ViT-B-32-laion2B-s34B-b79K``.
        name: a file that is asked for; it need not exist.
        timeout: seconds to wait at most.
    """
    answer: list[bool] = []
    # A thread, since looking up a name can hang far longer than any timeout of the request itself.
    thread = threading.Thread(target=lambda: answer.append(_ask(repo, name, timeout)), daemon=True)
    thread.start()
    thread.join(timeout)
    return answer == [True]


def _ask(repo: str, name: str, timeout: float) -> bool:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    try:
        # A log-in page in between answers too, but knows no commit.
        return get_hf_file_metadata(hf_hub_url(repo, name), timeout=timeout).commit_hash is not None
    except EntryNotFoundError:
        return True
    except Exception:  # which class a dead network raises depends on the version of the hub's client
        return False
