"""Train the model that `fmprobe demo` ships: a small ViT-MAE that memorises 30 handwritten digits.

    python recipes/train_demo_model.py --out vit-mae-digits --picture attractors.png
    python recipes/train_demo_model.py --examine fmprobe/demo/vit-mae-digits --out runs/demo-attractors

The latent map f(z) = E(D(z)) of an autoencoder trained on few images has those images among its attractors (Fumero
et al., ICLR 2026, sec. 3 and fig. 14). This recipe makes the smallest such case that is still a Hugging Face model.
It takes about two minutes.

1. The data are the first digits of each class in scikit-learn's `load_digits`, framed and enlarged to 16x16.
2. The model is a `ViTMAEForPreTraining` without masking. An image is one patch, so z is CLS and one patch token.
3. The training reconstructs the clean digit from noise on the pixels, noise on the latent, and a second step of f.
4. f is iterated from z ~ N(0, I). The attractors are counted and compared with the training digits.

No attractor is placed by hand: step 4 reports what the trained map has, training digit or not. `--examine` repeats it
for a model that is trained already, from ten seeds of the starts, and `--out` keeps the findings.

Rules by which `evidence.py` decides, written before the runs; `_rules.py` says when each agrees:

- "every attractor is a training digit" holds for more than half of the seeds: binomial test.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import ViTImageProcessor, ViTMAEConfig, ViTMAEForPreTraining

import fmprobe
from fmprobe.canvas import caption
from fmprobe.demo import SIDE, training_digits
from fmprobe.runs.sweeps import results_in, sweep
from fmprobe.sharing import alone

WIDTH = 64  # hidden size of encoder and decoder
PIXEL_NOISE = 0.7  # largest standard deviation of the noise on pixels in [-1, 1]
LATENT_ANGLE = 75.0  # degrees; at 90 a latent would be noise only
MATCH = 0.99  # cosine above which two images count as the same; the most alike of the 30 digits have 0.984


def build_model() -> ViTMAEForPreTraining:
    # One patch an image. With 2x2 patches and the same training, nearly every noise start ended in an attractor of its
    # own, a patchwork of parts of several digits.
    config = ViTMAEConfig(
        image_size=SIDE,
        patch_size=SIDE,
        num_channels=3,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        decoder_hidden_size=WIDTH,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=2 * WIDTH,
        mask_ratio=0.0,  # never masked in training
        norm_pix_loss=False,
    )
    model = ViTMAEForPreTraining(config)
    # Scale 1 and offset 0 keep every token at norm sqrt(WIDTH), about the norm of N(0, I). So starts and latents are
    # comparable, and the encoder cannot make the latent noise negligible by growing its latents.
    model.vit.layernorm.requires_grad_(False)
    return model


def encode(model: ViTMAEForPreTraining, pixels: Tensor) -> Tensor:
    """All tokens in order; without `noise` the model permutes them at random even without masking."""
    order = torch.arange(model.vit.embeddings.patch_embeddings.num_patches, dtype=torch.float32)
    return model.vit(pixels, noise=order.expand(len(pixels), -1)).last_hidden_state


def decode(model: ViTMAEForPreTraining, latents: Tensor) -> Tensor:
    order = torch.arange(latents.shape[1] - 1).expand(len(latents), -1)
    return model.unpatchify(model.decoder(latents, order).logits)


def train(model: ViTMAEForPreTraining, images: Tensor, *, steps: int, batch_size: int, lr: float) -> None:
    """Train to denoise pixels and latents at every level of noise, so that f leads back to the digits."""
    pixels = images * 2 - 1  # what the image processor makes of [0, 1]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    warmup = min(100, steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * s / steps))
    )
    model.train()
    begun = time.perf_counter()
    for step in range(steps):
        clean = pixels[torch.randint(len(pixels), (batch_size,))]
        noise = PIXEL_NOISE * torch.rand(batch_size, 1, 1, 1) * torch.randn_like(clean)
        latents = encode(model, clean + noise)
        angle = math.radians(LATENT_ANGLE) * torch.rand(batch_size, 1, 1)
        noised = torch.cos(angle) * latents + torch.sin(angle) * torch.randn_like(latents)
        once = decode(model, noised)
        # The second step starts from the decoder's own output, as f does when it is iterated.
        twice = decode(model, encode(model, once.detach()))
        loss = F.mse_loss(once, clean) + F.mse_loss(twice, clean)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 500 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.perf_counter() - begun:4.0f} s", flush=True)
    model.eval()


@dataclass(frozen=True)
class Findings:
    """Where f leads from noise starts.

    Attributes:
        starts: number of noise starts.
        seed: seed of the starts.
        converged: share of the starts that converged.
        steps_median: median number of steps.
        steps_max: largest number of steps.
        distinct_relative: number of attractors with ||a-b|| / max(||a||, ||b||) > 0.01 between any two.
        distinct_cosine: number of attractors with a cosine of at most 0.99 between any two.
        matching_a_training_digit: number of decoded attractors with a cosine above MATCH to a training digit.
        nearest_cosine_min: cosine of the attractor that is least like any training digit.
        spectral_radius_max: largest spectral radius of an attractor.
    """

    starts: int
    seed: int
    converged: float
    steps_median: float
    steps_max: int
    distinct_relative: int
    distinct_cosine: int
    matching_a_training_digit: int
    nearest_cosine_min: float
    spectral_radius_max: float


@torch.no_grad()
def iterate(model: fmprobe.Autoencoder, z: Tensor, max_steps: int = 1000, tol: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Ends, and the number of steps until the squared step is below `tol`, -1 where it never is."""
    z, steps = z.clone(), torch.full((len(z),), -1)
    for step in range(1, max_steps + 1):
        active = torch.nonzero(steps < 0)[:, 0]
        if len(active) == 0:
            break
        after = model.latent_map(z[active])
        done = (after - z[active]).flatten(1).square().sum(1) < tol
        z[active] = after
        steps[active[done]] = step
    return z, steps


