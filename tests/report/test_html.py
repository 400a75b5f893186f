"""The page of a run: made of what is on disk, and of nothing outside the folder."""

import json

import pytest
from PIL import Image

import fmprobe
from fmprobe.report.html import write_report
from fmprobe.report.pictures import to_picture


@pytest.fixture
def folder(tmp_path):
    """A finished run, small and made by hand."""
    noise = {
        "starts": 4,
        "status": {"converged": 2, "cycle": 0, "slow": 1, "wandering": 1, "diverged": 0},
        "steps": {"median": 7.0, "p90": 9.0, "max": 10},
    }
    merge = {"measure": "relative", "threshold": 0.01, "sweep": {"0.001": 2, "0.01": 1}, "also": {}}
    attractors = {"count": 1, "unresolved": 1, "unstable": 0, "sizes": [2], "spectral_radius": [0.5], "merge": merge}
    results = {
        "schema": 1,
        "fmprobe": "0",
        "command": "fmprobe probe <script>alert(1)</script>",
        "date": "today",
        "device": "cpu",
        "total_seconds": 1.0,
        "model": {"id": "acme/<b>model</b>", "image_shape": [3, 8, 8], "latent_shape": [2]},
        "decoder": {"kind": "own"},
        "protocol": {"measure": "squared", "tol": 1e-5},
        "orbits": {"noise": noise},
        "attractors": attractors,
        "residuals": {"steps": [1, 2], "norms": [[1.0, 0.1], [1.0, None]], "status": ["converged", "slow"]},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "prototypes").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "prototypes" / "0000.png")
    (tmp_path / "prototypes" / "index.csv").write_text(
        "file,basin_size,basin_share,lowest_start,spectral_radius,error\n0000.png,2,0.5,0,0.5000,0.001\n"
    )
    return tmp_path


def test_names_are_text_not_markup(folder):
    page = write_report(folder).read_text()
    assert "<script" not in page
    assert "<b>model" not in page
    assert "acme/&lt;b&gt;model" in page


def test_unresolved_starts_are_said(folder):
    assert "1 starts are unresolved" in write_report(folder).read_text()


def test_an_index_cannot_lead_out_of_the_folder(folder, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.png"
    secret.write_bytes(b"secret")
    index = folder / "prototypes" / "index.csv"
    index.write_text(index.read_text().replace("0000.png", str(secret)))
    with pytest.raises((fmprobe.InputError, FileNotFoundError)):
        write_report(folder)


def test_an_unfinished_run_has_no_report(folder):
    (folder / "results.json").unlink()
    with pytest.raises(fmprobe.InputError, match="has not finished"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_pictures_clamp_and_keep_their_size():
    import torch

    picture = to_picture(torch.full((3, 5, 7), 2.0))
    assert picture.size == (7, 5)
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert to_picture(torch.full((1, 5, 7), torch.nan)).getpixel((0, 0)) == 0
