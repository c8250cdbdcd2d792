"""What is trained: tower, projector and optimizer, as one thing that can be written down."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor
from torch.nn import BatchNorm2d, Conv2d, Linear, Module, ReLU, Sequential

from clipadapter.encoders.simclr_network import WIDTH, empty_tower
from clipadapter.errors import ArtifactError, EncoderUnavailableError

PROJECTED = 128
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
Loss = Callable[[Tensor, Tensor], Tensor]


class Trainee:
    """A tower, the projector that is thrown away in the end, and SGD's momentum.

    Args:
        seed: of the initial values.
        device: a torch device.
        weights: values of the tower to start from, or None.
        lr: highest learning rate.
    """

    def __init__(self, seed: int, device: str, weights: Mapping[str, Tensor] | None, lr: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        tower = empty_tower()
        with torch.device("meta"):
            projector = Sequential(Linear(WIDTH, WIDTH), ReLU(), Linear(WIDTH, PROJECTED))
        for network in (tower, projector):
            network.to_empty(device="cpu")
            _initialise(network, generator)
        if weights is not None:
            tower.load_state_dict(weights)
        self.tower, self.projector = tower.to(device), projector.to(device)
        self._device, self._lr = device, lr
        self._network = Sequential(self.tower, self.projector).train()
        self._optimizer = torch.optim.SGD(
            self._network.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        self.epoch = 0
        self.loss = math.nan

    def step(self, first: Tensor, second: Tensor, loss: Loss, share: float) -> float:
        """One step of the optimizer.

        Args:
            first: (b, 3, s, s) one view of each picture.
            second: (b, 3, s, s) the other.
            loss: of the projections (b, 128) of both.
            share: of the highest learning rate.

        Returns:
            The loss.
        """
        self._optimizer.param_groups[0]["lr"] = self._lr * share
        self._optimizer.zero_grad()
        projected = self._network(torch.cat([first, second]).to(self._device))
        value = loss(*projected.chunk(2))
        value.backward()
        self._optimizer.step()
        return float(value.detach())

    def tensors(self) -> dict[str, Tensor]:
        """All that is needed to go on."""
        found: dict[str, Tensor] = dict(self._network.state_dict())
        for name, parameter in self._network.named_parameters():
            found[f"momentum.{name}"] = self._optimizer.state[parameter]["momentum_buffer"]
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from these.

        Raises:
            ArtifactError: if they are not those of a trainee.
        """
        momentum = {name: value for name, value in tensors.items() if name.startswith("momentum.")}
        try:
            self._network.load_state_dict({name: tensors[name] for name in tensors.keys() - momentum.keys()})
            for name, parameter in self._network.named_parameters():
                buffer = torch.empty_like(parameter).copy_(momentum[f"momentum.{name}"])
                self._optimizer.state[parameter]["momentum_buffer"] = buffer
        except (RuntimeError, KeyError) as error:
            raise ArtifactError(
                f"the checkpoint does not hold this network: {error}; delete it to train anew"
            ) from error


def read_weights(weights: str | Path) -> tuple[dict[str, Tensor], str]:
    """Values of a ResNet-18 in torchvision's names, without the classifier, and the SHA-256 of their file.

    Args:
        weights: "imagenet" or a path; a safetensors file, or a state dict as torchvision publishes it.

    Raises:
        EncoderUnavailableError: if there is no such file, or it holds something else.
    """
    path = _published() if str(weights) == "imagenet" else Path(weights).expanduser()
    try:
        data = path.read_bytes()
    except OSError as error:
        hint = "" if str(weights) != "imagenet" else ": fetch it there, or leave the weights out to train from scratch"
        raise EncoderUnavailableError(f"there are no weights in {path} ({error.strerror}){hint}") from error
    try:
        if path.suffix == ".safetensors":
            tensors = load_tensors(data)
        else:
            tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        kept = {name: value for name, value in tensors.items() if not name.startswith("fc.")}
        empty_tower().load_state_dict(kept, assign=True)
    except Exception as error:  # what a file that holds something else makes torch raise is not documented
        raise EncoderUnavailableError(f"{path} holds no weights of a ResNet-18: {error}") from error
    return kept, hashlib.sha256(data).hexdigest()


def _published() -> Path:
    """Where torchvision keeps its ImageNet weights once they were downloaded."""
    from torchvision.models import ResNet18_Weights

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(ResNet18_Weights.IMAGENET1K_V1.url).name


@torch.no_grad()
def _initialise(network: Module, generator: torch.Generator) -> None:
    """As torchvision and torch do, from a stream of its own."""
    for module in network.modules():
        if isinstance(module, Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, Linear):
            bound = 1 / math.sqrt(module.in_features)
            for values in (module.weight, module.bias):
                values.uniform_(-bound, bound, generator=generator)
        elif isinstance(module, BatchNorm2d):
            module.reset_parameters()
