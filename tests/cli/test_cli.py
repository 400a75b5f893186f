"""The command line, as a person meets it."""

import csv
import json
import re
import subprocess
import sys
from importlib.resources import files

import pytest
import torch
from PIL import Image
from support.runs import finished as run
from support.surrogates import QUICK
from typer.testing import CliRunner

import fmprobe
from fmprobe.cli import app
from fmprobe.runs.folder import read_events
from fmprobe.surrogates.fit import FitSettings

DEMO = files("fmprobe.demo") / "vit-mae-digits"


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "run"
    return out, run("demo", "--out", out)


def test_help_and_models_import_nothing_heavy():
    script = (
        "import sys; from fmprobe.cli import main\n"
        "sys.argv = ['fmprobe', sys.argv[1]]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print([m for m in ('torch', 'transformers', 'matplotlib', 'sklearn', 'numpy') if m in sys.modules])"
    )
    for argument in ("--help", "models"):
        out = subprocess.run(
            [sys.executable, "-c", script, argument], capture_output=True, text=True, check=True
        ).stdout
        assert out.splitlines()[-1] == "[]"
    assert "facebook/dinov2-small" in out
    assert "facebook/vit-mae-base" in out


def test_the_processes_that_torchrun_starts_do_one_run(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "fmprobe"]
    arguments = ["probe", str(DEMO), "-n", "2", "--max-steps", "2", "--device", "cpu", "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, *launcher, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report  ") == 1
    (iterated,) = [event for event in read_events(tmp_path / "run") if event["event"] == "iterate"]
    assert iterated["processes"] == 2


def test_the_demo_leaves_a_complete_run_folder(demo_run):
    out, done = demo_run
    assert done.returncode == 0, done.stderr
    names = {path.name for path in out.iterdir()}
    written = {"manifest.json", "config.yaml", "events.jsonl", "results.json", "attractors"}
    assert names == written | {"prototypes", "prototypes.png", "trajectories.png", "memorization", "report.html"}
    assert "is a different one of the 30 training images" in done.stdout
    results = json.loads((out / "results.json").read_text())
    noise, attractors = results["orbits"]["noise"], results["attractors"]
    assert noise["starts"] == 64
    assert sum(noise["status"].values()) == 64
    assert set(noise["steps"]) == {"median", "p90", "max"}
    assert len(attractors["sizes"]) == attractors["count"] == len(attractors["spectral_radius"])
    assert attractors["merge"]["sweep"]["0.01"] == attractors["count"]
    for key in ("tol", "measure", "max_steps", "rules", "seed", "merge"):
        assert key in results["protocol"]
    with (out / "prototypes" / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["basin_size"]) for row in rows] == attractors["sizes"]
    for row in rows:
        with Image.open(out / "prototypes" / row["file"]) as image:
            assert list(image.size) == results["model"]["image_shape"][1:]


def test_the_demo_model_has_at_least_five_attractors_under_both_merges(demo_run):
    found = fmprobe.AttractorSet.load(demo_run[0] / "attractors")
    assert found.orbits.converged.double().mean() > 0.9
    assert (found.count or 0) >= 5
    assert found.merge["also"]["cosine"]["count"] >= 5
    directions = torch.nn.functional.normalize(found.latents.flatten(1), dim=1)
    alike = (directions @ directions.T > 0.99).sum(1)  # itself included
    assert int((alike == 1).sum()) >= 5


def test_the_report_is_one_file_that_asks_for_nothing(demo_run):
    page = (demo_run[0] / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "url(http" not in page
    for text in (
        "Decoded attractors",
        "How the orbits ended",
        "Residual curves",
        "Protocol and provenance",
        "2505.22785",
    ):
        assert text in page
    assert page.count('class="tile"') == json.loads((demo_run[0] / "results.json").read_text())["attractors"]["count"]


def test_a_finished_run_is_told_again_and_another_is_refused(demo_run):
    out, _ = demo_run
    before = (out / "results.json").read_bytes()
    again = run("demo", "--out", out)
    assert again.returncode == 0
    assert "holds this run already" in again.stdout
    assert (out / "results.json").read_bytes() == before
    other = run("demo", "--out", out, "--seed", 1)
    assert other.returncode == 2
    assert "seed: 0 there, 1 now" in other.stderr


def test_prototypes_of_an_encoder_fit_a_decoder_and_say_so(tiny_dinov2, tmp_path, monkeypatch):
    monkeypatch.setattr(FitSettings, "for_device", classmethod(lambda cls, device, kind="pixel": QUICK))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # another test may have fitted this decoder
    out = tmp_path / "p"
    arguments = ["prototypes", str(tiny_dinov2), "-n", "2", "--max-steps", "5", "--out"]
    done = CliRunner().invoke(app, [*arguments, str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "fitting one on procedural images" in done.output
    results = json.loads((out / "results.json").read_text())
    assert results["decoder"]["kind"] == "surrogate"
    assert results["model"]["data_free"] is True
    assert "The decoder is a surrogate" in (out / "report.html").read_text()
    assert "in the cache" in CliRunner().invoke(app, [*arguments, str(tmp_path / "q")]).output


def test_a_fitted_decoder_goes_straight_into_load(tiny_dinov2, tmp_path):
    out = tmp_path / "decoder"
    options = ["--size", "tiny", "--images", 32, "--steps", 3, "--image-size", 42]
    done = run("fit-decoder", tiny_dinov2, "--out", out, *options)
    assert done.returncode == 0, done.stderr
    assert "L1" in done.stdout
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "config.yaml",
        "log.jsonl",
        "model.safetensors",
        "README.md",
    }
    model = fmprobe.load(tiny_dinov2, decoder=out)
    assert model.image_shape == (3, 42, 42)  # the decoder's, not the processor's
    assert model.has_decoder
    assert model.provenance["decoder"]["kind"] == "surrogate"
    assert "standardised" in model.provenance["space"]
    assert run("probe", tiny_dinov2, "--decoder", out, "-n", 2, "--max-steps", 3, "-o", tmp_path / "r").returncode == 0


def test_a_decoder_made_for_another_encoder_is_refused(tiny_dinov2, tmp_path):
    from support.checkpoints import save_dinov2

    run("fit-decoder", tiny_dinov2, "--out", tmp_path / "d", "--size", "tiny", "--images", 32, "--steps", 2)
    other = save_dinov2(tmp_path / "other", seed=1)
    with pytest.raises(fmprobe.InputError, match="another encoder"):
        fmprobe.load(other, decoder=tmp_path / "d")


@pytest.mark.usefixtures("draws")
def test_a_run_without_attractors_says_so(tiny_mae, tmp_path):
    out = tmp_path / "none"
    done = run("probe", tiny_mae, "-n", 4, "-o", out, "--max-steps", 3)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "results.json").read_text())["attractors"]["count"] == 0
    assert "No orbit came to rest" in (out / "report.html").read_text()
    assert (out / "prototypes.png").stat().st_size > 1000
