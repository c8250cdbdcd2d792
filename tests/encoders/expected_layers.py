"""Inner layers by numpy, from what hooks see in an unwrapped network."""

from types import SimpleNamespace

import numpy as np
import torch

from clipadapter.encoders.open_clip_layers import VisualEncoder


class TowerEncoder(VisualEncoder):
    """An encoder that has an image tower of open_clip alone."""

    def __init__(self, visual, dim, image_size):
        self.info, self.network = SimpleNamespace(dim=dim, image_size=image_size), lambda: visual

    def network(self):
        raise NotImplementedError  # abstract; each object has its own


def random_tower(make):
    """A tower with the same random weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval().requires_grad_(False)


def statistics(maps):
    """(n, c, h, w) to (n, 3 c): mean, maximum and deviation over positions."""
    values = np.asarray(maps, np.float64).reshape(*maps.shape[:2], -1)
    return np.concatenate([values.mean(axis=2), values.max(axis=2), values.std(axis=2)], axis=1)


def outputs_of(network, modules, pixels):
    """The result of a network, and the outputs of some of its modules in one pass."""
    outputs = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output)) for module in modules
    ]
    with torch.no_grad():
        result = network(pixels)
    for hook in hooks:
        hook.remove()
    return result, outputs


def pixels_of(encoder, size, images):
    """(n, 3, s, s): pictures as a tower sees them at another size, by the encoder's mean and deviation."""
    (tower,) = encoder.towers()
    squares = np.stack([np.asarray(image.resize((size, size))) for image in images]) / 255
    return torch.from_numpy((squares - tower.pixels.mean) / tower.pixels.std).permute(0, 3, 1, 2).float()
