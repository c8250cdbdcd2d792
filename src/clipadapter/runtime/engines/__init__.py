"""Backends run image towers, each in several precisions, and exported models. One file per backend.

Importing this package loads neither torch nor numpy: a converted tower and an exported model run without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
