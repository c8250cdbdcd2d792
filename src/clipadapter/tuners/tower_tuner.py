"""Base of the tuners that change an encoder's own weights: one loss through both towers, then a tuned encoder.

`TowerTuner.tune` comes before `fit`. `fit` gets features and class text of the tuned encoder and stores the class text:
the classifier is zero-shot by that encoder.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Annotated, Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import Self

from clipadapter.encoders import AttentionLayer, Encoder, attention_layers, open_text_tower, open_tunable_copy
from clipadapter.encoders.layers import Matrix
from clipadapter.errors import InputError, brief
from clipadapter.heads import SupportSet
from clipadapter.heads.parameters import OneOf
from clipadapter.heads.training import Checkpoint, TrainConfig, TrainingParameters, digest_of_fit, train
from clipadapter.runtime.engines import Tower
from clipadapter.utils.functional import cosine_logits, unit

PRECISIONS = ("fp32", "bf16")
LEARNED_PREFIXES = ("image_", "text_")  # prefixes of the names of learned arrays


@dataclass(frozen=True, eq=False)
class Trainable:
    """Parameters that a method has put into the towers."""

    arrays: Mapping[str, Tensor]  # by the name they will have on the head, such as image_a_
    towers: Collection[str]  # that depend on them, "image" or "text"; a tower that is not listed runs only once
    start_step: Callable[[], None] = lambda: None  # called at the beginning of each step
    learned: Callable[[], Mapping[str, Tensor]] | None = None  # the arrays that the head keeps, if they are others


@dataclass(frozen=True, eq=False)
class Step:
    """What the loss of one step is computed from."""

    features: Tensor  # (b, d) unit features of the pictures
    weight: Tensor  # (c, d) unit class vectors
    logits: Tensor  # (b, c)
    labels: Tensor  # (b,) class positions
    rows: Tensor  # (b,) numbers of the pictures
    views: Tensor  # (b,) for each, the number of the view


@dataclass(eq=False, repr=False, kw_only=True)
class TowerTuner(TrainingParameters):
    """Base of the methods that change weights of the towers.

    A subclass puts what is trained into a second encoder in `_attach`, and merges what was learned into the weights of
    another encoder in `_merge`.

    Args:
        batch_size: pictures per step.
        precision: of the towers while training: "fp32" or "bf16", which is faster and takes less memory.
        checkpoint: seconds between two checkpoints in the user's cache folder. A killed `tune` continues from the last
            one when it is called again. None keeps none.
    """

    needs_text = True
    tunes_encoder = True
    method_name: ClassVar[str]
    fingerprint_parameters: ClassVar[tuple[str, ...]]
    """Names of the parameters that a tuned encoder depends on, beside the learned arrays."""
    learns_from_views: ClassVar[bool] = False
    """True if `fit` is a second training, of augmented views by the tuned encoder; else it gets plain pictures."""
    training: ClassVar[Mapping[str, Any]] = {"optimizer": "adamw", "min_epochs": 1, "min_lr": 1e-6}
    """Fields of `TrainConfig` that the method fixes. The others are parameters of the tuner under the same names."""

    batch_size: int = 32
    precision: Annotated[str, OneOf(*PRECISIONS)] = "fp32"
    checkpoint: float | None = 30.0

    @abstractmethod
    def _attach(self, tunable: Encoder, generator: torch.Generator) -> Trainable:
        """Put parameters into the towers of the tunable copy; all random numbers come from the generator."""

    def _train_config(self, shots_per_class: int) -> TrainConfig:
        """How the parameters are trained."""
        return TrainConfig.from_estimator(self, **self.training, view_per_epoch=False)

    @abstractmethod
    def _merge(self, tunable: Encoder) -> str:
        """Add what was learned to the tunable copy, or raise `_misfit`; gives the method and what was changed."""

    def describe_training(self, counts: Sequence[int]) -> str:
        """How many steps `tune` makes, in words, for these numbers of pictures of each class.

        Raises:
            InputError: if a parameter of the training is wrong.
        """
        n_classes = sum(count > 0 for count in counts)
        return self._train_config(round(sum(counts) / n_classes)).describe(sum(counts))

    def check_encoder(self, tunable: Encoder) -> None:
        """Refuse a tunable copy, or parameters that don't go with it, before pictures are read. It is not changed."""

    def _make_loss(
        self, encoder: Encoder, squares: NDArray[np.uint8], prompts: Mapping[str, Sequence[str]]
    ) -> Callable[[Step], Tensor]:
        """The loss of a step, for the arguments of `tune`; cross-entropy by default."""
        return lambda step: cross_entropy(step.logits, step.labels)

    def _epoch_weights(self, epochs: int) -> Sequence[float]:
        """Weights of the epochs in the sum that is kept; empty, the default, to keep the last epoch."""
        return ()

    def tune(
        self, encoder: Encoder, squares: NDArray[np.uint8], labels: Sequence[str], prompts: Mapping[str, Sequence[str]]
    ) -> Self:
        """Learn from pictures; `tuned` then gives the encoder.

        Args:
            encoder: is not changed itself. A backend that runs it is left out.
            squares: (n, v, s, s, 3), v views of each picture as ``encoder.tower().pixels`` makes them, the plain one
                first.
            labels: (n,) class names.
            prompts: texts of each class; the order of the names is that of the classes.

        Raises:
            InputError: if the encoder can't be tuned, shapes or labels don't go together, or the loss is not finite.
        """
        self.check_parameters()
        tunable = open_tunable_copy(encoder)
        self.check_encoder(tunable)
        names = {name: i for i, name in enumerate(prompts)}
        unknown_labels = sorted(set(labels) - set(names))
        if unknown_labels or len(labels) != len(squares) or not len(labels):
            raise InputError(
                f"{len(squares)} pictures need a label each that is a class, but got {len(labels)} labels"
                + (f", among them {', '.join(unknown_labels[:3])}" if unknown_labels else "")
            )
        generator = torch.Generator().manual_seed(self.seed)
        trainable = self._attach(tunable, generator)
        features_of = image_features(tunable, squares, frozen="image" not in trainable.towers)
        vectors_of_classes = class_embeddings(tunable, prompts, frozen="text" not in trainable.towers)
        truth = torch.tensor([names[label] for label in labels], device=tunable.device)
        loss_of = self._make_loss(encoder, squares, prompts)

        def loss(rows: Tensor, views: Tensor) -> Tensor:
            trainable.start_step()
            with torch.autocast(tunable.device.partition(":")[0], torch.bfloat16, enabled=self.precision == "bf16"):
                features, weight = features_of(rows, views).float(), vectors_of_classes().float()
            features = unit(features)
            logits = tunable.info.logit_scale * features @ weight.T
            return loss_of(Step(features, weight, logits, truth[rows.to(truth.device)], rows, views))

        config = self._train_config(round(len(labels) / len(set(labels))))
        weights = (weight for tower in trainable.towers for weight in tower_networks(tunable)[tower].parameters())
        texts, info = [(name, list(each)) for name, each in prompts.items()], encoder.info
        digest = digest_of_fit(self, [list(labels), texts, info.logit_scale, info.fingerprint, squares])
        checkpoint = Checkpoint(digest, self.checkpoint, keeps_end=self.learns_from_views)
        if self.learns_from_views:
            # A fit that is killed in a second training must not repeat the first, which takes hours. Whoever does the
            # second one removes the file.
            self._checkpoint = checkpoint
        self.loss_ = train(
            list(trainable.arrays.values()),
            loss,
            len(labels),
            squares.shape[1],
            config,
            checkpoint=checkpoint,
            generator=generator,
            row_cost=sum(weight.numel() for weight in weights),  # about the multiplications for a token
            epoch_weights=self._epoch_weights(config.count_epochs(len(labels))),
        )
        learned = trainable.arrays if trainable.learned is None else trainable.learned()
        for name, array in learned.items():
            setattr(self, name, array.detach().cpu())
        return self

    def tuned(self, encoder: Encoder) -> Encoder:
        """The encoder with towers changed as was learned; it has a fingerprint of its own.

        The original is not changed; it shares all weights that do not change.

        Raises:
            InputError: before `tune`, or if what was learned does not fit the encoder.
        """
        arrays = self._arrays()
        tunable = open_tunable_copy(encoder)
        changed = self._merge(tunable)
        values = [getattr(self, name) for name in self.fingerprint_parameters]
        facts = [float(value) if isinstance(value, int) else value for value in values]
        text = repr((tunable.info.fingerprint, type(self).__name__, *facts))
        total = blake2b(text.encode(), digest_size=16)
        for name in sorted(arrays):
            total.update(name.encode())
            total.update(np.ascontiguousarray(arrays[name].numpy()).data)
        note = "; ".join(part for part in (tunable.info.note, f"tuned by {changed}") if part)
        tunable.info = replace(tunable.info, fingerprint=total.hexdigest(), note=note)
        return tunable

    def _misfit(self, tower: str, tunable: Encoder) -> InputError:
        return InputError(
            f"what {self.method_name} has learned does not fit the {tower} tower of {tunable.info.name}: give the "
            "encoder that was tuned"
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "weight_")

    def _fit(self, shots: SupportSet) -> None:
        self._arrays()
        self.weight_, self.scale_ = shots.class_text, shots.scale

    def _for_text(self, text: Tensor, scale: float) -> None:
        self.weight_, self.scale_ = text, scale

    def _logits(self, X: Tensor) -> Tensor:
        return cosine_logits(X, self.weight_.to(X.dtype), self.scale_)

    def _arrays(self) -> dict[str, Tensor]:
        """What was learned, by name; refused before `tune`."""
        arrays = {k: v for k, v in vars(self).items() if k.startswith(LEARNED_PREFIXES) and k.endswith("_")}
        if not arrays:
            raise InputError(
                f"{type(self).__name__} tunes the encoder, which features that are there already don't allow: fit it "
                "by FewShotClassifier, or call tune(encoder, squares, labels, prompts) first"
            )
        return arrays


