"""Encoders: pictures and texts to features. There is one file per family; see ``list_encoders()``.

Public names are imported at first use: to check the name of an encoder does not need torch, which takes seconds to
import.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
