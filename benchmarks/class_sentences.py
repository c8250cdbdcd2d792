"""What sentences of the bank and single prompts bring: zero-shot, timo and others with each text, on development sets.

DATA is a folder with clothing10, satellite7, textures10, steel6 and caltech101-mini (folders of pictures with `train`);
the fabric comes with the extra `demo`. Shots and judged pictures come from the training parts alone, as in
development_sets.py; of Caltech every fifth class is taken. Texts: "name" is the default template, "bank" the sentences
of the set's domain, and "written" those of class_sentences.json, which a language model wrote from the class names
alone, as docs/guides/class-sentences.md asks it to. With food10-clip-vitb32 and clip-text-vitb32 in DATA, real text
vectors of CLIP are compared too: one prompt ("name"), or up to six prompts of five label sets ("bank"); the class
without text is left out.

    python benchmarks/class_sentences.py DATA --heads zero-shot timo timo:search=True auto --shots 1 4 16 --seeds 2
"""

import argparse
import ast
import json
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from development_sets import Set, draw, unit
from safetensors.numpy import load_file

from clipadapter import FewShotClassifier, load_dataset
from clipadapter.data import class_prompts, textiles
from clipadapter.data.sentences import make_sentences
from clipadapter.features import encode_classes
from clipadapter.heads import TextFeatures, create_head

DOMAINS = {
    "clothing10": "clothing", "satellite7": "satellite", "textures10": "textures", "steel6": "inspection",
    "textiles": "inspection", "caltech101-mini": "objects",
}  # fmt: skip
FOOD_PROMPTS = {
    "apple_pie": ["lvis:800", "objects365:171", "imagenet1k:964", "imagenet1k_v2:964"],
    "hamburger": ["lvis:528", "openimages:400", "objects365:200", "imagenet1k:933", "imagenet1k_v2:933"],
    "ice_cream": ["lvis:578", "openimages:283", "objects365:227", "imagenet1k:928", "imagenet1k_v2:928"],
    "omelette": ["lvis:732"],
    "pizza": ["lvis:815", "openimages:419", "objects365:143", "coco:53", "imagenet1k:963", "imagenet1k_v2:963"],
    "sushi": ["lvis:1037", "openimages:481", "objects365:279"],
    "tacos": ["lvis:1053", "openimages:23"],
    "french_fries": ["openimages:330", "objects365:230"],
    "guacamole": ["openimages:11", "imagenet1k:924", "imagenet1k_v2:924"],
}
"""Rows of clip-text-vitb32 that name a class of food10; the first is the "name"."""


def load_pictures(data: Path, name: str) -> tuple[Set, dict[str, TextFeatures]]:
    dataset = textiles() if name == "textiles" else load_dataset(data / name / "train")
    model = FewShotClassifier(encoder="lite", quality="fast", precision="fp32", progress=True)
    names = list(dataset.class_names)[:: 5 if name.startswith("caltech") else 1]
    kept = [i for i, label in enumerate(dataset.labels) if label in names]
    features = model.extract_features([dataset.paths[i] for i in kept], [dataset.labels[i] for i in kept], names)
    texts = {
        "name": encode_classes(model.encoder_, class_prompts(names)),
        "bank": encode_classes(model.encoder_, make_sentences(names, [DOMAINS[name]])),
    }
    written = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")).get(name)
    if written is not None:
        texts["written"] = encode_classes(model.encoder_, class_prompts(names, descriptions=written))
        both = {label: make_sentences([label], [DOMAINS[name]])[label] + written[label] for label in names}
        texts["bank and written"] = encode_classes(model.encoder_, both)
    width = texts["name"].embeddings.shape[1]
    y = np.array([names.index(label) for label in features.y])
    return Set(features.plain[:, :width], y, texts["name"].embeddings, texts["name"].logit_scale), texts


def load_food(data: Path) -> tuple[Set, dict[str, TextFeatures]]:
    images = load_file(data / "food10-clip-vitb32" / "image_features.safetensors")
    vectors = load_file(data / "clip-text-vitb32" / "text_features.safetensors")
    classes = json.loads((data / "food10-clip-vitb32" / "classes.json").read_text())
    names = [name for name in classes if name in FOOD_PROMPTS]
    prompts = [
        np.stack(
            [unit(vectors[key][int(row)].astype(np.float64)) for key, row in (p.split(":") for p in FOOD_PROMPTS[n])]
        )
        for n in names
    ]
    kept = np.isin(images["labels"], [classes.index(name) for name in names])
    y = np.array([names.index(classes[k]) for k in images["labels"][kept]])
    X = images["image_features"][kept].astype(np.float32)
    first, mean = (
        np.stack(rows).astype(np.float32) for rows in zip(*((p[0], p.mean(axis=0)) for p in prompts), strict=True)
    )
    texts = {"name": TextFeatures(names, first), "bank": TextFeatures(names, mean, prompts=prompts)}
    return Set(X, y, texts["name"].embeddings, 100.0), texts


def make(spec: str):
    name, _, settings = spec.partition(":")
    pairs = (pair.split("=") for pair in settings.split(",") if pair)
    return create_head(name, **{key: ast.literal_eval(value) for key, value in pairs})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--heads", nargs="+", default=["zero-shot", "gda", "timo", "timo:search=True"])
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", default=[*DOMAINS, "food10"])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    mean = defaultdict(list)
    for name in args.sets:
        one, texts = load_food(args.data) if name == "food10" else load_pictures(args.data, name)
        labels = np.array(texts["name"].labels)
        for head in args.heads:
            for title, text in texts.items():
                accuracies = []
                for shots in args.shots:
                    by_seed = []
                    for seed in range(args.seeds):
                        rows, Q, truth = draw(one, shots, seed)
                        fitted = make(head).fit(one.X[rows], labels[one.y[rows]], text=text)
                        by_seed.append(100 * float((fitted.predict(Q) == labels[truth]).mean()))
                    accuracies.append(float(np.mean(by_seed)))
                if name != "food10":
                    mean[head, title].append(accuracies)
                print(f"| {name} | {head} | {title} | {' | '.join(f'{a:.1f}' for a in accuracies)} |", flush=True)
    for (head, title), rows in mean.items():
        print(f"| mean of lite | {head} | {title} | {' | '.join(f'{a:.1f}' for a in np.mean(rows, axis=0))} |")


if __name__ == "__main__":
    main()