@dataclass(eq=False, repr=False, kw_only=True)
class PartTuner(TowerTuner):
    """Base of the methods that change parts of one or both towers, such as some of their layers.

    Args:
        towers: "both", "image" or "text".
    """

    parts: ClassVar[str]  # what the parts are, for messages
    changed_parts: ClassVar[str] = "of its layers"  # what the changed parts of a tower are called after their number

    towers: Annotated[str, OneOf("both", "image", "text")] = "both"

    @abstractmethod
    def _parts_of(self, tower: str, network: nn.Module, tunable: Encoder) -> Any:
        """The parts of a tower that are changed, as a sequence; empty if it has none."""

    @abstractmethod
    def _merge_tower(self, tower: str, parts: Any) -> bool:
        """Add what was learned to the parts of a tower; False if it does not fit them."""

    def _tower_parts(self, tunable: Encoder) -> dict[str, Any]:
        """The parts that are changed, by tower."""
        networks = tower_networks(tunable).items()
        wanted = [(tower, network) for tower, network in networks if self.towers in ("both", tower)]
        parts_of = {tower: self._parts_of(tower, network, tunable) for tower, network in wanted}
        parts_of = {tower: parts for tower, parts in parts_of.items() if len(parts)}
        if not parts_of:
            which, hint = ("neither tower", "") if self.towers == "both" else (f"no {self.towers} tower", ", or 'both'")
            raise InputError(f"{which} of {tunable.info.name} has {self.parts}: take another encoder{hint}")
        return parts_of

    def _merge(self, tunable: Encoder) -> str:
        parts_of = self._tower_parts(tunable)
        for tower, parts in parts_of.items():
            if not self._merge_tower(tower, parts):
                raise self._misfit(tower, tunable)
        changed = (f"{tower} tower ({len(parts)} {self.changed_parts})" for tower, parts in parts_of.items())
        return f"{self.method_name}: {', '.join(changed)}"


