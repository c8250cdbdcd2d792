"""A fitted model as one file that answers without this package: image tower, head, calibration and rejection.

What the file says is compared with what the model says before it gets its name; see docs/export.md.
"""

from clipadapter.export._export import FORMATS, Exported, export_model

__all__ = ["FORMATS", "Exported", "export_model"]
