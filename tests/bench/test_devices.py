"""Suites whose towers compute on a device, simulated by tests/simulated_device.py."""

import pytest
import torch
from tests.simulated_device import DEVICE, simulated_device

from clipadapter.bench import compare_studies, launcher, load_study, open_source, read_runs, run_suite, write_report
from clipadapter.bench.launcher import Launcher
from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import InputError
from clipadapter.runtime.engines.pytorch import TorchBackend
from clipadapter.utils.devices import count_gpus

from ..suite_text import parse_suite

SHORT = """
title = "t"
heads = [
    "zero-shot", "tip-adapter", "gda", "transclip",
    { head = "clip-adapter", label = "adapter", params = { epochs = 2 } },
    { head = "coop", label = "coop", params = { epochs = 2 } },
]
shots = [2]
seeds = [1]
"""
TWO_HEADS = 'title = "t"\nheads = ["zero-shot", "gda"]\nshots = [2]\nseeds = [1]\n'
TUNER = 'title = "t"\nheads = [{ head = "coop", params = { epochs = 2 } }]\nshots = [2]\nseeds = [1]\n'
PROTOCOLS = {
    "few-shot": SHORT,
    "cross-validation": f'{TWO_HEADS}protocol = "cross-validation"\noptions = {{ folds = 2 }}',
    "stream": f'{TWO_HEADS}protocol = "stream"\nstream = {{ classes_per_task = 2 }}',
}


@pytest.fixture(autouse=True)
def backend_of_the_device(monkeypatch):
    monkeypatch.setattr(TorchBackend, "devices", ("cpu", DEVICE))


def make_runs(pictures, out, device, text=SHORT, encoder_device="cpu"):
    """Run a suite; its result."""
    model = FewShotClassifier("toy", cache=None, device=encoder_device)
    suite = parse_suite("own", text)
    launcher = Launcher(device=device)
    result = run_suite(suite, [open_source(str(pictures))], {"toy": model}, out, launcher)
    assert launcher == Launcher(device=device)  # it may run another suite
    return result


def get_metrics(out):
    """Accuracy of each record by head."""
    return {run.head: run.metrics.accuracy for run in read_runs(out / "runs.jsonl")}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_suite_on_a_device_has_the_results_of_the_cpu(pictures, tmp_path, protocol, monkeypatch):
    monkeypatch.setattr(launcher, "count_cores", lambda: 1)
    text = PROTOCOLS[protocol]
    assert make_runs(pictures, tmp_path / "cpu", "cpu", text).n_failed == 0
    with simulated_device() as device:
        result = make_runs(pictures, tmp_path / "device", device, text, encoder_device=device)
    assert result.n_failed == 0
    runs = read_runs(tmp_path / "device" / "runs.jsonl")
    assert {run.machine.device for run in runs if run.head == "coop"} <= {DEVICE}
    assert {run.machine.device for run in runs if run.head != "coop"} == {"cpu"}
    assert get_metrics(tmp_path / "device") == pytest.approx(get_metrics(tmp_path / "cpu"))


def test_records_of_both_devices_are_the_same_runs_and_reports_name_both(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "count_cores", lambda: 1)
    both = TUNER.replace("seeds = [1]", "seeds = [1, 2]")
    assert make_runs(pictures, tmp_path / "out", "cpu", TUNER).n_made == 1
    with simulated_device() as device:
        result = make_runs(pictures, tmp_path / "out", device, both)
    assert (result.n_made, result.n_existing) == (1, 1)
    study = load_study(tmp_path / "out", "own")
    page = write_report(study, tmp_path / "out")[0].read_text()
    assert "Heads computed on cpu (1 run); meta (1 run). Metrics of several" in page
    make_runs(pictures, tmp_path / "cpu", "cpu", both)
    cpu_study = load_study(tmp_path / "cpu", "own")
    assert "device of the head: meta to cpu (1 of 2 runs)" in compare_studies(study, cpu_study)
    assert "device" not in write_report(cpu_study, tmp_path / "cpu")[0].read_text()
    assert {run.machine.device for run in study.runs} == {"cpu", DEVICE}


def test_a_device_that_this_machine_lacks_is_refused_before_any_work(pictures, tmp_path):
    with pytest.raises(InputError, match="'meta' can't be used on this machine"):
        make_runs(pictures, tmp_path / "out", DEVICE)
    assert not (tmp_path / "out").exists()


def test_there_is_one_worker_for_each_gpu_that_the_process_sees(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [count_gpus(name) for name in ("cuda", "cuda:2", "cpu")] == [3, 1, 0]
    assert Launcher(device="cuda").count_workers(20) == 3
    assert Launcher(device="cuda:2").count_workers(20) == 1
    assert Launcher(workers=5, device="cuda:2").count_workers(20) == 5
    assert Launcher(device="cuda", memory=1 << 60).count_workers(20) == 1
    assert [launcher.list_gpus(name) for name in ("cuda", "cuda:1")] == [["0", "1", "2"], []]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    assert launcher.list_gpus("cuda") == ["4", "6", "7"]
