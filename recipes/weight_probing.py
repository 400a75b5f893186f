"""Data-free weight probing (Fumero et al., ICLR 2026, fig. 4, 7-9): do attractors reconstruct images never shown?

    python recipes/weight_probing.py                                   # the demo model on scikit-learn's digits
    python recipes/weight_probing.py --assets ../shared --models demo taef2 dinov2
    python recipes/weight_probing.py --full                            # the paper's protocol, from the hub, on a GPU

`--assets` is a folder with `data/` (photos, textures, cifar10, mnist) and `models/` (taef2, dinov2-small). Prints the
table of every data set and leaves it, with curves and reconstructions, in `--out`. What is there under the same
protocol is not computed again; launched processes share networks and data sets.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import fmprobe
from fmprobe.images import held_out
from fmprobe.probes.weights.curves import save_reconstructions
from fmprobe.probes.weights.dictionaries import atoms_of
from fmprobe.report.plots import weight_curves
from fmprobe.report.summary import tables
from fmprobe.runs.sweeps import sweep
from fmprobe.seeding import seed_torch
from fmprobe.sharing import together
from fmprobe.surrogates.cache import cached_decoder
from fmprobe.tables import as_text

ROOT = Path(__file__).resolve().parents[1]
STABILITY = 2  # attractors whose Jacobian is examined: what is asked here does not need it
LOCAL = {"photos": "photos:test", "textures": "textures", "cifar10": "cifar10:test", "mnist": "mnist.npz:x_test"}
FULL_MODEL = "stabilityai/sd-vae-ft-mse"
FULL_DATA = {  # 500 images each, as in the paper; the first column of images is taken
    "Laion": "dclure/laion-aesthetics-12m-umap",
    "ImageNet": "mrm8488/ImageNet1K-val",
    "EuroSAT": "blanchon/EuroSAT_RGB:test",
    "CIFAR-100": "uoft-cs/cifar100:test",
    "PatchCamelyon": "1aurent/PatchCamelyon:test",
    "Places365": "dpdl-benchmark/places365:validation",
}


@dataclass(frozen=True)
class Subject:
    """A model, the same architecture with random weights if that can be made, and how its orbits are run."""

    model: fmprobe.Autoencoder
    null: fmprobe.Autoencoder | None
    starts: int
    max_steps: int
    ends: bool = False


def demo(arguments: argparse.Namespace) -> Subject:
    from transformers import ViTImageProcessor, ViTMAEConfig, ViTMAEForPreTraining
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = Path(fmprobe.__file__).parent / "demo" / "vit-mae-digits"
    seed_torch(arguments.seed, "weight_probing recipe: random weights of the demo model")
    network: Any = ViTMAEForPreTraining(ViTMAEConfig.from_pretrained(folder))
    processor = ViTImageProcessor.from_pretrained(folder)
    null = fmprobe.load(network, processor=processor, device=arguments.device)
    return Subject(fmprobe.load(str(folder), device=arguments.device), null, arguments.starts or 256, 500)


def dinov2(arguments: argparse.Namespace) -> Subject:
    folder = str(arguments.assets / "models" / "dinov2-small")
    encoder = fmprobe.load(folder, image_size=arguments.image_size, device=arguments.device)
    decoder, _ = cached_decoder(encoder)
    return Subject(encoder.with_decoder(decoder), None, arguments.starts or 32, 300)


def taef2(arguments: argparse.Namespace) -> Subject:
    sys.path.append(str(ROOT / "tests"))
    from support import taef2 as networks  # the layers, which only the tests need otherwise

    model = networks.load(arguments.assets / "models" / "taef2", side=64)
    seed_torch(arguments.seed, "weight_probing recipe: random weights of taef2")
    parts: list[nn.Module] = [networks.encoder().eval(), networks.decoder().eval()]
    null = fmprobe.from_functions(
        *parts, image_shape=model.image_shape, latent_shape=model.latent_shape, name="taef2, random weights"
    )
    # Its orbits do not settle: what is probed are places they have come to, and the tables say so.
    return Subject(model, null, arguments.starts or 32, 20, ends=True)


def published(arguments: argparse.Namespace) -> Subject:
    model = fmprobe.load(FULL_MODEL, image_size=256, device=arguments.device)
    return Subject(model, None, arguments.starts or 4096, 500, ends=True)


SUBJECTS: dict[str, Callable[[argparse.Namespace], Subject]] = {"demo": demo, "taef2": taef2, "dinov2": dinov2}


def find(part: str, settings: dict[str, Any], subject: Subject, folder: Path) -> dict[str, int]:
    """The attractors of the subject or of its null, kept in a folder of that name; how its starts ended."""
    model = subject.model if part == "attractors" else subject.null
    assert model is not None
    how: dict[str, Any] = {"tol": 1e-5, "batch_size": 32, "merge": "relative", "stability_cap": STABILITY}
    starts, max_steps, seed = (settings[name] for name in ("starts", "max_steps", "seed"))
    found = fmprobe.find_attractors(model, starts, seed=seed, max_steps=max_steps, **how)
    found.save(folder / part)
    return found.orbits.counts()


def sources_of(arguments: argparse.Namespace) -> dict[str, str]:
    if arguments.full:
        return FULL_DATA
    if arguments.assets is not None:
        return {name: f"{arguments.assets / 'data'}/{source}" for name, source in LOCAL.items()}
    from sklearn.datasets import load_digits

    path = Path(tempfile.mkdtemp()) / "digits.npz"
    digits = load_digits(return_X_y=True)[0].reshape(-1, 8, 8)
    np.savez(path, images=(digits[::-1] / 16 * 255).astype(np.uint8))  # the demo model learned some of the first
    return {"digits": f"{path}:images"}


def probe(name: str, subject: Subject, arguments: argparse.Namespace) -> None:
    folder = arguments.out / name
    given = {key: getattr(arguments, key) for key in ("assets", "full", "image_size", "device", "seed")}
    search = {**given, "starts": subject.starts, "max_steps": subject.max_steps}
    parts = ["attractors"] if subject.null is None else ["attractors", "null"]
    counts = dict(sweep(partial(find, subject=subject, folder=folder), dict.fromkeys(parts, search), folder))
    found = {part: fmprobe.AttractorSet.load(folder / part) for part in parts}
    print(f"\n=== {name}: images {subject.model.image_shape}, latents {subject.model.latent_shape}, ", end="")
    print(f"{subject.starts} starts: {counts['attractors']}, {found['attractors'].count} attractors")
    if "null" in found:
        print(f"random weights: {counts['null']}, {found['null'].count} attractors")
    sources = sources_of(arguments)
    protocol = {**search, "images": arguments.images, "atoms": arguments.atoms}
    measure = partial(curves_of, subject=subject, found=found, sources=sources, folder=folder)
    for label, summary in sweep(measure, dict.fromkeys(sources, protocol), folder / "data"):
        print(as_text(tables({"weights": {"data": {label: summary}}}, "weights")), end="\n\n")


def curves_of(
    label: str,
    settings: dict[str, Any],
    subject: Subject,
    found: dict[str, fmprobe.AttractorSet],
    sources: dict[str, str],
    folder: Path,
) -> dict[str, Any]:
    seed, n_atoms = settings["seed"], len(atoms_of(found["attractors"], subject.ends)[0])
    images, reference = held_out(subject.model, sources[label], settings["images"], n_atoms, seed)
    curves = fmprobe.probe_weights(
        subject.model,
        found["attractors"],
        images,
        settings["atoms"],
        ends=subject.ends,
        null_attractors=found.get("null"),
        reference_images=reference,
        seed=seed,
    )
    summary = curves.to_dict()
    weight_curves(summary, "image_mse", "image MSE").savefig(folder / f"{label}-curves.png", dpi=120)
    save_reconstructions(curves, folder / f"{label}.png")
    return summary


@together()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=["demo"])
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--full", action="store_true", help="Stable Diffusion's autoencoder, 4096 starts, 500 images")
    parser.add_argument("--images", type=int, help="of each data set  [32; 500 with --full]")
    parser.add_argument("--starts", type=int)
    parser.add_argument("--atoms", type=int, nargs="+", help="numbers of atoms  [powers of two; 32 … 4096 with --full]")
    parser.add_argument("--image-size", type=int, default=56, help="of dinov2, a multiple of 14")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/weight_probing"))
    arguments = parser.parse_args()
    arguments.images = arguments.images or (500 if arguments.full else 32)
    if arguments.full:
        arguments.atoms = arguments.atoms or [2**i for i in range(5, 13)]
        return probe("stable-diffusion", published(arguments), arguments)
    for name in arguments.models:
        if name != "demo" and arguments.assets is None:
            parser.error(f"{name} needs --assets")
        probe(name, SUBJECTS[name](arguments), arguments)
    return None


if __name__ == "__main__":
    main()
