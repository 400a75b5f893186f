"""surrogate_report: how much of a finding is the surrogate's, and whether it is the weights' at all."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.nn import functional as F

from fmprobe.attractors import AttractorSet, find_attractors
from fmprobe.autoencoder import Autoencoder
from fmprobe.dynamics.checks import check_counts
from fmprobe.dynamics.distances import chamfer
from fmprobe.errors import InputError
from fmprobe.images import as_pixels
from fmprobe.inputs import ImagesLike
from fmprobe.surrogates.artefact import Surrogate
from fmprobe.surrogates.cache import cached_decoder
from fmprobe.surrogates.data import HELD_OUT, HELD_OUT_FIRST, procedural
from fmprobe.surrogates.features import AT_ONCE, in_blocks
from fmprobe.surrogates.fit import FitSettings, validate

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian (Wang et al. 2004)

Pairs = Mapping[str, tuple[Autoencoder, Surrogate]]


@dataclass(frozen=True)
class SurrogateReport:
    """What a surrogate adds to an encoder's findings.

    The null, the same architecture with random weights and a decoder of its own, is everywhere under "null".

    Attributes:
        fidelity: For each surrogate and each set of images: psnr (dB), ssim, l1, l1_median (of each image's own
            median) and feature_error.
        dynamics: For each surrogate: the number of starts, of those that converged, and of attractors.
        agreement: For each surrogate but the first, compared with the first on the same N(0, I) starts:
            `both_converged`, the number of starts; `rand`, the adjusted Rand index of their basins; `basins`, the share
            of the first's basins with a counterpart of Jaccard index above 1/2; `chamfer_pixels`, the mean distance of
            decoded attractors to the nearest of the other's, both ways, as a root mean square over pixels.
        settings: Settings of the first surrogate and of the search.
    """

    fidelity: dict[str, dict[str, dict[str, float]]]
    dynamics: dict[str, dict[str, Any]]
    agreement: dict[str, dict[str, float | None]]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        """Three tables."""
        lines = ["surrogate     images           PSNR   SSIM     L1  (median)  feature error"]
        for name, sets in self.fidelity.items():
            lines += [
                f"{name:12}  {images:14} {row['psnr']:6.2f}  {row['ssim']:5.3f}  {row['l1']:.3f}  "
                f"({row['l1_median']:.3f})   {row['feature_error']:.3f}"
                for images, row in sets.items()
            ]
        lines += ["", "surrogate     converged  attractors"]
        lines += [
            f"{name:12}  {row['converged']:3d} of {row['starts']:3d}  {row['attractors']}"
            for name, row in self.dynamics.items()
        ]
        lines += ["", "against the first  both converged  rand   basins  chamfer (RMS a pixel)"]
        lines += [
            f"{name:17}  {row['both_converged']:14.0f}  {_figure(row['rand'])}  {_figure(row['basins'])}  "
            f"{_figure(row['chamfer_pixels'])}"
            for name, row in self.agreement.items()
        ]
        return "\n".join(lines)


def surrogate_report(
    model: Autoencoder,
    *,
    images: Mapping[str, ImagesLike] | None = None,
    settings: FitSettings | None = None,
    n: int = 24,
    max_steps: int | None = None,
    seed: int | None = None,
    null: Autoencoder | None = None,
    progress: bool = True,
) -> SurrogateReport:
    """Compare surrogates that differ in seed, size and training data, and one fitted to a random-weight encoder.

    A finding that the null shows as well is not the weights'. One that changes with the surrogate is not the encoder's.
    Five surrogates are fitted, and the cache keeps them.

    Args:
        model: An encoder without a decoder.
        images: Named sets `(n, C, H, W)` in `[0, 1]` that no surrogate sees, beside held-out procedural images and
            dead leaves.
        settings: Settings of the first surrogate.
        n: Number of starts from N(0, I).
        max_steps: Step limit of an orbit. By default that of the paper's protocol for the model.
        seed: Seed of the fits and the starts. By default that of `settings`.
        null: By default the model's own architecture with random weights, loaded by its name.
        progress: Whether progress bars may be shown.

    Raises:
        InputError: If the model has a latent map already, the null cannot be made or has other shapes, a set of images
            is empty or does not fit, or `settings` have another kind or another `seed`.
        ValueError: If a number is below 1.
    """
    base = _checked_settings(model, images, settings, seed)
    if null is not None:
        check_null(null, model)
    rule = model.protocol.chosen(None, None, max_steps)
    check_counts(n=n, max_steps=rule["max_steps"])
    images = {name: model.take_images(block, f"images {name!r}") for name, block in (images or {}).items()}
    for name, block in images.items():
        if not len(block):
            raise InputError(f"there are no images in {name!r}: expected at least one")
    variants = {
        "first": base,
        "other seed": replace(base, seed=base.seed + 1),
        "other size": replace(base, size="tiny" if base.size != "tiny" else "small"),
        "other data": replace(base, mixture="leaves" if base.mixture != "leaves" else "all"),
    }
    null = null or random_twin(model)
    fits = [*((name, model, chosen) for name, chosen in variants.items()), ("null", null, base)]
    pairs = {name: (of, cached_decoder(of, chosen, progress=progress)[0]) for name, of, chosen in fits}
    sets = {
        "held out": procedural(model, HELD_OUT, HELD_OUT_FIRST, base.mixture, base.seed),
        "leaves": procedural(model, HELD_OUT, HELD_OUT_FIRST, "leaves", base.seed),
        **(images or {}),
    }
    fidelity = {name: {label: _fidelity(*pair, block) for label, block in sets.items()} for name, pair in pairs.items()}
    dynamics, agreement = _compared(pairs, model.sample_latents(n, base.seed), rule)
    settings_used = {**asdict(base), "n": n, **rule, "name": model.protocol.named(**rule)}
    return SurrogateReport(fidelity, dynamics, agreement, settings_used)


def _compared(
    pairs: Pairs, starts: Tensor, rule: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float | None]]]:
    """`dynamics` and `agreement` of a report, from the same starts."""
    found, pictures = {}, {}
    for name, (encoder, decoder) in pairs.items():
        whole = encoder.with_decoder(decoder)
        found[name] = find_attractors(whole, starts=starts, **rule, stability_cap=2, batch_size=AT_ONCE)
        pictures[name] = in_blocks(whole.decode, found[name].latents).flatten(1)
    dynamics = {
        name: {"starts": len(starts), "converged": a.orbits.counts()["converged"], "attractors": a.count}
        for name, a in found.items()
    }
    agreement = {
        name: {**_agreement(found["first"], a), "chamfer_pixels": _chamfer(pictures["first"], pictures[name])}
        for name, a in found.items()
        if name != "first"
    }
    return dynamics, agreement


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images `(B, C, H, W)` in `[0, 1]`, `(B,)`."""
    return -10 * (a - b).square().flatten(1).mean(1).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of images `(B, C, H, W)` in `[0, 1]`, `(B,)` (Wang et al. 2004, eq. 13, Gaussian window).

    The window shrinks to the image where that is smaller.
    """
    size = min(WINDOW, a.shape[-1] - (a.shape[-1] + 1) % 2)
    line = torch.arange(size, dtype=a.dtype, device=a.device) - size // 2
    line = (-line.square() / (2 * SIGMA**2)).exp()
    window = (line[:, None] * line / line.sum() ** 2).expand(a.shape[1], 1, -1, -1)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=x.shape[1])

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (similarity / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).flatten(1).mean(1)


def _checked_settings(model: Autoencoder, images: Any, settings: FitSettings | None, seed: int | None) -> FitSettings:
    """Settings of the first surrogate. Raises InputError where a report cannot be made of what was given."""
    if model.has_latent_map:
        raise InputError(f"{model.name} has a latent map already: there is no surrogate to report on")
    if images is not None and not isinstance(images, Mapping):
        raise InputError(f"images are a {type(images).__name__}: expected a dict of sets of images by name")
    if settings is not None and settings.kind != "pixel":
        raise InputError(f"settings are of kind {settings.kind!r}: the report compares decoders of kind 'pixel'")
    if settings is not None and seed is not None and seed != settings.seed != FitSettings.seed:
        raise InputError(f"seed={seed} and settings of seed {settings.seed}: give one of them")
    base = settings or FitSettings.for_device(model.device)
    return base if seed is None else replace(base, seed=seed)


def check_null(null: Autoencoder, model: Autoencoder) -> None:
    """Raise InputError where the null is no encoder of the model's shapes, before anything is fitted."""
    if null.has_latent_map:
        raise InputError(
            f"the null, {null.name}, has a latent map already: pass an encoder, which gets its own decoder"
        )
    if (null.image_shape, null.latent_shape) != (model.image_shape, model.latent_shape):
        raise InputError(
            f"the null, {null.name}, takes images {null.image_shape} to latents {null.latent_shape}, {model.name} "
            f"{model.image_shape} to {model.latent_shape}: pass one of the same architecture"
        )


