"""The head `auto`: zero-shot and simple classifiers, stacked by their out-of-fold logits."""
