"""SimCLR: an image encoder from pictures without labels, by telling two views of a picture from all others.

Paper: Chen et al., ICML 2020, https://arxiv.org/abs/2002.05709; the recipe is that of SVL-Adapter (Pantazis et al.,
BMVC 2022, https://arxiv.org/abs/2210.03794): ResNet-18, 112 pixels, temperature 0.5, SGD at 0.03 for 256 pictures,
cosine.
Differs from it: from scratch unless weights are given; equal files count once.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load as load_tensors
from torch import Tensor
from torch.nn import BatchNorm2d, Conv2d, Linear, Module, ReLU, Sequential
from torch.nn.functional import cross_entropy
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from clipadapter.data.images import ImageSource, image_bytes, read_image
from clipadapter.encoders.simclr_network import FILE, MEAN, STD, WIDTH, empty_tower, read_tensors, write_tensors
from clipadapter.errors import ArtifactError, DataError, EncoderUnavailableError, ImageError, InputError
from clipadapter.functional import unit

CHECKPOINT = "checkpoint.safetensors"


TEMPERATURE = 0.5


LR = 0.03
"""For 256 pictures a step; in proportion for others."""


MOST_WORKERS = 8


@dataclass(frozen=True)
class Pretraining:
    """What `train_simclr` did.

    Args:
        encoder: URI of the encoder.
        pictures: different pictures that it was trained on.
        skipped: (name, reason) of those that can't be read.
        epochs: passes over the pictures.
        resumed: the epochs that were there already.
        loss: mean loss of the last epoch.
    """

    encoder: str
    pictures: int
    skipped: list[tuple[str, str]]
    epochs: int
    resumed: int
    loss: float


def nt_xent(first: Tensor, second: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The normalised, temperature-scaled cross-entropy: each view must find the other view of its picture.

    Args:
        first: (n, d) of one view of each picture, any length.
        second: (n, d) of another view.
        temperature: cosines are divided by it.

    Returns:
        Mean over all 2n views, a scalar.

    >>> round(nt_xent(torch.eye(2), torch.eye(2), temperature=1.0).item(), 4)  # log((e + 2) / e)
    0.5514
    """
    both = unit(torch.cat([first, second]))  # (2n, d)
    logits = (both @ both.T / temperature).fill_diagonal_(-torch.inf)
    return cross_entropy(logits, torch.arange(len(both), device=both.device).roll(len(first)))