def random_twin(model: Autoencoder) -> Autoencoder:
    """The model's architecture with random weights. Raises InputError where it cannot be loaded by its name."""
    from fmprobe.loading import load

    about = model.provenance
    try:
        return load(
            about["model"],
            revision=about.get("revision"),
            image_size=model.image_shape[-1],
            tokens=about.get("tokens"),
            device=model.device,
            dtype=about.get("dtype"),
            random_weights=0,
        )
    except (InputError, KeyError) as error:
        raise InputError(f"{model.name} cannot be loaded with random weights ({error}): pass null=") from error


def _fidelity(model: Autoencoder, decoder: Surrogate, images: Tensor) -> dict[str, float]:
    """`fidelity` of a surrogate on one set of images."""
    whole, pixels = model.with_decoder(decoder), as_pixels(images)
    painted = in_blocks(lambda x: whole.decode(whole.encode(x)), pixels)
    errors = validate(model, decoder, images)
    return {"psnr": float(psnr(painted, pixels).mean()), "ssim": float(ssim(painted, pixels).mean()), **errors}


def _agreement(first: AttractorSet, other: AttractorSet) -> dict[str, float | None]:
    """How far two sets of attractors of the same starts agree in their basins."""
    a, b = first.labels, other.labels
    both = (a >= 0) & (b >= 0)
    rand = float(adjusted_rand_score(a[both], b[both])) if int(both.sum()) > 1 else None
    basins = None
    if len(first):
        theirs = [b == k for k in range(len(other))]
        best = [max((_jaccard(a == k, basin) for basin in theirs), default=0.0) for k in range(len(first))]
        basins = sum(value > 0.5 for value in best) / len(best)
    return {"both_converged": float(both.sum()), "rand": rand, "basins": basins}


def _jaccard(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


def _chamfer(a: Tensor, b: Tensor) -> float | None:
    """Mean distance to the nearest of the other set, both ways, as a root mean square a pixel."""
    if not len(a) or not len(b):
        return None
    return chamfer(a, b, "euclidean") / a.shape[1] ** 0.5


def _figure(value: float | None) -> str:
    return "    –" if value is None else f"{value:5.3f}"
