"""Fit time of CLIP-Adapter on 1,000 classes x 16 shots x 512-d, beside a plain mini-batch loop as the paper trains.

The features are random: class means on the unit sphere, pictures and class text around them. Both sides fit the same
adapter (ratio 0.2, width d/4, AdamW, cosine) from the same features; the plain loop takes batches of 32 for 200 epochs,
with a DataLoader as most repositories have it. The training loss of both is measured at the end, on all shots.

    python benchmarks/clip_adapter_fit.py                 # about 15 minutes on 2 cores
    python benchmarks/clip_adapter_fit.py --epochs 20     # a shorter plain loop, its time scaled up
"""

import argparse
import time

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from clipadapter.functional import unit
from clipadapter.heads import ClassText
from clipadapter.heads._bottleneck import Bottleneck, blend
from clipadapter.heads.clip_adapter import ClipAdapter

ALPHA, SCALE = 0.2, 100.0


def make(classes: int, shots: int, d: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((classes, d)) / np.sqrt(d)
    labels = np.repeat(np.arange(classes), shots)
    X = means[labels] + rng.standard_normal((len(labels), d)) * 3.0 / np.sqrt(d)
    text = means + rng.standard_normal((classes, d)) * 3.0 / np.sqrt(d)
    return X.astype(np.float32), labels, text.astype(np.float32)


def loss_of(X, labels, text, adapter: Bottleneck) -> float:
    with torch.inference_mode():
        x = unit(torch.from_numpy(X))
        logits = SCALE * blend(x, adapter(x), ALPHA) @ unit(torch.from_numpy(text)).T
        return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)))


def plain_loop(X, labels, text, epochs: int, of: int) -> Bottleneck:
    """What a person would write: modules, a DataLoader, batches of 32."""
    torch.manual_seed(0)
    d = X.shape[1]
    net = torch.nn.Sequential(
        torch.nn.Linear(d, d // 4, bias=False), torch.nn.ReLU(), torch.nn.Linear(d // 4, d, bias=False)
    )
    weight = torch.nn.functional.normalize(torch.from_numpy(text), dim=-1)
    data = TensorDataset(torch.nn.functional.normalize(torch.from_numpy(X), dim=-1), torch.from_numpy(labels))
    loader = DataLoader(data, batch_size=32, shuffle=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, of)
    for _ in range(epochs):
        for x, y in loader:
            feature = ALPHA * net(x) + (1 - ALPHA) * x
            feature = feature / feature.norm(dim=-1, keepdim=True)
            loss = torch.nn.functional.cross_entropy(SCALE * feature @ weight.T, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return Bottleneck(net[0].weight.detach(), net[2].weight.detach())


def settings(text: str) -> dict[str, float]:
    """``epochs=40,lr=0.003`` as a dictionary."""
    pairs = (item.split("=") for item in text.split(",") if item)
    return {name: float(value) if "." in value else int(value) for name, value in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=200, help="epochs of the plain loop that are really run")
    parser.add_argument("--ours", type=settings, default={}, help="our parameters, such as epochs=40,lr=0.003")
    args = parser.parse_args()
    X, labels, text = make(args.classes, args.shots, args.dim)
    names = np.array([str(i) for i in range(args.classes)])
    head = ClipAdapter(**{"alpha": ALPHA, **args.ours})

    start = time.perf_counter()
    head.fit(X, names[labels], text=ClassText(names, text, SCALE))
    ours = time.perf_counter() - start
    loss = loss_of(X, labels, text, Bottleneck(head.down_, head.up_))
    print(f"clipadapter  {ours:8.1f} s   training loss {loss:.5f}", flush=True)

    start = time.perf_counter()
    adapter = plain_loop(X, labels, text, args.epochs, 200)
    plain = (time.perf_counter() - start) * 200 / args.epochs
    loss = loss_of(X, labels, text, adapter)
    print(f"plain loop   {plain:8.1f} s   training loss {loss:.5f} after {args.epochs} epochs; seconds are for 200")
    print(f"ratio        {plain / ours:8.1f}")


if __name__ == "__main__":
    main()
