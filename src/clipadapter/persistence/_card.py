"""The card of a saved model: its facts in words, for the person who finds the folder or the page on the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from clipadapter.heads import fidelity_of, head_info, list_heads
from clipadapter.metrics import wilson_interval
from clipadapter.persistence._evaluation import ClassFigures, Evaluated, evaluation_of
from clipadapter.persistence._files import SUPPORT, ArtifactConfig
from clipadapter.persistence._front_matter import CARD_METRICS, front_matter

MARK = "<!-- Made by clipadapter from config.json, and made anew by it; take out this line to keep what you write. -->"
LISTED = 30
"""Classes that are shown at once; more are folded away."""
HERE = "path/to/this/folder"
FEW = 50
"""Test pictures below which a figure is called rough."""


def model_card(config: ArtifactConfig, repo: str = "") -> str:
    """Text of ``README.md`` in a model's folder.

    Args:
        config: of the model.
        repo: its name on the hub, such as ``org/name``, if it goes there.
    """
    found = evaluation_of(config)
    sections = [
        f"# A few-shot classifier of {len(config.class_names)} classes",
        _task(config),
        f"## How to use it\n\n{_use(config, repo)}",
        f"## How good it is\n\n{_measured(config, found)}",
        f"## What its answers mean\n\n{_trust(config.uncertainty)}",
        f"## Encoder and licences\n\n{_encoder(config)}",
        f"## Limits\n\n{_limits(config, found)}",
        f"## Classes and shots\n\n{_classes(config)}",
        f"## Where it comes from\n\n{_origin(config)}",
        MARK,
    ]
    name = repo.rpartition("/")[2] or f"{config.head.name}-{len(config.class_names)}-classes"
    return front_matter(config, found, name) + "\n" + "\n\n".join(sections) + "\n"


def plain(text: str) -> str:
    r"""A text of others in Markdown: nothing in it is a mark, a link, an element or the end of a table's cell.

    >>> print(plain("a_b | <b>x</b>"))
    a\_b \| \<b\>x\</b\>
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return re.sub(r"([\\`*_{}\[\]<>|~#$&!])", r"\\\1", line)


def code(text: str) -> str:
    """The same, as code; a backtick in it becomes an apostrophe."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return f"`{line.replace('`', chr(39)).replace('|', '/') or ' '}`"


def _counts(config: ArtifactConfig) -> dict[str, int]:
    """Shots by class, as far as they are known."""
    told = config.provenance.get("shots")
    shots = told if isinstance(told, dict) else {}
    return {name: count for name in config.class_names if isinstance(count := shots.get(name, 0), int)}


def _task(config: ArtifactConfig) -> str:
    counts = sorted(_counts(config).values()) or [0]
    each = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    what = (
        "which of its classes a picture has, if any" if config.uncertainty.get("several") else "the class of a picture"
    )
    names = ", ".join(plain(name) for name in config.class_names[:5])
    more = " and others" if len(config.class_names) > 5 else ""
    return (
        f"It says {what}: {names}{more}. The head {code(config.head.name)} was fitted to {each} labelled pictures a "
        f"class, on features of the encoder {code(config.encoder.name)}.{_method(config.head.name)}"
    )


def _method(head: str) -> str:
    """What the head is, in its own words, with its paper, and how faithful it is to that."""
    if head not in list_heads():
        return ""
    info = head_info(head)
    paper = f" ([paper]({info.facts['paper']}))" if info.facts.get("paper") else ""
    fidelity = plain(str(fidelity_of(head)))
    return f" That is: {plain(info.summary.rstrip('.'))}{paper}. Fidelity: {fidelity}"


def _use(config: ArtifactConfig, repo: str) -> str:
    elsewhere = ', encoder="open_clip:local-dir:PATH"' if _local(config) else ""
    extra = "lite" if config.encoder.name == "lite" else "train"
    if repo:
        shell = f"clipadapter pull {repo} --out model\nclipadapter predict model photo.jpg"
    else:
        shell = f"clipadapter predict {HERE} photo.jpg"
    return f"""```python
from clipadapter import FewShotClassifier  # pip install 'clipadapter[{extra}]'

model = FewShotClassifier.from_pretrained("{repo or HERE}"{elsewhere})
for answer in model.classify(["photo.jpg"], top=3):
    print(answer.label, answer.probability, answer.top)
```

