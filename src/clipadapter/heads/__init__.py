"""Heads: methods that work on frozen features, one file per method. `list_heads` names them, `select` chooses one."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
