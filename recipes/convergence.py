"""Compare the measured steps of orbits with the estimate of proposition A.9 (Fumero et al., ICLR 2026, fig. 11).

    python recipes/convergence.py                                      # scikit-learn's digits, half a minute
    python recipes/convergence.py --data ../shared/data                # MNIST
    python recipes/convergence.py --full                               # 60,000 images and 500 epochs, from the hub

The recipe trains the paper's convolutional autoencoder with k = 2. Its starts are drawn from U[-8, 8], as for figure 1,
and are also the encoded training images. It prints both correlations for two choices of rho at the attractor: the
spectral norm of the Jacobian, which is the paper's, and its spectral radius. `--out` keeps the points and plots.
"""

import torch
from _figures import save
from _shared import epochs_of, fill, loaded, parser_of, told, train, untrained

import fmprobe
from fmprobe.files import write_json
from fmprobe.probes.convergence import convergence_scatter
from fmprobe.seeding import seed_torch, torch_generator
from fmprobe.sharing import alone


@alone()
def main() -> None:
    parser = parser_of("convergence", __doc__, "Use all of MNIST from the hub, 500 epochs and width 32.")
    parser.add_argument("--k", type=int, default=2, help="Bottleneck.")
    parser.add_argument("--images", type=int, default=1000, help="Number of training images.")
    parser.add_argument("--steps", type=int, default=1500, help="Number of training steps.")
    parser.add_argument("--starts", type=int, default=200, help="Number of starts of each kind.")
    parser.add_argument("--eps", type=float, default=1e-2, help="Euclidean distance from the attractor to reach.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the weights, the training and the starts.")
    arguments = parser.parse_args()
    name = "mnist" if arguments.full or arguments.data else "digits"
    images, _ = loaded(name, arguments.data, None if arguments.full else arguments.images, 1)
    steps, width, rate = (234_500, 32, 5e-4) if arguments.full else (arguments.steps, 16, 1e-3)
    fill(arguments, {"width": width, "batch_size": 64, "learning_rate": rate})

    seed_torch(arguments.seed, "convergence recipe: weights")
    network = untrained(images, arguments)
    losses = train(network, images, arguments, epochs=epochs_of(steps, images, 64), seed=arguments.seed)
    model = network.requires_grad_(False).autoencoder()
    print(f"{name}: {len(images)} images, k = {arguments.k}, loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    draws = torch_generator(arguments.seed, "convergence recipe: uniform starts")
    starts = {
        "uniform": 16 * torch.rand(arguments.starts, arguments.k, generator=draws).to(model.device) - 8,
        "train": model.encode(images[: arguments.starts]),
    }
    about = told(arguments, images, name)
    print("| starts | attractors | rho | points | Pearson | Spearman | median measured / estimated | left out |")
    print("|" + "---|" * 8)
    for kind, latents in starts.items():
        entry = fmprobe.probe_convergence(model, starts=latents, eps=arguments.eps).to_dict()
        write_json(arguments.out / f"{kind}.json", entry)
        save(convergence_scatter(entry), arguments.out, kind, [*about, f"{len(latents)} starts, {kind}"])
        for rho, points in entry["estimates"].items():
            values = [points[key] for key in ("pearson", "spearman", "median_ratio")]
            cells = ["none" if value is None else f"{value:.3f}" for value in values]
            left = ", ".join(f"{count} {why}" for why, count in entry["left_out"][rho].items() if count) or "none"
            row = [kind, str(entry["attractors"]), rho.replace("_", " "), str(len(points["measured"])), *cells, left]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
