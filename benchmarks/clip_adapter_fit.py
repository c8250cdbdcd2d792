"""Fit time of CLIP-Adapter on 1,000 classes x 16 shots x 512-d, beside a plain mini-batch loop as the paper trains.

The features are random: class means on the unit sphere, pictures around them, class text around them too. Both sides fit the
same adapter (ratio 0.2, width d/4, AdamW 1e-3, cosine); the plain loop takes batches of 32 for 200 epochs, with a
DataLoader as most repositories have it. The training loss of both is measured at the end, on all shots.

    python benchmarks/clip_adapter_fit.py                 # about 15 minutes on 2 cores
    python benchmarks/clip_adapter_fit.py --epochs 20     # a shorter plain loop; its time is then 20/200 of the real one
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=200, help="epochs of the plain loop that are really run")
    parser.add_argument(
        "--ours", type=str, default="", help="changes to our parameters, such as epochs=40,batch_size=1024"
    )
    args = parser.parse_args()
    X, labels, text = make(args.classes, args.shots, args.dim)
    names = [str(i) for i in range(args.classes)]
    changes = {
        k: float(v) if "." in v else int(v) for k, v in (item.split("=") for item in args.ours.split(",") if item)
    }

    start = time.perf_counter()
    fitted = ClipAdapter(**{"alpha": ALPHA, **changes}).fit(
        X, np.array(names)[labels], text=ClassText(names, text, SCALE)
    )
    ours = time.perf_counter() - start
    our_loss = loss_of(X, labels, text, Bottleneck(fitted.down_, fitted.up_))
    print(f"clipadapter  {ours:8.1f} s   training loss {our_loss:.4f}", flush=True)

    start = time.perf_counter()
    adapter = plain_loop(X, labels, text, args.epochs, 200)
    plain = time.perf_counter() - start
    print(
        f"plain loop   {plain:8.1f} s   training loss {loss_of(X, labels, text, adapter):.4f}   ({args.epochs} epochs)"
    )
    print(
        f"ratio        {plain / ours:8.1f}{'' if args.epochs == 200 else f'   ({200 * plain / args.epochs / ours:.1f} at 200 epochs)'}"
    )


if __name__ == "__main__":
    main()
