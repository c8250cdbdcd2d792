"""The model card of a saved model (``README.md``): its facts in words, with the metadata that the hub reads.

Layout of the metadata: https://github.com/huggingface/hub-docs/blob/main/modelcard.md?plain=1
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipadapter.encoders import split_blocks
from clipadapter.heads.registry import HEADS, Fidelity
from clipadapter.metrics import metrics_shown, wilson_interval
from clipadapter.persistence.evaluation import ClassScores, Evaluation, Scores, read_evaluation
from clipadapter.persistence.format import ModelConfig, read_file
from clipadapter.runtime.model_folder import ARRAYS_FOLDER, CARD_FILE, SUPPORT, UNLABELLED
from clipadapter.uncertainty import HeldOutAccuracy
from clipadapter.utils.blocks import BlockSource
from clipadapter.utils.files import LOCAL_WEIGHTS, has_local_weights, printable

MAX_CARD_BYTES = 16 << 20
GENERATED_MARK = (
    "<!-- Made by clipadapter from config.json, and made anew by it; take out this line to keep what you write. -->"
)
"""Last line of a generated card. A card without it was edited by a person and is not overwritten."""
MAX_LISTED_CLASSES = 30
"""Longer tables of classes are folded."""
EXTRAS = {
    "efficientnet-lite1": "efficientnet",
    "efficientnet-lite2": "efficientnet",
    "lite": "lite",
    "hf": "transformers",
}
"""What installs encoders by their schemes; those with more packages first."""
MIN_RELIABLE_TEST_PICTURES = 50
"""With fewer test pictures the card calls the scores rough."""
CARD_METRICS = metrics_shown("card")
FOLDER_PLACEHOLDER = "path/to/this/folder"


def make_card(folder: str | Path, config: ModelConfig, repo: str = "") -> bytes | None:
    """Make the card of a saved model again; None if a person has edited the card in the folder."""
    card = read_card(folder)
    is_edited = card is not None and GENERATED_MARK.encode() not in card
    return None if is_edited else render_card(config, repo).encode()


def read_card(folder: str | Path) -> bytes | None:
    """The card in the folder of a model, if there is one."""
    if not os.path.lexists(Path(folder) / CARD_FILE):
        return None
    return read_file(folder, CARD_FILE, MAX_CARD_BYTES, "it is no card")


def render_card(config: ModelConfig, repo: str = "") -> str:
    """Render the card as Markdown."""
    evaluation = read_evaluation(config)
    sections = [
        f"# A few-shot classifier of {len(config.class_names)} classes",
        _describe_task(config),
        f"## How to use it\n\n{_describe_usage(config, repo)}",
        f"## How good it is\n\n{_describe_evaluation(config, evaluation)}",
        f"## What its answers mean\n\n{_describe_uncertainty(config.uncertainty)}",
        f"## Encoder and licences\n\n{_describe_encoder(config)}",
        f"## Limits\n\n{_describe_limits(config, evaluation)}",
        f"## Classes and shots\n\n{_list_classes(config)}",
        f"## Where it comes from\n\n{_describe_origin(config)}",
        GENERATED_MARK,
    ]
    name = repo.rpartition("/")[2] or f"{config.head.name}-{len(config.class_names)}-classes"
    return front_matter(config, evaluation, name) + "\n" + "\n\n".join(sections) + "\n"


# ---- Metadata: YAML before the text ----


def front_matter(config: ModelConfig, evaluation: Evaluation | None, name: str) -> str:
    """Make the metadata block, its lines of dashes included.

    It names no licence of the model: whoever publishes the model chooses one.
    """
    facts: dict[str, Any] = {
        "library_name": "clipadapter",
        "pipeline_tag": "image-classification",
        "tags": ["clip", "few-shot", "image-classification", "model_hub_mixin"],
    }
    base = hub_repositories(config.encoder.name)
    if base:
        facts |= {"base_model": base, "base_model_relation": "adapter"}
    if evaluation is not None:
        facts["model-index"] = [{"name": name, "results": [_evaluation_result(evaluation, _is_multilabel(config))]}]
    return "\n".join(["---", *_yaml(facts), "---", ""])


def hub_repositories(encoder: str) -> list[str]:
    """Repositories of the hub that the weights of an encoder come from; empty if they come from elsewhere.

    >>> hub_repositories("open_clip:ViT-B-32/laion2b_s34b_b79k[final,unprojected]")
    ['laion/CLIP-ViT-B-32-laion2B-s34B-b79K']
    >>> hub_repositories("lite")
    []
    """
    first, names = split_blocks(encoder)
    if names:
        encoders = [first, *(BlockSource.parse(name).encoder for name in names)]
        return list(dict.fromkeys(repo for one in encoders for repo in hub_repositories(one)))
    scheme, _, rest = encoder.partition(":")
    if scheme in ("hf-hub", "hf") and not has_local_weights(encoder):
        return [rest.partition("@")[0]]
    if scheme == "timm" and not has_local_weights(encoder):
        return [f"timm/{rest.partition('@')[0]}"]  # where nearly all weights of timm are
    model, _, tag = rest.rpartition("/")
    if scheme != "open_clip" or ":" in rest or not model:
        return []
    import open_clip

    repo = str((open_clip.get_pretrained_cfg(model, tag) or {}).get("hf_hub") or "")
    return [repo.rpartition("/")[0]] if repo.count("/") == 2 else []


def _schemes(encoder: str) -> set[str]:
    """The schemes of an encoder and of the other encoders in its blocks.

    >>> sorted(_schemes("lite[final,inner,timm:resnet50.a1_in1k/final]"))
    ['lite', 'timm']
    """
    first, names = split_blocks(encoder)
    return {uri.partition(":")[0] for uri in (first, *(BlockSource.parse(name).encoder for name in names)) if uri}


def _evaluation_result(evaluation: Evaluation, is_multilabel: bool) -> dict[str, Any]:
    """Scores of the model, followed by those of the baselines, whose names say that they are baselines."""
    task = "Multi-label image classification" if is_multilabel else "Image classification"
    metrics = [*_result_metrics(evaluation.model, "")]
    for name, scores in evaluation.baselines.items():
        metrics += _result_metrics(scores, f" of {name} (baseline)")
    return {
        "task": {"type": "image-classification", "name": task},
        "dataset": {"type": "imagefolder", "name": evaluation.data or "unnamed", "args": {"pictures": evaluation.n}},
        "metrics": metrics,
    }


def _result_metrics(scores: Scores, suffix: str) -> Sequence[dict[str, Any]]:
    return [
        {"type": metric.hub_type or name, "name": f"{metric.title}{suffix}", "value": round(scores[name], 4)}
        for name, metric in CARD_METRICS.items()
        if name in scores
    ]


def _yaml(value: dict[str, Any] | list[Any]) -> list[str]:
    """Lines of YAML."""
    lines = []
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        inner = _yaml(item) if isinstance(item, dict | list) else [_yaml_scalar(item)]
        if isinstance(value, list):
            lines += [f"- {inner[0]}", *(f"  {line}" for line in inner[1:])]
        elif isinstance(item, dict | list):
            lines += [f"{key}:", *(f"  {line}" for line in inner)]
        else:
            lines.append(f"{key}: {inner[0]}")
    return lines


def _yaml_scalar(item: object) -> str:
    """A text or number as JSON, which is YAML too except for unprintable characters: YAML forbids them."""
    text = json.dumps(item, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in text)


# ---- Text ----


def escape(text: str) -> str:
    r"""Escape untrusted text for Markdown: no mark-up, link, element or end of a table cell is left in it.

    >>> print(escape("a_b | <b>x</b>"))
    a\_b \| \<b\>x\</b\>
    """
    line = printable(text).strip()
    return re.sub(r"([\\`*_{}\[\]<>|~#$&!])", r"\\\1", line)


def code(text: str) -> str:
    """Format untrusted text as inline code; a backtick in it becomes an apostrophe."""
    line = printable(text).strip()
    return f"`{line.replace('`', chr(39)).replace('|', '/') or ' '}`"


def _is_multilabel(config: ModelConfig) -> bool:
    return bool(config.uncertainty.get("multilabel"))


def _shot_counts(config: ModelConfig) -> dict[str, int]:
    """Number of shots by class, as far as known."""
    raw = config.provenance.get("shots")
    shots = raw if isinstance(raw, dict) else {}
    return {name: count for name in config.class_names if isinstance(count := shots.get(name, 0), int)}


def _describe_task(config: ModelConfig) -> str:
    counts = sorted(_shot_counts(config).values()) or [0]
    each = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    what = "which of its classes a picture has, if any" if _is_multilabel(config) else "the class of a picture"
    names = ", ".join(escape(name) for name in config.class_names[:5])
    more = " and others" if len(config.class_names) > 5 else ""
    return (
        f"It says {what}: {names}{more}. The head {code(config.head.name)} was fitted to {each} labelled pictures a "
        f"class, on features of the encoder {code(config.encoder.name)}.{_describe_head(config)}"
    )


def _describe_head(config: ModelConfig) -> str:
    """The summary of the head, its paper, and how faithful it is to the paper with these parameters."""
    head = config.head
    if head.name not in HEADS.list():
        return ""
    (declared,) = HEADS.declarations(head.name)  # to restore a version writes a card, and needs no torch
    paper = f" ([paper]({declared.facts['paper']}))" if declared.facts.get("paper") else ""
    fidelity = escape(str(Fidelity.of(declared.facts, head.params)))
    return f" That is: {escape(declared.summary.rstrip('.'))}{paper}. Fidelity: {fidelity}"


def _describe_usage(config: ModelConfig, repo: str) -> str:
    local = LOCAL_WEIGHTS.match(split_blocks(config.encoder.name)[0])
    encoder = f', encoder="{local[0]}PATH"' if local else ""
    extra = next((extra for scheme, extra in EXTRAS.items() if scheme in _schemes(config.encoder.name)), "train")
    if repo:
        shell = f"clipadapter pull {repo} --out model\nclipadapter predict model photo.jpg"
    else:
        shell = f"clipadapter predict {FOLDER_PLACEHOLDER} photo.jpg"
    return f"""```python
from clipadapter import FewShotClassifier  # pip install 'clipadapter[{extra}]'

model = FewShotClassifier.from_pretrained("{repo or FOLDER_PLACEHOLDER}"{encoder})
for answer in model.classify(["photo.jpg"], top=3):
    print(answer.label, answer.probability, answer.top)
```

