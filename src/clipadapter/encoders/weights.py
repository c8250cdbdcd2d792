"""Where weights are: on the Hugging Face hub, or in files and folders of one's own. What is wrong is refused early.

What is in the hub's cache on this machine is used without a request. torch and the libraries with the models are
imported when they are used.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipadapter.encoders.catalogue import (
    QUICK_GELU,
    check_pretrained,
    check_timm_model,
    find_repository_name,
    read_models,
)
from clipadapter.errors import ClipAdapterError, DataError, EncoderUnavailableError, InputError, brief
from clipadapter.utils.parsing import read_json

REPOSITORY_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>\S+))?")
TIMEOUT_SECONDS = 3.0
OPEN_CLIP_WEIGHTS = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
"""Names of the weights in a repository of open_clip, best first, as in open_clip."""
FOLDER_FORMS = {"timm": "timm:local-dir:FOLDER", "hf": "hf:FOLDER"}
"""How the folder of a model is named, by scheme; of others as those of open_clip."""
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
CHECKPOINT_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Where checkpoints of open_clip and timm have the weights, in timm's order."""
WRAPPER_PREFIX = re.compile(r"^(module\.|_orig_mod\.)+")
"""What training on several devices and torch.compile put before the names of weights."""
PATH_START = re.compile(r"[/\\~.]|[A-Za-z]:[/\\]")  # how a path starts that is no repository
TIMM_EXAMPLE = "timm:vit_small_patch14_dinov2.lvd142m"
MAX_TIMM_SIZE = 4096  # pixels


def check_open_clip(variant: str) -> None:
    """Refuse a variant of ``open_clip``, or ``hf-hub:ORG/MODEL``, that can't be found, as far as its text shows."""
    kind, has_path, rest = variant.partition(":")
    model, _, tag = (kind if has_path else variant).rpartition("/")
    if kind == "local-dir":
        check_folder(rest, "open_clip:local-dir:FOLDER")
    elif kind == "hf-hub":
        if REPOSITORY_NAME.fullmatch(rest) is None:
            raise InputError(
                f"'hf-hub:{rest}' names no repository of the hub: say hf-hub:ORG/MODEL, such as "
                "hf-hub:imageomics/bioclip, or hf-hub:ORG/MODEL@REVISION"
            )
    elif has_path:
        check_file(rest, f"open_clip:{kind}:FILE", "open_clip:local-dir")
        if model:  # else the tag is an architecture: `find_file` of open_clip looks for it
            check_pretrained(model, tag)
    elif not model or not tag or variant.endswith(WEIGHTS_SUFFIXES):
        name = variant.strip("/")
        facts = read_models().get(name.removesuffix(QUICK_GELU))
        example = f"{name}/{next(iter(facts.tags))}" if facts and facts.tags else "ViT-B-32/laion2b_s34b_b79k"
        raise InputError(
            f"'open_clip:{variant}' names no weights: say open_clip:MODEL/TAG, such as open_clip:{example}, "
            "open_clip:MODEL:FILE, or open_clip:local-dir:FOLDER"
        )
    else:
        check_pretrained(model, tag)


def as_folder(variant: str) -> Path | None:
    """The folder that a variant names; None if it names a repository."""
    path = Path(variant).expanduser()
    return path if variant and (PATH_START.match(variant) or path.is_dir()) else None


def check_transformers(variant: str) -> None:
    """Refuse a variant of ``hf`` that can't be found, as far as its text shows."""
    if as_folder(variant) is not None:
        check_folder(variant, "hf:FOLDER")
    elif REPOSITORY_NAME.fullmatch(variant) is None:
        raise InputError(
            f"'hf:{variant}' names no repository of the hub and no folder: say hf:ORG/MODEL, such as "
            "hf:google/siglip2-base-patch16-224, hf:ORG/MODEL@REVISION, or hf:FOLDER"
        )


def parse_timm(variant: str) -> tuple[str, int | None, str]:
    """Model, side of the square in pixels or None, and path of MODEL, MODEL@SIZE, MODEL@SIZE:FILE, local-dir:FOLDER."""
    model, _, path = variant.partition(":")
    if model == "local-dir":
        check_folder(path, "timm:local-dir:FOLDER")
        return "", None, path
    model, has_size, size = model.partition("@")
    if has_size and not (size.isdecimal() and 0 < int(size) <= MAX_TIMM_SIZE):
        raise InputError(f"'timm:{variant}' names no size: say timm:MODEL@PIXELS, such as {TIMM_EXAMPLE}@224")
    model = model.removeprefix("timm/")  # the organisation of the repositories on the hub
    if not model or "/" in model or model.endswith(WEIGHTS_SUFFIXES):
        raise InputError(
            f"'timm:{variant}' names no model of timm: say timm:MODEL, such as {TIMM_EXAMPLE}, timm:MODEL:FILE or "
            "timm:local-dir:FOLDER"
        )
    if path:
        check_file(path, f"timm:{model}:FILE", "timm:local-dir")
    check_timm_model(model, needs_weights=not path)
    return model, int(size) if has_size else None, path


