"""This version reads what an earlier version wrote: run folders, attractors, decoders, a detector and its scores."""

import csv
import hashlib
import json
import lzma
import os
import runpy
import shlex
import shutil
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from support.spoiled import edit

import fmprobe

STORED = Path(__file__).parent / "artefacts" / "f89110b"
WORKPLACE = "/tmp/fmprobe-artefacts"  # the artefacts were written in this folder
DEMO = str(files("fmprobe.demo") / "vit-mae-digits")
VALUES = dict(np.load(STORED / "values.npz"))
RTOL, ATOL = 1e-4, 1e-5  # rounding differs between processors, and scores are means over six steps of f

# Each page has this number of sections, the summary and the provenance included, and holds these texts.
PAGES = {
    "run": (9, ["Decoded attractors", "On the way", "Residual curves", "Weight probing", "Memorization"]),
    "comparison": (3, ["Two networks compared", "latents of 128 and of 256 values", "weight noise"]),
    "ood": (3, ["AUROC", "reconstruction error", "mahalanobis z"]),
    "scores": (3, ["Scored images"]),
}
SEARCH = "-n 12 --max-steps 40 --device cpu"
# Each file states the version of its format. The command reads the file, and its message holds these texts.
FUTURE = {
    "run/results.json": ({"schema": 99}, "report run", ["schema 99", "with the version that made the run"]),
    "run/manifest.json": (
        {"fmprobe": "99.0"},
        f"prototypes vit-mae-digits -o run {SEARCH}",
        ["'99.0' there", "name another folder with --out, or add --no-resume"],
    ),
    "run/attractors/attractors.json": (
        {"schema": 99},
        f"field vit-mae-digits -o run --resolution 3 {SEARCH}",
        ["schema 99", "find them again, or load them with the version that saved them"],
    ),
    "ood/detector/detector.json": (
        {"schema": 99},
        "score ood/detector -o new --data images.npz:other --device cpu",
        ["schema 99", "fit the detector again, or load it with the version that saved it"],
    ),
    "pixel-decoder/config.json": (
        {"version": 99},
        f"prototypes encoder --decoder pixel-decoder -o new {SEARCH}",
        ["layout 99", "fit the decoder again"],
    ),
    "latent-decoder/config.json": (
        {"version": 99},
        f"prototypes encoder --decoder latent-decoder -o new {SEARCH}",
        ["layout 99", "fit the decoder again"],
    ),
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the artefacts and the demo model to the working folder, as if they had been written there."""
    shutil.copytree(STORED, tmp_path, dirs_exist_ok=True)
    shutil.copytree(DEMO, tmp_path / "vit-mae-digits")
    packed = tmp_path / "pixel-decoder" / "model.safetensors.xz"
    packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
    here, detector = json.dumps(os.path.realpath(tmp_path))[1:-1], tmp_path / "ood" / "detector" / "detector.json"
    manifests = list(tmp_path.rglob("manifest.json"))
    for path in (*manifests, detector):
        path.write_text(path.read_text().replace(WORKPLACE, here))
    for path in manifests:
        edit(path, fmprobe=fmprobe.__version__)  # no version continues the run of another one
    edit(tmp_path / "scores" / "manifest.json", detector=hashlib.sha256(detector.read_bytes()).hexdigest())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str) -> int:
    """Run `fmprobe` in this process, as `python -m fmprobe` does, and return its exit code."""
    with mock.patch.object(sys, "argv", ["fmprobe", *shlex.split(line)]):
        try:
            runpy.run_module("fmprobe", run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def leaves(content: Any, above: str = "") -> dict[str, Any]:
    """Every value of nested JSON by its place."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    if not isinstance(content, dict | list):
        return {above: content}
    return {place: value for key, item in items for place, value in leaves(item, f"{above}/{key}").items()}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_close(found: torch.Tensor, name: str) -> None:
    assert VALUES[name].std() > 0.1  # so that a constant does not pass
    np.testing.assert_allclose(found.numpy(), VALUES[name], rtol=RTOL, atol=ATOL)


def test_a_set_of_attractors_is_read_as_it_was_saved():
    found = fmprobe.AttractorSet.load("attractors")
    tensors = {name: getattr(found, name) for name in ("latents", "labels", "sizes", "spectral_radius")}
    tensors |= {name: getattr(found.orbits, name) for name in ("status", "steps")}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.numpy(), VALUES[name], err_msg=name, strict=True)
    assert {fmprobe.Status(int(code)).name for code in found.orbits.status} == {"CONVERGED", "WANDERING"}


