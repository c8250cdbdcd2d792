"""SimCLR: trains an image encoder on unlabelled pictures, by matching two augmented views of each picture.

Paper: Chen et al., ICML 2020, https://arxiv.org/abs/2002.05709; the recipe is that of SVL-Adapter (Pantazis et al.,
BMVC 2022, https://arxiv.org/abs/2210.03794): ResNet-18, 112 pixels, temperature 0.5, SGD at 0.03 for 256 pictures,
cosine.
Differs from it: training starts from random weights unless `weights` names a file; equal files count once.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
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

from clipadapter.data.images import ImageSource, image_bytes, read_image
from clipadapter.encoders.simclr_network import FILE, MEAN, STD, WIDTH, empty_tower, read_tensors, write_tensors
from clipadapter.errors import ArtifactError, DataError, EncoderUnavailableError, ImageError, InputError
from clipadapter.heads.training import Optimizer
from clipadapter.utils.files import RANDOM_END, path_without_links, remove_abandoned
from clipadapter.utils.functional import unit
from clipadapter.utils.pixels import uniform
from clipadapter.utils.progress import progress_bar

CHECKPOINT = "checkpoint.safetensors"
TEMPERATURE = 0.5
LR_FOR_BATCH_OF_256 = 0.03  # for other batch sizes the learning rate is proportional
WEIGHT_DECAY = 5e-4
PROJECTION_WIDTH = 128
MAX_WORKERS = 8
MAX_CACHED_BYTES = 1 << 30  # shrunk pictures that stay in memory. The others are read again each time

# Augmentation of Chen et al. 2020, appendix A.
MIN_CROP_AREA = 0.08
CROP_RATIO = (3 / 4, 4 / 3)
COLOUR_JITTER, HUE_JITTER = 0.8, 0.2
P_JITTER, P_GRAYSCALE, P_BLUR, P_FLIP = 0.8, 0.2, 0.5, 0.5
BLUR_SIGMA = (0.1, 2.0)


@dataclass(frozen=True)
class SimClrResult:
    """The result of `train_simclr`.

    Args:
        encoder: URI of the encoder.
        pictures: number of different pictures in the training.
        skipped: (name, reason) of those that can't be read.
        epochs: passes over the pictures.
        resumed: epochs of earlier calls.
        loss: mean loss of the last epoch.
    """

    encoder: str
    pictures: int
    skipped: list[tuple[str, str]]
    epochs: int
    resumed: int
    loss: float


def nt_xent(first: Tensor, second: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The normalized, temperature-scaled cross-entropy (NT-Xent), equation 1 of the paper.

    Args:
        first: (n, d) projections of one view of each picture, of any length.
        second: (n, d) projections of the other view.
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
) -> SimClrResult:
    """Train an image encoder, or resume an interrupted training.

    A checkpoint is written after every epoch. A resumed training gives the weights that an uninterrupted one would
    give, on the same kind of machine with the same number of threads. A step of 256 pictures of 112 pixels takes about
    3 GB.

    Args:
        pictures: paths, PIL images or arrays, the more the better; those that can't be read are left out.
        folder: folder of the encoder, and of the checkpoint during the training.
        epochs: passes over the pictures.
        batch_size: pictures per step; an incomplete last batch is left out, and each epoch is shuffled.
        size: side of the views in pixels.
        seed: seed of initialization, shuffling and views.
        weights: initial weights: "imagenet" for torchvision's ResNet-18 if its file is on this machine, or the path
            of a file with such weights; None for random ones.
        device: a torch device.
        progress: show bars on stderr.

    Returns:
        A summary; ``create_encoder(result.encoder)`` opens the encoder.

    Raises:
        InputError: if an argument is out of range, or the loss is no longer finite.
        DataError: if fewer than two different pictures can be read.
        ArtifactError: if the folder can't be written, or holds other files.
        EncoderUnavailableError: if the weights do not exist.
    """
    for name, value, minimum in (("epochs", epochs, 1), ("batch_size", batch_size, 2), ("size", size, 8)):
        if value < minimum:
            raise InputError(f"{name} must be {minimum} or more, but is {value}")
    target = Path(folder)
    _check_folder(target)
    initial_weights, weights_hash = read_weights(weights) if weights is not None else (None, None)
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())  # new threads start with this number
        # One torch thread for each worker: views are small, and more threads would only wait for each other.
        workers = min(MAX_WORKERS, os.cpu_count() or 1)
        pool = ThreadPoolExecutor(workers, "clipadapter-simclr", initializer=torch.set_num_threads, initargs=(1,))
        stack.callback(pool.shutdown, cancel_futures=True)  # of waiting work when the block ends early, as by Ctrl-C
        images = UnlabelledImages(pictures, 2 * size, pool, progress)
        if len(images) < 2:
            raise DataError(f"simclr needs two different pictures or more, but {len(images)} of them can be read")
        batch = min(batch_size, len(images))
        settings = {
            "epochs": epochs,
            "batch_size": batch,
            "size": size,
            "seed": seed,
            "weights": weights_hash,
            "pictures": blake2b(" ".join(images.digests).encode(), digest_size=16).hexdigest(),
        }
        finished = _read(target / FILE, settings)
        if finished is None:
            model = SimClrModel(seed, device, initial_weights, LR_FOR_BATCH_OF_256 * batch / 256)
            if (checkpoint := _read(target / CHECKPOINT, settings)) is not None:
                model.load(*checkpoint)
            resumed, loss = model.epoch, model.train(images, settings, target, progress)
        else:
            resumed, loss = epochs, float(finished[1].get("loss", math.nan))
    # A training that was killed may leave half-written files.
    remove_abandoned(target, rf"\.({re.escape(FILE)}|{re.escape(CHECKPOINT)}){RANDOM_END}", min_age=0)
    (target / CHECKPOINT).unlink(missing_ok=True)
    return SimClrResult(f"simclr:{target.absolute()}", len(images), images.skipped, epochs, resumed, loss)


def _view_batches(images: UnlabelledImages, settings: dict[str, Any], epoch: int) -> Iterator[Tensor]:
    """Two views of each picture, batch by batch (2b, 3, s, s); the next batch is prepared while one is in use."""
    seed, size, batch = settings["seed"], settings["size"], settings["batch_size"]

    def views(digest: str) -> Tensor:
        image = images.image(digest)
        return torch.stack([augment(image, size, seeded_random(seed, epoch, digest, view)) for view in range(2)])

    order = sorted(images.digests, key=lambda digest: seeded_random(seed, epoch, digest).random())
    batches = [order[i : i + batch] for i in range(0, len(order) - batch + 1, batch)]
    following = images.pool.map(views, batches[0])
    for digests in [*batches[1:], []]:
        current, following = following, images.pool.map(views, digests)
        yield torch.stack(list(current), dim=1).flatten(0, 1)  # the first view of each, then the second


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; give a folder for the encoder")
    names = {path.name for path in folder.glob("[!.]*")} if folder.is_dir() else set()
    if names and not names & {FILE, CHECKPOINT}:
        raise ArtifactError(f"{folder} holds other files than an encoder; give a new or empty folder")
    for name in (FILE, CHECKPOINT):
        path_without_links(folder, name, error=ArtifactError)


def _read(path: Path, settings: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and facts of an encoder or a checkpoint that was made with these settings; None if there is none."""
    if not path.is_file():
        return None
    try:
        tensors, facts, _ = read_tensors(path)
    except ValueError as error:
        raise ArtifactError(f"{error}; delete it to start again") from error
    saved = facts if path.name == FILE else facts.get("settings", {})
    different = [name for name in settings if saved.get(name) != settings[name]]
    if different:
        raise ArtifactError(
            f"{path} was made with other {', '.join(different)}: give the same ones to resume it, or another folder"
        )
    return tensors, facts


