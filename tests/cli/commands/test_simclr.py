import json


def test_pictures_to_an_encoder_to_a_model(noisy_squares, run, tmp_path):
    small = ("--epochs", 1, "--batch-size", 4, "--size", 16)
    result = run("simclr", noisy_squares, "--split", "train", "--out", tmp_path / "encoder", *small, "--json")
    assert result.exit_code == 0, result.stderr
    done = json.loads(result.stdout)
    assert (done["pictures"], done["skipped"], done["epochs"], done["resumed"]) == (12, [], 1, 0)

    pair = f"toy[final,{done['encoder']}/final]"
    model = (noisy_squares, "--out", tmp_path / "model", "--encoder", pair, "--head", "svl-adapter", "--no-cache")
    fitted = run("fit", *model, "--set", "epochs=10")
    assert fitted.exit_code == 0, fitted.stderr
    answer = run("predict", tmp_path / "model", noisy_squares / "test" / "red" / "0.png", "--no-cache", "--json")
    assert json.loads(answer.stdout)["label"] == "red"


def test_a_second_run_reports_cached_features(noisy_squares, run, tmp_path):
    line = ("simclr", noisy_squares, "--out", tmp_path / "encoder", "--epochs", 1, "--batch-size", 8, "--size", 16)
    assert run(*line).exit_code == 0
    again = run(*line)
    assert ["resumed", "1"] in [words.split() for words in again.stdout.splitlines()]


def test_unreadable_pictures_are_named(write_squares, run, tmp_path):
    data = write_squares(tmp_path / "data", count=2)
    (data / "red" / "bad.png").write_bytes(b"no picture")
    result = run("simclr", data, "--out", tmp_path / "encoder", "--epochs", 1, "--batch-size", 2, "--size", 16)
    assert result.exit_code == 0, result.stderr
    assert "bad.png: not an image" in result.stderr
    assert ["skipped", "1"] in [words.split() for words in result.stdout.splitlines()]


def test_failures_are_one_line(squares, run, tmp_path):
    missing = run("simclr", squares, "--out", tmp_path / "encoder", "--weights", tmp_path / "none.pth")
    assert missing.exit_code == 1
    assert missing.stderr.startswith("error: there are no weights in ")
    assert run("simclr", tmp_path / "nowhere", "--out", tmp_path / "encoder").exit_code == 1
    assert not (tmp_path / "encoder").exists()
