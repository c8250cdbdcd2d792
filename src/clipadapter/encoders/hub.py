"""Files of the Hugging Face hub: in its cache on this machine, reachable within seconds, or downloaded."""

from __future__ import annotations

import threading

TIMEOUT_SECONDS = 3.0


def cached_file(repo: str, names: list[str], revision: str | None = None) -> str | None:
    """Path of the first of these files in the hub's cache on this machine; makes no request.

    Args:
        repo: such as ``laion/CLIP-ViT-B-32-laion2B-s34B-b79K``.
        names: file names, best first.
        revision: branch, tag or commit; by default the main branch as it was at the last request.
    """
    from huggingface_hub import try_to_load_from_cache

    for name in names:
        path = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(path, str):
            return path
    return None


def download_file(repo: str, name: str, revision: str | None = None) -> str | None:
    """Path of a file of a repository, downloaded into the hub's cache; None if the repository has no such file.

    Args:
        repo: such as ``imageomics/bioclip``.
        name: name of the file.
        revision: branch, tag or commit; by default the main branch.

    Raises:
        OSError: if it can't be downloaded; other classes are possible.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return hf_hub_download(repo, name, revision=revision)
    except LocalEntryNotFoundError:  # no answer; a class of EntryNotFoundError
        raise
    except EntryNotFoundError:
        return None


def hub_answers(repo: str, name: str, timeout: float = TIMEOUT_SECONDS) -> bool:
    """Whether the hub can be reached and knows the repository.

    Args:
        repo: such as ``laion/CLIP-ViT-B-32-laion2B-s34B-b79K``.
        name: the file to request; it need not exist.
        timeout: maximum seconds to wait.
    """
    answer: list[bool] = []
    # In a thread, since a DNS lookup can take far longer than the timeout of the request.
    thread = threading.Thread(target=lambda: answer.append(_request(repo, name, timeout)), daemon=True)
    thread.start()
    thread.join(timeout)
    return answer == [True]


def _request(repo: str, name: str, timeout: float) -> bool:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    try:
        # The log-in page of a network answers too, but without a commit.
        return get_hf_file_metadata(hf_hub_url(repo, name), timeout=timeout).commit_hash is not None
    except EntryNotFoundError:
        return True
    except Exception:  # the class depends on the version of huggingface_hub
        return False
