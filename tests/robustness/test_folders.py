"""The program's own folders under attack: kills, full disks, altered models, damaged stores, links, stopped runs.

CLIPADAPTER_ATTACKS is a factor on their number.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FACTOR = int(os.environ.get("CLIPADAPTER_ATTACKS", "1"))
pytestmark = pytest.mark.timeout(300 * FACTOR)
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and time, and fork, are those of Linux")
fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def attack(script, *options):
    """What a script of this folder writes."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@linux
def test_a_kill_at_any_moment_and_one_while_it_is_recovered_lose_nothing(tmp_path):
    found = attack("kill_saves.py", tmp_path, FACTOR, 3 * FACTOR, 10)
    assert found["faults"] == []
    assert found["kills"] >= 3 * FACTOR and found["full"] > 0


@linux
@pytest.mark.skipif(FACTOR == 1, reason="takes minutes: set CLIPADAPTER_ATTACKS")
def test_a_kill_before_every_operation_loses_nothing_of_a_large_folder(tmp_path):
    found = attack("kill_saves.py", tmp_path, 0, 0, 1_000)
    assert found["faults"] == []
    assert min(found["steps"].values()) > 10


@linux
def test_an_altered_model_answers_finite_numbers_or_is_refused_by_an_error_of_the_library(tmp_path):
    found = attack("mutate_models.py", tmp_path, FACTOR, 12 * FACTOR)
    assert found["faults"] == []
    assert found["counts"]["answered"] > 0 and found["counts"]["ArtifactError"] > 0


@linux
def test_a_damaged_store_gives_no_other_value_no_other_error_and_comes_to_an_end(tmp_path):
    found = attack("mutate_store.py", tmp_path, FACTOR, 75 * FACTOR)
    assert found["faults"] == []
    assert found["counts"]["ended well"] > 0 and found["counts"]["StoreError"] > 0


@linux
@pytest.mark.slow
def test_no_link_in_a_folder_of_the_program_leads_out_of_it(tmp_path):
    found = attack("link_trees.py", tmp_path, 6 * FACTOR, 1)
    assert found["faults"] == []
    assert found["counts"]["opened"] > 3 * FACTOR and found["counts"]["refused"] > 2 * FACTOR


@fork
def test_a_fault_before_any_operation_on_files_of_the_studio_loses_nothing_and_invents_nothing(tmp_path):
    assert sum(attack("studio_faults.py", tmp_path / str(seed), seed) for seed in range(FACTOR)) > 75 * FACTOR


@fork
@pytest.mark.timeout(600 * FACTOR)
def test_a_suite_goes_on_after_a_kill_or_a_full_disk_and_gives_the_same_records(tmp_path):
    assert attack("bench_faults.py", tmp_path / "f", 2 * FACTOR) >= 4
