"""Which precision of matrix products heads need: float32 beside TF32 and bf16, on the sets of development_sets.py.

    python benchmarks/heads_precision.py DATA --seeds 5

"autocast" is ``torch.autocast("cpu", torch.bfloat16)`` around fit and predictions: factors and results of products of
float32 are bf16, those of float64 stay as they are. "TF32" and "bf16 factors" round the factors of each product to 10
and 7 bits, add in the precision of the product, and keep its result, as the tensor cores of a GPU do; the latter rounds
factors of float64 too. Rows of a fit are averages over sets and seeds; shots come from training parts.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from _output import add_json, write_json
from development_sets import draw, load_sets
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from clipadapter import FewShotClassifier
from clipadapter.heads import TextFeatures, create_head

HEADS = ("gda", "linear-probe", "tip-adapter-f", "clip-adapter")
SETS = ("clothing", "satellite", "textures", "steel", "caltech 30", "food")
SHOTS = (4, 16)
PRODUCTS = ("mm", "bmm", "addmm", "addmm_", "baddbmm", "mv", "addmv", "dot", "matmul", "linear", "einsum")


class RoundedFactors(TorchDispatchMode):
    """Rounds the factors of matrix products to some bits, and to nothing else."""

    def __init__(self, bits: int, dtypes: tuple[torch.dtype, ...]) -> None:
        super().__init__()
        self.bits, self.dtypes = bits, dtypes
        self.rounded = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            first = 1 if name in ("addmm", "addmm_", "baddbmm", "addmv") else 0
            args = [self._round(arg) if first <= i < first + 2 else arg for i, arg in enumerate(args)]
            self.rounded += 1
        return func(*args, **(kwargs or {}))

    def _round(self, value):
        if isinstance(value, (list, tuple)):
            return [self._round(each) for each in value]
        if not isinstance(value, torch.Tensor) or value.dtype not in self.dtypes:
            return value
        integers, fraction_bits = (torch.int32, 23) if value.dtype == torch.float32 else (torch.int64, 52)
        dropped = fraction_bits - self.bits
        return ((value.view(integers) + (1 << (dropped - 1))) & (-1 << dropped)).view(value.dtype)


class Float32Arrays(TorchFunctionMode):
    """Makes arrays of bf16 tensors, which NumPy has not, in float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.numpy and args[0].dtype == torch.bfloat16:
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


@contextmanager
def autocast() -> Iterator[None]:
    """Products of float32 in bf16."""
    with torch.autocast("cpu", torch.bfloat16), Float32Arrays():
        yield


PRECISIONS: dict[str, Callable[[], AbstractContextManager]] = {
    "float32": nullcontext,
    "TF32": lambda: RoundedFactors(10, (torch.float32,)),
    "autocast": autocast,
    "bf16 factors": lambda: RoundedFactors(7, (torch.float32, torch.float64)),
}


def measure(one, head: str, shots: int, seed: int) -> dict[str, dict[str, float] | str]:
    """Accuracy, log-loss and share of predictions as in float32, by precision; the error of a fit that fails."""
    rows, queries, truth = draw(one, shots, seed)
    names = np.array([f"class {k:02}" for k in range(len(one.text))])
    text, results, reference = TextFeatures(list(names), one.text, one.scale), {}, None
    for precision, context in PRECISIONS.items():
        try:
            with context():
                fitted = create_head(head).fit(one.X[rows], names[one.y[rows]], text=text)
                logits = fitted.logits(queries).astype(np.float64)
        except Exception as error:  # that a method does not work in a precision is a result too
            results[precision] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            continue
        reference = logits.argmax(axis=1) if reference is None else reference
        shifted = logits - logits.max(axis=1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(truth)), truth]
        results[precision] = {
            "accuracy": 100 * float((logits.argmax(axis=1) == truth).mean()),
            "log_loss": float(losses.mean()),
            "same": 100 * float((logits.argmax(axis=1) == reference).mean()),
        }
    return results


def summarise_head(cells: list[dict[str, dict[str, float] | str]], sets: list[str]) -> list[list[str]]:
    """A row for each precision: means over the fits that did not fail, and differences of the worst set."""
    rows = []
    for precision in PRECISIONS:
        failures = [cell[precision] for cell in cells if isinstance(cell[precision], str)]
        pairs = [(cell, name) for cell, name in zip(cells, sets, strict=True) if not isinstance(cell[precision], str)]
        if not pairs:
            rows.append([precision, *["-"] * 5, f"{len(failures)} of {len(cells)}: {failures[0]}"])
            continue
        differences: dict[str, list[tuple[float, float]]] = {}
        for cell, name in pairs:
            changes = [cell[precision][key] - cell["float32"][key] for key in ("accuracy", "log_loss")]
            differences.setdefault(name, []).append(tuple(changes))
        means = {key: np.mean([cell[precision][key] for cell, _ in pairs]) for key in ("accuracy", "log_loss", "same")}
        worst = np.array([np.mean(changes, axis=0) for changes in differences.values()])
        row = [precision, f"{means['accuracy']:.2f}", f"{means['log_loss']:.4f}", f"{means['same']:.1f}"]
        row += [f"{worst[:, 0].min():+.2f}", f"{worst[:, 1].max():+.4f}"]
        rows.append([*row, f"{len(failures)} of {len(cells)}: {failures[0]}" if failures else ""])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--heads", default=",".join(HEADS))
    add_json(parser)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sets = load_sets(args.data, lambda: FewShotClassifier("lite", quality="fast", precision="fp32"), False)
    print(f"{len(SETS)} sets ({', '.join(SETS)}), {SHOTS} shots, {args.seeds} seeds\n")
    print("| head | products | accuracy, % | log-loss | same, % | worst set, points | worst set, log-loss | failed |")
    print("|---|---|---:|---:|---:|---:|---:|---|")
    results = {}
    for head in args.heads.split(","):
        keys = [(name, shots, seed) for name in SETS for shots in SHOTS for seed in range(args.seeds)]
        cells = [measure(sets[name], head, shots, seed) for name, shots, seed in keys]
        results[head] = dict(zip(map(str, keys), cells, strict=True))
        for row in summarise_head(cells, [name for name, *_ in keys]):
            print(f"| {head} | {' | '.join(row)} |", flush=True)
    write_json(args.json, **results)


if __name__ == "__main__":
    main()
