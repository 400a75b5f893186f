"""fmprobe weights, as a person meets it."""

import json
import re
from importlib.resources import files

import numpy as np
import pytest
from sklearn.datasets import load_digits
from support.runs import command, launch
from support.runs import finished as run

import fmprobe
from fmprobe.runs.folder import read_events

DEMO = files("fmprobe.demo") / "vit-mae-digits"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Digits of which 30 trained the demo model, and noise."""
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    images = (load_digits(return_X_y=True)[0].reshape(-1, 8, 8) / 16 * 255).astype(np.uint8)
    noise = np.random.default_rng(0).integers(256, size=(14, 8, 8), dtype=np.uint8)
    np.savez(path, digits=images[:200], noise=noise)
    return path


@pytest.fixture(scope="module")
def probed(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("weights") / "run"
    arguments = ["weights", DEMO, "--data", f"{digits}:digits", "--data", f"{digits}:noise", "--images", 12]
    arguments += ["--atoms", "2,8,400", "-n", 32, "--device", "cpu", "-o", out]
    return out, arguments, run(*arguments)


def test_the_whole_table_is_told_and_kept(probed, digits):
    out, _, done = probed
    assert done.returncode == 0, done.stderr
    results = json.loads((out / "results.json").read_text())
    data = results["weights"]["data"]
    assert list(data) == [f"{digits}:digits", f"{digits}:noise"]
    for curves in data.values():
        count = results["attractors"]["count"]
        assert curves["levels"] == [2, 8, count]
        assert curves["subject"] == "attractors"
        for row in curves["dictionaries"].values():
            assert len(row["image_mse"]) == len(row["latent_mse"]) == len(row["psnr"]) == 3
            assert all(level["low"] <= level["mean"] <= level["high"] for level in row["image_mse"])
        assert (out / "weights" / curves["picture"]).is_file()
    assert "PCA of images" in data[f"{digits}:digits"]["dictionaries"]
    assert "PCA of images" in data[f"{digits}:noise"]["absent"]  # 14 images: none beside those shown
    null = fmprobe.AttractorSet.load(out / "null")  # which settles under some draws of the weights and not under others
    for curves in data.values():
        assert ("random weights" in curves["dictionaries"]) == (len(null) > 0)
        assert ("settled under random weights" in curves["absent"].get("random weights", "")) == (len(null) == 0)
    for name in (
        "attractors (",
        "random basis (",
        "Gaussian (",
        "noise starts (",
        "no atom",
        "nothing left out",
        "latent MSE",
        "worse at",
    ):
        assert name in done.stdout


def test_the_report_shows_curves_of_every_data_set(probed):
    page = (probed[0] / "report.html").read_text()
    assert "Weight probing" in page
    assert len(re.findall(r'<label for="r0-w\d">atoms</label>', page)) == 2
    for metric in ("image MSE", r"PSNR \(dB\)"):
        assert len(re.findall(rf"<title[^>]*>{metric} against the number of atoms, ", page)) == 2
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_nothing_on_disk_is_computed_again(probed, digits):
    out, arguments, _ = probed
    before = {
        path: path.stat().st_mtime_ns
        for path in out.rglob("*")
        if path.parent.name in ("attractors", "weights", "null")
    }
    again = run(*arguments)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("holds its curves already") == 2
    assert "holds this run already" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    probe = run("probe", DEMO, "-n", 32, "--device", "cpu", "-o", out)  # the same run, whose attractors these are
    assert "holds this run already" in probe.stdout
    assert "weights" in json.loads((out / "results.json").read_text())
    (out / "weights" / next(p.name for p in before if p.suffix == ".json" and p.parent.name == "weights")).unlink()
    assert run(*arguments).stdout.count("holds its curves already") == 1


def test_two_processes_find_and_reconstruct_what_one_does(probed, tmp_path):
    out, arguments, _ = probed
    log = tmp_path / "log"
    team = launch(2, command, *arguments[:-1], tmp_path / "two", log=log)
    for process in team:
        process.join(300)
    assert [process.exitcode for process in team] == [0, 0], log.read_text()
    assert log.read_text().count("report  ") == 1
    events = read_events(tmp_path / "two")
    assert [event["processes"] for event in events if event["event"] == "iterate"] == [2, 2]  # the model and the null
    assert {event["process"] for event in events if event["event"] == "shard"} == {0, 1}
    assert len([event for event in events if event["event"] == "reconstructed"]) == 2
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (out, tmp_path / "two"))
    assert one["attractors"]["sizes"] == two["attractors"]["sizes"]
    for found in (one, two):
        del found["orbits"]["noise"]["exponent"]  # of as many orbits as the time allows
    assert one["orbits"] == two["orbits"]
    for source, curves in one["weights"]["data"].items():
        other = two["weights"]["data"][source]
        assert (tmp_path / "two" / "weights" / other["picture"]).is_file()
        assert curves["dictionaries"].keys() == other["dictionaries"].keys()
        for name, row in curves["dictionaries"].items():
            for level, same in zip(row["image_mse"], other["dictionaries"][name]["image_mse"], strict=True):
                assert same["mean"] == pytest.approx(level["mean"], abs=1e-6)


def test_attractors_of_an_interrupted_command_are_used(digits, tmp_path):
    out = tmp_path / "run"
    options = [DEMO, "-n", 8, "--device", "cpu", "--no-null", "-o", out]
    assert run("weights", *options, "--data", f"{digits}:digits", "--images", 500).returncode == 2
    done = run("weights", *options, "--data", f"{digits}:digits", "--images", 4)
    assert done.returncode == 0, done.stderr
    assert "holds this run already" in done.stdout


def test_ends_are_never_called_attractors(tiny_mae, digits, tmp_path):
    arguments = ["weights", tiny_mae, "--data", f"{digits}:digits", "--images", 4, "-n", 5, "--max-steps", 3]
    refused = run(*arguments, "-o", tmp_path / "r")
    assert refused.returncode == 2
    assert "--use-ends" in refused.stderr
    assert "Traceback" not in refused.stderr
    done = run(*arguments, "--use-ends", "-o", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    curves = next(iter(json.loads((tmp_path / "r" / "results.json").read_text())["weights"]["data"].values()))
    assert curves["subject"] == "ends after 3 steps"
    assert curves["dictionaries"]["random weights"]["count"] == 5
    assert "attractors" not in curves["dictionaries"]
    assert "ends after 3 steps" in (tmp_path / "r" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--atoms", "few"], "32,64,128"),
        (["--atoms", "0,4"], "32,64,128"),
        (["--data", "nowhere.npz"], "nowhere.npz"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(digits, tmp_path, arguments, message):
    done = run("weights", DEMO, "--data", f"{digits}:noise", "--images", 2, "-n", 2, "-o", tmp_path / "r", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
