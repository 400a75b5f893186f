"""fmprobe compare, as a person meets it."""

import json
from importlib.resources import files

import numpy as np
import pytest
from sklearn.datasets import load_digits
from support.runs import command, finished, launch

from fmprobe.files import read_json
from fmprobe.runs.folder import RunFolder

DEMO = files("fmprobe.demo") / "vit-mae-digits"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, images=(load_digits(return_X_y=True)[0][:60].reshape(-1, 8, 8) / 16 * 255).astype(np.uint8))
    return path


@pytest.mark.usefixtures("draws")
def test_two_models_beside_null_and_ceiling_and_again_from_disk(digits, tiny_mae, tmp_path):
    arguments = ["compare", DEMO, tiny_mae, "--data", digits, "--images", 24, "--max-steps", 20, "--device", "cpu"]
    arguments += ["-o", tmp_path / "r"]
    done = finished(*arguments)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    found = results["alignment"]
    # 2 tokens of 64 values and 17 tokens of 32: an orthogonal map is out of the question, and that is said.
    assert set(found["subject"]["maps"]) == {"linear", "relative"}
    assert "128 and of 544" in found["absent"]["orthogonal"]
    for name in ("subject", "null", "ceiling"):
        assert set(found[name]["maps"]) == {"linear", "relative"}
        assert found[name]["drift"]["steps"] == [0, 1, 2, 3, 5, 10, 20]
    ceiling, subject = (found[name]["maps"]["relative"] for name in ("ceiling", "subject"))
    assert ceiling["cosine"]["q50"] > 0.9 > subject["cosine"]["q50"]
    assert ceiling["fit_error"] < 0.1 < subject["fit_error"]
    assert results["other"]["model"]["id"] == str(tiny_mae)
    assert results["model"]["id"] == str(DEMO)
    assert results["protocol"]["weight_noise"] == 0.01
    assert (tmp_path / "r" / "alignment.png").stat().st_size > 1000
    for text in ("A and random weights", "A and A with weight noise", "cosine of the fields", "orthogonal: absent"):
        assert text in done.stdout
    again = finished(*arguments)
    assert again.returncode == 0, again.stderr
    assert "holds this run already" in again.stdout
    assert done.stdout.splitlines()[-5:] == again.stdout.splitlines()[-5:]


def test_two_processes_find_what_one_finds_and_a_run_that_goes_on_too(digits, tiny_mae, tmp_path, capfd):
    arguments = ["compare", DEMO, tiny_mae, "--data", digits, "--images", 12, "--max-steps", 5, "--device", "cpu"]
    assert command(*arguments, "-o", tmp_path / "one") == 0
    alone = capfd.readouterr().out
    log, out = tmp_path / "log", tmp_path / "two"
    team = launch(2, command, *arguments, "-o", out, log=log)
    for process in team:
        process.join()
    assert [process.exitcode for process in team] == [0, 0]
    one, two = (read_json(folder / "results.json") for folder in (tmp_path / "one", out))
    assert one["alignment"] == two["alignment"]
    assert one["other"] == two["other"]
    assert log.read_text().count("report  ") == alone.count("report  ") == 1
    assert not (out / "comparisons").exists()
    (out / "results.json").unlink()  # as after a kill
    with RunFolder(out).locked():
        assert command(*arguments, "-o", out) == 2
    assert "another run is at work" in capfd.readouterr().err
    assert command(*arguments, "-o", out) == 0
    assert read_json(out / "results.json")["alignment"] == one["alignment"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.npz"], "nowhere.npz"),
        (["--map", "affine"], "orthogonal, linear, relative"),
        (["--images", "24", "--measure", "far"], "squared, relative, rms"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(digits, tmp_path, arguments, message):
    done = finished("compare", DEMO, DEMO, "--data", digits, "--device", "cpu", "-o", tmp_path / "r", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r" / "results.json").exists()
