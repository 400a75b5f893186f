"""Write one artefact of every kind with the present version of fmprobe: `python tests/artefacts/make.py NAME`.

The folder `tests/artefacts/NAME` is then committed, and `tests/test_artefacts.py` checks that later versions still read
it. Only the command line and public names are used. The commands run in `WORKPLACE`, because some artefacts hold
absolute paths.
"""

import lzma
import os
import shutil
import subprocess
import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fmprobe

WORKPLACE = Path("/tmp/fmprobe-artefacts")
COMMANDS = (
    "prototypes vit-mae-digits -o run -n 12 --max-steps 40 --device cpu",
    "weights vit-mae-digits -o run -n 12 --max-steps 40 --device cpu --data procedural --images 2 --atoms 2,4",
    "memorization vit-mae-digits -o run -n 12 --max-steps 40 --device cpu --data procedural --images 8",
    "fit-decoder encoder -o latent-decoder --kind latent --bottleneck 4 --images 16 --steps 3 --batch-size 8 "
    "--device cpu",
    "compare vit-mae-digits encoder --decoder-b pixel-decoder -o comparison --data images.npz:known --images 12 "
    "--max-steps 20 --no-null --device cpu",
    "ood vit-mae-digits -o ood --data images.npz:known --images 64 --ood other=images.npz:other --no-controls "
    "--steps 6 --max-steps 40 --device cpu",
    "score ood/detector -o scores --data images.npz:other --device cpu",
)
# No command reads these again: the pages, and the pictures that no page shows.
UNREAD = ("report.html", "prototypes.png", "alignment.png", "weights/*[0-9a-f].png")
KEPT = 1 / 256  # this share of the weights of a matrix is not set to zero


def main(name: str) -> None:
    """Write all artefacts in `WORKPLACE` and copy them to `tests/artefacts/NAME`."""
    target = Path(__file__).resolve().parent / name
    if target.exists():
        raise SystemExit(f"{target} exists: choose another name, because artefacts of an earlier version are kept")
    shutil.rmtree(WORKPLACE, ignore_errors=True)
    WORKPLACE.mkdir(parents=True)
    os.chdir(WORKPLACE)  # so that most names in the artefacts are relative
    with as_file(files("fmprobe.demo") / "vit-mae-digits") as demo:
        shutil.copytree(demo, "vit-mae-digits")
    save_encoder("encoder")
    save_images("images.npz")
    save_pixel_decoder("pixel-decoder")
    for command in COMMANDS:
        subprocess.run([sys.executable, "-m", "fmprobe", *command.split()], check=True)
    values = {**save_attractors("attractors"), **values_of_models()}
    np.savez_compressed("values.npz", allow_pickle=False, **{name: value.numpy() for name, value in values.items()})
    tidy()
    shutil.copytree(WORKPLACE, target, ignore=shutil.ignore_patterns("vit-mae-digits"))


def save_encoder(folder: str) -> None:
    """Save a tiny DINOv2 of random weights; its images are as large as the demo model's, so that none is resized."""
    from transformers import Dinov2Config, Dinov2Model, ViTImageProcessor

    torch.manual_seed(0)
    shape: dict[str, Any] = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1}
    Dinov2Model(Dinov2Config(num_attention_heads=2, mlp_ratio=2, **shape)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)


def save_images(path: str) -> None:
    """Save procedural images of 8 bits a channel, which are the same pixels on every machine."""
    known = fmprobe.procedural_images(64, 16, seed=1)
    other = fmprobe.procedural_images(8, 16, seed=2, mixture="leaves")
    sets = {"known": known, "other": other}
    pixels = {name: (255 * images).byte().permute(0, 2, 3, 1).numpy() for name, images in sets.items()}
    np.savez_compressed(path, allow_pickle=False, **pixels)


def save_pixel_decoder(folder: str) -> None:
    """Save the smallest pixel decoder, with most of its 3.6 MB of weights set to zero: a compressed file is then small.

    The learning rate is high, because a decoder paints every latent grey at first.
    """
    encoder = fmprobe.load("encoder", device="cpu")
    settings = {"size": "tiny", "n_images": 16, "steps": 3, "batch_size": 8, "learning_rate": 0.05, "contraction": 0.0}
    decoder = fmprobe.fit_decoder(encoder, kind="pixel", progress=False, **settings)
    for weights in decoder.parameters():
        if weights.ndim > 1:
            size = weights.abs()
            weights.masked_fill_(size <= size.flatten().quantile(1 - KEPT), 0)
    decoder.save(folder)


def save_attractors(folder: str) -> dict[str, Tensor]:
    """Save a set of attractors with starts that did not converge, and return its tensors."""
    demo = fmprobe.load("vit-mae-digits", device="cpu")
    found = fmprobe.find_attractors(demo, n=16, seed=1, max_steps=8, progress=False)
    found.save(folder)
    return {
        "latents": found.latents,
        "labels": found.labels,
        "sizes": found.sizes,
        "spectral_radius": found.spectral_radius,
        "status": found.orbits.status,
        "steps": found.orbits.steps,
    }


@torch.no_grad()
def values_of_models() -> dict[str, Tensor]:
    """Return what the decoders and the detector give for four procedural images, and these images."""
    images = fmprobe.procedural_images(4, 16)
    values = {"images": images}
    for kind in ("pixel", "latent"):
        model = fmprobe.load("encoder", decoder=f"{kind}-decoder", device="cpu")
        values[f"{kind}_encoded"] = model.encode(images)
        values[f"{kind}_mapped"] = model.latent_map(model.sample_latents(4))
        if kind == "pixel":
            values["pixel_decoded"] = model.decode(values["pixel_encoded"])
    detector = fmprobe.TrajectoryDetector.load("ood/detector", device="cpu")
    return values | {"scores": detector.score(images), "accepted": detector.predict(images, acceptance=0.5)}


def tidy() -> None:
    """Remove what no command reads again, and compress the pixel decoder's weights."""
    for pattern in UNREAD:
        for path in Path().rglob(pattern):
            path.unlink()
    weights = Path("pixel-decoder") / "model.safetensors"
    weights.with_name("model.safetensors.xz").write_bytes(lzma.compress(weights.read_bytes()))
    weights.unlink()


if __name__ == "__main__":
    main(sys.argv[1])
