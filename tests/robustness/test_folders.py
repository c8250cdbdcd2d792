"""The program's own folders under attack: kills, full disks, altered models, damaged stores, links, stopped runs.

CLIPADAPTER_ATTACKS is a factor on their number.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FACTOR = int(os.environ.get("CLIPADAPTER_ATTACKS", "1"))
pytestmark = [
    pytest.mark.timeout(300 * FACTOR),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork"),
]
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and time are those of Linux")


STARTER = """
import json, os, runpy, sys, traceback
import torch
from clipadapter import FewShotClassifier, bench, features, persistence, studio, testing
for line in sys.stdin:
    output, errors, *command = json.loads(line)
    if not os.fork():
        for number, path in ((1, output), (2, errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        sys.argv[:], sys.path[0], status = command, os.path.dirname(command[0]), 1
        try:
            runpy.run_path(command[0], run_name="__main__")
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    print(os.wait()[1], flush=True)
"""
"""Runs each script in a process that is forked from one that has imported torch, which takes seconds."""


@pytest.fixture(scope="module")
def attack(tmp_path_factory):
    """A function that runs a script of this folder, and gives what it writes."""
    files = [str(tmp_path_factory.mktemp("attacks") / name) for name in ("output", "errors")]
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def run(script, *options):
        for file in files:
            Path(file).unlink(missing_ok=True)
        command = [str(Path(__file__).with_name(script)), *map(str, options)]
        starter.stdin.write(json.dumps([*files, *command]) + "\n")
        starter.stdin.flush()
        status = starter.stdout.readline()
        output, errors = (Path(file).read_text() for file in files)
        assert status == "0\n", errors
        return json.loads(output)

    yield run
    os.killpg(starter.pid, signal.SIGKILL)
    starter.communicate()


@linux
def test_a_kill_at_any_moment_and_one_while_it_is_recovered_lose_nothing(attack, tmp_path):
    found = attack("kill_saves.py", tmp_path, FACTOR, 3 * FACTOR, 10)
    assert found["faults"] == []
    assert found["kills"] >= 3 * FACTOR and found["full"] > 0


@linux
@pytest.mark.skipif(FACTOR == 1, reason="takes minutes: set CLIPADAPTER_ATTACKS")
def test_a_kill_before_every_operation_loses_nothing_of_a_large_folder(attack, tmp_path):
    found = attack("kill_saves.py", tmp_path, 0, 0, 1_000)
    assert found["faults"] == []
    assert min(found["steps"].values()) > 10


@linux
def test_an_altered_model_answers_finite_numbers_or_is_refused_by_an_error_of_the_library(attack, tmp_path):
    found = attack("mutate_models.py", tmp_path, FACTOR, 12 * FACTOR)
    assert found["faults"] == []
    assert found["counts"]["answered"] > 0 and found["counts"]["ArtifactError"] > 0


@linux
def test_a_damaged_store_gives_no_other_value_no_other_error_and_comes_to_an_end(attack, tmp_path):
    found = attack("mutate_store.py", tmp_path, FACTOR, 75 * FACTOR)
    assert found["faults"] == []
    assert found["counts"]["ended well"] > 0 and found["counts"]["StoreError"] > 0


@linux
@pytest.mark.slow
def test_no_link_in_a_folder_of_the_program_leads_out_of_it(attack, tmp_path):
    found = attack("link_trees.py", tmp_path, 6 * FACTOR, 1)
    assert found["faults"] == []
    assert found["counts"]["opened"] > 3 * FACTOR and found["counts"]["refused"] > 2 * FACTOR


def test_a_fault_before_any_operation_on_files_of_the_studio_loses_nothing_and_invents_nothing(attack, tmp_path):
    assert sum(attack("studio_faults.py", tmp_path / str(seed), seed) for seed in range(FACTOR)) > 75 * FACTOR


@pytest.mark.timeout(600 * FACTOR)
def test_a_suite_goes_on_after_a_kill_or_a_full_disk_and_gives_the_same_records(attack, tmp_path):
    assert attack("bench_faults.py", tmp_path / "f", 2 * FACTOR) >= 4
