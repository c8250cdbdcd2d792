"""The head `auto`: zero-shot and simple classifiers, stacked by their out-of-fold logits."""

from clipadapter.heads.auto.head import Auto

__all__ = ["Auto"]
