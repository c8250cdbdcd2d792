"""Data sets of pictures: reading, splits, shots, prompts and decoding. Independent of encoders and heads."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
