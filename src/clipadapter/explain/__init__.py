"""Explanations of a prediction: the nearest shots, the parts of text and shots, and a heat map."""

from clipadapter.explain.explanation import Explanation, Neighbour, explain

__all__ = ["Explanation", "Neighbour", "explain"]
