"""`batch_size` bounds every call of a model's functions, by whichever probe."""

import inspect
import sys
from typing import cast

import numpy as np
import pytest
import torch
from support.prototypes import prototypes

import fmprobe
from fmprobe.probes.prototypes.film import Film, film

SEARCH = {"tol": 1e-4, "max_steps": 60}
WELLS = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])


class Recorded:
    """An Autoencoder with attractors, and the most rows that its functions were called on; they work in place."""

    def __init__(self, in_place=True):
        self.most, self.in_place = 0, in_place
        self.model = fmprobe.from_functions(self.encode, self.decode, image_shape=(1, 2, 4), latent_shape=(8,))

    def encode(self, images):
        self.most = max(self.most, len(images))
        z = 2 * images.flatten(1) - 1
        after = WELLS * torch.tanh(2 * z) + (1 - WELLS) * 0.3 * z
        if self.in_place and not torch.is_grad_enabled():
            images.zero_()
        return after

    def decode(self, latents):
        self.most = max(self.most, len(latents))
        images = (latents.reshape(-1, 1, 2, 4) + 1) / 2
        if self.in_place and not torch.is_grad_enabled():
            latents.zero_()
        return images


def images(n=5, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random((n, 1, 2, 4), dtype="float32"))


def attractors(model, batch_size):
    return fmprobe.find_attractors(model, 5, batch_size=batch_size, progress=False, **SEARCH)


def weights(model, batch_size):
    known = {"reference_images": images(5, 1), "null_attractors": attractors(model, batch_size)}
    return fmprobe.probe_weights(model, attractors(model, batch_size), images(), batch_size=batch_size, **known)


def detector(model, batch_size):
    fitted = fmprobe.TrajectoryDetector(model, batch_size=batch_size, steps=8, **SEARCH)
    fitted.fit(images(), held_out=images(16, 1))
    return fitted.scores(images(5, 2)), fitted.predict(images(5, 2))


def tracker(model, batch_size):
    made = fmprobe.AttractorTracker(images(), images(5, 1), starts=5, batch_size=batch_size, **SEARCH)
    return made.measure(model)


PROBES = {
    "iterate": lambda m, b: fmprobe.iterate(m.latent_map, m.sample_latents(5), batch_size=b),
    "attractors": attractors,
    "polished": lambda m, b: (
        fmprobe.find_attractors(m, 5, batch_size=b, polish="anderson", progress=False, **SEARCH).latents
    ),
    "prototypes": lambda m, b: prototypes(m, 5, batch_size=b, **SEARCH).images,
    "film": lambda m, b: cast(Film, film(m, attractors(m, b), batch_size=b)).frames,
    "weights": lambda m, b: weights(m, b).to_dict(),
    "memorization": lambda m, b: fmprobe.probe_memorization(
        m, images(), images(5, 1), n=5, batch_size=b, **SEARCH
    ).to_dict(),
    "residuals of images": lambda m, b: fmprobe.probe_residuals(m, images(), steps=4, batch_size=b).to_dict(),
    "residuals": lambda m, b: fmprobe.probe_residuals(m, n=5, steps=4, batch_size=b).to_dict(),
    "contraction": lambda m, b: fmprobe.probe_contraction(m, n=10, starts=5, steps=(0, 2), batch_size=b).to_dict(),
    "convergence": lambda m, b: fmprobe.probe_convergence(m, 5, batch_size=b, max_steps=60).to_dict(),
    "alignment": lambda m, b: fmprobe.compare(m, m, images(16), batch_size=b, **SEARCH).to_dict(),
    "field": lambda m, b: fmprobe.vector_field(m, resolution=3, batch_size=b, **SEARCH).arrows,
    "lyapunov": lambda m, b: fmprobe.lyapunov_exponents(m, m.sample_latents(5), steps=4, batch_size=b).values,
    "readings": lambda m, b: fmprobe.read_orbits(m, attractors(m, b), steps=4, batch_size=b).exponents,
    "tracker": tracker,
    "detector": detector,
}


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("probe", PROBES.values(), ids=list(PROBES))
def test_no_call_of_the_models_functions_has_more_rows(probe, batch_size):
    recorded = Recorded()
    probe(recorded.model, batch_size)
    assert 0 < recorded.most <= batch_size


def test_every_public_function_that_takes_a_batch_size_is_tried():
    source = inspect.getsource(sys.modules[__name__])
    bounded = {
        name
        for name in fmprobe.__all__
        if inspect.isfunction(made := getattr(fmprobe, name))
        or (inspect.isclass(made) and not issubclass(made, Exception))
        if "batch_size" in inspect.signature(made).parameters
    }
    assert len(bounded) > 5
    training = {"train_autoencoder", "train_autoencoders"}  # of whose steps it is the size
    training |= {"probe_capacity"}  # it bounds f; the fits in it call the encoder in blocks of their own size
    assert {name for name in bounded - training if f"fmprobe.{name}(" not in source} == set()
