"""Files of the Hugging Face hub: in its cache on this machine, reachable within seconds, or downloaded.

What is in the cache is used without a request.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipadapter.encoders.catalogue import find_repository_name
from clipadapter.errors import EncoderUnavailableError

REPOSITORY_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>\S+))?")
TIMEOUT_SECONDS = 3.0
OPEN_CLIP_WEIGHTS = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
"""Names of the weights in a repository of open_clip, best first, as in open_clip."""
FOLDER_FORMS = {"timm": "timm:local-dir:FOLDER", "hf": "hf:FOLDER"}
"""How the folder of a model is named, by scheme; of others as those of open_clip."""


def advise(uri: str) -> str:
    """What to do if the weights of an encoder can't be had."""
    form = FOLDER_FORMS.get(uri.partition(":")[0], "open_clip:local-dir:PATH")
    return (
        f"Copy a folder with its weights here and say {form}, make the hub reachable, or say lite, which needs neither"
    )


@dataclass(frozen=True)
class HubSource:
    """The file of a repository that an encoder needs: the first of some names that the repository has."""

    uri: str  # of the encoder, for messages
    repo: str  # such as laion/CLIP-ViT-B-32-laion2B-s34B-b79K
    names: Sequence[str]  # best first
    revision: str | None = None  # branch, tag or commit; None: the main branch as it was at the last request

    def cached(self) -> Path | None:
        """Where it is in the cache; None if it is not there."""
        path = cached_file(self.repo, self.names, self.revision)
        return None if path is None else Path(path)

    def check(self) -> None:
        """Refuse a file that is not on this machine, if the hub does not answer. Nothing is downloaded."""
        if self.cached() is None and not hub_answers(self.repo, self.names[0]):
            hint = f": {self.other_name()}" if self.other_name() else ""
            raise EncoderUnavailableError(
                f"{self.names[0]} of {self.repo}, which {self.uri} needs, is not on this machine, and the hub does not "
                f"answer or has no such repository{hint}. {advise(self.uri)}."
            )

    def path(self) -> Path:
        """Where it is, downloaded if it is not on this machine."""
        path = self.cached()
        if path is not None:
            return path
        self.check()
        for name in self.names:
            try:
                downloaded = download_file(self.repo, name, self.revision)
            except Exception as error:  # the class depends on the version of huggingface_hub
                raise self._not_downloaded(name, error) from error
            if downloaded is not None:
                return Path(downloaded)
        hint = self.other_name() or "take one of 'clipadapter encoders', or another scheme for the same repository"
        raise EncoderUnavailableError(f"the repository {self.repo} has no {' or '.join(self.names)}: {hint}")

    def folder(self, patterns: Sequence[str]) -> Path:
        """The snapshot of the repository, with the files of these patterns."""
        from huggingface_hub import snapshot_download

        self.check()
        try:
            folder = snapshot_download(
                self.repo, revision=self.revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]
            )
        except Exception as error:  # the class depends on the version of huggingface_hub
            raise self._not_downloaded("a file", error) from error
        return Path(folder)

    def other_name(self) -> str:
        """How open_clip opens the weights of the repository, as advice; empty if they are not known to be there."""
        name = find_repository_name(self.repo)
        return f"say {name} for these weights" if name and name != self.uri else ""

    def _not_downloaded(self, name: str, error: Exception) -> EncoderUnavailableError:
        return EncoderUnavailableError(f"{name} of {self.repo} can't be downloaded: {error}. {advise(self.uri)}.")


def cached_file(repo: str, names: Sequence[str], revision: str | None = None) -> str | None:
    """Path of the first of these files in the hub's cache on this machine; makes no request."""
    from huggingface_hub import try_to_load_from_cache

    paths = (try_to_load_from_cache(repo, name, revision=revision) for name in names)
    return next((path for path in paths if isinstance(path, str)), None)


def download_file(repo: str, name: str, revision: str | None = None) -> str | None:
    """Path of a file of a repository, downloaded into the hub's cache; None if the repository has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return hf_hub_download(repo, name, revision=revision)
    except LocalEntryNotFoundError:  # no answer; a class of EntryNotFoundError
        raise
    except EntryNotFoundError:
        return None


def hub_answers(repo: str, name: str, timeout: float = TIMEOUT_SECONDS) -> bool:
    """Whether the hub can be reached within some seconds and knows the repository; the file need not exist."""
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
