"""Why a classifier said what it said of one picture: the shots like it, text against shots, and where it looked."""

from clipadapter.explain._explain import explain
from clipadapter.explain.explanation import Explanation, Neighbour

__all__ = ["Explanation", "Neighbour", "explain"]
