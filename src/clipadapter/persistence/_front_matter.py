"""What the hub reads of a model's card: YAML before the text.

Layout: https://github.com/huggingface/hub-docs/blob/main/modelcard.md?plain=1
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from clipadapter.metrics import metrics_shown
from clipadapter.persistence._evaluation import Evaluated
from clipadapter.persistence._files import ArtifactConfig

CARD_METRICS = metrics_shown("card")


def front_matter(config: ArtifactConfig, found: Evaluated | None, name: str) -> str:
    """The block between the lines of dashes, these included.

    No licence is given: which one a model has is for the person to say who publishes it.

    Args:
        config: of the model.
        found: its figures, if they were recorded.
        name: of the model.
    """
    facts: dict[str, Any] = {
        "library_name": "clipadapter",
        "pipeline_tag": "image-classification",
        "tags": ["clip", "few-shot", "image-classification", "model_hub_mixin"],
    }
    base = hub_models(config.encoder.name)
    if base:
        facts |= {"base_model": base, "base_model_relation": "adapter"}
    if found is not None:
        facts["model-index"] = [{"name": name, "results": [_result(found, bool(config.uncertainty.get("several")))]}]
    return "\n".join(["---", *_yaml(facts), "---", ""])


def hub_models(encoder: str) -> list[str]:
    """Repositories of the hub that an encoder's weights come from; none if they come from elsewhere.

    >>> hub_models("unprojected:open_clip:ViT-B-32/laion2b_s34b_b79k")
    ['laion/CLIP-ViT-B-32-laion2B-s34B-b79K']
    >>> hub_models("lite")
    []
    """
    scheme, _, rest = encoder.partition(":")
    if scheme == "unprojected":
        return hub_models(rest)
    if scheme == "pair":
        return list(dict.fromkeys(name for half in rest.split("+") for name in hub_models(half)))
    model, _, tag = rest.rpartition("/")
    if scheme != "open_clip" or rest.startswith("local-dir:") or not model:
        return []
    import open_clip

    repo = str((open_clip.get_pretrained_cfg(model, tag) or {}).get("hf_hub") or "")
    return [repo.rpartition("/")[0]] if repo.count("/") == 2 else []


def _result(found: Evaluated, several: bool) -> dict[str, Any]:
    """The figures of the model and, with a name that says so, of its baselines."""
    task = "Multi-label image classification" if several else "Image classification"
    metrics = [*_metrics(found.model, "")]
    for name, figures in found.baselines.items():
        metrics += _metrics(figures, f" of {name} (baseline)")
    return {
        "task": {"type": "image-classification", "name": task},
        "dataset": {"type": "imagefolder", "name": found.data or "unnamed", "args": {"pictures": found.n}},
        "metrics": metrics,
    }


def _metrics(values: Mapping[str, float], whose: str) -> Sequence[dict[str, Any]]:
    return [
        {"type": metric.hub_type or name, "name": f"{metric.title}{whose}", "value": round(values[name], 4)}
        for name, metric in CARD_METRICS.items()
        if name in values
    ]


def _yaml(value: dict[str, Any] | list[Any]) -> list[str]:
    """Lines of YAML."""
    lines = []
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        inner = _yaml(item) if isinstance(item, dict | list) else [_scalar(item)]
        if isinstance(value, list):
            lines += [f"- {inner[0]}", *(f"  {line}" for line in inner[1:])]
        elif isinstance(item, dict | list):
            lines += [f"{key}:", *(f"  {line}" for line in inner)]
        else:
            lines.append(f"{key}: {inner[0]}")
    return lines


def _scalar(item: object) -> str:
    """A text or number as in JSON, which YAML reads alike; but YAML forbids letters that JSON lets stand."""
    text = json.dumps(item, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in text)