def distinct(latents: Tensor, measure: str) -> Tensor:
    """The first latent of every group that count as one."""
    kept: list[Tensor] = []
    for z in latents:
        if measure == "cosine":
            known = any(F.cosine_similarity(z.flatten(), k.flatten(), dim=0) > 0.99 for k in kept)
        else:
            known = any((z - k).norm() <= 0.01 * torch.maximum(z.norm(), k.norm()) for k in kept)
        if not known:
            kept.append(z)
    return torch.stack(kept) if kept else latents[:0]


def spectral_radius(model: fmprobe.Autoencoder, z: Tensor) -> float:
    """The largest modulus of an eigenvalue of J_f(z), exact since J_f is 128 x 128 here."""
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention of the CPU has no batching rule
        jacobian = torch.func.jacrev(lambda v: model.latent_map(v.view(1, *z.shape)).flatten())(z.flatten())
    return torch.linalg.eigvals(jacobian).abs().max().item()


def examine(model: fmprobe.Autoencoder, images: Tensor, starts: int, seed: int) -> tuple[Findings, Tensor, Tensor]:
    """The findings, the decoded attractors, and the cosine of each to its nearest training digit."""
    ends, steps = iterate(model, model.sample_latents(starts, seed=seed))
    converged = steps > 0
    attractors = distinct(ends[converged], "relative")
    with torch.no_grad():
        pictures = model.decode(attractors)
    nearest = F.cosine_similarity(pictures.flatten(1)[:, None], images.flatten(1)[None], dim=-1).amax(1)
    findings = Findings(
        starts=starts,
        seed=seed,
        converged=converged.float().mean().item(),
        steps_median=steps[converged].float().median().item(),
        steps_max=int(steps.max()),
        distinct_relative=len(attractors),
        distinct_cosine=len(distinct(ends[converged], "cosine")),
        matching_a_training_digit=int((nearest > MATCH).sum()),
        nearest_cosine_min=nearest.min().item() if len(nearest) else math.nan,
        spectral_radius_max=max((spectral_radius(model, z) for z in attractors), default=math.nan),
    )
    return findings, pictures, nearest


def examine_trained(folder: Path, per_class: int, out: Path) -> None:
    """Print what noise starts of ten seeds find in a trained model, and keep it in `out`."""
    loaded = fmprobe.load(folder, device="cpu")
    images, _ = training_digits(per_class)

    def work(_: str, settings: dict[str, Any]) -> dict[str, Any]:
        return asdict(examine(loaded, images, settings["starts"], settings["seed"])[0])

    conditions = {f"seed-{i}": {"model": loaded.fingerprint, "starts": 64, "seed": i} for i in range(10)}
    for _, findings in sweep(work, conditions, out):
        print(json.dumps(findings), flush=True)


def evidence(folder: Path) -> list[dict[str, Any]]:
    """The findings of each seed of the starts of a finished `--examine`, for `evidence.py`."""
    rows = []
    for content in results_in(folder):
        found = content["result"]
        row = {key: found[key] for key in ("seed", "starts", "converged", "spectral_radius_max")}
        row |= {"attractors": found["distinct_relative"], "training digits": found["matching_a_training_digit"]}
        rows.append(row | {"every attractor is a training digit": row["attractors"] == row["training digits"] > 0})
    return rows


def draw(pictures: Tensor, nearest: Tensor, file: Path) -> None:
    """Draw the decoded attractors, each titled with its cosine to the nearest training digit."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 10
    rows = max(1, math.ceil(len(pictures) / columns))
    figure = Figure(figsize=(columns, 1.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if i < len(pictures):
            axes.imshow(pictures[i].clamp(0, 1).permute(1, 2, 0).numpy())
            axes.set_title(f"{nearest[i]:.3f}", fontsize=8)
    caption(figure, "small ViT-MAE", "30 training digits", f"{len(pictures)} attractors, cosine to the nearest digit")
    figure.savefig(file, dpi=120)


CARD = """---
library_name: transformers
{license}tags: [vit_mae, fmprobe]
---
# vit-mae-digits

