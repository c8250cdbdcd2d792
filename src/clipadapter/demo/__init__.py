"""The parts of ``clipadapter demo``: its pictures, its sheet of answers, and what its figures say in words."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