def test_the_attractors_of_a_run_are_those_of_its_results(place):
    results = json.loads((place / "run" / "results.json").read_text())["attractors"]
    found = fmprobe.AttractorSet.load("run/attractors")
    assert found.sizes.tolist() == results["sizes"]
    assert len(found) == results["count"] == 9
    assert len(fmprobe.AttractorSet.load("run/null")) == 0


@torch.no_grad()
@pytest.mark.parametrize("kind", ["pixel", "latent"])
def test_a_decoder_gives_the_latent_map_that_it_gave(kind):
    model = fmprobe.load("encoder", decoder=f"{kind}-decoder", device="cpu")
    encoded = model.encode(torch.from_numpy(VALUES["images"]))
    assert_close(encoded, f"{kind}_encoded")
    assert_close(model.latent_map(model.sample_latents(4)), f"{kind}_mapped")
    if kind == "pixel":
        assert_close(model.decode(encoded), "pixel_decoded")


@pytest.mark.parametrize("named", [True, False])
def test_a_detector_scores_images_as_it_did(named):
    model = None if named else fmprobe.load("vit-mae-digits", device="cpu")
    detector = fmprobe.TrajectoryDetector.load("ood/detector", model, device="cpu")
    images = torch.from_numpy(VALUES["images"])
    assert_close(detector.score(images), "scores")
    assert detector.predict(images, acceptance=0.5).tolist() == VALUES["accepted"].tolist()


def test_a_table_of_scores_is_continued_and_made_again_alike(place, capsys):
    stored = table(STORED / "scores" / "scores.csv")
    assert run("score ood/detector -o scores --data images.npz:other --device cpu") == 0
    assert "8 images, 8 scored already" in capsys.readouterr().out
    assert table(place / "scores" / "scores.csv") == stored
    assert run("score ood/detector -o new --data images.npz:other --device cpu") == 0
    for old, new in zip(stored, table(place / "new" / "scores.csv"), strict=True):
        for name in ("score", "trajectory", "first"):
            assert float(new.pop(name)) == pytest.approx(float(old.pop(name)), rel=RTOL)
        assert new == old


@pytest.mark.parametrize("name", PAGES)
def test_a_report_holds_its_sections_and_changes_no_result(name, place):
    assert run(f"report {name}") == 0
    page = (place / name / "report.html").read_text()
    sections, words = PAGES[name]
    assert page.count("<section ") == sections
    assert [text for text in words if text not in page] == []
    assert (place / name / "results.json").read_bytes() == (STORED / name / "results.json").read_bytes()


@pytest.mark.parametrize("name", ["run", "comparison", "ood"])
def test_the_command_of_a_finished_run_does_not_compute_it_again(name, place, capsys):
    results = json.loads((place / name / "results.json").read_text())
    assert run(results["command"].removeprefix("fmprobe ")) == 0
    assert f"{name} holds this run already" in capsys.readouterr().out
    assert json.loads((place / name / "results.json").read_text()) == results


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "weights --images 2 --atoms 2,4",
            "run holds this run already",
        ),  # the attractors; curves are made again, alike
        ("memorization --images 8", "run holds this already"),
    ],
)
def test_a_part_of_a_run_stays_as_it_is(command, message, place, capsys):
    if not np.array_equal(fmprobe.procedural_images(4, 16).numpy(), VALUES["images"]):
        pytest.skip("procedural images differ in their last digits on this processor, so they count as other images")
    results = json.loads((place / "run" / "results.json").read_text())
    assert run(f"{command} vit-mae-digits -o run {SEARCH} --data procedural") == 0
    said = capsys.readouterr().out
    assert message in said
    before, after = leaves(results), leaves(json.loads((place / "run" / "results.json").read_text()))
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name] == (pytest.approx(value, rel=RTOL, abs=ATOL) if isinstance(value, float) else value), name


@pytest.mark.parametrize("name", FUTURE)
def test_a_format_of_a_later_version_is_refused_in_one_line(name, place, capsys):
    changes, command, texts = FUTURE[name]
    edit(place / name, **changes)
    assert run(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fmprobe: {name.partition('/')[0]}")
    assert [text for text in texts if text not in line] == []
    assert not list(place.rglob("new"))