```sh
{shell}
```"""


def _describe_evaluation(config: ModelConfig, evaluation: Evaluation | None) -> str:
    if evaluation is None:
        held_out = HeldOutAccuracy.from_dict(config.uncertainty.get("accuracy"))
        known = "Not known."
        if held_out is not None:
            known = f"{held_out.describe().capitalize()}. Each was predicted by a fit without it."
        return (
            f"{known} No evaluation is recorded. `clipadapter eval MODEL TEST --record` measures it on other labelled "
            "pictures beside zero-shot and a linear probe, and writes the figures here."
        )
    rows = {f"this model ({code(config.head.name)})": evaluation.model}
    rows |= {escape(name): scores for name, scores in evaluation.baselines.items()}
    columns = {name: metric for name, metric in CARD_METRICS.items() if name in evaluation.model}
    lines = [
        f"| {evaluation.n} pictures of {escape(evaluation.data)} | {' | '.join(m.heading for m in columns.values())} |",
        f"|---|{'---:|' * len(columns)}",
        *(
            f"| {name} | {' | '.join(m.format(scores[key]) if key in scores else '' for key, m in columns.items())} |"
            for name, scores in rows.items()
        ),
    ]
    accuracy = evaluation.model.get("accuracy")
    interval = "" if accuracy is None else _describe_accuracy_interval(accuracy, evaluation.n)
    return "\n".join(lines) + interval + _describe_worst_classes(evaluation.worst)


def _describe_accuracy_interval(accuracy: float, n: int) -> str:
    """The 95 % score interval of Wilson (1927)."""
    low, high = (100 * end for end in wilson_interval(accuracy, n))
    return f"\n\nFor so many pictures its accuracy is between {low:.1f} and {high:.1f} % (95 % interval)."


def _describe_worst_classes(classes: list[ClassScores]) -> str:
    if not classes:
        return ""
    names = (f"{escape(one.name)} (F1 {100 * one.f1:.0f} %, pictures: {one.count})" for one in classes)
    return f"\n\nClasses with the lowest F1: {', '.join(names)}."


def _describe_uncertainty(facts: Mapping[str, Any]) -> str:
    """What the probabilities mean, and which decisions the model can make."""
    if facts.get("multilabel"):
        return "A picture may have any number of these classes: each class has its own threshold."
    n = (facts.get("calibrator") or {}).get("n", 0)
    calibrated = f"are calibrated on {n} held-out shots" if n else "could not be calibrated: no shot was held out"
    rejection = "can say" if facts.get("rejector") else "can't say"
    sets = "can name" if facts.get("conformal") else "can't name"
    decisions = [f"{name} {facts[name]:g}" for name in ("reject", "coverage") if facts.get(name)]
    default = f" Default decisions: {', '.join(decisions)}." if decisions else ""
    return (
        f'Its probabilities {calibrated}. It {rejection} that a picture is "none of these" (`reject=0.05`), and {sets} '
        f"the classes that a doubtful one may be (`coverage=0.9`).{default}"
    )


def _describe_encoder(config: ModelConfig) -> str:
    encoder, quality = config.encoder, config.provenance.get("quality")
    note = f" Note: {escape(encoder.note)}." if encoder.note else ""
    if isinstance(quality, dict):
        why = f": it {escape(str(quality['why']))}" if quality.get("why") else ""
        note += f" The model was fitted with the quality {code(str(quality.get('name')))}{why}."
    where = (
        "They are in a folder of the machine where it was fitted, and must be copied from there."
        if has_local_weights(config.encoder.name)
        else "They are not part of this folder and come from where the encoder has them."
    )
    return (
        f"The encoder's weights ({code(encoder.name)}, {encoder.precision}) have the licence "
        f"{escape(encoder.licence)}. {where}{note}\n\n"
        "This card names no licence of the model itself: whoever publishes it chooses one "
        "(`license:` at the top), which has to agree with that of the weights and with the rights to the pictures."
    )


def _describe_limits(config: ModelConfig, evaluation: Evaluation | None) -> str:
    limits = [
        "It knows pictures like its shots. Other cameras, places and times were not tried unless the test had them.",
        "A picture of none of its classes may still get some of them."
        if _is_multilabel(config)
        else "A picture of none of its classes gets one of them, unless `reject` is set.",
    ]
    if evaluation is None:
        limits.append("How often it is right on pictures other than its shots was not measured.")
    elif evaluation.n < MIN_RELIABLE_TEST_PICTURES:
        limits.append(f"It was tested on {evaluation.n} pictures only: its figures are rough.")
    if evaluation is not None and evaluation.among_shots:
        limits.append(
            f"{evaluation.among_shots} of the {evaluation.n} test pictures were among its shots: its figures are "
            "better than they would be on new pictures."
        )
    if "lite" in _schemes(config.encoder.name):
        limits.append(
            "Its encoder `lite` is small and made for trying out; what it reaches by class names alone is above."
        )
    if SUPPORT in config.files:
        limits.append(
            f"`{ARRAYS_FOLDER}/{SUPPORT}-...` holds the features of the shots: no pictures, but they show whether a "
            "given picture was one of the shots."
        )
    if UNLABELLED in config.files:
        limits.append(
            f"`{ARRAYS_FOLDER}/{UNLABELLED}-...` holds the features of pictures without labels in the same way."
        )
    return "\n".join(f"- {line}" for line in limits)


def _list_classes(config: ModelConfig) -> str:
    counts = _shot_counts(config)
    rows = "\n".join(f"| {escape(name)} | {counts.get(name, 0)} |" for name in config.class_names)
    table = f"| class | shots |\n|---|---:|\n{rows}"
    if len(config.class_names) <= MAX_LISTED_CLASSES:
        return table
    return f"<details><summary>All {len(config.class_names)} classes</summary>\n\n{table}\n\n</details>"


def _describe_origin(config: ModelConfig) -> str:
    provenance = config.provenance
    raw_versions = provenance.get("versions")
    versions = "unknown versions"
    if isinstance(raw_versions, dict):
        versions = ", ".join(f"{name} {number}" for name, number in raw_versions.items())
    python = provenance.get("python", "of an unknown version")
    when = provenance.get("created", "an unknown day")
    crop = provenance.get("crop")
    views = f"{provenance.get('views', 1)} views of each shot" + (f" (crop scale: {crop})" if crop else "")
    return escape(
        f"Made on {when} with {versions}, Python {python}; {views}. Fingerprint of the encoder: "
        f"{config.encoder.fingerprint}. config.json has the rest: prompts, parameters, hashes of all files."
    )
