"""Write what is known of open_clip's models without importing it, for ``clipadapter encoders`` and for wrong names.

    python scripts/make_open_clip_models.py

Run it again for a new release of open_clip. A test compares the file with the installed open_clip.
"""

from __future__ import annotations

import json
import logging
import sys
from importlib.metadata import version
from typing import Any

from clipadapter.encoders.catalogue import MODELS_FILE, QUICK_GELU
from clipadapter.encoders.open_clip import weights_files
from clipadapter.utils.files import write_atomically


def main() -> None:
    """Describe all models and write the file into the package, one model per line."""
    logging.disable(logging.WARNING)  # open_clip warns that the networks have no weights
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(facts)}" for name, facts in describe_models().items())
    head = f'"open_clip": {json.dumps(version("open_clip_torch"))},\n "models": '
    write_atomically(MODELS_FILE, f"{{{head}{{\n{lines}\n }}}}\n".encode())
    sys.stdout.write(f"wrote {MODELS_FILE}, {MODELS_FILE.stat().st_size / 1e3:.0f} KB\n")


def describe_models() -> dict[str, dict[str, Any]]:
    """Facts about the architectures of open_clip, for `clipadapter.encoders.catalogue`: see `KnownModel` there.

    No weights are needed: parameters are counted in networks without storage. For text towers of the library
    transformers, whose configuration is on the hub, they are not counted.
    """
    import open_clip

    described, names = {}, open_clip.list_models()
    for name in names:
        if name.endswith(QUICK_GELU) and name.removesuffix(QUICK_GELU) in names:
            continue  # a second name
        config = open_clip.get_model_config(name)
        text = config["text_cfg"]
        size = config["vision_cfg"].get("image_size", 224)
        tags = open_clip.list_pretrained_tags_by_model(name)
        described[name] = {
            "dim": int(config["embed_dim"]),
            "image_size": int(size if isinstance(size, int) else size[0]),
            "parameters": None if "hf_model_name" in text else count_parameters(name),
            "text": _text_rules(text),
            "tags": {tag: weights_files(open_clip.get_pretrained_cfg(name, tag))[0] for tag in tags},
        }
    return described


def count_parameters(model: str) -> int:
    """Number of parameters of an architecture of open_clip, both towers."""
    import open_clip
    import torch

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = open_clip.create_model(model, load_weights=False, device="meta")
    return sum(parameter.numel() for parameter in network.parameters())


def _text_rules(text_config: dict[str, Any]) -> str:
    """The rules for texts in words: their length, and what happens to one before its tokens are looked up."""
    default = "" if text_config.get("hf_tokenizer_name") else "lower"  # else the tokenizer of the library decides
    cleaning = (text_config.get("tokenizer_kwargs") or {}).get("clean", default)
    rules = {"lower": ", lower case", "canonicalize": ", lower case, no punctuation"}
    return f"{int(text_config.get('context_length', 77))} tokens{rules.get(cleaning, '')}"


if __name__ == "__main__":
    main()
