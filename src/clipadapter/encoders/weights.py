"""Files and folders of one's own with weights: what is refused before they are read, and what is wrong with them.

torch is imported when it is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipadapter.errors import ClipAdapterError, DataError, EncoderUnavailableError, InputError, brief
from clipadapter.utils.parsing import read_json

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
CHECKPOINT_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Where checkpoints of open_clip and timm have the weights, in timm's order."""
WRAPPER_PREFIX = re.compile(r"^(module\.|_orig_mod\.)+")
"""What training on several devices and torch.compile put before the names of weights."""


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
    """A configuration, an object of JSON.

    Raises:
        EncoderUnavailableError: if it can't be read, or is another kind of JSON.
    """
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
