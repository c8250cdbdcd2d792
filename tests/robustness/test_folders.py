"""The program's own folders under attack: kills, full disks, altered models, damaged stores, links.

CLIPADAPTER_ATTACKS is a factor on their number.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FACTOR = int(os.environ.get("CLIPADAPTER_ATTACKS", "1"))
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and time, and fork, are those of Linux"),
    pytest.mark.timeout(300 * FACTOR),
]


def attack(script, *options):
    """What a script of this folder writes."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_kill_at_any_moment_and_one_while_it_is_recovered_lose_nothing(tmp_path):
    found = attack("kill_saves.py", tmp_path, FACTOR, 3 * FACTOR, 10)
    assert found["faults"] == []
    assert found["kills"] >= 3 * FACTOR and found["full"] > 0


@pytest.mark.skipif(FACTOR == 1, reason="takes minutes: set CLIPADAPTER_ATTACKS")
def test_a_kill_before_every_operation_loses_nothing_of_a_large_folder(tmp_path):
    found = attack("kill_saves.py", tmp_path, 0, 0, 1_000)
    assert found["faults"] == []
    assert min(found["steps"].values()) > 10


def test_an_altered_model_answers_finite_numbers_or_is_refused_by_an_error_of_the_library(tmp_path):
    found = attack("mutate_models.py", tmp_path, FACTOR, 12 * FACTOR)
    assert found["faults"] == []
    assert found["counts"]["answered"] > 0 and found["counts"]["ArtifactError"] > 0


def test_a_damaged_store_gives_no_other_value_no_other_error_and_comes_to_an_end(tmp_path):
    found = attack("mutate_store.py", tmp_path, FACTOR, 75 * FACTOR)
    assert found["faults"] == []
    assert found["counts"]["ended well"] > 0 and found["counts"]["StoreError"] > 0


@pytest.mark.slow
def test_no_link_in_a_folder_of_the_program_leads_out_of_it(tmp_path):
    found = attack("link_trees.py", tmp_path, 6 * FACTOR, 1)
    assert found["faults"] == []
    assert found["counts"]["opened"] > 3 * FACTOR and found["counts"]["refused"] > 2 * FACTOR
