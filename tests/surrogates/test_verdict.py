"""A surrogate that makes less of images than their median colour does: said before anything that was found with it."""

import json
import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from support.prototypes import prototypes
from support.surrogates import QUICK, narrow, quick

import fmprobe
from fmprobe.attractors import AttractorSet
from fmprobe.cli import app
from fmprobe.probes.prototypes import closed_form
from fmprobe.procedural import procedural_images
from fmprobe.report.summary import summary
from fmprobe.surrogates.fit import FitSettings
from fmprobe.validation import warning_of

small = pytest.fixture(narrow, scope="module", autouse=True)
GOOD = {"images": 4, "l1": 0.10, "l1_median": 0.155, "feature_error": 1.4}
BAD = {"images": 4, "l1": 0.21, "l1_median": 0.155, "feature_error": 0.4}


def judged(**rows):
    return warning_of({"kind": "surrogate", "validation": rows})


@pytest.mark.parametrize("name", ["held_out", "leaves", "any other set"])
@pytest.mark.parametrize("l1", [0.155, 0.21, math.nan, math.inf, None])
def test_one_set_that_is_painted_no_better_than_its_median_is_enough(name, l1):
    said = judged(first=GOOD, **{name: {**GOOD, "l1": l1}})
    assert said is not None
    assert "median colour" in said
    assert name.replace("_", " ") in said
    assert "0.155" in said
    assert "first" not in said


@pytest.mark.parametrize("error", [1.0, 1.7, math.nan, None])
def test_a_surrogate_on_features_is_held_to_the_mean_feature(error):
    row = {"images": 4, "l1_median": 0.155, "feature_error": error}
    assert "mean feature" in str(judged(held_out=row))
    assert judged(held_out={**row, "feature_error": 0.99}) is None


def test_what_paints_better_and_what_is_no_surrogate_is_not_warned_of():
    assert judged(held_out=GOOD, leaves=GOOD) is None
    assert warning_of({"kind": "own", "validation": {"held_out": BAD}}) is None
    assert warning_of(None) is None
    assert "not known" in str(judged())


@pytest.fixture
def bad(encoder):
    """Five steps at a rate at which nothing is learned."""
    decoder = quick(encoder, learning_rate=1e-9)
    rows = decoder.info["validation"].values()
    assert all(row["l1"] > row["l1_median"] for row in rows)
    return encoder.with_decoder(decoder)


def shows(result):
    page = result._repr_html_()
    return 0 < page.find("median colour") < (page.find("attractor") if "attractor" in page else len(page))


def test_every_result_shows_it_in_a_notebook_before_what_was_found(bad, encoder, tmp_path):
    images = procedural_images(16, 16, seed=3)
    found = fmprobe.find_attractors(bad, 4, max_steps=3, stability_cap=0, progress=False)
    assert shows(found)
    found.save(tmp_path)
    assert AttractorSet.load(tmp_path).warning == found.warning
    assert shows(prototypes(bad, 2, max_steps=2))
    assert shows(fmprobe.probe_weights(bad, found, images, [1], ends=True))
    assert shows(fmprobe.probe_memorization(bad, images, attractors=found))
    assert shows(fmprobe.probe_residuals(bad, n=2, steps=2))
    assert shows(fmprobe.compare(bad, bad, images, max_steps=2, maps=["relative"]))
    good = encoder.with_decoder(quick(encoder, n_images=100, steps=60, learning_rate=3e-3, noise=0.0, pixel_noise=0.0))
    found = fmprobe.find_attractors(good, 4, max_steps=3, stability_cap=0, progress=False)
    assert found.warning is None
    assert "warning" not in found._repr_html_()


