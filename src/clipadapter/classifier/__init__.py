"""Pictures in, names out: encoder, head and class names as one classifier."""

from clipadapter.classifier.classifier import FewShotClassifier
from clipadapter.prediction import Prediction

__all__ = ["FewShotClassifier", "Prediction"]
