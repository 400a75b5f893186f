"""Results show themselves: HTML for a notebook, and a matplotlib figure."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from support.prototypes import prototypes

import fmprobe
from fmprobe.canvas import drawing
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
    basins, sweep = attractors.plot(kind="summary").axes
    assert [bar.get_height() for bar in basins.patches] == attractors.sizes.tolist()
    assert sweep.lines[0].get_ydata().tolist() == list(attractors.merge["sweep"].values())


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_plot_is_shown_by_pyplot_and_what_pages_draw_is_not(model, attractors, written):
    for result in results(model, attractors, written):
        result._repr_html_()
        assert not plt.get_fignums()
        figure = result.plot(figsize=(5, 4))
        assert plt.figure(plt.get_fignums()[0]) is figure
        assert tuple(figure.get_size_inches()) == (5, 4)
        plt.close("all")


def test_a_plot_goes_into_the_axes_that_are_given(model, attractors, written):
    """As many as there are panels, and nothing else of the caller's figure is changed."""
    for result in results(model, attractors, written):
        gallery = any(ax.images and not ax.axison for ax in result.draw().axes)
        count = 1 if gallery else sum(ax.get_label() != "<colorbar>" for ax in result.draw().axes)
        mine, axes = plt.subplots(1, count, squeeze=False)
        assert result.plot(axes) is mine
        assert all(ax.figure is mine for ax in axes.flat)
        assert all(ax.has_data() or ax.child_axes for ax in axes.flat)
        assert not mine.get_suptitle()
        assert not mine.legends
        plt.close("all")


def test_a_gallery_holds_the_decoded_attractors(model, attractors):
    figure = attractors.plot()
    (picture,) = figure.axes[0].images
    decoded = model.decode(attractors.latents)[0, 0].clamp(0, 1).numpy()
    shown = np.asarray(picture.get_array())
    assert shown.shape == decoded.shape
    assert abs(shown / 255 - decoded).max() < 0.01
    assert figure.axes[0].get_title() == f"{int(attractors.sizes[0])} of 8"


def test_a_set_that_was_saved_is_drawn_with_the_model_that_is_given(model, attractors, tmp_path):
    attractors.save(tmp_path)
    loaded = fmprobe.AttractorSet.load(tmp_path)
    assert len(loaded.plot().axes) == 2  # nothing decodes it
    assert loaded.plot(model=model).axes[0].images
    with pytest.raises(fmprobe.InputError, match="pass model="):
        loaded.plot(kind="gallery")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "bars"}, "kind is 'bars': expected gallery or summary"),
        ({"figsize": (5, -1)}, "expected a width and a height"),
        ({"figsize": 5}, "expected a width and a height"),
        ({"ax": "here"}, "expected axes of matplotlib"),
    ],
)
def test_what_cannot_be_drawn_says_why_in_one_line(attractors, wrong, said):
    with pytest.raises(fmprobe.InputError, match=r"^[^\n]*$") as caught:
        attractors.plot(**wrong)
    assert said in str(caught.value)


def test_axes_that_do_not_fit_are_refused(attractors):
    _, axes = plt.subplots(1, 3)
    with pytest.raises(fmprobe.InputError, match="3 axes were given for 2 panels"):
        attractors.plot(axes, kind="summary")
    with pytest.raises(fmprobe.InputError, match="leave figsize out"):
        attractors.plot(axes[0], figsize=(3, 3))


def test_drawing_for_a_caller_ends_with_the_call(attractors):
    with pytest.raises(RuntimeError), drawing(None, (2, 2)):
        raise RuntimeError
    assert tuple(attractors.draw().get_size_inches()) != (2, 2)
