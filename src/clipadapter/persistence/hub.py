"""A saved model as a repository of the Hugging Face hub, and back.

Only files that a model's folder can have are fetched, and they are checked as every model is: nothing is unpickled.
Token, endpoint and cache are those of the hub's client: ``hf auth login`` or HF_TOKEN, HF_ENDPOINT, HF_HOME.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipadapter.errors import ArtifactError, ClipAdapterError, InputError
from clipadapter.files import without_paths
from clipadapter.persistence.card import card_of
from clipadapter.persistence.folder import read_consistently
from clipadapter.persistence.format import (
    CARD,
    CONFIG,
    OURS,
    ArtifactConfig,
    check_place,
    config_bytes,
    read_blob,
    read_config,
)
from clipadapter.persistence.history import Content
from clipadapter.persistence.model import load_model
from clipadapter.persistence.save import Told, write_content

GRAPHS = (".onnx", ".xml", ".bin")
"""Ends of names of what `clipadapter.export` writes."""
MESSAGE = "A model of clipadapter"


@dataclass(frozen=True)
class Pushed:
    """What `push` did.

    Args:
        repo: name of the repository.
        url: of the commit.
        files: names that are of this model, sorted.
        others: names of further files in the repository, which stay as they were.
    """

    repo: str
    url: str
    files: tuple[str, ...]
    others: tuple[str, ...]


def push(
    folder: str | Path,
    repo_id: str,
    *,
    exported: Sequence[str | Path] = (),
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    commit_message: str = MESSAGE,
) -> Pushed:
    """Put a saved model onto the hub, in one commit; the repository is made if there is none.

    The card is made anew with the repository's name, unless a person has written it. Paths of this machine are left
    out.

    Args:
        folder: a saved model; it is checked first.
        repo_id: such as ``org/name``.
        exported: what `clipadapter export` wrote, to lie beside it: ``.onnx``, or ``.xml`` (its ``.bin`` comes along).
        private: whether a repository that is made is private; the account's default if not given.
        token: instead of the one that the hub's client has.
        branch: to commit to; "main" if not given.
        create_pr: propose the change instead of making it.
        commit_message: of the commit.

    Raises:
        ArtifactError: if the model is not sound, or the hub can't be reached or refuses.
        InputError: if a name can't be, or an exported file is missing or is none.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    config, blobs = read_consistently(folder, lambda: _public(folder))
    files: dict[str, Any] = {path.name: path for path in _graphs(exported)}
    files |= blobs
    api = HfApi(token=token)
    with _told(repo_id, "write to"):
        repo = str(api.create_repo(repo_id, private=private, exist_ok=True).repo_id)
        card = card_of(folder, config, repo)
        files |= {CONFIG: config_bytes(config), CARD: Path(folder) / CARD if card is None else card.encode()}
        there = set(api.list_repo_files(repo, revision=branch))
        stale = sorted(there & set(OURS) - set(files))
        done = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, data) for name, data in sorted(files.items())),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
        )
    others = sorted(name for name in there - set(files) - set(stale) if name != ".gitattributes")
    return Pushed(repo, str(done.pr_url or done.commit_url), tuple(sorted(files)), tuple(others))


