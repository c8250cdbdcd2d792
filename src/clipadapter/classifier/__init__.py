"""Few-shot image classifiers: encoder, text features and head as one object."""

from clipadapter.classifier.classifier import FewShotClassifier
from clipadapter.classifier.evaluation import EvaluationResult
from clipadapter.utils.prediction import Prediction

__all__ = ["EvaluationResult", "FewShotClassifier", "Prediction"]
