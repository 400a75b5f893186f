"""Results show themselves: HTML for a notebook, and a matplotlib figure."""

import pytest
import torch
from matplotlib.figure import Figure
from support.prototypes import prototypes

import fmprobe
from fmprobe.files import read_json
from fmprobe.probes.ood.probe import OODResult


@pytest.fixture(scope="module")
def model():
    """f(z) = z / 2 on two pixels."""
    return fmprobe.from_functions(
        lambda images: images.flatten(1) / 2,
        lambda latents: latents.reshape(-1, 1, 1, 2),
        image_shape=(1, 1, 2),
        latent_shape=(2,),
    )


@pytest.fixture(scope="module")
def attractors(model):
    return fmprobe.find_attractors(model, 8, merge="relative")


def results(model, attractors, written):
    yield attractors
    yield prototypes(model, 4, max_steps=50)
    yield fmprobe.probe_weights(model, attractors, torch.rand(2, 1, 1, 2), [1], ends=True)
    yield fmprobe.probe_memorization(model, torch.rand(4, 1, 1, 2), attractors=attractors)
    yield fmprobe.vector_field(model, resolution=3)
    yield OODResult(read_json(written("ood") / "results.json")["ood"])


def test_every_result_plots_and_shows_itself(model, attractors, written):
    for result in results(model, attractors, written):
        assert isinstance(result.plot(), Figure)
        shown = result._repr_html_()
        assert shown.count("<svg") == shown.count("</svg>") == 1
        assert "<table>" in shown
        assert "<script" not in shown


def test_what_is_shown_are_the_results_own_figures(attractors):
    shown = attractors._repr_html_()
    assert "8 converged of 8" in shown
    basins, sweep = attractors.plot().axes
    assert [bar.get_height() for bar in basins.patches] == attractors.sizes.tolist()
    assert sweep.lines[0].get_ydata().tolist() == list(attractors.merge["sweep"].values())
