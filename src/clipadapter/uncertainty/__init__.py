"""Calibrated probabilities, rejection ("none of these"), prediction sets and unequal costs.

Only numpy is used, so that an exported model can predict without torch. Everything is learned from out-of-fold logits
of the shots, see `clipadapter.heads.out_of_fold`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
