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
