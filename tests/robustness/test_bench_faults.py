"""A suite that was killed, or that met a full disk, goes on where it was and gives the same records."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FACTOR = int(os.environ.get("CLIPADAPTER_ATTACKS", "1"))
POINTS = 2 * FACTOR
SCRIPT = Path(__file__).with_name("bench_faults.py")


@pytest.mark.timeout(600 * FACTOR)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_suite_goes_on_after_a_fault_and_gives_the_same_records(tmp_path):
    process = subprocess.run([sys.executable, SCRIPT, tmp_path / "f", str(POINTS)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) >= 4
