"""Decoders that were published for encoders: the pair, what does not go together, and what commands do with them."""

import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import save_published
from support.hub import COMMIT, Hub, asked_here
from support.runs import finished

import fmprobe
from fmprobe.errors import InputError
from fmprobe.families import Published, adapters
from fmprobe.published import published_for
from fmprobe.runs import published as in_commands

RAE = type(adapters()["rae"])
KINDS = ("dinov2", "mae", "siglip2")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def places(once):
    def fill(root: Path) -> None:
        for kind in KINDS:
            (root / kind).mkdir(parents=True)
            save_published(root / kind, kind)

    return once("published", fill)


@pytest.fixture
def listed(monkeypatch):
    """Puts an encoder and a decoder, by their folders, into the table."""

    def add(encoder: Path | str, decoder: Path | str, **more) -> str:
        entry = Published(str(encoder), str(decoder), 64, 10**6, 1e9, **more)
        monkeypatch.setattr(RAE, "published", (*RAE.published, entry))
        return str(encoder)

    return add


def load(name, **arguments):
    return fmprobe.load(name, **{"decoder": "published", "device": "cpu", **arguments})


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dinov2", "mae"])
def test_the_pair_computes_what_the_whole_autoencoder_does(kind, places, listed):
    encoder, decoder = places / kind / "encoder", places / kind / "decoder"
    model, whole = load(listed(encoder, decoder)), fmprobe.load(decoder, device="cpu")
    images = torch.rand(2, 3, 64, 64)
    z = whole.encode(images)
    assert z.std() > 0.1
    torch.testing.assert_close(model.encode(images), z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.decode(z), whole.decode(z), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.latent_map(z), whole.latent_map(z), rtol=1e-4, atol=1e-4)
    assert model.provenance["decoder"]["kind"] == "published"
    assert model.provenance["decoder"]["id"] == str(decoder)
    assert model.provenance["model"] == str(encoder)
    assert model.surrogate_warning is None


@torch.no_grad()
def test_siglip2_by_the_parts_of_the_libraries(places, listed):
    from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder
    from torch.nn import functional as F
    from transformers import SiglipVisionModel

    folder = places / "siglip2"
    model = load(listed(folder / "encoder", folder / "decoder"))
    stored = load_file(folder / "decoder" / WEIGHTS)
    trunk = SiglipVisionModel.from_pretrained(folder / "encoder").eval()
    images = torch.rand(2, 3, 64, 64)
    small = F.interpolate(images, size=(32, 32), mode="bicubic", align_corners=False)
    hidden = trunk((small - stored["encoder_mean"]) / stored["encoder_std"], output_hidden_states=True)
    rows = F.layer_norm(hidden.hidden_states[-1], (64,), eps=trunk.config.layer_norm_eps)
    z = (rows.transpose(1, 2).reshape(2, 64, 4, 4) - stored["_latents_mean"]) / (stored["_latents_std"] + 1e-5)
    torch.testing.assert_close(model.encode(images), z, rtol=1e-4, atol=1e-5)
    painter = RAEDecoder(64, 32, 1, 2, 32, num_patches=16, patch_size=16, image_size=64).eval()
    weights = {key[8:]: value for key, value in stored.items() if key.startswith("decoder.")}
    painter.load_state_dict(weights)
    painted = painter.unpatchify(painter(rows).logits) * stored["encoder_std"] + stored["encoder_mean"]
    torch.testing.assert_close(model.decode(z), painted, rtol=1e-4, atol=1e-5)


def test_the_encoder_is_the_named_one_and_the_fingerprint_covers_both(places, listed, tmp_path):
    encoder, decoder = places / "mae" / "encoder", places / "mae" / "decoder"
    other = Path(shutil.copytree(encoder, tmp_path / "encoder"))
    weights = load_file(other / "model.safetensors")
    changed = next(key for key in weights if key.endswith("layernorm_before.weight"))
    save_file({**weights, changed: weights[changed] * 2}, other / "model.safetensors", metadata={"format": "pt"})
    repainted = Path(shutil.copytree(decoder, tmp_path / "decoder"))
    painter = load_file(repainted / WEIGHTS)
    painter["decoder.decoder_pred.bias"] += 1
    save_file(painter, repainted / WEIGHTS)
    models = [load(listed(*pair)) for pair in ((encoder, decoder), (other, decoder))]
    with mock.patch.object(RAE, "published", ()):
        models.append(load(listed(encoder, repainted)))
    assert len({model.fingerprint for model in models}) == 3
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        codes = [model.encode(images) for model in models]
    assert not torch.allclose(codes[0], codes[1], atol=1e-3)
    assert torch.equal(codes[0], codes[2])


def test_a_random_encoder_keeps_the_decoder(places, listed):
    """As the null of a search has it."""
    name = listed(places / "dinov2" / "encoder", places / "dinov2" / "decoder")
    drawn, again, stored = load(name, random_weights=0), load(name, random_weights=0), load(name)
    images, z = torch.rand(1, 3, 64, 64), stored.sample_latents(1)
    with torch.no_grad():
        assert torch.equal(drawn.encode(images), again.encode(images))
        assert not torch.allclose(drawn.encode(images), stored.encode(images), atol=1e-2)
        assert torch.equal(drawn.decode(z), stored.decode(z))
    assert drawn.fingerprint == again.fingerprint != stored.fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 32}, "make images of 64 px, not 32"),
        ({"tokens": "cls"}, "has no tokens 'cls'"),
        ({"processor": object()}, "processor does not go with a published decoder"),
        ({"device_map": "auto"}, "device_map does not go with a published decoder"),
        ({"revision": "v1"}, "revision 'v1' does not go with"),
    ],
)
def test_what_does_not_go_with_it_is_one_line(arguments, message, places, listed):
    name = listed(places / "mae" / "encoder", places / "mae" / "decoder")
    with pytest.raises(InputError, match=message) as refused:
        load(name, **arguments)
    assert "\n" not in str(refused.value)


