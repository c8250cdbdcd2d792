"""Upload a saved model to the Hugging Face hub, and download it.

Only the files of a model are downloaded, and they are checked like those of every model: nothing is unpickled. Token,
endpoint and cache are those of the hub's client: ``hf auth login`` or HF_TOKEN, HF_ENDPOINT, HF_HOME.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from clipadapter.errors import ArtifactError, ClipAdapterError, InputError
from clipadapter.persistence.card import make_card, read_card
from clipadapter.persistence.format import (
    ModelConfig,
    check_target_folder,
    config_bytes,
    read_consistently,
    read_snapshot,
)
from clipadapter.persistence.model import load_model
from clipadapter.persistence.versions import write_snapshot
from clipadapter.runtime.engines.formats import companion_files, export_suffixes, load_formats
from clipadapter.runtime.model_folder import ARRAY_NAMES, ARRAYS_FOLDER, CARD_FILE, CONFIG_FILE, array_file
from clipadapter.utils.files import without_paths

MODEL_PATTERNS = (
    CONFIG_FILE,
    CARD_FILE,
    *(f"{ARRAYS_FOLDER}/{name}-{16 * '[0-9a-f]'}.safetensors" for name in ARRAY_NAMES),
)
"""Which files of a repository are those of a model. The history stays on its machine."""


@dataclass(frozen=True)
class PushResult:
    """Result of `push`."""

    repo: str  # name of the repository
    url: str  # URL of the commit
    files: tuple[str, ...]  # names of the uploaded files, sorted
    others: tuple[str, ...]  # names of other files in the repository, which are unchanged


def push(
    folder: str | Path,
    repo_id: str,
    *,
    exported: Sequence[str | Path] = (),
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    commit_message: str = "A model of clipadapter",
) -> PushResult:
    """Upload a saved model in one commit. The repository is created if it does not exist.

    The model card is made again with the name of the repository, unless a person has edited it. Paths of this machine
    are left out.

    Args:
        folder: a saved model; it is checked first.
        repo_id: repository such as ``org/name``.
        exported: files that `clipadapter export` wrote, to upload too, such as ``pets.onnx``. Files that belong to them
            are added.
        private: whether a new repository is private; if None, the default of the account.
        token: access token; if None, that of the hub's client.
        branch: target branch; "main" if None.
        create_pr: open a pull request instead of committing.
        commit_message: message of the commit.

    Raises:
        ArtifactError: if the model is invalid, or the upload fails.
        InputError: if a name is invalid, or an exported file is missing or no export.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    config, blobs = read_consistently(folder, _read_public)
    files: dict[str, Any] = {**_collect_exports(exported), **blobs}
    api = HfApi(token=token)
    with _as_library_errors(repo_id, "write to"):
        repo = str(api.create_repo(repo_id, private=private, exist_ok=True).repo_id)
        card = make_card(folder, config, repo)
        files |= {CONFIG_FILE: config_bytes(config), CARD_FILE: Path(folder) / CARD_FILE if card is None else card}
        old_files = set(api.list_repo_files(repo, revision=branch))
        stale = sorted(
            file for file in old_files - set(files) if any(fnmatchcase(file, each) for each in MODEL_PATTERNS)
        )
        commit = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, data) for name, data in sorted(files.items())),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
        )
    others = sorted(name for name in old_files - set(files) - set(stale) if name != ".gitattributes")
    return PushResult(repo, str(commit.pr_url or commit.commit_url), tuple(sorted(files)), tuple(others))


