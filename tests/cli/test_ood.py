"""fmprobe ood, as a person meets it: the demo model on digits against noise-like pictures, then a folder of files."""

import csv
import json
import re
import shutil
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from support.runs import command, finished, launch

from fmprobe.files import write_json
from fmprobe.runs.folder import read_events

DEMO = str(files("fmprobe.demo") / "vit-mae-digits")


def run(*arguments):
    return finished("ood", *arguments)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    loaded: Any = load_digits()
    digits = np.round(loaded.images / 16 * 255).astype(np.uint8)
    # The last ten are the first ten again.
    np.savez(folder / "digits.npz", images=np.concatenate([digits[:150], digits[:10]]))
    stripes = np.random.default_rng(0).integers(0, 255, (40, 8, 1), dtype=np.uint8).repeat(8, axis=2)
    np.savez(folder / "stripes.npz", images=np.concatenate([stripes, digits[:3]]))
    return folder


@pytest.fixture(scope="module")
def compared(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("ood") / "run"
    arguments = [DEMO, "--data", sources / "digits.npz", "--ood", f"stripes={sources / 'stripes.npz'}"]
    arguments += ["--max-steps", 60, "--ood-images", 43, "--device", "cpu", "-o", out]
    return out, run(*arguments), arguments


def test_a_run_leaves_a_table_a_report_and_a_detector(compared):
    out, done, _ = compared
    assert done.returncode == 0, done.stderr
    names = {path.name for path in out.iterdir()}
    assert names == {"manifest.json", "config.yaml", "events.jsonl", "results.json", "report.html", "detector"}
    results = json.loads((out / "results.json").read_text())
    found = results["ood"]
    assert found["split"] == {"fit": 75, "held_out": 37, "test": 38, "duplicates_dropped": 10}
    assert "10 of 160 in-distribution images are duplicates" in done.stderr
    assert found["sets"]["stripes"]["images"] == 40
    assert found["sets"]["stripes"]["dropped"] == 3
    sets = {"stripes", "control: constant", "control: noise", "control: blurred", "control: inverted"}
    names = [row["name"] for row in found["scores"]]
    assert names[:2] == ["trajectory", "first"]
    assert len(names) == len(set(names))
    for row in found["scores"]:
        assert set(row["sets"]) == sets
        for metrics in row["sets"].values():
            low, high = metrics["intervals"]["auroc"]
            assert 0 <= low <= metrics["auroc"] <= high <= 1
            assert 0 <= metrics["fpr95"] <= 1
        assert row["name"] in done.stdout
    assert results["protocol"]["max_steps"] == 60
    assert results["model"]["fingerprint"]


def test_the_report_shows_every_score_and_asks_for_nothing(compared):
    out, _, _ = compared
    page = (out / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    found = json.loads((out / "results.json").read_text())["ood"]
    words = re.sub("<[^>]*>", "", page)  # terms are links to the glossary
    for text in ("In-distribution is the positive class", "Protocol and provenance", "2505.22785"):
        assert text in words
    for row in found["scores"]:
        assert re.search(rf'<th scope="row"[^>]*>{re.escape(row["name"])}</th>', page)
    assert page.count("<svg") == 1 + len(found["histograms"])  # and the picture of the latent map
    assert {found["detector"]["decision"]["rule"], "trajectory", "first"} <= set(found["histograms"])


def test_a_finished_run_is_told_again(compared):
    out, first, arguments = compared
    before = (out / "results.json").read_bytes()
    again = run(*arguments)
    assert again.returncode == 0, again.stderr
    assert "holds this run already" in again.stdout
    assert (out / "results.json").read_bytes() == before
    assert first.stdout.split("AUROC")[1] == again.stdout.split("AUROC")[1]


@pytest.fixture
def folder(tmp_path):
    """Eleven files, of which one is no image."""
    place = tmp_path / "files"
    place.mkdir()
    loaded: Any = load_digits()
    for i, digit in enumerate(loaded.images[200:210]):
        Image.fromarray(np.round(digit / 16 * 255).astype(np.uint8)).save(place / f"{'zyxwvutsrq'[i]}, {i}.png")
    (place / "broken.png").write_bytes(b"no image")
    return place


def test_a_detector_scores_a_folder_row_by_row_and_goes_on_where_it_was_cut(compared, folder, tmp_path):
    detector = compared[0] / "detector"
    out = tmp_path / "scores"
    arguments = ["--detector", detector, "--data", folder, "--rule", "joined", "-o", out, "--device", "cpu"]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    whole = (out / "scores.csv").read_text()
    rows = list(csv.DictReader(whole.splitlines()))
    assert [row["file"] for row in rows] == [str(path) for path in sorted(folder.iterdir())]
    broken = next(row for row in rows if row["file"].endswith("broken.png"))
    assert "cannot be read" in broken["problem"]
    assert not broken["score"]
    assert all(float(row["trajectory"]) > 0 for row in rows if row is not broken)
    assert {row["accepted"] for row in rows if row is not broken} <= {"yes", "no"}
    unusual = json.loads((out / "results.json").read_text())["ood_scores"]["unusual"]
    highest = sorted((row for row in rows if row["score"]), key=lambda row: -float(row["score"]))[:6]
    assert [one["file"] for one in unusual] == [row["file"] for row in highest]
    assert all(len(one["parts"]) == 3 and 0 < one["p_value"] <= 1 for one in unusual)
    usual = json.loads((out / "results.json").read_text())["ood_scores"]["usual"]
    lowest = sorted((row for row in rows if row["score"]), key=lambda row: -float(row["score"]))[6:][::-1]
    assert [one["file"] for one in usual] == [row["file"] for row in lowest]
    page = (out / "report.html").read_text()
    assert "The most unusual images" in page
    assert "The least unusual images" in page
    assert f"{unusual[0]['parts'][0]['name']} " in page

    # Cut in the middle of a line, one kept row marked: it must survive, and the rest be as before. The first row, of
    # the broken file, is tried again.
    marked = whole.replace(rows[1]["trajectory"], "12345.5", 1)
    lines = marked.splitlines(keepends=True)
    (out / "scores.csv").write_text("".join(lines[:5]) + lines[5][:20])
    (out / "results.json").unlink()
    again = run(*arguments)
    assert again.returncode == 0, again.stderr
    assert "11 images, 3 scored already" in again.stdout
    # Kept rows are kept to the letter; those scored again, in a smaller batch, agree to float32's rounding.
    found = (out / "scores.csv").read_text().splitlines()
    assert found[2:5] == marked.splitlines()[2:5]
    for row, expected in zip(csv.DictReader(found), csv.DictReader(marked.splitlines()), strict=True):
        assert [row[k] for k in ("file", "accepted", "orbit")] == [expected[k] for k in ("file", "accepted", "orbit")]
        for key in ("score", "trajectory", "first"):
            assert row[key] == expected[key] or float(row[key]) == pytest.approx(float(expected[key]), rel=1e-5)

    (folder / "zz.png").write_bytes((folder / "z, 0.png").read_bytes())
    more = run(*arguments, "--parquet")
    assert "12 images, 10 scored already" in more.stdout
    rows = list(csv.DictReader((out / "scores.csv").read_text().splitlines()))
    typed = pq.read_table(out / "scores.parquet").to_pylist()
    assert [row["file"] for row in typed] == [row["file"] for row in rows]
    for row, text in zip(typed, rows, strict=True):
        assert row["score"] == (float(text["score"]) if text["score"] else None)
        assert row["accepted"] is ({"yes": True, "no": False}.get(text["accepted"]))
    assert len(rows) == 12
    assert float(rows[-1]["score"]) == pytest.approx(float(rows[-2]["score"]), rel=1e-4)

    (folder / "zz.png").unlink()
    assert run(*arguments).returncode == 0
    assert len(pq.read_table(out / "scores.parquet")) == 11  # a table that is there keeps to the CSV


def test_two_processes_score_as_one(compared, folder, tmp_path):
    arguments = ["ood", "--detector", compared[0] / "detector", "--data", folder, "--device", "cpu"]
    team = launch(2, command, *arguments, "-o", tmp_path / "two")
    for process in team:
        process.join()
    assert [process.exitcode for process in team] == [0, 0]
    assert run(*arguments[1:], "-o", tmp_path / "one").returncode == 0
    one, two = (list(csv.DictReader((tmp_path / name / "scores.csv").open())) for name in ("one", "two"))
    assert len(one) == len(two) == 11
    for row, other in zip(one, two, strict=True):
        assert (row["file"], row["accepted"]) == (other["file"], other["accepted"])
        assert row["score"] == other["score"] or float(row["score"]) == pytest.approx(float(other["score"]), rel=1e-5)
        # The rule that is the default follows no orbit, and says nothing of one.
        assert {values[key] for values in (row, other) for key in ("trajectory", "orbit")} == {""}
    assert sum(event["images"] for event in read_events(tmp_path / "two") if event["event"] == "scored") == 11


def test_two_processes_compare_as_one_and_keep_what_was_scored(compared, tmp_path):
    out, _, arguments = compared
    cut = tmp_path / "cut"
    shutil.copytree(out, cut)  # as a kill after the fit leaves it
    for name in ("results.json", "report.html"):
        (cut / name).unlink()
    results = json.loads((out / "results.json").read_text())["ood"]
    team = launch(2, command, "ood", *arguments[:-1], tmp_path / "two")
    for process in team:
        process.join()
    assert [process.exitcode for process in team] == [0, 0]
    two = json.loads((tmp_path / "two" / "results.json").read_text())["ood"]
    assert two["split"] == results["split"]
    assert two["sets"] == results["sets"]
    for row, other in zip(results["scores"], two["scores"], strict=True):
        assert row["name"] == other["name"]
        for name in row["sets"]:
            assert row["sets"][name]["auroc"] == pytest.approx(other["sets"][name]["auroc"], abs=1e-6)
    assert not (tmp_path / "two" / "scored").exists()
    write_json(
        cut / "scored" / "stripes 0.json",  # of another detector, so it is scored again
        {"settings": {"set": "stripes", "first": 0, "detector": "0"}, "result": {"scores": {}, "status": []}},
    )
    detector = (cut / "detector" / "detector.json").stat().st_mtime_ns
    assert command("ood", *arguments[:-1], cut) == 0
    assert (cut / "detector" / "detector.json").stat().st_mtime_ns == detector  # not fitted again
    assert json.loads((cut / "results.json").read_text())["ood"] == results


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([DEMO], "--data"),
        (["--data", "DIGITS"], "no model"),
        ([DEMO, "--data", "DIGITS", "--parquet"], "--parquet"),
        ([DEMO, "--data", "DIGITS", "--acceptance", "2"], "--acceptance"),
        ([DEMO, "--data", "DIGITS", "--distance", "manhattan"], "euclidean, cosine, standardised"),
        ([DEMO, "--data", "nowhere.npz"], "does not exist"),
        ([DEMO, "--data", "DIGITS", "--ood", "a=DIGITS", "--ood", "a=DIGITS"], "taken"),
        (["--detector", "nowhere", "--data", "DIGITS"], "detector.json does not exist"),
        (["--detector", "DETECTOR", "--data", "DIGITS", "--rule", "guess"], "unknown score"),
        ([DEMO, "--detector", "DETECTOR", "--data", "DIGITS"], "knows its model"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(compared, sources, tmp_path, arguments, message):
    places = {"DIGITS": str(sources / "digits.npz"), "DETECTOR": str(compared[0] / "detector")}
    filled = [re.sub("DIGITS|DETECTOR", lambda m: places[m[0]], a) for a in arguments]
    done = run(*filled, "-o", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