BATCH_SIZE = 64  # pictures per batch of a frozen tower


def image_features(encoder: Encoder, squares: NDArray[np.uint8], frozen: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Gives features (b, d) of pictures, squares (n, v, s, s, 3), by row and view. A frozen tower runs now only."""
    tower, device = _tower(encoder), encoder.device
    size = tower.pixels.size
    if squares.ndim != 5 or squares.shape[2:] != (size, size, 3) or squares.dtype != np.uint8:
        raise InputError(
            f"pictures must be squares (n, v, {size}, {size}, 3) of uint8, but are {squares.shape} of {squares.dtype}"
        )
    if not frozen:
        return lambda rows, views: run_squares(tower, squares[rows.numpy(), views.numpy()], device)
    flat = squares.reshape(-1, size, size, 3)
    with torch.no_grad():  # not inference mode: a gradient goes through what is made of them
        parts = [run_squares(tower, flat[i : i + BATCH_SIZE], device) for i in range(0, len(flat), BATCH_SIZE)]
    features = torch.cat(parts).reshape(*squares.shape[:2], -1)
    return lambda rows, views: features[rows.to(device), views.to(device)]


def run_squares(tower: Tower, squares: NDArray[np.uint8], device: str) -> Tensor:
    """Squares (b, s, s, 3) to features (b, d)."""
    values = torch.from_numpy(squares).to(device).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(each, device=device).view(1, 3, 1, 1) for each in (tower.pixels.mean, tower.pixels.std))
    return tower.module((values - mean) / std).float()


def class_embeddings(encoder: Encoder, prompts: Mapping[str, Sequence[str]], frozen: bool) -> Callable[[], Tensor]:
    """Gives unit class vectors (c, d), each the mean of its prompts' unit features. A frozen tower runs now only."""
    texts = [text for some in prompts.values() for text in some]
    counts = torch.tensor([len(some) for some in prompts.values()])
    owner = torch.arange(len(counts)).repeat_interleave(counts).to(encoder.device)
    share = (1 / counts)[owner.cpu(), None].to(encoder.device)

    def by_class(rows: Tensor) -> Tensor:
        total = torch.zeros(len(counts), rows.shape[1], device=rows.device)
        return unit(total.index_add(0, owner, unit(rows) * share))

    if frozen:
        vectors = by_class(encoder.encode_text(texts).to(encoder.device))
        return lambda: vectors
    tower = open_text_tower(encoder)
    tokens = [torch.tensor(each) for each in tower.tokenize(texts)]
    # What all texts begin with is run once, by a tower that can do so; at least one token of each text is left.
    length = min(len(row) for row in tokens) - 1
    same = torch.stack([row[:length] for row in tokens]).eq(tokens[0][:length]).all(dim=0)
    n_shared = int(same.cumprod(dim=0).sum())
    own_lengths = torch.tensor([len(each) for each in tokens]) - n_shared
    with torch.no_grad():
        embeddings = tower.embed(pad_sequence(tokens, batch_first=True))
    shared, own = embeddings[0, :n_shared], embeddings[:, n_shared:]
    return lambda: by_class(tower.after_prefix(shared)(own, own_lengths).float())


def tower_networks(encoder: Encoder) -> dict[str, nn.Module]:
    """The networks of the towers "image" and "text"; without a tower whose network is not accessible."""
    text = encoder.text_tower()
    network_of = {"image": _tower(encoder).module, "text": None if text is None else text.network()}
    return {tower: network for tower, network in network_of.items() if network is not None}


def _tower(encoder: Encoder) -> Tower:
    tower = encoder.tower()
    assert tower is not None, "open_tunable_copy has looked"
    return tower


LAYERS = ("all", "bottom", "top", "ends")
STEPS_PER_SHOT = 500  # optimizer steps for each shot per class, as in CLIP-LoRA's paper
T = TypeVar("T")


@dataclass(eq=False, repr=False, kw_only=True)
class LayerTuner(PartTuner):
    """Base of the methods that change matrices of the towers' layers, trained by AdamW at a rate that falls to 1e-6.

    Args:
        layers: "all", the half nearer to the input ("bottom") or to the output ("top"), or a third at both "ends".
        lr: highest learning rate of AdamW. It falls to 1e-6 in a cosine.
        steps: optimizer steps; None for 500 times the shots per class.
    """

    fingerprint_parameters: ClassVar[tuple[str, ...]] = ("matrices", "layers")
    trainable_matrices: ClassVar[str]  # letters of the matrices that the method can change

    matrices: str
    layers: Annotated[str, OneOf(*LAYERS)] = "all"
    weight_decay: float = 0.0
    steps: int | None = None

    def _train_config(self, shots_per_class: int) -> TrainConfig:
        steps = STEPS_PER_SHOT * shots_per_class if self.steps is None else self.steps
        return TrainConfig.from_estimator(self, **self.training, steps=steps, view_per_epoch=False)

    def _parts_of(self, tower: str, network: nn.Module, tunable: Encoder) -> list[AttentionLayer]:
        """The layers that are changed; of their matrices those that are changed and that they have."""
        every = attention_layers(network, mlp=bool(set(self.trainable_matrices) - set("qkvo")))
        cut = [{letter: layer[letter] for letter in self.matrices if letter in layer} for layer in every]
        return select_layers([layer for layer in cut if layer], self.layers)

    def check_parameters(self) -> None:
        """See `Head.check_parameters`."""
        super().check_parameters()
        letters = self.matrices
        if not letters or set(letters) - set(self.trainable_matrices) or len(set(letters)) < len(letters):
            raise InputError(
                f"matrices must be different letters of {self.trainable_matrices!r}, such as 'qkv', but are "
                f"{brief(letters)}"
            )


def select_layers(layers: Sequence[AttentionLayer], which: str) -> list[AttentionLayer]:
    """Some of the layers of a tower: "all", half of them at the "bottom" or "top", or a third at both "ends".

    >>> [layer["layer"] for layer in select_layers([{"layer": i} for i in range(12)], "ends")]
    [0, 1, 2, 3, 8, 9, 10, 11]
    """
    n = len(layers)
    half, third = n // 2, max(n // 3, 1)
    chosen = {
        "all": range(n),
        "bottom": range(max(half, 1)),
        "top": range(half, n),
        "ends": {*range(third), *range(n - third, n)},
    }[which]
    return [layer for i, layer in enumerate(layers) if i in chosen]


class SplitAttention(nn.Module):
    """Self-attention as in ``nn.MultiheadAttention``: ``inner`` gives q, k, v (..., 3w), ``outer`` the output."""

    def __init__(self, base: nn.MultiheadAttention, inner: nn.Module, outer: nn.Module) -> None:
        super().__init__()
        self.heads, self.batch_first = base.num_heads, base.batch_first
        self.inner, self.outer = inner, outer

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        """As ``nn.MultiheadAttention``, without weights of attention; all three inputs are one, a mask is added."""
        x = query if self.batch_first else query.transpose(0, 1)  # (n, l, w)
        n, length, _w = x.shape
        parts = self.inner(x).chunk(3, dim=-1)
        q, k, v = (part.reshape(n, length, self.heads, -1).transpose(1, 2) for part in parts)  # (n, h, l, w / h)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        output = self.outer(mixed.transpose(1, 2).reshape(n, length, -1))
        return (output if self.batch_first else output.transpose(0, 1)), None


def replace_linear(
    layer: AttentionLayer, changes: Mapping[str, T], make: Callable[[Tensor, Tensor | None, list[T]], nn.Module]
) -> None:
    """Replace the linear layers that hold some matrices by modules made of weight, bias and the matrices' changes."""

    def replacement(owner: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
        return make(weight, bias, [change for letter, change in changes.items() if layer[letter].owner is owner])

    for letter in changes:
        matrix = layer[letter]
        module = matrix.module
        if isinstance(module, nn.MultiheadAttention):
            inner = replacement(module, module.in_proj_weight, module.in_proj_bias)
            outer = replacement(module.out_proj, module.out_proj.weight, module.out_proj.bias)
            setattr(matrix.parent, matrix.child, SplitAttention(module, inner, outer))
        elif isinstance(module, nn.Linear):
            setattr(matrix.parent, matrix.child, replacement(module, module.weight, module.bias))


def add_to_weight(matrix: Matrix, change: Tensor) -> None:
    """Replace the weight that a matrix is part of by a copy with a change (out, in); the old weight stays as it is."""
    with torch.no_grad():
        weight = matrix.full_weight.detach().clone()
        weight[matrix.rows] += change.to(weight)
        setattr(matrix.owner, matrix.weight, nn.Parameter(weight, requires_grad=False))
