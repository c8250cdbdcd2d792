"""Time of the text towers: every text padded as far as the model or a neighbour asks, and as `encode_text` does it.

Prompts are ImageNet names in a template set. The ways take turns, and the ratio is the median over the rounds. CLIP's
tower has random weights: its time does not depend on them. "difference" is the largest, in lengths of the feature.

    python benchmarks/speed/text_speed.py
    python benchmarks/speed/text_speed.py --templates imagenet7 --prompts 1000 --model ViT-L-14 --threads 8
"""

import statistics
from collections.abc import Callable

import open_clip
import torch
from _measure import print_table, ratios, script_parser, timed, write_json
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from clipadapter.data import get_templates
from clipadapter.encoders.base import encode_by_length
from clipadapter.encoders.lite_text import MiniLm
from clipadapter.encoders.open_clip_text import wrap_text_tower
from clipadapter.utils.imagenet import wordnet_names

BATCH = 256


def prompts(templates: str, count: int) -> list[str]:
    """Some of all prompts, spread evenly over templates and names."""
    names = [name.split(",")[0] for name in wordnet_names().values()]
    texts = [template.format(name) for template in get_templates(templates) for name in names]
    texts = list(dict.fromkeys(texts))
    return [texts[i * len(texts) // count] for i in range(min(count, len(texts)))]


def clip(model_name: str, texts: list[str]) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The model's own `encode_text`, and ours."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(model_name).eval()
    tokenizer = open_clip.get_tokenizer(model_name)
    tower = wrap_text_tower(model, tokenizer, model_name, "cpu")
    assert tower is not None, f"{model_name} has no text tower of the kinds that are encoded without padding"

    def padded() -> Tensor:
        return torch.cat([model.encode_text(some) for some in tokenizer(texts).split(BATCH)])

    return padded, lambda: encode_by_length(tower.tokenize(texts), tower.encode_tokens, BATCH)


def lite(texts: list[str]) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Batches in the order of the texts, padded to the longest, and ours."""
    tower = MiniLm("cpu")

    def padded() -> Tensor:
        rows = []
        for start in range(0, len(texts), BATCH):
            tokens = [torch.tensor(ids) for ids in tower.tokenize(texts[start : start + BATCH])]
            lengths = torch.tensor([len(ids) for ids in tokens])
            rows.append(tower.encode(tower.embed(pad_sequence(tokens, batch_first=True)), lengths))
        return torch.cat(rows)

    return padded, lambda: tower(texts, BATCH)


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--model", default="ViT-B-32", help="of open_clip")
    parser.add_argument("--templates", action="append", help="name of a set; may be given again")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    rows = []
    torch.set_num_threads(args.threads)
    for templates in args.templates or ["default", "imagenet7"]:
        texts = prompts(templates, args.prompts)
        for name, ways in {args.model: clip(args.model, texts), "lite": lite(texts)}.items():
            with torch.inference_mode():
                padded, ours = (way() for way in ways)  # also warms up
                seconds = [[timed(way)[1]["seconds"] for way in ways] for _ in range(args.rounds)]
            far = ((padded - ours).norm(dim=1) / padded.norm(dim=1)).max()
            before, after = (statistics.median(column) for column in zip(*seconds, strict=True))
            ratio = ratios(*zip(*seconds, strict=True))
            rows.append(
                {"tower": name, "templates": templates, "prompts": len(texts), "padded": before, "ours": after}
                | {"ratio": ratio, "difference": float(far)}
            )
    print_table(rows)
    write_json(args.json, rounds=args.rounds, rows=rows)


if __name__ == "__main__":
    main()
