"""Detection and weight probing on a tiny checkpoint of every kind that has images."""

import math

import pytest
import torch
from support.checkpoints import LANGUAGE, OWN_DECODERS, SIDE, TINY
from support.ood import compare
from support.surrogates import quick

import fmprobe


@pytest.fixture(params=sorted(TINY.keys() - LANGUAGE))
def model(request, tiny):
    name = request.param
    size = None if name.startswith("rae") or name == "mae" else SIDE
    loaded = fmprobe.load(str(tiny(name)), image_size=size, device="cpu")
    return loaded if name in OWN_DECODERS else loaded.with_decoder(quick(loaded))


def test_every_score_and_every_dictionary_is_there(model):
    side = model.image_shape[-1]
    images = fmprobe.procedural_images(64, side, seed=0, mixture="leaves")
    facts = compare(
        model, images, {"noise": torch.rand(8, *model.image_shape)}, controls=False, bootstrap=4, steps=3, max_steps=3
    )
    rows = {row["name"]: row["sets"]["noise"] for row in facts["scores"]}
    assert {
        "trajectory",
        "first",
        "reconstruction error",
        "residual",
        "latent norm",
        "profile",
        "joined",
    } <= rows.keys()
    assert all(0 <= row["auroc"] <= 1 for row in rows.values())

    attractors = fmprobe.find_attractors(model, 6, max_steps=3, stability_cap=0, progress=False)
    curves = fmprobe.probe_weights(model, attractors, images[:3], [2], ends=True)
    for name, dictionary in curves.dictionaries.items():
        assert all(math.isfinite(row["mean"]) for row in dictionary["image_mse"]), name