def test_the_table_says_it_before_the_count():
    results = {
        "decoder": {"kind": "surrogate", "validation": {"held_out": BAD}},
        "other": {
            "model": {"id": "b", "latent_shape": [3]},
            "decoder": {"kind": "surrogate", "validation": {"leaves": BAD}},
        },
        "orbits": {"noise": {"starts": 4, "status": {"converged": 4}, "steps": {"median": None}}},
    }
    names = [name for name, _ in summary(results)]
    assert names.index("warning") < names.index("orbits")
    assert "L1 0.210 against 0.155" in dict(summary(results))["warning"]
    assert "leaves" in dict(summary(results))["other warning"]


@pytest.fixture
def run(monkeypatch, tmp_path, capfd):
    """A command in this process, with surrogates that learn nothing; what it printed."""
    poor = FitSettings(size="tiny", n_images=32, steps=2, batch_size=8, contraction=0.0, learning_rate=1e-9)
    assert poor.size == QUICK.size
    monkeypatch.setattr(FitSettings, "for_device", classmethod(lambda cls, device, kind="pixel": poor))
    for name, value in {"IMAGES": 16, "KS": (2,), "STARTS": 2}.items():
        monkeypatch.setattr(closed_form, name, value)
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            app([*map(str, arguments)])
        out = capfd.readouterr().out
        assert not ended.value.code
        return out

    return command


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "p.npz", images=rng.integers(0, 256, (64, 16, 16, 3), dtype=np.uint8))
    return tmp_path / "p.npz"


COMMANDS = {
    "probe": (["-n", 2, "--max-steps", 2], "\norbits "),
    "prototypes": (["-n", 2, "--max-steps", 2], "\norbits "),
    "weights": (
        ["-n", 2, "--max-steps", 2, "--data", "PICTURES", "--images", 4, "--use-ends", "--no-null"],
        "image MSE of",
    ),
    "memorization": (["-n", 2, "--max-steps", 2, "--data", "PICTURES", "--images", 4, "--use-ends"], "nearest of"),
    "ood": (["--data", "PICTURES", "--ood", "procedural", "--max-steps", 2, "--no-controls"], "AUROC"),
    "compare": (["SELF", "--data", "PICTURES", "--images", 12, "--max-steps", 2, "--no-null"], "cosine of the fields"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_it_on_the_terminal_before_what_it_found_and_on_the_page(
    name, run, pictures, tiny_dinov2, tmp_path
):
    more, found = COMMANDS[name]
    known = {"PICTURES": pictures, "SELF": tiny_dinov2}
    arguments = [name, tiny_dinov2, *(known.get(str(part), part) for part in more), "-o", tmp_path / "run"]
    for time in ("first", "again, from disk"):
        out = run(*arguments)
        head = out[: out.index(found)]
        assert "each image's own median colour" in head, time
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "median colour" in results["decoder"]["warning"]
    page = (tmp_path / "run" / "report.html").read_text()
    text = page[: page.index("<section", page.index('id="summary"'))]
    assert "own median colour" in text


def test_a_detector_that_was_kept_says_it_too(run, pictures, tiny_dinov2, tmp_path):
    run("ood", tiny_dinov2, *(pictures if part == "PICTURES" else part for part in COMMANDS["ood"][0]), "-o", "run")
    out = run("ood", "--detector", tmp_path / "run" / "detector", "--data", pictures, "-o", "scores")
    assert "median colour" in out[: out.index("accepted")]
    assert "median colour" in json.loads((tmp_path / "scores" / "results.json").read_text())["decoder"]["warning"]


def test_fitting_one_says_it(run, tiny_dinov2):
    assert "median colour" in run("fit-decoder", tiny_dinov2, "-o", "d")


def test_a_model_knows_its_warning(bad, encoder):
    assert "median colour" in bad.surrogate_warning
    assert encoder.surrogate_warning is None
    assert (
        fmprobe.from_functions(torch.nn.Identity(), torch.nn.Identity(), **cast(Any, SHAPES)).surrogate_warning is None
    )


SHAPES = {"image_shape": (1, 2, 2), "latent_shape": (1, 2, 2)}
