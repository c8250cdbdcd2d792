"""The card of a saved model: its facts in words, for the person who finds the folder."""

from __future__ import annotations

from clipadapter.artifact._files import ArtifactConfig


def model_card(config: ArtifactConfig) -> str:
    """Text of ``README.md`` in a model's folder."""
    shots: dict[str, int] = config.provenance.get("shots", {})
    counts = sorted(shots.values())
    spread = f"{counts[0]} to {counts[-1]}" if counts and counts[0] != counts[-1] else f"{counts[0] if counts else 0}"
    classes = "\n".join(f"- {name} ({shots.get(name, 0)} pictures)" for name in config.class_names)
    note = f" {config.encoder.note}" if config.encoder.note else ""
    return f"""---
library_name: clipadapter
pipeline_tag: image-classification
tags: [clip, few-shot]
---

# A few-shot classifier of {len(config.class_names)} classes

Head `{config.head.name}` on features of `{config.encoder.name}`.{note}
Licence of the encoder's weights: {config.encoder.licence}.
Fitted with {spread} pictures a class on {config.provenance.get("created", "an unknown day")}.

```python
from clipadapter import FewShotClassifier

model = FewShotClassifier.load("path/to/this/folder")
print(model.predict(["photo.jpg"]))
```

It knows these classes only and calls every picture one of them. Its probabilities are not calibrated.

## Classes

{classes}
"""
