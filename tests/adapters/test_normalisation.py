"""Latents of VAEs are normalised as the pipelines of diffusers do it, whatever of it a config states."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.auto_model import AutoModel
from diffusers.pipelines.flux.pipeline_flux_img2img import FluxImg2ImgPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from safetensors.torch import load_file, save_file
from support.checkpoints import OWN_DECODERS, SIDE

import fmprobe

VAES = ("kl", "asymmetric", "taesd", "dc")
MEAN, STD = [0.3, -1.2, 0.05, 2.0], [0.5, 1.5, 3.0, 0.9]
STATED: dict[str, dict[str, Any]] = {
    "scale": {"scaling_factor": 0.13},
    "scale and shift": {"scaling_factor": 1.5, "shift_factor": 0.6},
    "shift of 0": {"scaling_factor": 1.5, "shift_factor": 0},
    "means and deviations": {"scaling_factor": 0.7, "latents_mean": MEAN, "latents_std": STD},
    "means, a scale of one": {"scaling_factor": 1.0, "latents_mean": MEAN, "latents_std": STD},
    "means and a shift of 0": {"scaling_factor": 0.7, "shift_factor": 0.0, "latents_mean": MEAN, "latents_std": STD},
    "nulls": {"scaling_factor": 0.7, "shift_factor": None, "latents_mean": None, "latents_std": None},
}
REFUSED: dict[str, dict[str, Any]] = {
    "scaling_factor": {"scaling_factor": 0},
    "scaling_factor =": {"scaling_factor": "0.18"},
    "scaling_factor = ": {"scaling_factor": [0.1, 0.2]},
    "scaling_factor = N": {"scaling_factor": float("nan")},
    "scaling_factor = T": {"scaling_factor": True},
    "shift_factor =": {"shift_factor": [0.1, 0.2, 0.3]},
    "only one of latents_mean": {"latents_mean": MEAN},
    "only one of latents_mean and": {"latents_std": STD},
    "latents_mean =": {"latents_mean": MEAN[:3], "latents_std": STD},
    "latents_std =": {"latents_mean": MEAN, "latents_std": [1.0] * 8},
    "latents_std of 0": {"latents_mean": MEAN, "latents_std": [1.0, 0.0, 1.0, 1.0]},
    "shift_factor and latents_mean": {"shift_factor": 0.2, "latents_mean": MEAN, "latents_std": STD},
    "batch_norm_momentum": {"batch_norm_momentum": 0.1},
    "latent_scale": {"latent_scale": [0.1, 0.2]},
    "channel_means": {"channel_means": [0.1] * 4},
}


def stating(tiny, name: str, place: Path, **entries: Any) -> Path:
    """A copy of a checkpoint whose config states these entries and no other normalisation."""
    folder = Path(shutil.copytree(tiny(name), place / name))
    config = json.loads((folder / "config.json").read_text())
    for key in ("scaling_factor", "shift_factor", "latents_mean", "latents_std"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config | entries))
    return folder


def raw_latents(module: Any, images: torch.Tensor) -> torch.Tensor:
    out = module.encode(2 * images - 1)
    return out.latent_dist.mode() if hasattr(out, "latent_dist") else out[0]


def by_a_pipeline(module: Any, raw: torch.Tensor) -> torch.Tensor:
    """What the library's own pipeline makes of a VAE's latents."""
    config = SimpleNamespace(**{**module.config, "force_upcast": False})  # which concerns half precision alone
    vae = SimpleNamespace(config=config, dtype=raw.dtype, encode=lambda _: SimpleNamespace(latents=raw))
    if module.config.get("shift_factor"):
        encode: Any = FluxImg2ImgPipeline._encode_vae_image
        return encode(SimpleNamespace(vae=vae), raw, torch.Generator())
    image = torch.zeros(len(raw), 3, 8, 8)
    prepare: Any = StableDiffusionXLImg2ImgPipeline.prepare_latents
    return prepare(SimpleNamespace(vae=vae), image, None, len(raw), 1, raw.dtype, "cpu", add_noise=False)


@pytest.mark.parametrize("stated", STATED)
@pytest.mark.parametrize("name", VAES)
def test_latents_are_those_of_the_pipelines(name, stated, tiny, tmp_path):
    entries = STATED[stated]
    model = fmprobe.load(stating(tiny, name, tmp_path, **entries), image_size=SIDE)
    module: Any = AutoModel.from_pretrained(str(tmp_path / name)).eval()
    images = torch.rand(2, *model.image_shape)
    scale = entries["scaling_factor"]
    mean, std = (
        torch.tensor(entries.get(key) or [neutral] * 4).view(4, 1, 1)
        for key, neutral in (("latents_mean", 0.0), ("latents_std", 1.0))
    )
    shift = entries.get("shift_factor") or 0
    with torch.no_grad():
        raw, latents = raw_latents(module, images), model.encode(images)
        torch.testing.assert_close(latents, (raw - mean - shift) * scale / std, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(latents, by_a_pipeline(module, raw), atol=1e-6, rtol=1e-5)
        # As in pipeline_stable_diffusion_xl.py: latents * latents_std / scaling_factor + latents_mean.
        painted = (module.decode(latents * std / scale + mean + shift).sample + 1) / 2
        torch.testing.assert_close(model.decode(latents), painted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("named", REFUSED)
@pytest.mark.parametrize("name", ["kl", "taesd"])
def test_a_normalisation_that_is_not_known_is_refused_by_name(name, named, tiny, tmp_path):
    with pytest.raises(fmprobe.InputError, match=named.strip().split(" =")[0]) as caught:
        fmprobe.load(stating(tiny, name, tmp_path, **REFUSED[named]), image_size=SIDE)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_model_in_memory_is_normalised_alike(tiny, tmp_path):
    entries = STATED["means and deviations"]
    folder = stating(tiny, "kl", tmp_path, **entries)
    module: Any = AutoModel.from_pretrained(str(folder))
    by_name, in_memory = fmprobe.load(folder, image_size=SIDE), fmprobe.load(module)
    images = torch.rand(2, *by_name.image_shape)
    assert torch.equal(by_name.encode(images), in_memory.encode(images))


@pytest.mark.parametrize("kind", ["AutoencoderKLFlux2", "VQModel", "ConsistencyDecoderVAE", "AutoencoderKLQwenImage"])
def test_other_autoencoders_are_refused_by_name(kind, tiny, tmp_path):
    """Their statistics of a batch norm, codebooks, noise and frames have no place in the formula."""
    with pytest.raises(fmprobe.InputError, match=f"is of type '{kind}'"):
        fmprobe.load(stating(tiny, "kl", tmp_path, _class_name=kind))


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("where", ["weights", "config", "both"])
@pytest.mark.parametrize("name", [name for name in OWN_DECODERS if name.startswith("rae")])
def test_raes_statistics_come_from_its_weights_or_else_its_config(name, where, scale, tiny, tmp_path):
    folder = Path(shutil.copytree(tiny(name), tmp_path / name))
    config = json.loads((folder / "config.json").read_text()) | {"scaling_factor": scale}
    if where == "weights":  # the shapes of the buffers are the config's
        config |= {"latents_mean": torch.zeros(64, 1, 1).tolist(), "latents_std": torch.ones(64, 1, 1).tolist()}
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "diffusion_pytorch_model.safetensors"
    if where == "config":
        kept = {key: value for key, value in load_file(path).items() if not key.startswith("_latents")}
        save_file(kept, path, metadata={"format": "pt"})
    model, module = fmprobe.load(folder), AutoModel.from_pretrained(str(tiny(name))).eval()
    images = torch.rand(1, *model.image_shape)
    with torch.no_grad():
        plain: Any = module
        latents = plain.encode(images).latent
        torch.testing.assert_close(model.encode(images), latents * scale, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.decode(latents * scale), plain.decode(latents).sample, atol=1e-5, rtol=1e-5)
