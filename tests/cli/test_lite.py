"""The main job whole, on real pictures with a real encoder."""

import json
import shutil

import pytest

from clipadapter.data import textiles


@pytest.mark.slow
def test_fit_and_predict_textiles(tmp_path, start):
    dataset = textiles()
    wanted = {"flawless fabric": "flawless", "fabric with a global defect": "global"}
    for label, folder in wanted.items():
        paths = [sample.path for sample in dataset.samples if sample.label == label][:16]
        for i, path in enumerate(paths):
            target = tmp_path / ("shots" if i < 8 else "new") / folder / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    names = tmp_path / "names.json"
    names.write_text(json.dumps({folder: label for label, folder in wanted.items()}))

    fitting = start(
        "fit", tmp_path / "shots", "--out", tmp_path / "model", "--encoder", "lite", "--class-names", names, "--json"
    )
    stdout, stderr = fitting.communicate()
    assert fitting.returncode == 0, stderr
    assert json.loads(stdout)["shots"] == dict.fromkeys(sorted(wanted), 8)
    assert stderr.startswith("encoder lite: ") and stderr.count("\n") == 1  # no other library has a say

    predicting = start("predict", tmp_path / "model", tmp_path / "new", "--json")
    stdout, stderr = predicting.communicate()
    assert (predicting.returncode, stderr) == (0, "")
    answers = [json.loads(line) for line in stdout.splitlines()]
    right = [wanted[one["label"]] in one["source"].removeprefix(str(tmp_path / "new")) for one in answers]
    assert len(right) == 16
    assert sum(right) >= 12
