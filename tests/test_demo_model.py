"""The embedded demo model: a real Hugging Face folder, loaded like any other, that remembers its training digits."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoImageProcessor, ViTMAEForPreTraining

import fmprobe

FOLDER = Path(fmprobe.__file__).parent / "demo" / "vit-mae-digits"
RECIPE = Path(__file__).parents[1] / "recipes" / "train_demo_model.py"


@pytest.fixture(scope="module")
def model() -> fmprobe.Autoencoder:
    return fmprobe.load(FOLDER, device="cpu")


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_demo_model", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits(recipe: ModuleType) -> torch.Tensor:
    return recipe.training_digits(3)[0]


def test_folder_is_small_and_holds_no_pickle():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    names = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    assert {path.name for path in files} == names
    assert sum(path.stat().st_size for path in files) < 2_000_000


def test_shapes_are_those_of_the_configuration(model: fmprobe.Autoencoder):
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    size, tokens = config["image_size"], (config["image_size"] // config["patch_size"]) ** 2
    assert not config["norm_pix_loss"]
    assert model.image_shape == (config["num_channels"], size, size)
    assert model.latent_shape == (1 + tokens, config["hidden_size"])
    assert AutoImageProcessor.from_pretrained(FOLDER).size == {"height": size, "width": size}


def test_encode_is_the_forward_of_transformers_without_masking(model: fmprobe.Autoencoder, digits: torch.Tensor):
    processor = AutoImageProcessor.from_pretrained(FOLDER)
    reference = ViTMAEForPreTraining.from_pretrained(FOLDER, mask_ratio=0.0).eval()
    as_bytes = (digits * 255).round().to(torch.uint8)
    pixels = processor(images=list(as_bytes), return_tensors="pt")["pixel_values"]
    tokens = model.latent_shape[0] - 1
    order = torch.arange(tokens)
    with torch.no_grad():
        # Rising noise keeps the tokens in order.
        out = reference.vit(pixels, noise=order.float().expand(len(pixels), -1))
        image = reference.unpatchify(reference.decoder(out.last_hidden_state, out.ids_restore).logits)
        ours = model.encode(as_bytes / 255)
        decoded = model.decode(ours)
    assert torch.equal(out.ids_restore, order.expand(len(pixels), -1))
    torch.testing.assert_close(ours, out.last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(decoded, image * 0.5 + 0.5, atol=1e-5, rtol=0)


def test_latent_map_is_deterministic(model: fmprobe.Autoencoder):
    z = model.sample_latents(8, seed=0)
    assert torch.equal(model.latent_map(z), model.latent_map(z))


def test_training_digits_are_reconstructed(model: fmprobe.Autoencoder, digits: torch.Tensor):
    assert (model.decode(model.encode(digits)) - digits).square().mean() < 1e-3


def test_noise_starts_end_in_digits(model: fmprobe.Autoencoder, digits: torch.Tensor, recipe: ModuleType):
    """The promise of the demo, with room below what the model card states."""
    findings, pictures, nearest = recipe.examine(model, digits, 64, 0)
    assert findings.converged > 0.95
    assert findings.steps_max < 300
    assert findings.distinct_relative >= 8
    assert findings.distinct_cosine >= 8
    assert findings.spectral_radius_max < 1
    assert (nearest > recipe.MATCH).sum() >= 8
    assert pictures.shape[1:] == model.image_shape
