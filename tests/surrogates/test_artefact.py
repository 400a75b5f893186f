"""What an artefact says of itself is true, or it is refused in one line."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.surrogates import QUICK
from surrogates.conftest import tiny_encoder

from fmprobe.digests import file_digest
from fmprobe.errors import InputError
from fmprobe.surrogates.artefact import load_surrogate
from fmprobe.surrogates.fit import FitSettings, fit_with
from fmprobe.surrogates.latent import LatentSurrogate
from fmprobe.surrogates.pixel import PixelDecoder

LATENT = FitSettings(kind="latent", n_images=32, steps=3, batch_size=8, noise=0.0, pixel_noise=0.1, contraction=0.0)
BASE = {"pixel": replace(QUICK, steps=3), "latent": LATENT}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    for kind, settings in BASE.items():
        fit_with(tiny_encoder(), settings, progress=False).save(folder / kind)
    return folder


@pytest.fixture(params=BASE)
def artefact(request, saved, tmp_path):
    return shutil.copytree(saved / request.param, tmp_path / request.param)


MISSING = object()


def changed(folder, **values):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not MISSING}))


@pytest.mark.parametrize("name", ["latent_shape", "image_shape", "kind", "info", "weights_sha256", "version"])
@pytest.mark.parametrize("value", [MISSING, None, 7, "later", [], {"a": 1}, ["a", "b"], [0, 0, 0], [-1, 2, 2], [1e9]])
def test_a_field_that_is_not_what_was_written_is_refused_in_one_line(artefact, encoder, name, value):
    changed(artefact, **{name: value})
    with pytest.raises(InputError) as refused:
        load_surrogate(artefact, encoder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "spectral"}, "'spectral'.*pixel, latent"),
        ({"version": 99}, "layout 99"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_unknown_kinds_versions_and_keys_are_named(artefact, encoder, values, message):
    load_surrogate(artefact, encoder)
    changed(artefact, **values)
    with pytest.raises(InputError, match=message):
        load_surrogate(artefact, encoder)


def test_a_surrogate_of_one_kind_is_not_loaded_as_the_other(artefact, encoder):
    wrong = PixelDecoder if artefact.name == "latent" else LatentSurrogate
    with pytest.raises(InputError, match=f"of kind '{artefact.name}'"):
        wrong.load(artefact, encoder)


def test_weights_that_do_not_fit_are_named_with_both_shapes(artefact, encoder):
    path = artefact / "model.safetensors"
    whole = load_file(path)
    name = next(key for key, value in whole.items() if value.ndim == 2)
    cases = (
        (whole | {name: torch.zeros(3, 5)}, rf"{name} it holds one of shape \(3, 5\), .*\({whole[name].shape[0]}, "),
        ({key: value for key, value in whole.items() if key != name}, f"{name} it holds none"),
        (whole | {"more": torch.zeros(2)}, r"more it holds one of shape \(2,\), expected none"),
    )
    for state, message in cases:
        save_file(state, path, metadata={"format": "pt"})
        changed(artefact, weights_sha256=file_digest(path))
        with pytest.raises(InputError, match=message):
            load_surrogate(artefact, encoder)


@pytest.mark.parametrize(
    ("kind", "values"),
    [("latent", {"variant": "variational"}), ("pixel", {"size": "small"}), ("latent", {"bottleneck": 4})],
)
def test_another_architecture_than_the_weights_have_is_refused(saved, encoder, tmp_path, kind, values):
    folder = shutil.copytree(saved / kind, tmp_path / kind)
    changed(folder, **values)
    with pytest.raises(InputError, match="of the weight"):
        load_surrogate(folder, encoder)


def test_changed_weights_are_refused(artefact, encoder):
    path = artefact / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="weights have changed"):
        load_surrogate(artefact, encoder)
