"""Training an encoder on pictures without labels."""

from clipadapter.pretraining.simclr import Pretraining, nt_xent, train_simclr

__all__ = ["Pretraining", "nt_xent", "train_simclr"]