def test_it_needs_the_package_of_its_family(places, listed):
    name = listed(places / "mae" / "encoder", places / "mae" / "decoder")
    with (
        mock.patch("importlib.util.find_spec", return_value=None),
        pytest.raises(InputError, match=r'pip install "fmprobe\[diffusers\]"'),
    ):
        load(name)


def test_an_encoder_without_one_names_those_that_have_one(tiny):
    names = "facebook/dinov2-with-registers-small, .*google/siglip2-base-patch16-256, facebook/vit-mae-base"
    for name in (str(tiny("dinov2")), "facebook/dinov2-small"):
        with pytest.raises(InputError, match=f"has no published decoder: those that have one are {names}"):
            load(name)
    with pytest.raises(InputError, match="in memory"):
        load(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("another type", "decodes dinov2_with_registers, and .* is of type 'vit_mae'"),
        ("another width", r"width, patch and layers \[32, 8, 1\]"),
        ("a weight less", "lacks 1 weights that RAEDecoder needs, such as decoder.decoder_pred.bias"),
        ("no statistics", "states no latents_mean"),
        ("cut", "cannot load the weights"),
    ],
)
def test_parts_that_do_not_belong_together_are_one_line(damage, message, places, listed, tmp_path):
    decoder = Path(shutil.copytree(places / "mae" / "decoder", tmp_path / "decoder"))
    config, weights = json.loads((decoder / "config.json").read_text()), load_file(decoder / WEIGHTS)
    if damage == "another type":
        config["encoder_type"] = "dinov2"
    elif damage == "another width":
        config["encoder_hidden_size"] = 32
    elif damage == "a weight less":
        del weights["decoder.decoder_pred.bias"]
    elif damage == "no statistics":
        del weights["_latents_mean"]
        config["latents_mean"] = None
    (decoder / "config.json").write_text(json.dumps(config))
    save_file(weights, decoder / WEIGHTS)
    if damage == "cut":
        (decoder / WEIGHTS).write_bytes((decoder / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(InputError, match=message) as refused:
        load(listed(places / "mae" / "encoder", decoder))
    assert "\n" not in str(refused.value)


def test_sizes_follow_from_the_published_configs():
    """The number of parameters is that of a decoder made from the config, to within a percent."""
    from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    with torch.device("meta"):
        decoder = RAEDecoder(768, 1152, 28, 16, 4096)
        encoder = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(image_size=518, patch_size=14))
    count = sum(p.numel() for part in (decoder, encoder) for p in part.parameters())
    small, large = published_for("facebook/dinov2-with-registers-base")
    assert small.parameters == pytest.approx(count, rel=0.01)
    assert (small.side, large.side) == (256, 512)
    assert small.decoder.endswith("base-ViTXL-n08")
    assert large.decoder.endswith("i512")


# Commands.


class Loads:
    """Stands for `load_model`; keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, name, **arguments):
        self.asked.append(arguments)
        if arguments.get("decoder") == "published" and arguments.get("revision") == "refused":
            raise InputError("no such thing")
        return mock.sentinel.model


@pytest.fixture
def loads():
    return Loads()


BASE = "facebook/dinov2-with-registers-base"
GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "device", "arguments", "decoder"),
    [
        (BASE, GPU, {}, "published"),
        (BASE, GPU, {"image_size": 512}, "published"),
        (BASE, GPU, {"image_size": 224}, None),
        (BASE, GPU, {"tokens": "cls"}, None),
        (BASE, GPU, {"decoder": "mine"}, "mine"),
        (BASE, CPU, {}, None),
        ("facebook/dinov2-small", GPU, {}, None),
        ("facebook/vit-mae-base", GPU, {}, None),  # it has a decoder of its own
    ],
)
def test_the_default_on_an_accelerator(name, device, arguments, decoder, loads, capsys):
    with mock.patch("fmprobe.loading.pick_device", return_value=device):
        in_commands.load_preferred(name, arguments, loads)
    assert [one.get("decoder") for one in loads.asked] == [decoder]
    said = capsys.readouterr().out
    if device is CPU:
        assert said.count("\n") == 1
        assert "--decoder published takes nyu-visionx/RAE-dinov2-wReg-base-ViTXL-n08 (about 2.0 GB" in said


def test_on_an_accelerator_a_surrogate_takes_the_place_of_one_that_cannot_be_had(loads, capsys):
    with mock.patch("fmprobe.loading.pick_device", return_value=GPU):
        in_commands.load_preferred(BASE, {"revision": "refused"}, loads)
    assert [one.get("decoder") for one in loads.asked] == ["published", None]
    assert "so a surrogate takes its place: no such thing" in capsys.readouterr().out


def test_probe_by_name_over_the_hub(places, listed, tmp_path):
    root = tmp_path / "hub"
    for what in ("encoder", "decoder"):
        shutil.copytree(places / "dinov2" / what, root / "models" / "acme" / what)
    words = ["probe", listed("acme/encoder", "acme/decoder"), "--decoder", "published", "-n", 4, "--max-steps", 5]
    with Hub(root) as hub, asked_here(hub, tmp_path / "cache"):
        done = finished(*words, "--device", "cpu", "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["model"]["id"] == "acme/encoder"
    assert results["model"]["revision"] == COMMIT
    expected = {"kind": "published", "id": "acme/decoder", "revision": COMMIT}
    assert {key: results["decoder"][key] for key in expected} == expected
    assert "published for this encoder: acme/decoder" in done.stdout
    assert not [line for line in hub.asked if line.endswith(".bin")]
