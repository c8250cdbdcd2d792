"""An encoder with a small random tower that has an inner layer and runs at every size, and a head that reads it all."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipadapter.encoders.base import EncoderInfo, to_tensor
from clipadapter.encoders.toy import ToyEncoder
from clipadapter.heads import Head
from clipadapter.heads.support import SupportSet
from clipadapter.runtime.engines import Tower
from clipadapter.utils.pixels import PixelSpec

INNER_WIDTH, WIDTH = 12, 32


class TinyTower(nn.Module):
    """Two convolutions; the mean over the picture of the first is the layer ``inner``, that of the second ``final``."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.second = nn.Conv2d(3, INNER_WIDTH, 4, 4), nn.Conv2d(INNER_WIDTH, WIDTH, 1)
        self.layers: tuple[str, ...] = ("final",)

    def forward(self, pixels: Tensor) -> Tensor:
        inner = self.first(pixels).relu()
        features = {"final": self.second(inner).mean((2, 3)), "inner": inner.mean((2, 3))}
        # Of what is cut into parts, exporters do not know the width, as of the statistics of `lite`.
        return torch.cat([part for layer in self.layers for part in features[layer].chunk(2, dim=1)], dim=1)


class TinyEncoder(ToyEncoder):
    """Pictures by a `TinyTower`, texts by the toy.

    Args:
        name: its URI, which nothing opens.
        pixels: how pictures become squares.
        seed: of the weights.
    """

    def __init__(self, name: str = "tiny", pixels: PixelSpec | None = None, seed: int = 0) -> None:
        self.pixels = pixels or PixelSpec(32, (0.5,) * 3, (0.5,) * 3)
        self.network = TinyTower(seed).eval()
        super().__init__()
        fingerprint = f"{name} {seed} {self.pixels.size}".encode().hex()
        self.info = EncoderInfo(name, WIDTH, self.pixels.size, 20.0, None, "Apache-2.0", fingerprint)

    def tower(self) -> Tower:
        return Tower(self.info.name, self.info.fingerprint, WIDTH, self.pixels, self.network)

    def towers(self) -> tuple[Tower, ...]:
        return (self.tower(),)

    def preprocess(self, image):
        return to_tensor(self.pixels.to_square(image), self.pixels.mean, self.pixels.std)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.network(pixels) if len(pixels) else torch.empty(0, WIDTH)

    def layers(self):
        return {"final": WIDTH, "inner": INNER_WIDTH}

    def layer_network(self, layers, size):
        network = TinyTower(0).eval()
        network.first, network.second, network.layers = self.network.first, self.network.second, tuple(layers)
        return network

    def projection(self):
        return None


@dataclass(eq=False, repr=False, kw_only=True)
class NearestMeanOfAll(Head):
    """The mean over blocks of the cosine to the class mean of the shots: logits depend on every block."""

    reads = "all"

    def _fit(self, shots: SupportSet) -> None:
        classes = range(len(self.classes_))
        self.means_ = torch.stack([shots.X[shots.labels == c].mean(dim=0) for c in classes])

    def _logits(self, X: Tensor) -> Tensor:
        widths = [block.width for block in self.read_blocks]
        parts = zip(X.split(widths, dim=1), self.means_.split(widths, dim=1), strict=True)
        return sum(10 * nn.functional.normalize(a) @ nn.functional.normalize(b).T for a, b in parts) / len(widths)
