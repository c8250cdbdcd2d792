"""Adapt CLIP-like vision-language models to your own classes from a few labelled pictures."""

__version__ = "0.1.0"
