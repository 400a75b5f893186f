"""Time the engine against the everyday loop, and measure its overhead at ViT size.

    python recipes/benchmark_engine.py                                  # scikit-learn's digits
    python recipes/benchmark_engine.py --data mnist.npz:x_train         # MNIST, as in recipes/README.md

1. The paper's convolutional autoencoder with k = 2 is trained. Starts are drawn from U[-8, 8], as for fig. 1 of Fumero
   et al., ICLR 2026.
2. The everyday loop steps a whole batch until its slowest member stops, or the step budget is spent. `fmprobe.iterate`
   freezes each latent when its orbit ends, refills its place and detects divergence. Both run in one process.
3. Their ends are compared on the starts that converged on both sides.
4. The engine's overhead over bare calls of f is measured at ViT size.
5. A product with the Jacobian is timed against `torch.func.jvp` and against f, on the demo model, on the network of 1,
   and on a model by name with a surrogate in closed form (`--model`). The three alternate on one thread.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from statistics import median

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fmprobe
from fmprobe.dynamics.forward import forward_product
from fmprobe.seeding import seed_torch, torch_generator
from fmprobe.sharing import alone

MAX_STEPS, TOL, BATCH = 3000, 1e-6, 256  # the paper's stopping rule for small autoencoders


def images_of(source: str | None) -> Tensor:
    """Grey 28x28 images of a source, or scikit-learn's digits enlarged."""
    if source is not None:
        return fmprobe.load_images(source, image_shape=(1, 28, 28))
    digits = torch.from_numpy(load_digits(return_X_y=True)[0].reshape(-1, 8, 8)).float()[:, None] / 16
    return nn.functional.interpolate(digits, size=28, mode="bilinear").clamp(0, 1)


def everyday_loop(f: Callable[[Tensor], Tensor], starts: Tensor) -> tuple[Tensor, Tensor, int]:
    """Ends, whether each converged, and evaluations of f, of the loop that steps whole batches."""
    ends, converged, evaluations = [], [], 0
    with torch.no_grad():
        for z in starts.split(BATCH):
            done = torch.zeros(len(z), dtype=torch.bool)
            for _ in range(MAX_STEPS):
                after = f(z)
                evaluations += len(z)
                done = (after - z).square().sum(1) < TOL
                z = after
                if done.all():
                    break
            ends.append(z)
            converged.append(done)
    return torch.cat(ends), torch.cat(converged), evaluations


def compare_with_everyday_loop(model: fmprobe.Autoencoder, starts: Tensor) -> None:
    began = time.perf_counter()
    ends, converged, evaluations = everyday_loop(model.latent_map, starts)
    loop_seconds = time.perf_counter() - began
    began = time.perf_counter()
    orbits = fmprobe.iterate(model.latent_map, starts, tol=TOL, max_steps=MAX_STEPS, batch_size=BATCH, progress=False)
    seconds = time.perf_counter() - began
    print(f"\n{len(starts)} starts, batch {BATCH}, squared step < {TOL:g}, at most {MAX_STEPS} steps")
    print(f"{'':16}{'evaluations':>14}{'seconds':>10}   converged")
    print(f"{'everyday loop':16}{evaluations:14,}{loop_seconds:10.2f}   {int(converged.sum())}")
    print(f"{'fmprobe.iterate':16}{orbits.evaluations:14,}{seconds:10.2f}   {int(orbits.converged.sum())}")
    print(f"{'ratio':16}{evaluations / orbits.evaluations:14.1f}{loop_seconds / seconds:10.1f}")
    print("statuses: " + ", ".join(f"{name} {count}" for name, count in orbits.counts().items() if count))
    both = orbits.converged & converged
    # The loop keeps stepping latents that have converged, so its ends lie nearer to the fixed point.
    gap = (orbits.ends - ends).norm(dim=1)[both]
    within = gap <= 2 * orbits.errors[both]
    print(
        f"same ends: {int(within.sum())} of {int(both.sum())} that converged on both sides lie within twice the "
        f"engine's error estimate; largest gap {float(gap.max()) if len(gap) else 0:.1e}"
    )