def _write(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    try:
        write_tensors(path, tensors, facts)
    except InputError as error:
        raise ArtifactError(str(error)) from error


class SimClrModel:
    """The trained network with its optimizer: a tower, the projector, which is dropped at the end, and SGD."""

    def __init__(self, seed: int, device: str, weights: Mapping[str, Tensor] | None, lr: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        tower = empty_tower()
        with torch.device("meta"):
            projector = Sequential(Linear(WIDTH, WIDTH), ReLU(), Linear(WIDTH, PROJECTION_WIDTH))
        for network in (tower, projector):
            network.to_empty(device="cpu")
            _initialize(network, generator)
        if weights is not None:
            tower.load_state_dict(weights)
        self.tower, self.projector = tower.to(device), projector.to(device)
        self._device, self._lr = device, lr
        self._network = Sequential(self.tower, self.projector).train()
        self._optimizer = Optimizer("sgd", [*self._network.parameters()], weight_decay=WEIGHT_DECAY)
        self.epoch = 0
        self.loss = math.nan

    def train(self, images: UnlabelledImages, settings: dict[str, Any], folder: Path, progress: bool) -> float:
        """Train the remaining epochs and write the encoder; returns the loss of the last epoch."""
        epochs, steps = settings["epochs"], len(images) // settings["batch_size"]
        options = {"total": epochs * steps, "initial": self.epoch * steps, "desc": "simclr", "unit": "step"}
        with progress_bar(shown=progress, **options) as bar:
            while self.epoch < epochs:
                total = 0.0
                for i, views in enumerate(_view_batches(images, settings, self.epoch)):
                    progress_fraction = (self.epoch * steps + i) / (epochs * steps)
                    cosine_decay = 0.5 * (1 + math.cos(math.pi * progress_fraction))
                    value = nt_xent(*self._network(views.to(self._device)).chunk(2))
                    value.backward()
                    self._optimizer.step(self._lr * cosine_decay)
                    total += float(value.detach())
                    bar.set_postfix(epoch=f"{self.epoch + 1}/{epochs}", loss=f"{total / (i + 1):.3f}")
                    bar.update()
                self.loss = total / steps
                if not math.isfinite(self.loss):
                    raise InputError(f"training diverged in epoch {self.epoch + 1}: the loss is {self.loss}")
                self.epoch += 1
                facts = {"settings": settings, "epoch": self.epoch, "loss": self.loss}
                _write(folder / CHECKPOINT, {**self._network.state_dict(), **self._momentum()}, facts)
        _write(folder / FILE, self.tower.state_dict(), {**settings, "loss": self.loss})
        return self.loss

    def _momentum(self) -> dict[str, Tensor]:
        """The tensors of the optimizer, which a resumed training needs beside the weights."""
        names = (f"momentum.{name}" for name, _ in self._network.named_parameters())
        return dict(zip(names, self._optimizer.kept["momentum_buffer"], strict=True))

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Load a checkpoint: weights and momentum, and the epoch with its loss."""
        momentum = self._momentum()
        try:
            self._network.load_state_dict({name: tensors[name] for name in tensors.keys() - momentum.keys()})
            for name, buffer in momentum.items():
                buffer.copy_(tensors[name])
        except (RuntimeError, KeyError) as error:
            raise ArtifactError(
                f"the checkpoint does not hold this network: {error}; delete it to start again"
            ) from error
        self.epoch, self.loss = int(facts["epoch"]), float(facts["loss"])


def read_weights(weights: str | Path) -> tuple[dict[str, Tensor], str]:
    """Weights of a ResNet-18 as torchvision names them, without the classifier, and the SHA-256 of their file."""
    path, hint = Path(weights).expanduser(), ""
    if str(weights) == "imagenet":
        from torchvision.models import ResNet18_Weights

        # Where torchvision's download puts them.
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(ResNet18_Weights.IMAGENET1K_V1.url).name
        hint = ": fetch it there, or leave the weights out to train from scratch"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EncoderUnavailableError(f"there are no weights in {path} ({error.strerror}){hint}") from error
    try:
        if path.suffix == ".safetensors":
            tensors = load_tensors(data)
        else:
            tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        tower_weights = {name: value for name, value in tensors.items() if not name.startswith("fc.")}
        empty_tower().load_state_dict(tower_weights, assign=True)
    except Exception as error:  # torch does not document its errors for other files
        raise EncoderUnavailableError(f"{path} holds no weights of a ResNet-18: {error}") from error
    return tower_weights, hashlib.sha256(data).hexdigest()


@torch.no_grad()
def _initialize(network: Module, generator: torch.Generator) -> None:
    """Initialize as torchvision and torch do, but from a generator."""
    for module in network.modules():
        if isinstance(module, Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, Linear):
            bound = 1 / math.sqrt(module.in_features)
            for values in (module.weight, module.bias):
                values.uniform_(-bound, bound, generator=generator)
        elif isinstance(module, BatchNorm2d):
            module.reset_parameters()


class UnlabelledImages:
    """The different readable pictures among the sources, shrunk to a short side and cached in bounded memory."""

    def __init__(
        self, sources: Sequence[ImageSource], short_side: int, pool: ThreadPoolExecutor, progress: bool
    ) -> None:
        self._short_side, self.pool = short_side, pool
        self._images: dict[str, Tensor | ImageSource] = {}  # a source is read again each time
        self.skipped: list[tuple[str, str]] = []
        free_bytes = MAX_CACHED_BYTES
        results = pool.map(self._try_read, sources)
        bar = progress_bar(results, total=len(sources), desc="reading", unit="img", shown=progress)
        for source, result in zip(sources, bar, strict=True):
            if isinstance(result, ImageError):
                self.skipped.append((result.source, result.reason))
                continue
            digest, image = result
            if digest not in self._images:
                fits = image.numel() <= free_bytes
                self._images[digest] = image if fits else source
                free_bytes -= image.numel() if fits else 0
        self.digests = sorted(self._images)
        """Hashes of the pictures' bytes, in ascending order, so that nothing depends on paths or their order."""

    def __len__(self) -> int:
        return len(self.digests)

    def image(self, digest: str) -> Tensor:
        """A picture (3, h, w) uint8; safe to call from threads."""
        image = self._images[digest]
        return image if isinstance(image, Tensor) else self._read(image, None)

    def _try_read(self, source: ImageSource) -> tuple[str, Tensor] | ImageError:
        try:
            data = image_bytes(source)
            read = self._read(source, data if not isinstance(source, Image.Image | np.ndarray) else None)
        except ImageError as error:
            return error.without_traceback()
        return blake2b(data, digest_size=16).hexdigest(), read

    def _read(self, source: ImageSource, data: bytes | None) -> Tensor:
        image = read_image(source, data=data)
        ratio = self._short_side / min(image.size)
        if ratio < 1:
            width, height = (max(1, round(ratio * side)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def seeded_random(*facts: object) -> random.Random:
    """A random generator that depends only on these values."""
    digest = blake2b(repr(facts).encode(), digest_size=16).digest()
    return random.Random(int.from_bytes(digest, "big"))


def augment(image: Tensor, size: int, rng: random.Random) -> Tensor:
    """One view of a picture (Chen et al. 2020, appendix A): crop, flip, colour jitter, grayscale, blur.

    Args:
        image: (3, h, w) uint8.
        size: side of the view.
        rng: random generator of the view.

    Returns:
        (3, size, size) float32, normalized by mean and deviation.

    >>> augment(torch.zeros(3, 20, 30, dtype=torch.uint8), 16, seeded_random(0)).shape
    torch.Size([3, 16, 16])
    """
    view: Tensor = F.resized_crop(image, *_random_crop(rng, *image.shape[1:]), size=[size, size], antialias=True)
    view = view.float() / 255
    if rng.random() < P_FLIP:
        view = F.horizontal_flip(view)
    if rng.random() < P_JITTER:
        view = _jitter(view, rng)
    if rng.random() < P_GRAYSCALE:
        view = F.rgb_to_grayscale(view, num_output_channels=3)
    if rng.random() < P_BLUR:
        kernel = 2 * (size // 20) + 1  # a tenth of the side, and odd
        view = F.gaussian_blur(view, [kernel, kernel], [uniform(rng, *BLUR_SIGMA)])
    view = F.normalize(view, list(MEAN), list(STD))
    return view.to(torch.float32)


def _random_crop(rng: random.Random, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop."""
    area = height * width * uniform(rng, MIN_CROP_AREA, 1.0)
    aspect = math.exp(uniform(rng, math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
    w = min(width, max(1, round(math.sqrt(area * aspect))))
    h = min(height, max(1, round(math.sqrt(area / aspect))))
    return int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w


def _jitter(view: Tensor, rng: random.Random) -> Tensor:
    """Change brightness, contrast, saturation and hue by random amounts, in random order."""
    changes = [
        (F.adjust_brightness, uniform(rng, 1 - COLOUR_JITTER, 1 + COLOUR_JITTER)),
        (F.adjust_contrast, uniform(rng, 1 - COLOUR_JITTER, 1 + COLOUR_JITTER)),
        (F.adjust_saturation, uniform(rng, 1 - COLOUR_JITTER, 1 + COLOUR_JITTER)),
        (F.adjust_hue, uniform(rng, -HUE_JITTER, HUE_JITTER)),
    ]
    # Not `shuffle`: only `random()` is guaranteed to give the same numbers in every Python version.
    for _, i in sorted((rng.random(), i) for i in range(len(changes))):
        change, amount = changes[i]
        view = change(view, amount)
    return view
