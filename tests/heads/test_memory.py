"""Memory that training frees is used again by the next step."""

import subprocess
import sys

import pytest

FIT = """
import resource
import torch
from clipadapter.heads import TextFeatures, create_head

torch.set_num_threads(1)
X = torch.randn(12, 1024, generator=torch.Generator().manual_seed(0)).numpy()
y = [str(i % 3) for i in range(12)]
text = TextFeatures(["0", "1", "2"], X[:3], 100.0)
create_head("clip-adapter", alpha=0.2, steps=5).fit(X, y, text=text)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
create_head("clip-adapter", alpha=0.2, steps=50).fit(X, y, text=text)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the page faults of Linux")
@pytest.mark.parametrize("settings", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}])
def test_a_training_step_asks_the_system_for_no_memory_unless_the_environment_sets_the_allocator(settings, monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    faults = int(subprocess.run([sys.executable, "-c", FIT], capture_output=True, text=True, check=True).stdout)
    # 50 steps with gradients of 2 MiB are 512 pages each if the allocator gives them back.
    assert faults > 10_000 if settings else faults < 2_500
