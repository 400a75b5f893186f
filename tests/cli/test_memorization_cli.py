"""fmprobe memorization, as a person meets it."""

import json
from importlib.resources import files

import numpy as np
import pytest
from sklearn.datasets import load_digits
from support.runs import finished
from typer.testing import CliRunner

from fmprobe.cli import app
from fmprobe.errors import InputError

DEMO = files("fmprobe.demo") / "vit-mae-digits"


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """The demo model, which learned the first three digits of each class by heart, framed in black."""
    folder = tmp_path_factory.mktemp("memorization")
    images = (load_digits(return_X_y=True)[0].reshape(-1, 8, 8) / 16 * 255).astype(np.uint8)
    images = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    np.savez(folder / "digits.npz", train=images[:300], test=images[900:1000])
    arguments = ["memorization", DEMO, "--data", f"{folder}/digits.npz:train", "--test", f"{folder}/digits.npz:test"]
    arguments += ["-n", 16, "--device", "cpu", "-o", folder / "run"]
    return folder / "run", arguments, finished(*arguments)


def test_the_table_is_told_and_kept_with_the_pairs(probed):
    out, _, done = probed
    assert done.returncode == 0, done.stderr
    entry = json.loads((out / "results.json").read_text())["memorization"]
    assert entry["images"] == {"train": 300, "test": 100}
    assert entry["coefficient"] > 0.99 > entry["levels"]["cosine"]["test images"]["mean"]
    assert set(entry["bound"]) == set(entry["errors"]) == {"train", "test"}
    assert len(list((out / "memorization").glob("*.png"))) == entry["count"] == len(entry["nearest"])
    for word in ("attractors (", "centred cosine", "mean image (1)", "prototype", "at 90% of variance", "report"):
        assert word in done.stdout
    assert (out / "report.html").is_file()


def test_nothing_on_disk_is_computed_again(probed):
    out, arguments, _ = probed
    kept = out / "results.json"
    before = kept.stat().st_mtime_ns
    again = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert again.exit_code == 0
    assert "holds this already" in again.stdout
    assert kept.stat().st_mtime_ns == before
    other = CliRunner().invoke(app, [*map(str, arguments), "--images", "50"], catch_exceptions=False)
    assert "holds this already" not in other.stdout
    assert json.loads(kept.read_text())["memorization"]["images"] == {"train": 50, "test": 50}


def test_a_source_that_is_not_there_is_named(tmp_path):
    arguments = ["memorization", str(DEMO), "--data", "nowhere.npz", "-n", "2", "--device", "cpu"]
    with pytest.raises(InputError, match=r"nowhere\.npz"):
        CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "r")], catch_exceptions=False)