def train_simclr(
    pictures: Sequence[ImageSource],
    folder: str | Path,
    *,
    epochs: int = 200,
    batch_size: int = 256,
    size: int = 112,
    seed: int = 0,
    weights: str | Path | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> Pretraining:
    """Train an image encoder, or go on with a training that was cut short.

    After every epoch all that is needed to go on is written; a training that was killed ends, when it is called again,
    where it would have ended (on one kind of machine, with as many threads). A step of 256 pictures of 112 pixels takes
    about 3 GB.

    Args:
        pictures: paths, PIL images or arrays, the more the better; those that can't be read are left out.
        folder: where the encoder is written, and until then the checkpoint.
        epochs: passes over the pictures.
        batch_size: pictures a step; a last incomplete batch is left out, each epoch shuffles anew.
        size: side of the views in pixels.
        seed: of initialisation, shuffling and views.
        weights: what to start from: "imagenet" for torchvision's ResNet-18 if its file is on this machine, or the path
            of a file with such weights; random if not given.
        device: a torch device.
        progress: show bars on stderr.

    Returns:
        What was done; ``encoder`` opens it.

    Raises:
        InputError: if an argument is out of range, or the loss is no longer finite.
        DataError: if fewer than two different pictures can be read.
        ArtifactError: if the folder can't be written, or holds something else.
        EncoderUnavailableError: if there are no such weights.
    """
    for name, value, least in (("epochs", epochs, 1), ("batch_size", batch_size, 2), ("size", size, 8)):
        if value < least:
            raise InputError(f"{name} must be {least} or more, but is {value}")
    target = Path(folder)
    _check_folder(target)
    start, weights_hash = read_weights(weights) if weights is not None else (None, None)
    with _threads() as pool:
        gallery = Gallery(pictures, 2 * size, pool, progress)
        if len(gallery) < 2:
            raise DataError(f"simclr needs two different pictures or more, but {len(gallery)} of them can be read")
        batch = min(batch_size, len(gallery))
        settings = {
            "epochs": epochs,
            "batch_size": batch,
            "size": size,
            "seed": seed,
            "weights": weights_hash,
            "pictures": blake2b(" ".join(gallery.digests).encode(), digest_size=16).hexdigest(),
        }
        done = _finished(target / FILE, settings)
        if done is None:
            trainee = Trainee(seed, device, start, LR * batch / 256)
            resumed = _resume(target / CHECKPOINT, settings, trainee)
            done = resumed, _train(trainee, gallery, settings, target, pool, progress)
    resumed, loss = done
    for left in (*target.glob(".*.safetensors*"), target / CHECKPOINT):
        left.unlink(missing_ok=True)  # a training that was killed may have left a half-written file
    return Pretraining(f"simclr:{target.absolute()}", len(gallery), gallery.skipped, epochs, resumed, loss)


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that drop what waits when the work ends early, as by Ctrl-C."""
    before = torch.get_num_threads()
    workers = min(MOST_WORKERS, os.cpu_count() or 1)
    # Each takes one core: views are small, and torch's own threads for them would only wait for each other.
    pool = ThreadPoolExecutor(workers, "clipadapter-simclr", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # what other threads will begin with


def _train(
    trainee: Trainee, gallery: Gallery, settings: dict[str, Any], folder: Path, pool: ThreadPoolExecutor, progress: bool
) -> float:
    """All epochs that are still to do; writes the encoder."""
    epochs, batch = settings["epochs"], settings["batch_size"]
    steps = len(gallery) // batch
    bar = tqdm(
        total=epochs * steps,
        initial=trainee.epoch * steps,
        desc="simclr",
        unit="step",
        file=sys.stderr,
        disable=not progress,
    )
    with bar:
        while trainee.epoch < epochs:
            total = 0.0
            for i, (first, second) in enumerate(_batches(gallery, settings, trainee.epoch, pool)):
                share = (trainee.epoch * steps + i) / (epochs * steps)
                total += trainee.step(first, second, nt_xent, 0.5 * (1 + math.cos(math.pi * share)))
                bar.set_postfix(epoch=f"{trainee.epoch + 1}/{epochs}", loss=f"{total / (i + 1):.3f}")
                bar.update()
            trainee.loss = total / steps
            if not math.isfinite(trainee.loss):
                raise InputError(f"training diverged in epoch {trainee.epoch + 1}: the loss is {trainee.loss}")
            trainee.epoch += 1
            facts = {"settings": settings, "epoch": trainee.epoch, "loss": trainee.loss}
            _write(folder / CHECKPOINT, trainee.tensors(), facts)
    _write(folder / FILE, trainee.tower.state_dict(), {**settings, "loss": trainee.loss})
    return trainee.loss


def _batches(
    gallery: Gallery, settings: dict[str, Any], epoch: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Two views of each picture, batch by batch; the next one is prepared while one is in use."""
    seed, size, batch = settings["seed"], settings["size"], settings["batch_size"]

    def views(digest: str) -> Tensor:
        image = gallery.image(digest)
        return torch.stack([augmented(image, size, stream(seed, epoch, digest, view)) for view in range(2)])

    order = sorted(gallery.digests, key=lambda digest: stream(seed, epoch, digest).random())
    waiting: list[list[Future[Tensor]]] = []
    for start in range(0, len(order) - batch + 1, batch):
        waiting.append([pool.submit(views, digest) for digest in order[start : start + batch]])
        if len(waiting) == 2:
            yield _stacked(waiting.pop(0))
    yield _stacked(waiting.pop(0))


def _stacked(futures: list[Future[Tensor]]) -> tuple[Tensor, Tensor]:
    both = torch.stack([future.result() for future in futures])  # (b, 2, 3, s, s)
    return both[:, 0], both[:, 1]


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; give a folder for the encoder")
    names = {path.name for path in folder.glob("[!.]*")} if folder.is_dir() else set()
    if names and not names & {FILE, CHECKPOINT}:
        raise ArtifactError(f"{folder} holds other files than an encoder; give a new or empty folder")


def _finished(path: Path, settings: dict[str, Any]) -> tuple[int, float] | None:
    """Epochs and loss, if the encoder that is wanted is there already."""
    if not path.is_file():
        return None
    _, facts, _ = _read(path)
    loss = facts.pop("loss", math.nan)
    _check_settings(path, facts, settings)
    return settings["epochs"], float(loss)


def _resume(path: Path, settings: dict[str, Any], trainee: Trainee) -> int:
    """Take up a checkpoint if there is one; the epochs that it stands for."""
    if path.is_file():
        tensors, facts, _ = _read(path)
        _check_settings(path, facts.get("settings", {}), settings)
        trainee.load(tensors)
        trainee.epoch, trainee.loss = int(facts["epoch"]), float(facts["loss"])
    return trainee.epoch


def _check_settings(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    differ = [name for name in wanted if found.get(name) != wanted[name]]
    if differ:
        raise ArtifactError(
            f"{path} was made with other {', '.join(differ)}: give the same ones to go on with it, or another folder"
        )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    try:
        return read_tensors(path)
    except ValueError as error:
        raise ArtifactError(f"{error}; delete it to train anew") from error


def _write(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    try:
        write_tensors(path, tensors, facts)
    except InputError as error:
        raise ArtifactError(str(error)) from error


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


KEEP = 1 << 30
"""Bytes of shrunk pictures kept in memory; the others are read anew each time."""


class Gallery:
    """The different pictures among the sources that can be read.

    Args:
        sources: paths, PIL images or arrays.
        short: pictures are shrunk until their short side has so many pixels.
        pool: threads that read.
        progress: show a bar on stderr.
    """

    def __init__(self, sources: Sequence[ImageSource], short: int, pool: ThreadPoolExecutor, progress: bool) -> None:
        self._short = short
        self._kept: dict[str, Tensor] = {}
        self._source: dict[str, ImageSource] = {}
        self.skipped: list[tuple[str, str]] = []
        room = KEEP
        found = pool.map(self._try, sources)
        bar = tqdm(found, total=len(sources), desc="reading", unit="img", file=sys.stderr, disable=not progress)
        for source, answer in zip(sources, bar, strict=True):
            if isinstance(answer, ImageError):
                self.skipped.append((answer.source, answer.reason))
                continue
            digest, image = answer
            if digest not in self._source and image.numel() <= room:
                self._kept[digest] = image
                room -= image.numel()
            self._source.setdefault(digest, source)
        self.digests = sorted(self._source)
        """Names of the pictures: hashes of their bytes, so that nothing depends on paths or order."""

    def __len__(self) -> int:
        return len(self.digests)

    def image(self, digest: str) -> Tensor:
        """A picture (3, h, w) uint8; safe to call from threads.

        Raises:
            ImageError: if it can be read no more.
        """
        kept = self._kept.get(digest)
        return self._read(self._source[digest], None) if kept is None else kept

    def _try(self, source: ImageSource) -> tuple[str, Tensor] | ImageError:
        try:
            data = image_bytes(source)
            read = self._read(source, data if not isinstance(source, Image.Image | np.ndarray) else None)
        except ImageError as error:
            return error
        return blake2b(data, digest_size=16).hexdigest(), read

    def _read(self, source: ImageSource, data: bytes | None) -> Tensor:
        image = read_image(source, data=data)
        ratio = self._short / min(image.size)
        if ratio < 1:
            width, height = (max(1, round(ratio * side)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


SMALLEST = 0.08


RATIO = (3 / 4, 4 / 3)


JITTER, HUE = 0.8, 0.2


P_JITTER, P_GREY, P_BLUR, P_FLIP = 0.8, 0.2, 0.5, 0.5


SIGMA = (0.1, 2.0)


def stream(*facts: object) -> random.Random:
    """A random stream that depends on nothing but these facts.

    >>> stream(0, "a").random() == stream(0, "a").random() != stream(1, "a").random()
    True
    """
    digest = blake2b(repr(facts).encode(), digest_size=16).digest()
    return random.Random(int.from_bytes(digest, "big"))


def augmented(image: Tensor, size: int, rng: random.Random) -> Tensor:
    """One view of a picture (Chen et al. 2020, appendix A): crop, flip, colours, grey, blur.

    Args:
        image: (3, h, w) uint8.
        size: side of the view.
        rng: what it is drawn from.

    Returns:
        (3, size, size) float32, less mean, by deviation.

    >>> augmented(torch.zeros(3, 20, 30, dtype=torch.uint8), 16, stream(0)).shape
    torch.Size([3, 16, 16])
    """
    view: Tensor = F.resized_crop(image, *_box(rng, *image.shape[1:]), size=[size, size], antialias=True)
    view = view.float() / 255
    if rng.random() < P_FLIP:
        view = F.horizontal_flip(view)
    if rng.random() < P_JITTER:
        view = _jittered(view, rng)
    if rng.random() < P_GREY:
        view = F.rgb_to_grayscale(view, num_output_channels=3)
    if rng.random() < P_BLUR:
        kernel = 2 * (size // 20) + 1  # a tenth of the side, and odd
        view = F.gaussian_blur(view, [kernel, kernel], [_uniform(rng, *SIGMA)])
    view = F.normalize(view, list(MEAN), list(STD))
    return view.to(torch.float32)


def _box(rng: random.Random, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop."""
    area = height * width * _uniform(rng, SMALLEST, 1.0)
    aspect = math.exp(_uniform(rng, math.log(RATIO[0]), math.log(RATIO[1])))
    w = min(width, max(1, round(math.sqrt(area * aspect))))
    h = min(height, max(1, round(math.sqrt(area / aspect))))
    return int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w


def _jittered(view: Tensor, rng: random.Random) -> Tensor:
    """Brightness, contrast, saturation and hue, each changed by chance, in an order of chance."""
    changes = [
        (F.adjust_brightness, _uniform(rng, 1 - JITTER, 1 + JITTER)),
        (F.adjust_contrast, _uniform(rng, 1 - JITTER, 1 + JITTER)),
        (F.adjust_saturation, _uniform(rng, 1 - JITTER, 1 + JITTER)),
        (F.adjust_hue, _uniform(rng, -HUE, HUE)),
    ]
    # Only `random()` is promised to give the same numbers in every Python version: no shuffle.
    for _, i in sorted((rng.random(), i) for i in range(len(changes))):
        change, by = changes[i]
        view = change(view, by)
    return view


def _uniform(rng: random.Random, low: float, high: float) -> float:
    return low + (high - low) * rng.random()