def fetch(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Download the files of a model into the hub's cache, and return their folder. They are not checked yet.

    Args:
        repo_id: repository such as ``org/name``.
        revision: branch, tag or commit; "main" if None.
        token: access token; if None, that of the hub's client.
        cache_dir: cache folder; if None, that of the hub's client.
        local_files_only: use the cache only, no network.
        force_download: download files that are in the cache too.

    Raises:
        ArtifactError: if the model is neither on the hub nor in the cache, or the hub can't be reached.
        InputError: if the name is invalid.
    """
    from huggingface_hub import snapshot_download

    with _as_library_errors(repo_id, "read"):
        downloaded = snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            allow_patterns=list(MODEL_PATTERNS),
        )
    folder = Path(downloaded)
    if not (folder / CONFIG_FILE).is_file():
        raise ArtifactError(f"the repository {repo_id} holds no model of clipadapter: it has no {CONFIG_FILE}")
    return folder


def pull(repo_id: str, folder: str | Path, **options: Any) -> Path:
    """Download and check a model, and write it to a folder.

    Args:
        repo_id: repository such as ``org/name``.
        folder: target folder. A model in it can be restored with undo.
        options: see `fetch`.

    Raises:
        ArtifactError: if the model can't be downloaded, is invalid, or can't be written.
        InputError: if the name is invalid.
    """
    check_target_folder(folder)
    source = fetch(repo_id, **options)
    load_model(source)
    change = {"action": "pull", "facts": {"repo": repo_id}}
    return write_snapshot(folder, read_snapshot(source), change=change, card=read_card(source))


def _read_public(folder: str | Path) -> tuple[ModelConfig, dict[str, bytes]]:
    """Read a valid model without paths of this machine, which are private."""
    load_model(folder)
    snapshot = read_snapshot(folder)
    config = snapshot.config
    name = without_paths(config.encoder.name)  # the last part of its folder; the paths of the shots are left out
    public = config.model_copy(update={"sources": [], "encoder": config.encoder.model_copy(update={"name": name})})
    return public, {array_file(name, sha256): snapshot.read(name) for name, sha256 in config.files.items()}


def _collect_exports(exported: Sequence[str | Path]) -> dict[str, Path]:
    """Exported files, and those that belong to them, such as the ``.bin`` of an ``.xml``, by name."""
    companion_suffixes = {suffix for each in load_formats().values() for suffix in each.companion_suffixes}
    files = []
    for path in map(Path, exported):
        if path.suffix not in (*export_suffixes(), *companion_suffixes):
            raise InputError(f"{path} is no exported model: it should end with {' or '.join(export_suffixes())}")
        for file in (path, *companion_files(path)):
            beside = path.with_suffix(file.suffix)  # the two must have one name to be found together
            if not file.is_file() or file.name != beside.name:
                raise InputError(f"there is no file {beside}: 'clipadapter export' makes it")
            files.append(file)
    by_name = {path.name: path for path in files}
    if len(by_name) < len({path.resolve() for path in files}):
        raise InputError("two exported files have the same name: push them one by one, or rename one")
    return by_name


@contextmanager
def _as_library_errors(repo_id: str, action: str) -> Iterator[None]:
    """Raise our errors for those of the hub's client, with what to do."""
    from huggingface_hub import errors

    try:
        yield
    except ClipAdapterError:
        raise
    except errors.HFValidationError as error:
        raise InputError(f"'{repo_id}' is neither a folder nor a name on the hub such as org/name ({error})") from error
    except errors.GatedRepoError as error:
        raise ArtifactError(f"{repo_id} is gated: request access on its page, then run 'hf auth login'") from error
    except errors.RepositoryNotFoundError as error:
        raise ArtifactError(
            f"there is no folder {repo_id}, and the hub shows no repository of that name: check it; if it is private, "
            "run 'hf auth login' or set HF_TOKEN first"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ArtifactError(f"the repository {repo_id} has no such branch, tag or commit") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if action != "read":
            raise ArtifactError(f"can't {action} {repo_id}: no request was sent. Unset HF_HUB_OFFLINE") from error
        raise ArtifactError(
            f"{repo_id} is not available: it is not in the hub's cache on this machine, and the hub was not contacted "
            "or does not answer. Unset HF_HUB_OFFLINE, connect to the internet once, or copy the model's folder "
            "here and pass it"
        ) from error
    except Exception as error:  # which class a dead network raises depends on the version of the hub's client
        message = " ".join(dict.fromkeys([*str(error).splitlines(), *str(error.__cause__ or "").splitlines()]))
        message = f"{message}. Is this machine online, and the hub (HF_ENDPOINT) up?"
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            message = f"it requires a token that may {action} {repo_id}: 'hf auth login', or set HF_TOKEN"
        raise ArtifactError(f"can't {action} {repo_id} on the hub: {message}") from error
