"""Whatever stops the studio leaves the project before a step or after it; what was said to be done is done."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ATTACKS = int(os.environ.get("CLIPADAPTER_ATTACKS", "1"))
SEEDS = range(ATTACKS)
SCRIPT = Path(__file__).with_name("studio_faults.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_fault_before_any_operation_on_files_loses_nothing_and_invents_nothing(tmp_path):
    points = 0
    for seed in SEEDS:
        command = [sys.executable, SCRIPT, tmp_path / str(seed), str(seed)]
        process = subprocess.run(command, capture_output=True, text=True)
        assert process.returncode == 0, (seed, process.stderr)
        points += int(process.stdout)
    assert points > 75 * ATTACKS
