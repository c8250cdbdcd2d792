"""The model card of a saved model (``README.md``): its facts in words, with the metadata that the hub reads.

Layout of the metadata: https://github.com/huggingface/hub-docs/blob/main/modelcard.md?plain=1
"""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.encoders import split_blocks
from clipadapter.heads.registry import HEADS, Fidelity
from clipadapter.metrics import metrics_shown, wilson_interval
from clipadapter.persistence.format import Evaluation, ModelConfig, read_evaluation, read_file
from clipadapter.runtime.model_folder import CARD_FILE
from clipadapter.uncertainty import HeldOutAccuracy
from clipadapter.utils.blocks import BlockSource
from clipadapter.utils.files import LOCAL_WEIGHTS, has_local_weights, printable

if TYPE_CHECKING:
    from jinja2 import Template

MAX_CARD_BYTES = 16 << 20
GENERATED_MARK = (
    "<!-- Made by clipadapter from config.json, and made anew by it; take out this line to keep what you write. -->"
)
"""Last line of a generated card. A card without it was edited by a person and is not overwritten."""
EXTRAS = {
    "efficientnet-lite1": "efficientnet",
    "efficientnet-lite2": "efficientnet",
    "lite": "lite",
    "hf": "transformers",
}
"""What installs encoders by their schemes; those with more packages first."""
CARD_METRICS = metrics_shown("card")


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


@cache
def _load_template() -> Template:
    """The template of the card. Every value is escaped for Markdown, unless the template says that it is safe."""
    from markupsafe import Markup

    from clipadapter.rendering.html import create_environment  # late: who only reads a model needs no template

    environment = create_environment("clipadapter.persistence")
    environment.finalize = lambda value: value if isinstance(value, Markup) else Markup(escape(str(value)))  # noqa: S704
    environment.keep_trailing_newline = True
    environment.filters["code"] = lambda text: Markup(code(str(text)))  # noqa: S704
    return environment.get_template("card.md")


def render_card(config: ModelConfig, repo: str = "") -> str:
    """Render the card as Markdown. Provenance and uncertainty of a model from elsewhere may hold anything."""
    provenance, facts, encoder = config.provenance, config.uncertainty, config.encoder
    evaluation = read_evaluation(provenance, config.files)
    is_multilabel = bool(facts.get("multilabel"))
    shots = provenance.get("shots")
    shots = shots if isinstance(shots, dict) else {}
    counts = sorted(count for name in config.class_names if isinstance(count := shots.get(name, 0), int)) or [0]
    local = LOCAL_WEIGHTS.match(split_blocks(encoder.name)[0])
    schemes = {uri.partition(":")[0] for uri in _encoders_of(encoder.name)}
    # To restore a version writes a card, and needs no torch.
    declared = HEADS.info(config.head.name) if config.head.name in HEADS.list() else None
    title = repo.rpartition("/")[2] or f"{config.head.name}-{len(config.class_names)}-classes"
    return _load_template().render(
        config=config,
        metadata=_metadata(encoder.name, evaluation, title, is_multilabel),
        is_multilabel=is_multilabel,
        shots=shots,
        shots_per_class=counts[0] if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}",
        head=declared,
        # How faithful the head is to its paper with these parameters.
        fidelity=declared and Fidelity.of(declared.docstring, declared.facts, config.head.params),
        extra=next((extra for scheme, extra in EXTRAS.items() if scheme in schemes), "train"),
        repo=repo,
        local_weights=local[0] if local else "",
        has_local_weights=has_local_weights(encoder.name),
        is_lite="lite" in schemes,
        evaluation=evaluation,
        metrics={name: one for name, one in CARD_METRICS.items() if evaluation and name in evaluation.model},
        wilson_interval=wilson_interval,  # the 95 % score interval (Wilson 1927)
        held_out=HeldOutAccuracy.from_dict(facts.get("accuracy")),
        held_out_shots=(facts.get("calibrator") or {}).get("n", 0),
        decisions=[f"{name} {facts[name]:g}" for name in ("reject", "coverage") if facts.get(name)],
        mark=GENERATED_MARK,
    )


# ---- Metadata: YAML before the text ----


def _metadata(encoder: str, evaluation: Evaluation | None, title: str, is_multilabel: bool) -> str:
    """Lines of YAML. They name no licence of the model: whoever publishes the model chooses one."""
    facts: dict[str, Any] = {
        "library_name": "clipadapter",
        "pipeline_tag": "image-classification",
        "tags": ["clip", "few-shot", "image-classification", "model_hub_mixin"],
    }
    base = hub_repositories(encoder)
    if base:
        facts |= {"base_model": base, "base_model_relation": "adapter"}
    if evaluation is not None:
        facts["model-index"] = [{"name": title, "results": [_evaluation_result(evaluation, is_multilabel)]}]
    # JSON is YAML, except for unprintable characters, which YAML forbids.
    text = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in facts.items())
    return "".join(each if each.isprintable() or each == "\n" else f"\\U{ord(each):08x}" for each in text)


def hub_repositories(encoder: str) -> list[str]:
    """Repositories of the hub that the weights of an encoder come from; empty if they come from elsewhere."""
    return list(dict.fromkeys(repo for uri in _encoders_of(encoder) if (repo := _repository_of(uri))))


def _encoders_of(name: str) -> list[str]:
    """The encoder that has the class text, and those of its blocks."""
    first, names = split_blocks(name)
    return [first, *filter(None, (BlockSource.parse(each).encoder for each in names))]


def _repository_of(encoder: str) -> str:
    scheme, _, rest = encoder.partition(":")
    if scheme in ("hf-hub", "hf") and not has_local_weights(encoder):
        return rest.partition("@")[0]
    if scheme == "timm" and not has_local_weights(encoder):
        return f"timm/{rest.partition('@')[0]}"  # where nearly all weights of timm are
    model, _, tag = rest.rpartition("/")
    if scheme != "open_clip" or ":" in rest or not model:
        return ""
    import open_clip

    repo = str((open_clip.get_pretrained_cfg(model, tag) or {}).get("hf_hub") or "")
    return repo.rpartition("/")[0] if repo.count("/") == 2 else ""


def _evaluation_result(evaluation: Evaluation, is_multilabel: bool) -> dict[str, Any]:
    """Scores of the model, followed by those of the baselines, whose names say that they are baselines."""
    task = "Multi-label image classification" if is_multilabel else "Image classification"
    methods = [("", evaluation.model)]
    methods += [(f" of {name} (baseline)", scores) for name, scores in evaluation.baselines.items()]
    return {
        "task": {"type": "image-classification", "name": task},
        "dataset": {"type": "imagefolder", "name": evaluation.data or "unnamed", "args": {"pictures": evaluation.n}},
        "metrics": [
            {"type": metric.hub_type or name, "name": f"{metric.title}{suffix}", "value": round(scores[name], 4)}
            for suffix, scores in methods
            for name, metric in CARD_METRICS.items()
            if name in scores
        ],
    }


# ---- Text ----


def escape(text: str) -> str:
    """Escape untrusted text for Markdown: no mark-up, link, element or end of a table cell is left in it."""
    line = printable(text).strip()
    return re.sub(r"([\\`*_{}\[\]<>|~#$&!])", r"\\\1", line)


def code(text: str) -> str:
    """Format untrusted text as inline code; a backtick in it becomes an apostrophe."""
    line = printable(text).strip()
    return f"`{line.replace('`', chr(39)).replace('|', '/') or ' '}`"
