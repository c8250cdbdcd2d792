"""A fitted model as a folder and back, and as a repository of the hub and back.

The public names are resolved at first use: who only asks what a folder holds does not wait for torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