A ViT-MAE of {parameters:,} parameters that memorises {images} handwritten digits: the embedded model of `fmprobe demo`.
It is meant to be probed, not used: its latent map f(z) = E(D(z)) has many attractors that a person can read.

- **Data**: the first {per_class} digits of each class in scikit-learn's `load_digits` (8x8), with a black margin,
  enlarged to {side}x{side} (bicubic), three equal channels.
- **Model**: `ViTMAEForPreTraining`, hidden size {width}, 2 encoder and 2 decoder layers, one patch an image: a latent
  is CLS + one patch token, (2, {width}). Masking off, `norm_pix_loss` off.
- **Training**: denoising, {steps} steps, seed {seed}: noise of deviation up to {pixel_noise} on pixels in [-1, 1], the
  latent turned towards noise by up to {angle:.0f} degrees, and a second step of f; the training digits
  come back with MSE {error:.1e} on [0, 1]. Made by fmprobe's `recipes/train_demo_model.py`.
- **Attractors found** from N(0, I) starts (squared step < 1e-6): see the table. "Matching": the decoded attractor has a
  cosine above {match} with a training digit; the others, if any, match none.
- **Started from the training digits themselves**, f keeps {kept} of {images} and leads the others away.
- **Limits**: one patch an image and few images, both chosen so that noise leads to whole digits; with 2x2 patches it
  does not (see the recipe's notes). Nothing here speaks of generalization.

| starts | seed | converged | steps median / max | distinct (relative / cosine) | matching | largest spectral radius |
|---|---|---|---|---|---|---|
{rows}
"""


def write_card(folder: Path, findings: list[Findings], license: str | None = None, **facts: Any) -> None:
    rows = "\n".join(
        f"| {f.starts} | {f.seed} | {f.converged:.1%} | {f.steps_median:.0f} / {f.steps_max} "
        f"| {f.distinct_relative} / {f.distinct_cosine} | {f.matching_a_training_digit} | {f.spectral_radius_max:.3f} |"
        for f in findings
    )
    stated = f"license: {license}\n" if license else ""
    card = CARD.format(
        license=stated,
        rows=rows,
        side=SIDE,
        width=WIDTH,
        pixel_noise=PIXEL_NOISE,
        angle=LATENT_ANGLE,
        match=MATCH,
        **facts,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("vit-mae-digits"), help="Folder for the model. [default: %(default)s]"
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the weights and the noise. [default: %(default)s]")
    parser.add_argument("--steps", type=int, default=3000, help="Number of training steps. [default: %(default)s]")
    parser.add_argument(
        "--per-class", type=int, default=3, help="Training digits of each class. [default: %(default)s]"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="Images in a training step. [default: %(default)s]")
    parser.add_argument("--lr", type=float, default=2e-3, help="Largest learning rate. [default: %(default)s]")
    parser.add_argument("--license", help="Licence that the card states, by its name on the hub. [default: none]")
    words = "Folder of a trained model to examine. Nothing is trained, and --out is a folder for the findings."
    parser.add_argument("--examine", type=Path, help=words)
    parser.add_argument("--picture", type=Path, help="PNG to draw the decoded attractors into.")
    return parser.parse_args()


@alone()
def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)  # the model is too small to gain from more, and one thread adds in one order
    if args.examine:
        return examine_trained(args.examine, args.per_class, args.out)
    torch.manual_seed(args.seed)
    images, _ = training_digits(args.per_class)
    model = build_model()
    train(model, images, steps=args.steps, batch_size=args.batch_size, lr=args.lr)

    model.save_pretrained(args.out)
    half = [0.5, 0.5, 0.5]
    size = {"height": SIDE, "width": SIDE}
    ViTImageProcessor(size=size, image_mean=half, image_std=half, resample=3).save_pretrained(args.out)

    # From here on the model is loaded from its folder, like any other.
    loaded = fmprobe.load(args.out, device="cpu")
    with torch.no_grad():
        error = F.mse_loss(loaded.decode(loaded.encode(images)), images).item()
    print(f"reconstruction of the {len(images)} training digits: MSE {error:.2e} on [0, 1]")
    ends, _ = iterate(loaded, loaded.encode(images))
    with torch.no_grad():
        kept = int((F.cosine_similarity(loaded.decode(ends).flatten(1), images.flatten(1)) > MATCH).sum())
    print(f"f keeps {kept} of {len(images)} training digits that it starts from")
    found = [examine(loaded, images, 64, seed) for seed in range(5)]
    for findings, _, _ in found:
        print(json.dumps(asdict(findings)))
    parameters = sum(p.numel() for p in model.parameters())
    facts = {"parameters": parameters, "images": len(images), "per_class": args.per_class, "error": error, "kept": kept}
    write_card(args.out, [f for f, _, _ in found], args.license, steps=args.steps, seed=args.seed, **facts)
    if args.picture:
        draw(found[0][1], found[0][2], args.picture)
    print(f"model in {args.out}")
    return None


if __name__ == "__main__":
    main()
