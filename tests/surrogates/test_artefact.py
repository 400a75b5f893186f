"""What an artefact says of itself is true, or it is refused in one line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.surrogates import QUICK, tiny_encoder

from fmprobe.digests import file_digest
from fmprobe.errors import InputError
from fmprobe.surrogates.artefact import check_place, load_surrogate, recorded
from fmprobe.surrogates.closed import ClosedFormSettings
from fmprobe.surrogates.fit import FitSettings, fit_with
from fmprobe.surrogates.kinds import KINDS
from fmprobe.surrogates.latent import LatentSurrogate
from fmprobe.surrogates.pixel import PixelDecoder

LATENT = FitSettings(kind="latent", n_images=32, steps=3, batch_size=8, noise=0.0, pixel_noise=0.1, contraction=0.0)
LINEAR = replace(FitSettings.for_device(torch.device("cpu"), "linear"), n_images=32)
CLOSED = ClosedFormSettings(n_images=32, pixel_noise=0.0, k=5)
BASE = {"pixel": replace(QUICK, steps=3), "latent": LATENT, "closed-form": CLOSED, "linear": LINEAR}


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
    "info",
    [
        {"validation": 3},
        {"validation": {"held_out": 0.1}},
        {"validation": {"held_out": {"l1": 0.1}}},
        {"validation": {"held_out": {"l1": "small", "l1_median": 0.1}}},
        {"validation": {"held_out": {}}},
        {"tokens": 7},
    ],
)
def test_what_is_read_of_its_information_is_of_the_type_that_was_written(artefact, encoder, info):
    known = json.loads((artefact / "config.json").read_text())["info"]
    changed(artefact, info=known | info)
    for read in (lambda: load_surrogate(artefact, encoder), lambda: recorded(artefact)):
        with pytest.raises(InputError, match="does not describe a surrogate"):
            read()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"text"', "\xff"])
def test_a_config_that_is_no_object_is_refused_in_one_line(artefact, encoder, text):
    (artefact / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"config\.json") as refused:
        load_surrogate(artefact, encoder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "spectral"}, "'spectral'.*pixel, latent"),
        ({"version": 99}, "layout 99"),
        ({"colour": "red"}, "colour"),
        ({"size": "giant", "variant": "odd"}, "'(giant|odd)'|variant|size"),
        ({"latent_shape": [16, 25]}, r"\(16, 25\)"),
        ({"image_shape": [3, 32, 32]}, r"\(3, 32, 32\)"),
    ],
)
def test_unknown_kinds_versions_keys_and_sizes_are_named(artefact, encoder, values, message):
    load_surrogate(artefact, encoder)
    changed(artefact, **values)
    with pytest.raises(InputError, match=message):
        load_surrogate(artefact, encoder)


def test_every_kind_is_tried():
    assert list(BASE) == list(KINDS)


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


# Artefacts of earlier releases.

TOKEN_BLOCK = {
    **{f"{norm}.{part}": (192,) for norm in ("norm1", "norm2") for part in ("weight", "bias")},
    "qkv.weight": (576, 192),
    "qkv.bias": (576,),
    "out.weight": (192, 192),
    "out.bias": (192,),
    "grow.weight": (768, 192),
    "grow.bias": (768,),
    "shrink.weight": (192, 768),
    "shrink.bias": (192,),
}
EARLIER_WEIGHTS = {  # of layout 3
    "pixel": {
        "latent_mean": (24,),
        "latent_std": (24,),
        "body.embed.weight": (192, 24),
        "body.embed.bias": (192,),
        **{f"body.blocks.{i}.{name}": shape for i in (0, 1) for name, shape in TOKEN_BLOCK.items()},
        "body.norm.weight": (192,),
        "body.norm.bias": (192,),
        "body.to_pixels.weight": (48, 192),
        "body.to_pixels.bias": (48,),
    },
    "latent": {
        "feature_mean": (24,),
        "feature_std": (24,),
        "code_mean": (32,),
        "code_std": (32,),
        "to_code.0.weight": (256, 24),
        "to_code.0.bias": (256,),
        "to_code.2.weight": (32, 256),
        "to_code.2.bias": (32,),
        "to_features.0.weight": (256, 32),
        "to_features.0.bias": (256,),
        "to_features.2.weight": (24, 256),
        "to_features.2.bias": (24,),
    },
}
EARLIER_CONFIG = {
    "pixel": {"blur": 0.018, "size": "tiny"},
    "latent": {"bottleneck": 32, "pixel": None, "variant": "denoising", "width": 256},
}
EARLIER_INFO = {
    "data": "32 procedural images (mixture 'all', seed 0, from index 0)",
    "data_free": True,
    "fingerprint": "tiny-0",
    "image_size": 16,
    "log": [{"loss": 0.25, "step": 5, "validation": 0.28}],
    "model": "tiny",
    "revision": None,
    "seconds": 3.3,
    "seed": 0,
    "settings": {"batch_size": 8, "contraction": 0.0, "noise": 2.0, "steps": 5, "variant": "plain"},
    "steps": 5,
    "tokens": None,
    "validation": {"held_out": {"feature_error": 1.1, "images": 64, "l1": 0.19, "l1_median": 0.15}},
}


@pytest.mark.parametrize("kind", EARLIER_CONFIG)
def test_a_folder_of_the_earlier_release_loads(encoder, tmp_path, kind):
    """Its weights by name and shape, and its config field by field, are written out here, not asked of the code."""
    draw = torch.Generator().manual_seed(0)
    weights = {name: torch.rand(shape, generator=draw) + 0.1 for name, shape in EARLIER_WEIGHTS[kind].items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    about = {"kind": kind, "version": 3, "weights_sha256": file_digest(tmp_path / "model.safetensors")}
    shapes = {"image_shape": [3, 16, 16], "latent_shape": [16, 24]}
    config = {**EARLIER_CONFIG[kind], **shapes, **about, "info": EARLIER_INFO}
    (tmp_path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    surrogate = load_surrogate(tmp_path, encoder)
    assert surrogate.info == EARLIER_INFO
    assert all(torch.equal(weights[name], value) for name, value in surrogate.state_dict().items())
    whole = encoder.with_decoder(surrogate)
    assert whole.latent_map(whole.sample_latents(2)).isfinite().all()


def test_a_checkpoint_of_another_model_is_not_written_over(saved, tiny, tmp_path):
    """Every folder of a model holds a config.json."""
    folder = Path(shutil.copytree(tiny("vit"), tmp_path / "vit"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="exists and is not a decoder's folder"):
        check_place(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    for kept in saved.iterdir():
        check_place(kept)
