"""A film shows the orbits that the search followed, frame by frame."""

import torch

import fmprobe
from fmprobe.dynamics.orbits import Status
from fmprobe.probes.prototypes.film import STARTS, _varied, film


def halving(diverging: bool = False):
    """f(z) = z / 2; where asked, f(z) = 3 z for starts whose first coordinate is positive."""

    def encode(images: torch.Tensor) -> torch.Tensor:
        z = images.flatten(1)
        return torch.where((z[:, :1] > 0) & diverging, 3 * z, z / 2)

    return fmprobe.from_functions(encode, lambda z: z.reshape(-1, 1, 1, 2), image_shape=(1, 1, 2), latent_shape=(2,))


def test_frames_are_the_orbit_and_then_its_end():
    model = halving()
    attractors = fmprobe.find_attractors(model, 8, seed=3, tol=1e-4)
    shown = film(model, attractors, seed=3)
    assert shown is not None
    starts = model.sample_latents(8, seed=3)
    for row, start in enumerate(shown.starts):
        assert shown.status[row] == "converged"
        assert shown.ended[row] == int(attractors.orbits.steps[start])
        for column, step in enumerate(shown.steps):
            wanted = starts[start] / 2**step if step < shown.ended[row] else attractors.orbits.ends[start]
            torch.testing.assert_close(shown.frames[row, column].flatten(), wanted)
        torch.testing.assert_close(shown.frames[row, -1].flatten(), attractors.orbits.ends[start])
    assert len({tuple(shown.frames[:, column].flatten().tolist()) for column in range(len(shown.steps))}) > 3


def test_a_film_shows_every_status_there_is():
    model = halving(diverging=True)
    attractors = fmprobe.find_attractors(model, 16, seed=0, tol=1e-4)
    shown = film(model, attractors, seed=0)
    assert shown is not None
    assert set(shown.status) == {"converged", "diverged"}
    assert len(shown.starts) == STARTS
    assert shown.starts == sorted(shown.starts)
    assert _varied([0] * 20 + [int(Status.SLOW)]) == [0, 1, 2, 3, 4, 20]


def test_there_is_no_film_without_images():
    model = halving()
    attractors = fmprobe.find_attractors(model, 2)
    assert film(model.derived(decode=None, latent_map=lambda z: z / 2), attractors) is None
