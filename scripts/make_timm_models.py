"""Write what is known of timm's models without importing it, for ``clipadapter encoders`` and for wrong names.

    python scripts/make_timm_models.py

Run it again for a new release of timm; it takes some minutes. A test compares the file with the installed timm.
"""

from __future__ import annotations

import json
import logging
import sys
from importlib.metadata import version
from typing import Any

from clipadapter.encoders.catalogue import TIMM_MODELS_FILE
from clipadapter.encoders.timm import spell_licence
from clipadapter.utils.files import write_atomically


def main() -> None:
    """Describe all models and write the file into the package, one model per line."""
    logging.disable(logging.WARNING)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(facts)}" for name, facts in describe_models().items())
    head = f'"timm": {json.dumps(version("timm"))},\n "untrained": {json.dumps(list_untrained())},\n "models": '
    write_atomically(TIMM_MODELS_FILE, f"{{{head}{{\n{lines}\n }}}}\n".encode())
    sys.stdout.write(f"wrote {TIMM_MODELS_FILE}, {TIMM_MODELS_FILE.stat().st_size / 1e3:.0f} KB\n")


def describe_models() -> dict[str, dict[str, Any]]:
    """Facts about all pretrained models of timm, for `clipadapter.encoders.catalogue`: see `EncoderListing`.

    No weights are needed: width and parameters are those of networks without storage.
    """
    import timm

    measured: dict[str, dict[str, int]] = {}
    described = {}
    for name in timm.list_models(pretrained=True):
        config = timm.get_pretrained_cfg(name)
        architecture = name.partition(".")[0]
        if architecture not in measured:
            measured[architecture] = _measure(architecture)
        described[name] = {
            **measured[architecture],
            "image_size": int(config.input_size[-1]),
            "licence": spell_licence(config.to_dict()),
        }
    return described


def list_untrained() -> list[str]:
    """The architectures of timm without pretrained weights."""
    import timm

    trained = {name.partition(".")[0] for name in timm.list_models(pretrained=True)}
    return sorted(set(timm.list_models()) - trained)


def _measure(architecture: str) -> dict[str, int]:
    """Width of the features and number of parameters; nothing for networks that need storage to be built."""
    import timm
    import torch

    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = timm.create_model(architecture, num_classes=0)
    except (RuntimeError, NotImplementedError, TypeError):
        return {}
    width = getattr(network, "head_hidden_size", None) or network.num_features
    return {"dim": int(width), "parameters": sum(parameter.numel() for parameter in network.parameters())}


if __name__ == "__main__":
    main()
