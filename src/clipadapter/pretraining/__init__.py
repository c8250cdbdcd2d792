"""Training of an image encoder on unlabelled pictures."""

from clipadapter.pretraining.simclr import SimClrResult, nt_xent, train_simclr

__all__ = ["SimClrResult", "nt_xent", "train_simclr"]
