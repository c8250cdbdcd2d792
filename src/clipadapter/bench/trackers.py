"""Trackers log runs to TensorBoard, MLflow or Weights & Biases, besides ``runs.jsonl``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clipadapter.bench.run import Run
from clipadapter.errors import require
from clipadapter.files import safe_file_name
from clipadapter.registry import unknown

Tracker = Callable[[Run], None]


def create_tracker(name: str, folder: Path) -> Tracker:
    """A function that is called with each run that was made.

    Args:
        name: "tensorboard", "mlflow" or "wandb".
        folder: of the records; local files go below it.

    Raises:
        UnknownNameError: if there is none of that name.
        MissingExtraError: if its package is not installed.
    """
    makers = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
    if name not in makers:
        raise unknown("tracker", name, sorted(makers))
    return makers[name](folder)


def get_metrics(run: Run) -> dict[str, float]:
    """The metrics of a run; none if it failed."""
    if run.metrics is None or run.seconds is None:
        return {}
    times = {"fit_seconds": run.seconds.fit, "predict_seconds": run.seconds.predict}
    return {**run.metrics.model_dump(), **times}


def get_settings(run: Run) -> dict[str, str | int]:
    """The settings of a run."""
    return {
        "head": run.head,
        "data": run.data.support,
        "test": run.data.test,
        "encoder": run.encoder.name,
        "shots": run.shots,
        "seed": run.seed,
        "device": run.machine.device,
        "key": run.key,
        "error": run.error or "",
    }


def _tensorboard(folder: Path) -> Tracker:
    require("tensorboard", "tensorboard", "The tracker tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    def track(run: Run) -> None:
        name = safe_file_name(f"{run.data.support}-{run.head}-{run.seed}")
        with SummaryWriter(str(folder / "tensorboard" / name)) as writer:
            for name, value in get_metrics(run).items():
                writer.add_scalar(name, value, run.shots)

    return track


def _mlflow(folder: Path) -> Tracker:
    mlflow = require("mlflow", "mlflow", "The tracker mlflow")

    def track(run: Run) -> None:
        with mlflow.start_run(run_name=f"{run.data.support} {run.head} {run.shots} shots"):
            mlflow.log_params(get_settings(run))
            mlflow.log_metrics(get_metrics(run))

    return track


def _wandb(folder: Path) -> Tracker:
    wandb = require("wandb", "wandb", "The tracker wandb")

    def track(run: Run) -> None:
        one = wandb.init(project="clipadapter", dir=str(folder), config=get_settings(run), reinit=True)
        one.log(get_metrics(run))
        one.finish()

    return track
