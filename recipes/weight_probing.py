"""Reconstruct held-out images from attractors that noise starts found (Fumero et al., ICLR 2026, fig. 4, 7-9).

    python recipes/weight_probing.py                                   # the demo model on scikit-learn's digits
    python recipes/weight_probing.py --assets ../shared --models demo taef2 dinov2 mae-cifar10 mae-mnist
    python recipes/weight_probing.py --full                            # the paper's protocol, from the hub, on a GPU

1. The attractors of a model and of its null, the same architecture with random weights, are found from N(0, I).
2. They serve as a dictionary. Orthogonal Matching Pursuit reconstructs the latents of images from a few of its atoms.
3. The decoded reconstructions are compared with those of as many atoms of chance and of data, image by image.

`--assets` is a folder with `data/` (photos, textures, scenes, cifar10, mnist, fashion_mnist) and `models/` (taef2,
dinov2-small). A small ViT-MAE is trained first, on CIFAR-10 or on MNIST. A seed is that of the noise starts, of the
random basis and of the random weights. The recipe prints one table for each data set. `--out` keeps the tables, curves
and reconstructions.

Rules by which `evidence.py` decides, written before the runs; `_rules.py` says when each agrees. A set counts where it
holds under every seed:

- "image MSE below that of the basis at every number of atoms" holds for more than half of the sets: binomial test.
- "image MSE below that of the basis at every number of atoms" holds for more than half of the sets, for each of "model"
  alone: binomial test.
- "latent MSE below that of the basis at every number of atoms" holds for more than half of the sets, for each of
  "model" alone: binomial test.
- "image MSE below that of random weights at every number of atoms" holds for more than half of the sets, for each of
  "model" alone: binomial test.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import _taef2
import numpy as np
import train_small_mae as small
from _figures import add_figure_options, save
from torch import nn

import fmprobe
from fmprobe.images import held_out
from fmprobe.probes.weights.curves import save_reconstructions
from fmprobe.probes.weights.dictionaries import BASIS, NULL, atoms_of
from fmprobe.report.plots import weight_curves
from fmprobe.report.summary import tables
from fmprobe.runs.sweeps import results_in, sweep
from fmprobe.seeding import seed_torch
from fmprobe.sharing import together
from fmprobe.surrogates.cache import cached_decoder
from fmprobe.tables import as_text

CURVES = "data"  # name of the folders that hold the curves of each data set
STABILITY = 2  # attractors whose Jacobian is examined, few since no figure here depends on it
LOCAL = {
    "photos": "photos:test",
    "textures": "textures",
    "scenes": "scenes",
    "cifar10": "cifar10:test",
    "mnist": "mnist.npz:x_test",
    "fashion_mnist": "fashion_mnist.npz:x_test",
}
TRAINED_ON = {"mae-cifar10": "cifar10/train.parquet", "mae-mnist": "mnist.npz:x_train"}
FULL_MODEL = "stabilityai/sd-vae-ft-mse"
FULL_DATA = {  # 500 images of each, as in the paper, from its first column of images
    "Laion": "dclure/laion-aesthetics-12m-umap",
    "ImageNet": "mrm8488/ImageNet1K-val",
    "EuroSAT": "blanchon/EuroSAT_RGB:test",
    "CIFAR-100": "uoft-cs/cifar100:test",
    "PatchCamelyon": "1aurent/PatchCamelyon:test",
    "Places365": "dpdl-benchmark/places365:validation",
}


@dataclass(frozen=True)
class Subject:
    """A model, its null if one can be made, and the protocol of its orbits.

    Attributes:
        model: the model to probe.
        null: the same architecture with random weights.
        starts: number of noise starts.
        max_steps: largest number of steps of an orbit.
        ends: whether the ends after the last step serve as atoms, converged or not.
    """

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
    model = _taef2.load(arguments.assets / "models" / "taef2", side=64)
    seed_torch(arguments.seed, "weight_probing recipe: random weights of taef2")
    parts: list[nn.Module] = [_taef2.encoder().eval(), _taef2.decoder().eval()]
    null = fmprobe.from_functions(
        *parts, image_shape=model.image_shape, latent_shape=model.latent_shape, name="taef2, random weights"
    )
    # No orbit of it settles, so the ends serve as atoms, as the tables say.
    return Subject(model, null, arguments.starts or 32, 20, ends=True)


def small_mae(arguments: argparse.Namespace, name: str) -> Subject:
    """A small ViT-MAE, trained unless the folder holds it."""
    from transformers import ViTImageProcessor

    folder = arguments.out / name
    small.trained(folder, str(arguments.assets / "data" / TRAINED_ON[name]), arguments.train_steps)
    network: Any = small.build(seed=1 + arguments.seed)  # seed 0 is that of the trained weights
    null = fmprobe.load(network, processor=ViTImageProcessor.from_pretrained(folder), device=arguments.device)
    model = fmprobe.load(str(folder), device=arguments.device)
    # Few of its orbits settle, so the ends serve as atoms, as the tables say.
    return Subject(model, null, arguments.starts or 64, 60, ends=True)


def published(arguments: argparse.Namespace) -> Subject:
    model = fmprobe.load(FULL_MODEL, image_size=256, device=arguments.device)
    return Subject(model, None, arguments.starts or 4096, 500, ends=True)


SUBJECTS: dict[str, Callable[[argparse.Namespace], Subject]] = {"demo": demo, "taef2": taef2, "dinov2": dinov2}
SUBJECTS |= {name: partial(small_mae, name=name) for name in TRAINED_ON}


def find(part: str, settings: dict[str, Any], subject: Subject, folder: Path) -> dict[str, int]:
    """Find the attractors of the subject or of its null and keep them; returns the count of each status."""
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
    # In reverse order, since the demo model was trained on some of the first.
    np.savez(path, images=(digits[::-1] / 16 * 255).astype(np.uint8))
    return {"digits": f"{path}:images"}


def probe(name: str, subject: Subject, arguments: argparse.Namespace) -> None:
    folder = arguments.out / f"{name}-seed{arguments.seed}"
    given = {key: getattr(arguments, key) for key in ("assets", "full", "image_size", "device", "seed")}
    search = {"model": name, **given, "starts": subject.starts, "max_steps": subject.max_steps}
    conditions = dict.fromkeys(["attractors"] if subject.null is None else ["attractors", "null"], search)
    attractors: dict[str, fmprobe.AttractorSet] = {}
    work = partial(find, subject=subject, folder=folder)
    for part, counts in sweep(work, conditions, folder):
        attractors[part] = fmprobe.AttractorSet.load(folder / part)
        text = f"\n=== {name}: images {subject.model.image_shape}, latents {subject.model.latent_shape}, "
        head = f"{text}{subject.starts} starts" if part == "attractors" else "random weights"
        print(f"{head}, seed {arguments.seed}: {counts}, {attractors[part].count} attractors")
    sources = sources_of(arguments)
    protocol = {**search, "images": arguments.images, "atoms": arguments.atoms}
    work = partial(curves_of, subject=subject, attractors=attractors, sources=sources, folder=folder)
    conditions = {label: {**protocol, "set": label} for label in sources}
    for label, found in sweep(work, conditions, folder / CURVES, folder):
        print(as_text(tables({"weights": {"data": {label: found}}}, "weights")), end="\n\n")


def curves_of(
    label: str,
    settings: dict[str, Any],
    subject: Subject,
    attractors: dict[str, fmprobe.AttractorSet],
    sources: dict[str, str],
    folder: Path,
) -> dict[str, Any]:
    seed, n_atoms = settings["seed"], len(atoms_of(attractors["attractors"], subject.ends)[0])
    images, reference = held_out(subject.model, sources[label], settings["images"], n_atoms, seed)
    curves = fmprobe.probe_weights(
        subject.model,
        attractors["attractors"],
        images,
        settings["atoms"],
        ends=subject.ends,
        null_attractors=attractors.get("null"),
        reference_images=reference,
        seed=seed,
    )
    summary = curves.to_dict()
    about = [subject.model.short_name, f"{len(images)} images of {label}", f"{n_atoms} attractors or ends"]
    save(weight_curves(summary, "image_mse", "image MSE"), folder, f"{label}-curves", about)
    save_reconstructions(curves, folder / f"{label}.png")
    return summary


def evidence(folder: Path) -> list[dict[str, Any]]:
    """The figures of each model, data set and seed of a finished run, for `evidence.py`, with all atoms."""
    rows = []
    for path in sorted(folder.glob(f"*/{CURVES}")):
        for content in results_in(path):
            settings, found = content["settings"], content["result"]
            dictionaries = found["dictionaries"]
            row = {"model": settings["model"], "set": settings["set"], "seed": settings["seed"]}
            row |= {
                "atoms are": found["subject"],
                "atoms": found["levels"][-1],
                "D(E(x))": found["own"]["image_mse"]["mean"],
            }
            named = {
                "attractors": dictionaries[found["subject"]],
                "basis": dictionaries[BASIS],
                "random weights": dictionaries.get(NULL),
            }
            for short, metric in (("image MSE", "image_mse"), ("latent MSE", "latent_mse")):
                means = {name: [level["mean"] for level in of[metric]] for name, of in named.items() if of}
                row |= {f"{short} of {name}": values[-1] for name, values in means.items()}
                for words, name in (("the basis", "basis"), ("random weights", "random weights")):
                    below = _below(means["attractors"], means.get(name))
                    row[f"{short} below that of {words} at every number of atoms"] = below
            rows.append(row)
    return rows


def _below(errors: list[float], others: list[float] | None) -> bool | None:
    """Whether errors lie below others at every number of atoms; None without others."""
    return None if others is None else all(a < b for a, b in zip(errors, others, strict=True))


@together()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=["demo"], help="Models to probe.")
    parser.add_argument("--assets", type=Path, help="Folder with data/ and models/.")
    parser.add_argument(
        "--full",
        action="store_true",
        help="Use Stable Diffusion's autoencoder, 4096 starts and 500 images of each data set.",
    )
    parser.add_argument("--images", type=int, help="Number of images of each data set. [default: 32; 500 with --full]")
    parser.add_argument("--starts", type=int, help="Number of noise starts. [default: by model]")
    parser.add_argument(
        "--atoms", type=int, nargs="+", help="Numbers of atoms. [default: powers of two; 32 to 4096 with --full]"
    )
    parser.add_argument("--image-size", type=int, default=56, help="Image side of dinov2, a multiple of 14.")
    parser.add_argument("--device", default="auto", help="Device to compute on.")
    parser.add_argument("--train-steps", type=int, default=small.STEPS, help="Training steps of a small ViT-MAE.")
    words = "Seeds of the noise starts, the random basis and the random weights."
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help=words)
    parser.add_argument("--out", type=Path, default=Path("runs/weight_probing"), help="Folder for the results.")
    add_figure_options(parser)
    arguments = parser.parse_args()
    arguments.images = arguments.images or (500 if arguments.full else 32)
    subjects = (
        {"stable-diffusion": published} if arguments.full else {name: SUBJECTS[name] for name in arguments.models}
    )
    if arguments.full:
        arguments.atoms = arguments.atoms or [2**i for i in range(5, 13)]
    elif arguments.assets is None and (needing := set(subjects) - {"demo"}):
        parser.error(f"{', '.join(sorted(needing))}: expected --assets with it")
    for name, seed in product(subjects, arguments.seeds):
        arguments.seed = seed
        probe(name, subjects[name](arguments), arguments)


if __name__ == "__main__":
    main()
