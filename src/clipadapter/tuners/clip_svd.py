"""CLIP-SVD: the singular values of the attention and MLP matrices in both towers, trained on the shots.

Paper: Koleilat, Rivaz and Xiao, 2025, https://arxiv.org/abs/2509.03740.
From the paper's abstract and its authors' repository: only singular values are trained, in both towers, about 0.04 % of
the parameters; the matrices of queries, keys, values, output and MLP are decomposed each; AdamW without weight decay,
its rate falls to 1e-6 in a cosine, batches of 32, a number of steps times the shots. The paper's own section on
training could not be read, nor the settings for each data set. Ours is therefore that number, which is CLIP-LoRA's, and
one learning rate for all data sets: 2e-3, the default of a release of their program (a replication names 5e-3 for
medical pictures). "ends" is inferred from that release too: in ViT-B/16 these layers have 61,440 singular values,
0.041 % of the parameters; all layers have 0.062 %. Prompts are the classifier's, not a template for each data set.
Precision, views and whole epochs are as in CLIP-LoRA here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipadapter.encoders import Encoder, Layer
from clipadapter.heads import register_head
from clipadapter.tuners._svd import SingularValues, count
from clipadapter.tuners.layer_tuner import LayerTuner
from clipadapter.tuners.tower_tuner import Trainable


@register_head(
    "clip-svd",
    paper="https://arxiv.org/abs/2509.03740",
    compare=False,
    fidelity="partial: What is trained, and how the steps are made, is from the abstract and the authors' "
    "repository. The number of steps and one learning rate for all data sets are ours. Nothing was checked "
    "against their code.",
)
class ClipSvd(LayerTuner):
    """Zero-shot by an encoder with changed singular values; `FewShotClassifier` fits it, from pictures.

    Every step runs the towers forward and backward, so that it wants a GPU. A number for each singular value is learned
    and saved; the rest of the decomposition is made again when a model is opened, which takes seconds to a minute. A
    tower without attention layers, such as a ResNet, is left out of "both".

    Args:
        matrices: whose singular values are trained: letters of "qkvoud", for queries, keys, values and output, and for
            the MLP's matrices up and down. A layer with no such MLP goes without.
        towers: "both", "image" or "text".
        layers: "all", the half nearer to the input ("bottom") or to the output ("top"), or a third at both "ends".
        lr: highest learning rate of AdamW; it falls to 1e-6 in a cosine.
        weight_decay: of AdamW, on the changes: towards zero-shot.
        steps: optimizer steps; None for 500 times the shots a class.
        batch_size: pictures a step.
        precision: of the towers while training: "fp32" or "bf16", which is faster and takes less memory.
        checkpoint: seconds between two checkpoints in the user's cache folder, from which a killed `tune` goes on when
            it is called again; None keeps none.
        seed: of shuffling and the choice of views.
        progress: show a bar on stderr while training.
    """

    called = "clip-svd"
    known = "qkvoud"

    def __init__(
        self,
        matrices: str = "qkvoud",
        towers: str = "both",
        layers: str = "ends",
        lr: float = 2e-3,
        weight_decay: float = 0.0,
        steps: int | None = None,
        batch_size: int = 32,
        precision: str = "fp32",
        checkpoint: float | None = 30.0,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.matrices = matrices
        self.towers = towers
        self.layers = layers
        self.lr = lr
        self.weight_decay = weight_decay
        self.steps = steps
        self.batch_size = batch_size
        self.precision = precision
        self.checkpoint = checkpoint
        self.seed = seed
        self.progress = progress

    def _begin(self, twin: Encoder, generator: torch.Generator) -> Trainable:
        self._check()
        arrays: dict[str, Tensor] = {}
        found = self._layers(twin)
        for tower, layers in found.items():
            values = SingularValues(torch.zeros(count(layers), device=twin.device, requires_grad=True))
            arrays[f"{tower}_s_"] = values.change
            values.attach(layers)
        return Trainable(arrays, found.keys(), lambda: None)

    def _merge(self, tower: str, layers: list[Layer]) -> bool:
        change = getattr(self, f"{tower}_s_", None)
        if change is None or not SingularValues(change).fits(layers):
            return False
        SingularValues(change).merge(layers)
        return True
