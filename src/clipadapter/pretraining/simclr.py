"""SimCLR: an image encoder from pictures without labels, by telling two views of a picture from all others.

Paper: Chen et al., ICML 2020, https://arxiv.org/abs/2002.05709; the recipe is that of SVL-Adapter (Pantazis et al.,
BMVC 2022, https://arxiv.org/abs/2210.03794): ResNet-18, 112 pixels, temperature 0.5, SGD at 0.03 for 256 pictures,
cosine.
Differs from it: from scratch unless weights are given; equal files count once.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from clipadapter.data.images import ImageSource
from clipadapter.encoders.simclr_network import FILE, read_tensors, write_tensors
from clipadapter.errors import ArtifactError, DataError, InputError
from clipadapter.functional import unit
from clipadapter.pretraining._augment import augmented, stream
from clipadapter.pretraining._gallery import Gallery
from clipadapter.pretraining._trainee import Trainee, read_weights

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
