"""Whoever is killed while a model is written leaves the old version or the new one, and all files of other people.

CLIPADAPTER_ATTACKS is a factor on the number of kills.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FACTOR = int(os.environ.get("CLIPADAPTER_ATTACKS", "1"))
pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork"),
    pytest.mark.timeout(300 * FACTOR),
]


def kill(folder, seed, kills, files):
    script = Path(__file__).with_name("kill_saves.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(seed), str(kills), str(files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_kill_at_any_moment_and_one_while_it_is_recovered_lose_nothing(tmp_path):
    found = kill(tmp_path, seed=FACTOR, kills=20 * FACTOR, files=20)
    assert found["faults"] == [] and found["kills"] >= 20 * FACTOR


@pytest.mark.skipif(FACTOR == 1, reason="takes a minute")
def test_a_kill_before_every_operation_loses_nothing_of_a_large_folder(tmp_path):
    found = kill(tmp_path, seed=0, kills=0, files=3_000)
    assert found["faults"] == [] and min(found["steps"].values()) > 20
