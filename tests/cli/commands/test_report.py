import json
import shutil
from html import escape

from clipadapter.metrics import metrics_shown


def test_json_has_figures_and_the_file(probe, noisy_squares, squares, tmp_path, run):
    out = tmp_path / "new" / "page.html"
    result = run(
        "report", probe, noisy_squares, "--out", out, "--outliers", squares, "--coverage", 0.8, "--json", "--seeds", 1
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["files"] == [str(out)] and out.is_file()
    figures = found["figures"]["this model"]
    assert figures.keys() == {*metrics_shown("report", "single-label"), "ahead"}
    assert figures["accuracy"]["value"] == figures["balanced_accuracy"]["value"] == 1.0
    page = out.read_text(encoding="utf-8")
    for metric in metrics_shown("report", "single-label").values():
        assert f'<th scope="col">{escape(metric.heading)}</th>' in page
    assert found["uncertainty"]["sets"]["requested"] == 0.8
    assert found["uncertainty"]["outliers"]["pictures"] == 12
    assert found["findings"] is not None and found["curve"]


def test_unreadable_pictures_are_reported(probe, noisy_squares, tmp_path, run):
    data = shutil.copytree(noisy_squares / "test", tmp_path / "new")
    (data / "red" / "0.png").write_bytes(b"")
    result = run("report", probe, data, "--out", tmp_path / "r.html", "--no-curve", "--no-doctor")
    assert result.exit_code == 0
    assert "0.png: file is empty" in result.stderr
    assert "1 unreadable picture is not counted" in (tmp_path / "r.html").read_text(encoding="utf-8")
