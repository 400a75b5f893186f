"""Residuals of latents and images, and norms of latents, step by step (Fumero et al., ICLR 2026, fig. 12, 16, 17).

    python recipes/residual_curves.py                                        # the demo model, offline, seconds
    python recipes/residual_curves.py --assets ../shared                     # and dinov2-small with a surrogate, taef2
    python recipes/residual_curves.py --model M --data photos:test           # any model, from encoded images
    python recipes/residual_curves.py --full --data ImageNet:validation      # the paper's models, 500 starts, 300 steps

Starts are encoded images where there are any (--data; for the demo model scikit-learn's digits), and N(0, I) beside
them. A language model has no images: its f is the residual stream from the embedding to the last layer. An encoder
without a decoder gets a surrogate on procedural images, so its curves are those of both together. One model is in
memory at a time. Leaves one JSON and one figure a model and kind of start in `--out`; what is there is not computed
again. Launched processes share these, and the training of a surrogate.
"""

import argparse
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fmprobe
from fmprobe.probes.residuals import plot_residuals
from fmprobe.report.summary import tables
from fmprobe.runs.models import with_decoder
from fmprobe.runs.sweeps import sweep
from fmprobe.sharing import together
from fmprobe.tables import as_text

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "fmprobe" / "demo" / "vit-mae-digits"
# DINOv2 and SigLIP2 get decoders that are fitted here, on procedural images; the paper takes published ones.
FULL = (
    "facebook/vit-mae-base",
    "facebook/dinov2-base",
    "google/siglip2-base-patch16-224",
    "Qwen/Qwen3-0.6B",
    "HuggingFaceTB/SmolLM2-360M",
)


def digits(model: fmprobe.Autoencoder, n: int) -> Tensor:
    """The last of scikit-learn's digits, which the demo model was not trained on."""
    from sklearn.datasets import load_digits

    pixels = torch.from_numpy(load_digits(return_X_y=True)[0][-n:].reshape(-1, 1, 8, 8) / 16).float()
    pixels = torch.nn.functional.interpolate(pixels, size=model.image_shape[1:], mode="bilinear").clamp(0, 1)
    return pixels.expand(-1, model.image_shape[0], -1, -1)


def taef2(arguments: argparse.Namespace) -> fmprobe.Autoencoder:
    sys.path.append(str(ROOT / "tests"))
    from support import taef2 as networks  # the layers, which only the tests need otherwise

    return networks.load(arguments.assets / "models" / "taef2", side=64)


def models(arguments: argparse.Namespace) -> dict[str, Callable[[], fmprobe.Autoencoder]]:
    """Functions that load, by name, so that one model is in memory at a time."""
    load, size = partial(fmprobe.load, device=arguments.device), arguments.image_size or "fit"
    if arguments.full or arguments.model:
        names = [arguments.model] if arguments.model else FULL
        return {Path(name).name: partial(load, name, image_size=size) for name in names}
    found: dict[str, Callable[[], fmprobe.Autoencoder]] = {"demo": partial(load, str(DEMO), image_size="fit")}
    if arguments.assets is not None:
        found["dinov2-small"] = partial(load, str(arguments.assets / "models" / "dinov2-small"), image_size=size)
        found["taef2"] = partial(taef2, arguments)
    return found


def images_for(name: str, model: fmprobe.Autoencoder, arguments: argparse.Namespace) -> Tensor | None:
    if not model.image_shape:
        return None
    if name == "demo" and arguments.data is None:
        return digits(model, arguments.starts)
    source = arguments.data or (arguments.assets and f"{arguments.assets / 'data' / 'photos'}:test")
    return None if source is None else model.load_images(source, arguments.starts)


@together()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub id or folder, language models among them")
    parser.add_argument("--assets", type=Path, help="folder with models/dinov2-small, models/taef2 and data/photos")
    parser.add_argument("--data", help="images to start from, SOURCE[:split][#column]")
    parser.add_argument("--full", action="store_true", help="the paper's models by their hub names; an accelerator")
    parser.add_argument("--starts", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--image-size", type=int, help="pixels a side, of all but the demo model and taef2")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/residual_curves"))
    arguments = parser.parse_args()
    arguments.starts = arguments.starts or (500 if arguments.full else 32)
    arguments.steps = arguments.steps or (300 if arguments.full else 100)
    loads = models(arguments)
    given = {name: value for name, value in vars(arguments).items() if name != "out"}
    decoders, conditions = {}, {}
    for name, load in loads.items():
        model = with_decoder(load(), arguments.seed)  # which processes fit together, so before they part
        decoders[name] = model.surrogate
        own = {**given, "name": name, "fingerprint": model.fingerprint}
        conditions |= {f"{name}-{kind}": {**own, "kind": kind} for kind in ("images", "noise")}
        del model

    @lru_cache(1)
    def whole(name: str) -> fmprobe.Autoencoder:
        model = loads[name]()
        return model if decoders[name] is None else model.with_decoder(decoders[name])

    def measure(label: str, settings: dict[str, Any]) -> dict[str, Any] | None:
        name = settings["name"]
        model = whole(name)
        images = images_for(name, model, arguments) if settings["kind"] == "images" else None
        if images is None and settings["kind"] == "images":
            return None
        options = {"steps": arguments.steps, "seed": arguments.seed, "batch_size": arguments.batch_size}
        n = arguments.starts if images is None else None
        row = fmprobe.probe_residuals(model, images, n=n, **options).to_dict()
        title = f"{name}: {row['n']} starts, {row['starts']}"
        plot_residuals(row, title).savefig(arguments.out / f"{label}.png", dpi=120)
        return {"model": model.provenance, "residual_curves": row}

    for label, found in sweep(measure, conditions, arguments.out):
        if found is not None:
            print(f"\n{label}: {as_text(tables(found, 'residual_curves'))}")


if __name__ == "__main__":
    main()