def fetch(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The folder in the hub's cache with the files of a model, fetched if they are not there; not yet checked.

    Args:
        repo_id: such as ``org/name``.
        revision: branch, tag or commit; "main" if not given.
        token: instead of the one that the hub's client has.
        cache_dir: instead of the client's cache folder.
        local_files_only: ask no network.
        force_download: fetch what is there already, too.

    Raises:
        ArtifactError: if the hub has no such model, can't be reached or refuses, and the cache has none.
        InputError: if the name can't be.
    """
    from huggingface_hub import snapshot_download

    with _told(repo_id, "read"):
        found = snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            allow_patterns=list(OURS),
        )
    folder = Path(found)
    if not (folder / CONFIG).is_file():
        raise ArtifactError(f"the repository {repo_id} holds no model of clipadapter: it has no {CONFIG}")
    return folder


def pull(repo_id: str, folder: str | Path, **options: Any) -> Path:
    """A model of the hub as an ordinary folder; it is checked before it is written.

    Args:
        repo_id: such as ``org/name``.
        folder: where to; a model that is there can be gone back to.
        options: as of `fetch`.

    Raises:
        ArtifactError: if it can't be had, is not sound, or can't be written.
        InputError: if the name can't be.
    """
    check_place(folder)
    source = fetch(repo_id, **options)
    load_model(source)
    config = read_config(source)
    parts = {name: part for name, part in config.files.items() if name in OURS}
    blobs = {part.sha256: (source / name).read_bytes() for name, part in parts.items()}
    content = Content(config.model_copy(update={"files": parts}), (source / CONFIG).read_bytes(), {}, blobs)
    card = (source / CARD).read_bytes() if (source / CARD).is_file() else None
    return write_content(folder, content, Told(action="pull", facts={"repo": repo_id}, card=card))


def _public(folder: str | Path) -> tuple[ArtifactConfig, dict[str, bytes]]:
    """The config of a sound model without paths of this machine, which tell of a person and serve nobody else.

    And the contents of its files of arrays.

    Those of the shots are left out; of an encoder's folder its own name stays.
    """
    load_model(folder)
    config = read_config(folder)
    strange = sorted(set(config.files) - set(OURS))
    if strange:
        raise ArtifactError(f"{folder} names files that no model has: {', '.join(strange)}")
    name = without_paths(config.encoder.name)
    public = config.model_copy(update={"sources": [], "encoder": config.encoder.model_copy(update={"name": name})})
    return public, {name: read_blob(folder, config, name) for name in config.files}


def _graphs(exported: Sequence[str | Path]) -> list[Path]:
    """The files that were given, and weights that lie apart."""
    found = []
    for path in map(Path, exported):
        if path.suffix not in GRAPHS:
            raise InputError(f"{path} is no exported model: it should end with .onnx or .xml")
        beside = path.with_suffix(".bin")
        for each in dict.fromkeys([path, beside] if path.suffix == ".xml" else [path]):
            if not each.is_file():
                raise InputError(f"there is no file {each}: 'clipadapter export' makes it")
            found.append(each)
    names: Mapping[str, Path] = {path.name: path for path in found}
    if len(names) < len({path.resolve() for path in found}):
        raise InputError("two exported files have the same name: push them one by one, or rename one")
    return list(names.values())


@contextmanager
def _told(repo_id: str, doing: str) -> Iterator[None]:
    """Errors of the hub's client as ours, with what to do."""
    from huggingface_hub import errors

    try:
        yield
    except ClipAdapterError:
        raise
    except errors.HFValidationError as error:
        raise InputError(f"'{repo_id}' is neither a folder nor a name on the hub such as org/name ({error})") from error
    except errors.GatedRepoError as error:
        raise ArtifactError(f"{repo_id} is gated: ask for access on its page, then 'hf auth login'") from error
    except errors.RepositoryNotFoundError as error:
        raise ArtifactError(
            f"there is no folder {repo_id}, and the hub shows no repository of that name: check it; if it is private, "
            "say 'hf auth login' or set HF_TOKEN first"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ArtifactError(f"the repository {repo_id} has no such branch, tag or commit") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if doing != "read":
            raise ArtifactError(f"can't {doing} {repo_id}: the hub was not asked. Unset HF_HUB_OFFLINE") from error
        raise ArtifactError(
            f"{repo_id} can't be had: it is not in the hub's cache on this machine, and the hub was not asked or does "
            "not answer. Unset HF_HUB_OFFLINE, be online once, or copy the model's folder here and give its path"
        ) from error
    except Exception as error:  # which class a dead network raises depends on the version of the hub's client
        said = " ".join(dict.fromkeys([*str(error).splitlines(), *str(error.__cause__ or "").splitlines()]))
        said = f"{said}. Is this machine online, and the hub (HF_ENDPOINT) up?"
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            said = f"it wants a token that may {doing} {repo_id}: 'hf auth login', or set HF_TOKEN"
        raise ArtifactError(f"can't {doing} {repo_id} on the hub: {said}") from error
