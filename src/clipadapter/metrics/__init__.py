"""Metrics of predictions: accuracy and F1, calibration, out-of-distribution detection, multi-label; their table."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
