"""Data sets of pictures: reading, splits, shots, prompts and decoding. Independent of encoders and heads."""

from clipadapter.data.dataset import Dataset, Sample
from clipadapter.data.folders import list_images
from clipadapter.data.images import ImageSource, image_bytes, read_image, set_max_pixels, source_name
from clipadapter.data.load import load_dataset, textiles
from clipadapter.data.prompts import (
    class_prompts,
    clean_name,
    get_templates,
    list_templates,
    read_class_names,
    read_descriptions,
)
from clipadapter.data.scan import ScanReport, scan
from clipadapter.data.splits import draw_multilabel_shots, draw_shots, label_matrix
from clipadapter.utils.files import IMAGE_SUFFIXES

__all__ = [
    "IMAGE_SUFFIXES",
    "Dataset",
    "ImageSource",
    "Sample",
    "ScanReport",
    "class_prompts",
    "clean_name",
    "draw_multilabel_shots",
    "draw_shots",
    "get_templates",
    "image_bytes",
    "label_matrix",
    "list_images",
    "list_templates",
    "load_dataset",
    "read_class_names",
    "read_descriptions",
    "read_image",
    "scan",
    "set_max_pixels",
    "source_name",
    "textiles",
]
