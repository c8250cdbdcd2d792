"""What the paper of CLIP-Adapter and its released code set otherwise than the defaults of `ClipAdapter`."""

from __future__ import annotations

from collections.abc import Mapping

from clipadapter.heads.base import Preset

COMMON: Preset = {"alpha": 0.2, "centre": False, "noise": 0, "temperature": 1, "batch_size": 32, "logit_adjustment": 0}
SGD: Preset = {"optimizer": "sgd", "weight_decay": 5e-4, "schedule": "cosine-epoch", "warmup_epochs": 1}

OFFICIAL: Preset = {**COMMON, **SGD, "final_relu": True, "epochs": "coop"}
"""The released code. It is for ImageNet alone, for which CoOp's scripts take 50 epochs at any number of shots:
``ClipAdapter.official(epochs=50)``. It adapts raw features, which makes no difference without a centre and noise."""

PAPER: Preset = {**COMMON, "optimizer": "adam", "lr": 1e-5, "schedule": "constant", "epochs": 200}
"""The paper leaves open: the optimizer and its schedule (Adam is the reading under which 1e-5 trains at all; the rate
is constant here), whether the adapter's input has unit length, and how the ratio was chosen: it gives the best of a
search for each data set, and names no validation set. ImageNet's 0.2 is taken here."""

PRESETS: Mapping[str, Preset] = {
    name: {**PAPER, "alpha": ratio}
    for name, ratio in (("imagenet", 0.2), ("caltech101", 0.2), ("dtd", 0.6), ("eurosat", 0.6))
}
PRESET_NOTE = (
    "`ClipAdapter.paper` with the ratio that was best in the paper's search, which names no validation set. The ratios "
    "of ImageNet and DTD are in a table. Of Caltech-101 the text says about 0.2, of EuroSAT 0.6 to 0.8, of which the "
    "lower end is taken."
)
