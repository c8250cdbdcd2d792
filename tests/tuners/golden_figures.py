"""What the authors' own code gave, and the text towers that it was run with: see golden/README.md."""

import json
import math
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from clipadapter.encoders.open_clip_text import wrap_text_tower

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
    return wrap_text_tower(model, open_clip.SimpleTokenizer(), "golden", "cpu")


def write_clip(parameters, folder):
    """Write the tiny CLIP whose weights are drawn anew from the seed of the figures, as its parameters say; its URI."""
    facts = parameters["tower"]
    image, text, layers = facts["image_width"], facts["text_width"], facts["layers"]
    config = {
        "embed_dim": facts["embed_dim"],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": facts["image_size"],
            "layers": layers,
            "width": image,
            "patch_size": facts["patch_size"],
            "head_width": facts["head_width"],
        },
        "text_cfg": {
            "context_length": facts["context_length"],
            "vocab_size": facts["vocab_size"],
            "width": text,
            "heads": text // facts["head_width"],
            "layers": layers,
        },
    }
    with torch.random.fork_rng(devices=[]):
        shapes = {name: value.shape for name, value in open_clip.CLIP(**config).state_dict().items()}
    rng, state = np.random.RandomState(parameters["seed"]), {}
    for name in sorted(shapes):
        draw = torch.from_numpy(rng.standard_normal(tuple(shapes[name])).astype(np.float32))
        if ".ln_" in f".{name}" and name.endswith("weight"):
            state[name] = 1 + 0.1 * draw
        elif name == "logit_scale":
            state[name] = torch.tensor(math.log(facts["logit_scale"]))
        else:
            state[name] = 0.1 * draw if draw.ndim == 1 else draw / math.sqrt(draw.shape[-1])
    preprocess = {"mean": parameters["mean"], "std": parameters["std"]}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    save_file(state, folder / "open_clip_model.safetensors")
    return f"open_clip:local-dir:{folder}"


def prompts_of(names):
    """The prompts of the default template by class name."""
    return {name: [f"a photo of a {name.replace('_', ' ')}."] for name in names}


def logits_of(encoder, squares, prompts):
    """Logits (n, c) of squares (n, s, s, 3) by an encoder's class text, of one prompt for each class."""
    pixels, spec = squares.permute(0, 3, 1, 2).float() / 255, encoder.tower().pixels
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (spec.mean, spec.std))
    image = encoder.encode_pixels((pixels - mean) / std)
    text = encoder.encode_text([texts[0] for texts in prompts.values()])
    unit = torch.nn.functional.normalize
    return encoder.info.logit_scale * unit(image, dim=1) @ unit(text, dim=1).T
