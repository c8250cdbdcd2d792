"""Formats of exported models. One file per format, found automatically: see `base.ExportFormat`.

`clipadapter.export` writes files and `clipadapter.runtime` opens them with the functions of this table. Importing it
loads no numpy, no torch and no runtime.
"""

from clipadapter.formats.base import (
    INPUT_NAMES,
    METADATA_KEY,
    PRECISIONS,
    ExportFormat,
    GraphModule,
    InferenceBackend,
    InferenceGraph,
)
from clipadapter.formats.registry import (
    DEFAULT_FORMAT,
    companion_files,
    export_suffixes,
    find_format,
    get_format,
    is_exported,
    list_formats,
    list_inference_backends,
)

__all__ = [
    "DEFAULT_FORMAT",
    "INPUT_NAMES",
    "METADATA_KEY",
    "PRECISIONS",
    "ExportFormat",
    "GraphModule",
    "InferenceBackend",
    "InferenceGraph",
    "companion_files",
    "export_suffixes",
    "find_format",
    "get_format",
    "is_exported",
    "list_formats",
    "list_inference_backends",
]
