"""Train a small ViT-MAE on 32 px images, for recipes that need an autoencoder of natural images.

    python recipes/train_small_mae.py --data ../shared/data/cifar10:train --out vit-mae-cifar10    # 9 minutes

The model is a `ViTMAEForPreTraining` in Hugging Face layout. Its patches have 4x4 pixels, so z is CLS and 64 patch
tokens. Batches mask 0, 1/4, 1/2 and 3/4 of the patches in turn, and the loss counts every patch. The latent map
f(z) = E(D(z)) runs without masking, which a model trained at 75% alone has never met.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ViTImageProcessor, ViTMAEConfig, ViTMAEForPreTraining, get_cosine_schedule_with_warmup

import fmprobe
from fmprobe.files import write_json
from fmprobe.nodes import level
from fmprobe.seeding import seed_torch, torch_generator
from fmprobe.sharing import alone, is_main

SIDE, PATCH = 32, 4
WIDTH, LAYERS, STEPS = 96, 4, 3000
WARM_UP = 200  # steps
RATIOS = (0.0, 0.25, 0.5, 0.75)


def build(width: int = WIDTH, layers: int = LAYERS, seed: int = 0) -> ViTMAEForPreTraining:
    """A ViT-MAE whose decoder has half the encoder's layers."""
    seed_torch(seed, "train_small_mae recipe: weights")
    config = ViTMAEConfig(
        image_size=SIDE,
        patch_size=PATCH,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        intermediate_size=2 * width,
        decoder_hidden_size=width,
        decoder_num_hidden_layers=max(1, layers // 2),
        decoder_num_attention_heads=max(1, width // 32),
        decoder_intermediate_size=2 * width,
        mask_ratio=0.75,
        norm_pix_loss=False,
    )
    return ViTMAEForPreTraining(config)


def loss_of(model: ViTMAEForPreTraining, pixels: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Squared error over all patches, of which the encoder sees all but a share `ratio`."""
    model.vit.config.mask_ratio = ratio
    tokens = (SIDE // PATCH) ** 2
    out = model.vit(pixels, noise=torch.rand(len(pixels), tokens, generator=generator))
    logits = model.decoder(out.last_hidden_state, out.ids_restore).logits
    return F.mse_loss(model.unpatchify(logits), pixels)


def train(model: ViTMAEForPreTraining, images: Tensor, steps: int, batch_size: int = 64, seed: int = 0) -> float:
    """Train by AdamW, with warm-up and a cosine schedule over `steps`; returns the last loss without masking."""
    g = torch_generator(seed, "train_small_mae recipe: batches and masks")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimiser, min(WARM_UP, steps), steps)
    began, losses = time.monotonic(), {}
    model.train()
    for step in range(steps):
        pixels = images[torch.randint(len(images), (batch_size,), generator=g)] * 2 - 1
        ratio = RATIOS[step % len(RATIOS)]
        loss = loss_of(model, pixels, ratio, g)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses[ratio] = float(loss.detach())
        if step % 200 == 0:
            shown = ", ".join(f"{r:.0%} masked {v:.4f}" for r, v in sorted(losses.items()))
            print(f"step {step:6d}  {time.monotonic() - began:4.0f} s  {shown}", flush=True)
    model.eval()
    model.config.mask_ratio = model.vit.config.mask_ratio = 0.75
    print(f"{steps} steps of {batch_size} images; loss without masking {losses[0.0]:.4f}")
    return losses[0.0]


def save(model: ViTMAEForPreTraining, folder: Path) -> None:
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    half = [0.5, 0.5, 0.5]
    ViTImageProcessor(size=size, image_mean=half, image_std=half, do_convert_rgb=True).save_pretrained(folder)


def trained(folder: Path, source: str, steps: int = STEPS, seed: int = 0) -> None:
    """Train a model on images of a source unless the folder holds it, by the main process. All processes come here."""
    if is_main() and not (folder / "config.json").is_file():
        began = time.process_time()
        model = build(seed=seed)
        loss = train(model, fmprobe.load_images(source, image_shape=(3, SIDE, SIDE)), steps, seed=seed)
        save(model, folder)
        settings = {"images": Path(source).name, "steps": steps, "seed": seed}
        cost = {"processor_seconds": round(time.process_time() - began, 1)}
        write_json(folder / "training.json", {"settings": settings, "result": loss, **cost})
    level(folder)


@alone()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="Training images, SOURCE[:split][#column].")
    parser.add_argument("--images", type=int, help="Number of training images. [default: all]")
    parser.add_argument("--out", type=Path, default=Path("vit-mae-small"), help="Folder for the model.")
    parser.add_argument("--steps", type=int, default=STEPS, help="Number of training steps.")
    parser.add_argument("--width", type=int, default=WIDTH, help="Hidden size.")
    parser.add_argument("--layers", type=int, default=LAYERS, help="Number of encoder layers.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the weights, the batches and the masks.")
    args = parser.parse_args()
    images = fmprobe.load_images(args.data, args.images, image_shape=(3, SIDE, SIDE))
    model = build(args.width, args.layers, args.seed)
    train(model, images, args.steps, seed=args.seed)
    save(model, args.out)
    print(f"model in {args.out}, {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
