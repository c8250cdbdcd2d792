"""Features: the store, extraction into it, and the feature sets that heads are fitted to.

Public names are imported at first use: to read a store does not need torch, which takes seconds to import.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