def check_folder(path: str, form: str) -> None:
    """Refuse a folder that is missing; ``form`` is how one is named."""
    if not path or not Path(path).expanduser().is_dir():
        raise EncoderUnavailableError(f"there is no folder {brief(path)}: say {form}")


def check_file(path: str, form: str, folder_form: str) -> None:
    """Refuse what is no file of weights; the forms say how a file and a folder are named."""
    file = Path(path).expanduser()
    if file.is_dir():
        raise InputError(f"{brief(path)} is a folder, not a file of weights: say {folder_form}:{path}")
    if not path or not file.is_file():
        raise EncoderUnavailableError(f"there is no file {brief(path)}: say {form}")
    if file.suffix not in WEIGHTS_SUFFIXES:
        raise InputError(f"{file.name} is no file of weights: its name must end in {', '.join(WEIGHTS_SUFFIXES)}")


def check_has_weights(folder: Path, name: str) -> None:
    """Refuse a folder without a file of weights; ``name`` is what the library calls it."""
    if not any(file.suffix in WEIGHTS_SUFFIXES for file in folder.iterdir()):
        raise EncoderUnavailableError(f"{folder} has no weights: put {name} into it")


def read_config(uri: str, file: Path) -> dict[str, Any]:
    """A configuration, which must be an object of JSON."""
    try:
        content = read_json(file)
    except DataError as error:
        raise EncoderUnavailableError(f"{uri} needs a readable {file.name}: {error}") from error
    if not isinstance(content, dict):
        raise EncoderUnavailableError(f"{file} must be an object of JSON, but is a {type(content).__name__}")
    return content


@contextmanager
def loading(what: str, advice: str) -> Iterator[None]:
    """While a library loads a model: its errors are ours, and the global random generator stays as it is."""
    import torch

    try:
        with torch.random.fork_rng(devices=[]):  # a new network draws from the global generator
            yield
    except ClipAdapterError:
        raise
    except Exception as error:  # libraries and their loaders raise errors of many classes
        raise EncoderUnavailableError(f"{what}: {explain_load_error(error)}. {advice}.") from error


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays in a file of weights."""
    import torch

    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="pt") as opened:
                return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        content = torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:  # the classes depend on the format and on the version of torch
        raise EncoderUnavailableError(f"{file} can't be read as weights: {explain_load_error(error)}") from error
    if isinstance(content, dict):
        content = next((content[key] for key in CHECKPOINT_KEYS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise EncoderUnavailableError(
            f"{file} has no weights by name, but a {type(content).__name__}: save model.state_dict() into it"
        )
    return {
        WRAPPER_PREFIX.sub("", str(name)): tuple(value.shape)
        for name, value in content.items()
        if isinstance(value, torch.Tensor)
    }


def explain_load_error(error: Exception) -> str:
    """What is wrong with a file of weights, in one sentence, from an error of torch, safetensors, open_clip or timm."""
    text = str(error)
    if "UnpicklingError" in (type(error).__name__, type(error.__cause__).__name__):
        return "it holds Python objects beside tensors, which could run code. Save model.state_dict() as safetensors"
    if "TorchScript" in text:
        return "it is a TorchScript archive, which holds code. For OpenAI's weights say open_clip:ViT-B-32/openai"
    if "loading state_dict" not in text:
        return text.strip().partition("\n")[0].rstrip(".") or f"it is damaged or empty ({type(error).__name__})"
    differing = re.findall(r"size mismatch for (\S+): .*?Size\(\[(.*?)\]\) from .*?Size\(\[(.*?)\]\)", text)
    parts = [
        f"{len(differing)} of another shape ({name}: {theirs} in the file, {ours} in the model)"
        for name, theirs, ours in differing[:1]
    ]
    for kind, meaning in (("Missing", "missing"), ("Unexpected", "unknown")):
        listed = re.search(rf"{kind} key\(s\) in state_dict: (.*?)\. *(?:\n|$)", text, re.DOTALL)
        names = re.findall(r'"(.*?)"', listed[1]) if listed else []
        parts += [f"{len(names)} {meaning} ({names[0]})"] if names else []
    return f"these are weights of another architecture, with arrays {', '.join(parts)}"


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
        """Where it is in the hub's cache on this machine; None if it is not there. Makes no request."""
        from huggingface_hub import try_to_load_from_cache

        paths = (try_to_load_from_cache(self.repo, name, revision=self.revision) for name in self.names)
        return next((Path(path) for path in paths if isinstance(path, str)), None)

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
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        if path := self.cached():
            return path
        self.check()
        for name in self.names:
            try:
                return Path(hf_hub_download(self.repo, name, revision=self.revision))
            except Exception as error:  # the class depends on the version of huggingface_hub
                # Without an answer it is a LocalEntryNotFoundError, which is an EntryNotFoundError too.
                if isinstance(error, LocalEntryNotFoundError) or not isinstance(error, EntryNotFoundError):
                    raise self._not_downloaded(name, error) from error
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