```sh
{shell}
```"""


def _measured(config: ArtifactConfig, found: Evaluated | None) -> str:
    if found is None:
        return (
            "Not known: no evaluation is recorded. `clipadapter eval MODEL TEST --record` measures it on labelled "
            "pictures beside zero-shot and a linear probe, and writes the figures here."
        )
    rows = {f"this model ({code(config.head.name)})": found.model, **{plain(n): f for n, f in found.baselines.items()}}
    columns = {name: metric for name, metric in CARD_METRICS.items() if name in found.model}
    lines = [
        f"| {found.n} pictures of {plain(found.data)} | {' | '.join(metric.heading for metric in columns.values())} |",
        f"|---|{'---:|' * len(columns)}",
        *(
            f"| {system} | {' | '.join(m.format(values[key]) if key in values else '' for key, m in columns.items())} |"
            for system, values in rows.items()
        ),
    ]
    share = found.model.get("accuracy")
    between = "" if share is None else _between(share, found.n)
    return "\n".join(lines) + between + _worst(found.worst)


def _between(share: float, n: int) -> str:
    """Wilson's interval of a share, at 95 %."""
    low, high = (100 * end for end in wilson_interval(share, n))
    return f"\n\nFor so many pictures its accuracy is between {low:.1f} and {high:.1f} % (95 % interval)."


def _worst(classes: list[ClassFigures]) -> str:
    if not classes:
        return ""
    told = (f"{plain(one.name)} (F1 {100 * one.f1:.0f} %, pictures: {one.count})" for one in classes)
    return f"\n\nLeast well told: {', '.join(told)}."


def _trust(facts: Mapping[str, Any]) -> str:
    """What its probabilities mean, and whether it can say that a picture is none of the classes."""
    if facts.get("several"):
        return "A picture may have several of these classes, or none: each has a threshold of its own."
    n = (facts.get("calibrator") or {}).get("n", 0)
    seen = f"are calibrated on {n} held-out shots" if n else "could not be calibrated: no shot was held out"
    able = "can say" if facts.get("rejector") else "can't say"
    sets = "can name" if facts.get("conformal") else "can't name"
    asked = [f"{name} {facts[name]:g}" for name in ("reject", "coverage") if facts.get(name)]
    default = f" Asked for by default: {', '.join(asked)}." if asked else ""
    return (
        f'Its probabilities {seen}. It {able} that a picture is "none of these" (`reject=0.05`), and {sets} the '
        f"classes that a doubtful one may be (`coverage=0.9`).{default}"
    )


def _encoder(config: ArtifactConfig) -> str:
    encoder = config.encoder
    note = f" Note: {plain(encoder.note)}." if encoder.note else ""
    where = (
        "They lay in a folder of the machine where it was fitted, and must be had from there."
        if _local(config)
        else "They are not part of this folder and come from where the encoder has them."
    )
    return (
        f"The encoder's weights ({code(encoder.name)}, {encoder.precision}) have the licence {plain(encoder.licence)}. "
        f"{where}{note}\n\nThe licence of this model itself is not said here: whoever publishes it chooses one "
        "(`license:` at the top), which has to agree with that of the weights and with the rights to the pictures."
    )


def _limits(config: ArtifactConfig, found: Evaluated | None) -> str:
    told = [
        "It knows pictures like its shots. Other cameras, places and times were not tried unless the test had them.",
        "A picture of none of its classes is given one of them, unless `reject` is asked for.",
    ]
    if config.uncertainty.get("several"):
        told[1] = "A picture of none of its classes may be given some of them all the same."
    if found is None:
        told.append("How often it is right was not measured.")
    elif found.n < FEW:
        told.append(f"It was tested on {found.n} pictures only: its figures are rough.")
    if found is not None and found.among_shots:
        told.append(
            f"{found.among_shots} of the {found.n} test pictures were among its shots: its figures are better than "
            "they would be on new pictures."
        )
    if "lite" in re.split(r"[:+]", config.encoder.name):
        told.append(
            "Its encoder `lite` is small and made for trying out; what it reaches by class names alone is above."
        )
    if SUPPORT in config.files:
        told.append(
            f"`{SUPPORT}` holds the features of the shots: no pictures, but from them it can be told whether a given "
            "picture was one of them."
        )
    return "\n".join(f"- {line}" for line in told)


def _classes(config: ArtifactConfig) -> str:
    counts = _counts(config)
    rows = "\n".join(f"| {plain(name)} | {counts.get(name, 0)} |" for name in config.class_names)
    table = f"| class | shots |\n|---|---:|\n{rows}"
    if len(config.class_names) <= LISTED:
        return table
    return f"<details><summary>All {len(config.class_names)} classes</summary>\n\n{table}\n\n</details>"


def _origin(config: ArtifactConfig) -> str:
    told = config.provenance.get("versions")
    versions = ", ".join(f"{k} {v}" for k, v in told.items()) if isinstance(told, dict) else "unknown versions"
    python = config.provenance.get("python", "of an unknown version")
    when = config.provenance.get("created", "an unknown day")
    views, crop = config.provenance.get("views", 1), config.provenance.get("crop")
    seen = f"{views} views of each shot" + (f" (crop scale: {crop})" if crop else "")
    return plain(
        f"Made on {when} with {versions}, Python {python}; {seen}. Fingerprint of the encoder: "
        f"{config.encoder.fingerprint}. config.json has the rest: prompts, parameters, hashes of all files."
    )


def _local(config: ArtifactConfig) -> bool:
    """Whether the encoder's weights lie in a folder of one machine."""
    return "local-dir:" in config.encoder.name or "simclr:" in config.encoder.name
