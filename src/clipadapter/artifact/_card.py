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

{_trust(config)}

## Classes

{classes}
"""


def _trust(config: ArtifactConfig) -> str:
    """What its probabilities mean, and whether it can say that a picture is none of the classes."""
    facts = config.trust
    if facts.get("several"):
        return "A picture may have several of these classes, or none: each has a threshold of its own."
    n = (facts.get("calibrator") or {}).get("n", 0)
    seen = f"are calibrated on {n} held-out shots" if n else "could not be calibrated: no shot was held out"
    able = "can say" if facts.get("rejector") else "can't say"
    asked = [f"{name} {facts[name]:g}" for name in ("reject", "coverage") if facts.get(name)]
    default = f" Asked for by default: {', '.join(asked)}." if asked else ""
    return f'Its probabilities {seen}. It {able} that a picture is "none of these" (`reject=0.05`).{default}'
