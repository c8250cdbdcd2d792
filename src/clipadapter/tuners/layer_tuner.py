"""What the methods that change matrices of the towers' layers share: which layers, how they are trained, what fits."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from clipadapter.encoders import Encoder, Layer, attention_layers
from clipadapter.errors import InputError
from clipadapter.heads.training import Recipe
from clipadapter.tuners._layers import LAYERS, chosen
from clipadapter.tuners._through_towers import networks
from clipadapter.tuners.tower_tuner import TowerTuner

TOWERS = ("both", "image", "text")
STEPS = 500
"""A shot of each class, as in CLIP-LoRA's paper."""


class LayerTuner(TowerTuner):
    """Base of the methods that change matrices of the towers' layers, trained by AdamW at a rate that falls to 1e-6.

    A subclass has the parameters below, as `ClipLora` explains them, and puts what was learned into a tower's layers in
    `_merge`.
    """

    called: ClassVar[str]
    """Its name."""
    known: ClassVar[str]
    """Letters of the matrices that it can change."""

    matrices: str
    towers: str
    layers: str
    lr: float
    weight_decay: float
    steps: int | None
    batch_size: int
    progress: bool

    @abstractmethod
    def _merge(self, tower: str, layers: list[Layer]) -> bool:
        """Change the weights of a tower's layers, or say that what was learned does not fit them."""

    def _recipe(self, shots: int) -> Recipe:
        return Recipe(
            optimizer="adamw",
            lr=self.lr,
            momentum=0.0,
            weight_decay=self.weight_decay,
            schedule="cosine",
            warmup_epochs=0,
            epochs=None,
            steps=STEPS * shots if self.steps is None else self.steps,
            batch_size=self.batch_size,
            seed=self.seed,
            progress=self.progress,
            floor=1e-6,
        )

    def _apply(self, twin: Encoder) -> str:
        self._check()
        found = self._layers(twin)
        for tower, layers in found.items():
            if not self._merge(tower, layers):
                raise InputError(
                    f"what {self.called} has learned does not fit the {tower} tower of {twin.info.name}: "
                    "give the encoder that was tuned"
                )
        return f"{self.called}: " + ", ".join(
            f"{tower} tower ({len(layers)} of its layers)" for tower, layers in found.items()
        )

    def _facts(self) -> tuple[object, ...]:
        return self.matrices, self.layers

    def _layers(self, twin: Encoder) -> dict[str, list[Layer]]:
        """The layers that are changed, by tower; of their matrices those that are changed and that they have."""
        found = {}
        for tower, network in networks(twin).items():
            if self.towers in ("both", tower):
                every = attention_layers(network, mlp=bool(set(self.known) - set("qkvo")))
                cut = [{letter: layer[letter] for letter in self.matrices if letter in layer} for layer in every]
                found[tower] = chosen([layer for layer in cut if layer], self.layers)
        found = {tower: layers for tower, layers in found.items() if layers}
        if not found:
            which, hint = ("neither tower", "") if self.towers == "both" else (f"no {self.towers} tower", ", or 'both'")
            raise InputError(
                f"{which} of {twin.info.name} has attention layers that {self.called} knows: take another encoder{hint}"
            )
        return found

    def _check(self) -> None:
        for name, known in (("towers", TOWERS), ("layers", LAYERS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, but is {getattr(self, name)!r}")
        letters = self.matrices
        if not letters or set(letters) - set(self.known) or len(set(letters)) < len(letters):
            raise InputError(
                f"matrices must be different letters of {self.known!r}, such as 'qkv', but are {letters!r}"
            )
