"""Predict without torch, with a file that `clipadapter export` wrote.

Needs numpy, Pillow, and ONNX Runtime or OpenVINO. The public names are resolved at first use: every command imports
`clipadapter.runtime.engines`, and most of them no numpy.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
