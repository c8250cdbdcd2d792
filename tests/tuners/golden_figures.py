"""What the authors' own code gave, and the text towers that it was run with: see golden/README.md."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors import safe_open

from clipadapter.encoders.open_clip_text import open_text_tower

FOLDER = Path(__file__).parent / "golden"


def golden(method):
    """Tensors of one method by name, and the parameters that its authors' code was run with."""
    with safe_open(FOLDER / f"{method}.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["parameters"])


def text_tower(tensors, parameters):
    """The tiny CLIP text tower whose weights the figures come with."""
    facts = parameters["tower"]
    vision = {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 16}
    text = {name: facts[name] for name in ("context_length", "vocab_size", "width", "heads", "layers")}
    with torch.random.fork_rng(devices=[]):
        model = open_clip.CLIP(facts["embed_dim"], vision, text, quick_gelu=True).eval().requires_grad_(False)
    weights = {name.removeprefix("tower."): value for name, value in tensors.items() if name.startswith("tower.")}
    table = torch.zeros(facts["vocab_size"], facts["width"])
    table[weights.pop("token_ids")] = weights.pop("token_rows")
    missing, unexpected = model.load_state_dict({**weights, "token_embedding.weight": table}, strict=False)
    assert not unexpected
    assert all(name.startswith(("visual.", "logit_")) for name in missing), missing
    return open_text_tower(model, open_clip.SimpleTokenizer(), "golden", "cpu")