def time_products(model: fmprobe.Autoencoder, batch: int, repeats: int) -> None:
    """Time J v at latents from N(0, I), in processor time, and compare the values with those of torch."""
    f, z = model.latent_map, model.sample_latents(batch)
    v = model.sample_latents(batch, 1)
    sides = {
        "f": lambda: f(z),
        "torch.func.jvp": lambda: torch.func.jvp(f, (z,), (v,)),
        "J v": lambda: forward_product(f, z, v),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs, ours = (side()[1] for side in (sides["torch.func.jvp"], sides["J v"]))  # both are warm then
        for _ in range(repeats):
            for name, side in sides.items():
                began = time.process_time()
                side()
                times[name].append(1000 * (time.process_time() - began))
    apart = float((ours - theirs).norm() / theirs.norm())
    cells = " | ".join(f"{median(of):.2f}" for of in times.values())
    ratio = median(times["torch.func.jvp"]) / median(times["J v"])
    print(f"| {model.short_name} | {batch} | {cells} | {ratio:.2f} | {apart:.0e} |")


def measure_overhead(dimension: int, batch: int, steps: int) -> None:
    """Time the engine against bare calls of f, where f is a small transformer and no orbit ends."""
    seed_torch(0, "benchmark_engine recipe: transformer")
    layer = nn.TransformerEncoderLayer(384, 6, 1536, batch_first=True, norm_first=True)
    network = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False).eval().requires_grad_(False)
    starts = torch.randn(batch, dimension // 384, 384, generator=torch_generator(0, "benchmark_engine recipe: tokens"))

    def bare() -> float:
        z, began = starts, time.perf_counter()
        with torch.no_grad():
            for _ in range(steps):
                z = network(z)
        return time.perf_counter() - began

    def engine() -> tuple[float, float]:
        inside = 0.0

        def f(z: Tensor) -> Tensor:
            nonlocal inside
            began = time.perf_counter()
            after = network(z)
            inside += time.perf_counter() - began
            return after

        began = time.perf_counter()
        fmprobe.iterate(f, starts, tol=1e-30, max_steps=steps, batch_size=batch, progress=False)
        return inside, time.perf_counter() - began - inside

    warnings.simplefilter("ignore")  # the tolerance is out of reach on purpose
    bare()
    engine()
    lone = [bare() for _ in range(5)]
    runs = [engine() for _ in range(5)]
    own = sorted(100 * outside / inside for inside, outside in runs)
    print(f"\noverhead at ViT size ({batch} latents of {dimension // 384} x 384, {steps} steps, 5 runs a side)")
    print(f"bare calls of f                {min(lone):6.2f} to {max(lone):.2f} s")
    print(f"fmprobe.iterate                {min(map(sum, runs)):6.2f} to {max(map(sum, runs)):.2f} s")
    # The time of f varies by more than the engine adds, so the time outside f is measured in the same run.
    print(f"of which outside f             {own[0]:6.1f} to {own[-1]:.1f} % of the time in f")


@alone()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="Image source: FILE.npz:key, folder or parquet. [default: digits]")
    parser.add_argument("--epochs", type=int, default=30, help="Number of training epochs.")
    parser.add_argument("--images", type=int, default=2000, help="Largest number of training images.")
    parser.add_argument("-n", "--starts", type=int, default=1000, help="Number of starts.")
    parser.add_argument("--width", type=int, default=16, help="Number of channels of the first layer.")
    parser.add_argument(
        "--overhead-steps", type=int, default=15, help="Number of steps at ViT size; 0 skips that part."
    )
    parser.add_argument("--model", help="Encoder whose products with the Jacobian are timed too. [default: none]")
    parser.add_argument("--repeats", type=int, default=20, help="Number of repetitions of these products.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the weights, the training and the starts.")
    options = parser.parse_args()

    images = images_of(options.data)[: options.images]
    seed_torch(options.seed, "benchmark_engine recipe: weights")
    network = fmprobe.ConvAutoencoder(2, options.width, (1, 28, 28))
    losses = fmprobe.train_autoencoder(network, images, epochs=options.epochs, seed=options.seed)
    print(f"ConvAutoencoder k=2, width {options.width}: {len(images)} images, loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    network.requires_grad_(False)
    draws = torch_generator(options.seed, "benchmark_engine recipe: uniform starts")
    starts = 16 * torch.rand(options.starts, 2, generator=draws) - 8
    compare_with_everyday_loop(network.autoencoder(), starts)
    torch.set_num_threads(1)
    print("\nms of processor time, medians")
    print("| model | latents | f | torch.func.jvp | J v | times less | difference |\n|---|---|---|---|---|---|---|")
    models = [fmprobe.demo_model(), network.autoencoder()]
    if options.model:
        encoder = fmprobe.load(options.model, image_size="fit", device="cpu")
        models.append(encoder.with_decoder(fmprobe.fit_decoder(encoder, kind="closed-form", n_images=256)))
    for model in models:
        for batch in (1, 8):
            time_products(model, batch, options.repeats)
    if options.overhead_steps:
        measure_overhead(dimension=197 * 384, batch=8, steps=options.overhead_steps)


if __name__ == "__main__":
    main()
