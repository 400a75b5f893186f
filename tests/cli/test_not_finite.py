"""A decoder that gives numbers that are not finite: every command ends well, writes strict JSON, counts and says it."""

import json
from contextlib import ExitStack
from unittest import mock

import numpy as np
import pytest
import torch
from support.maps import double_well
from support.runs import command

import fmprobe

SHAPE = (1, 4, 4)
COMMANDS = {
    "probe": [],
    "weights": ["--data", "{}:train", "--no-null"],
    "memorization": ["--data", "{}:train", "--test", "{}:test"],
}
SPOILT = {
    "nan for some": lambda z: torch.where(z.flatten(1)[:, :1] > 0, torch.nan, 0.0),
    "nan for all": lambda z: torch.full_like(z.flatten(1)[:, :1], torch.nan),
    "infinity for some": lambda z: torch.where(z.flatten(1)[:, :1] > 0, torch.inf, 0.0),
}


def model_of(spoilt, through):
    """The double well; the decoder adds what `spoilt` makes of a latent, which f passes on or mends."""

    def encode(images):
        return images if through else images.nan_to_num(0.5, 0.5, 0.5)

    def decode(latents):
        return double_well(latents) + SPOILT[spoilt](latents)[:, :, None, None]

    made = fmprobe.from_functions(encode, decode, image_shape=SHAPE, latent_shape=SHAPE, name="spoilt")
    made.provenance |= {"fingerprint": "spoilt", "revision": None}
    return made


def strict(path):
    """The JSON of a file; a number that JSON lacks fails."""

    def refuse(name):
        raise AssertionError(f"{path} holds {name}")

    return json.loads(path.read_text(), parse_constant=refuse)


def nulls(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (value is None) + sum(map(nulls, inner))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    pixels = (np.random.default_rng(0).random((2, 80, 4, 4)) * 255).astype(np.uint8)
    np.savez(path, train=pixels[0], test=pixels[1])
    return path


def run(spoilt, through, *arguments):
    with ExitStack() as stack:
        for home in ("runs.models.load_model", "probes.alignment._disturbed"):
            made = mock.patch(f"fmprobe.{home}", side_effect=lambda *_, **__: model_of(spoilt, through))
            stack.enter_context(made)
        return command(*arguments)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(("spoilt", "through"), [*((kind, False) for kind in SPOILT), ("nan for some", True)])
def test_results_are_written_counted_and_said(name, spoilt, through, images, tmp_path, capsys):
    arguments = ["m", "-n", 16, "--max-steps", 60, "-o", tmp_path / "run", *(a.format(images) for a in COMMANDS[name])]
    assert run(spoilt, through, name, *arguments) == 0
    told = capsys.readouterr().out
    results = strict(tmp_path / "run" / "results.json")
    page = (tmp_path / "run" / "report.html").read_text()
    if name == "probe":
        damaged = results["attractors"].get("images_not_finite", 0)
        assert bool(damaged) == (not through)  # what f passes on diverges, and is no attractor
        assert (f"pixels of {damaged} of" in told) == (f"pixels of {damaged} of" in page) == bool(damaged)
        return
    assert set(results["not_finite"]) == {name}
    count = results["not_finite"][name]
    assert 0 < count <= nulls(results[name])
    assert f"{count} of {name}: null in results.json" in told
    assert f"{count} of {name}: null in results.json" in page
    assert run(spoilt, through, name, *arguments) == 0  # from disk: the same, and counted again
    again = strict(tmp_path / "run" / "results.json")
    assert (again["not_finite"], again[name]) == (results["not_finite"], results[name])
    table = told[told.index("\nmodel") :]
    assert capsys.readouterr().out.endswith(table)


@pytest.mark.parametrize("through", [False, True])
def test_a_comparison_ends_well(through, images, tmp_path):
    arguments = ["m", "m", "--data", f"{images}:train", "--images", 24, "--max-steps", 60]
    assert run("nan for some", through, "compare", *arguments, "-o", tmp_path / "run") == 0
    found = strict(tmp_path / "run" / "results.json")["alignment"]
    assert (found["subject"]["orbits"]["a"]["status"]["diverged"] > 0) == through
    assert "Two networks compared" in (tmp_path / "run" / "report.html").read_text()


def test_an_infinite_pixel_is_no_white_one(images, tmp_path):
    """Errors are taken between 0 and 1, where clamping would give infinity a place."""
    made = model_of("infinity for some", False)
    attractors = fmprobe.find_attractors(made, 16, progress=False)
    curves = fmprobe.probe_weights(made, attractors, torch.rand(8, *SHAPE))
    assert not np.isfinite(curves.to_dict()["own"]["image_mse"]["mean"])
