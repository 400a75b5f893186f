"""Attractors without a decoder, shown by the nearest images of a set."""

import json
from unittest import mock

import pytest
import torch
from support.surrogates import quick, tiny_encoder

from fmprobe.autoencoder import Autoencoder
from fmprobe.cli import main
from fmprobe.probes.prototypes.nearest import BESIDE, SHOWN, nearest_images


def mean_colours(**more):
    """Images to their mean colour; f halves it."""
    return Autoencoder(
        lambda x: x.mean((2, 3)),
        None,
        latent_map=lambda z: z / 2,
        image_shape=(3, 4, 4),
        latent_shape=(3,),
        provenance={"model": "colours", "decoder": None},
        **more,
    )


def flat(*colours):
    return torch.tensor(colours)[:, :, None, None].expand(-1, -1, 4, 4).contiguous()


def test_the_nearest_come_first_with_their_distance():
    images = flat((0.0, 0.0, 0.0), (0.5, 0.0, 0.0), (1.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.0, 1.0, 0.0))
    found = nearest_images(mean_colours(), torch.tensor([[0.9, 0.0, 0.0], [0.0, 0.8, 0.0]]), images)
    assert found is not None
    assert found.images[:, 0].tolist() == [2, 4]
    assert found.images[0].tolist()[:2] == [2, 1]
    assert torch.equal(found.pictures[0, 0], images[2])
    typical = torch.pdist(images.mean((2, 3)).double()).median()
    torch.testing.assert_close(found.distances[0, :2] * typical, torch.tensor([0.1, 0.4], dtype=torch.float64))
    assert found.pictures.shape == (2, BESIDE, 3, 4, 4)


def test_procedural_images_by_default_and_the_largest_attractors_alone():
    found = nearest_images(mean_colours(), torch.rand(SHOWN + 3, 3))
    assert found is not None
    assert len(found.images) == SHOWN
    assert "procedural" in found.words
    assert (found.distances.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("case", ["a decoder", "no attractor", "no picture"])
def test_none_where_there_is_nothing_to_show(case):
    model, latents = mean_colours(), torch.rand(2, 3)
    if case == "a decoder":
        model = model.derived(encode=model.encode, decode=lambda z: z[:, :, None, None].expand(-1, -1, 4, 4))
    if case == "no attractor":
        latents = latents[:0]
    if case == "no picture":
        model.image_shape = (5, 4, 4)
    assert nearest_images(model, latents) is None


def test_on_the_page_they_are_named_as_what_they_are(tmp_path):
    encoder = tiny_encoder()
    surrogate = quick(encoder, kind="latent", variant="denoising", n_images=64, steps=60, bottleneck=16)
    whole = encoder.with_decoder(surrogate)
    words = ["fmprobe", "probe", "tiny", "-n", "8", "--max-steps", "200", "-o", str(tmp_path / "run")]
    with (
        mock.patch("fmprobe.runs.models.load_model", return_value=whole),
        mock.patch("sys.argv", words),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    assert not ended.value.code
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    found = results["nearest_images"]
    assert len(found["images"]) == min(results["attractors"]["count"], SHOWN) > 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert (tmp_path / "run" / "nearest.png").is_file()
    assert "Nearest images, not decoded" in page
    assert "They are no decoded attractors." in page
    assert page.count(">Attractor ") == len(found["images"])
    assert f"image {found['images'][0][0]}, distance {found['distances'][0][0]:.2f}" in page
