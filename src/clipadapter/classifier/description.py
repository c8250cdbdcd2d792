"""What a person wants to know of a classifier: a line of text, and a table for notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from clipadapter.classifier.encoder_choice import as_encoder_list
from clipadapter.heads.registry import head_name
from clipadapter.persistence.format import EVALUATION_KEY
from clipadapter.utils.files import without_paths
from clipadapter.utils.formatting import describe_classes, describe_shots, format_count, html_block, html_table

if TYPE_CHECKING:
    from clipadapter.classifier.classifier import FewShotClassifier

MAX_SHOWN_CLASSES = 20
"""Classes that a notebook shows."""


def describe_in_a_line(classifier: FewShotClassifier) -> str:
    """The text of ``repr``."""
    facts = [f"{name} {value}" if value else "not fitted" for name, value in _facts(classifier).items()]
    return f"<FewShotClassifier: {', '.join(facts)}>"


def describe_as_html(classifier: FewShotClassifier) -> str:
    """The same as a table, and the number of shots of each class."""
    parts = [html_table(["", ""], [(name, value or "nothing yet") for name, value in _facts(classifier).items()])]
    if hasattr(classifier, "head_"):
        counts = list(classifier.support_.shot_counts.items())
        more = f"and {len(counts) - MAX_SHOWN_CLASSES} more" if len(counts) > MAX_SHOWN_CLASSES else ""
        parts += [html_table(["class", "shots"], counts[:MAX_SHOWN_CLASSES]), more]
    return html_block("FewShotClassifier", *parts)


def _facts(classifier: FewShotClassifier) -> dict[str, str]:
    """The facts by name. Nothing is opened or computed."""
    encoder = classifier._encoder if hasattr(classifier, "_encoder") else classifier.encoder
    name = ", ".join(each if isinstance(each, str) else each.info.name for each in as_encoder_list(encoder))
    head = classifier.head
    called = head if isinstance(head, str) else head_name(type(head)) or type(head).__name__
    facts = {"encoder": without_paths(name), "head": called, "fitted to": ""}
    if hasattr(classifier, "head_"):
        counts = classifier.support_.shot_counts
        n_shots = len(classifier.support_) or sum(counts.values())
        shots = f"{format_count(n_shots, 'shot')} ({describe_shots(counts, n_shots)})"
        facts["fitted to"] = f"{describe_classes(classifier.class_names_)}, {shots}"
    accuracy = _known_accuracy(classifier) if hasattr(classifier, "head_") else ""
    return {**facts, "accuracy": accuracy} if accuracy else facts


def _known_accuracy(classifier: FewShotClassifier) -> str:
    """The accuracy of the last `evaluate`, or else the one that the folder of the model records; or empty."""
    if classifier.evaluation_ is not None:
        return f"{100 * classifier.evaluation_.accuracy:.1f} % on {classifier.evaluation_.headline}"
    recorded = classifier.support_.provenance.get(EVALUATION_KEY)
    if not isinstance(recorded, Mapping) or "accuracy" not in recorded.get("model", {}):
        return ""
    pictures = format_count(recorded["n"], "picture")
    return f"{100 * recorded['model']['accuracy']:.1f} % on {pictures} of {recorded['data']}"
