"""The dictionaries that weight probing compares: what the weights hold, and what chance, starts or data would give."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fmprobe.attractors import AttractorSet
from fmprobe.autoencoder import Autoencoder
from fmprobe.dynamics.distances import Dissimilarity
from fmprobe.dynamics.merging import single_linkage
from fmprobe.dynamics.orbits import Status
from fmprobe.errors import InputError
from fmprobe.seeding import generator, normal_rows

BASIS, GAUSSIAN, STARTS, PCA, NULL = "random basis", "Gaussian", "noise starts", "PCA of images", "random weights"


@dataclass(frozen=True)
class Dictionaries:
    """Atoms `(n, d)` by name, first those of the model; `absent`: why a baseline is missing, by name."""

    atoms: dict[str, Tensor]
    absent: dict[str, str]

    @property
    def subject(self) -> str:
        """What the model's own atoms are: "attractors", or "ends after T steps"."""
        return next(iter(self.atoms))


def make_dictionaries(
    model: Autoencoder,
    attractors: AttractorSet,
    *,
    ends: bool,
    seed: int,
    null_attractors: AttractorSet | None,
    reference: Tensor | None,
) -> Dictionaries:
    """The model's atoms, cut to at most d, and baselines of as many: equal counts make the comparison fair.

    `reference`: encoded images `(r, d)` for the principal components. Raises InputError where there are no atoms, they
    lie in another space, or their starts were drawn by another seed.
    """
    attractors.check_space(model)
    check_seed_of(attractors, seed)
    if null_attractors is not None:
        null_attractors.check_space(model, "the null's attractors")
    atoms, origins = atoms_of(attractors, ends)
    atoms, origins = atoms[: atoms.shape[1]], origins[: atoms.shape[1]]
    n, d = atoms.shape
    if not n:
        raise InputError(
            f"none of {len(attractors.orbits)} orbits of {model.name} "
            + ("stayed finite" if ends else "settled, so there is no attractor to take as an atom: ")
            + ("" if ends else "allow more steps, or take the ends after the last step (ends=True, --use-ends)")
        )
    subject = f"ends after {attractors.orbits.protocol['max_steps']} steps" if ends else "attractors"
    made = {subject: atoms, BASIS: random_basis(n, d, seed).to(atoms)}
    gaussian = torch.from_numpy(normal_rows(n, d, seed, "weights: Gaussian atoms")).to(atoms)
    made[GAUSSIAN] = gaussian * (atoms.norm(dim=1) / gaussian.norm(dim=1))[:, None]
    made[STARTS] = torch.cat([model.sample_latents(1, seed, first=i) for i in origins]).flatten(1).to(atoms)
    absent = {}
    if null_attractors is None:
        absent[NULL] = "no attractors of the same architecture with random weights were given"
    else:
        null = atoms_of(null_attractors, ends)[0][:n].to(atoms)
        if len(null):
            made[NULL] = null
        else:
            absent[NULL] = f"none of {len(null_attractors.orbits)} orbits settled under random weights"
    if reference is None or not len(reference):
        absent[PCA] = "no images beside those that are reconstructed"
    else:
        made[PCA] = principal_directions(reference, n).to(atoms)
    return Dictionaries(made, absent)


def check_seed_of(attractors: AttractorSet, seed: int) -> None:
    """Raise InputError where the starts of a search are known to be those of another seed than `seed`."""
    if (drawn := attractors.orbits.protocol.get("seed", seed)) != seed:
        raise InputError(f"the attractors were found from starts of seed {drawn}, and seed={seed}: pass seed={drawn}")


def atoms_of(attractors: AttractorSet, ends: bool) -> tuple[Tensor, list[int]]:
    """Distinct attractors `(m, d)`, or distinct ends of all orbits that stayed finite, and a start that led to each."""
    if not ends:
        lowest = [int((attractors.labels == i).nonzero()[0, 0]) for i in range(len(attractors))]
        return attractors.latents.flatten(1), lowest
    orbits, merge = attractors.orbits, attractors.merge
    finite = (orbits.status != Status.DIVERGED).nonzero()[:, 0]
    points = orbits.ends[finite].flatten(1)
    linkage = single_linkage(Dissimilarity(points, merge["measure"], merge["scale"]))
    components = linkage.components(merge["threshold"]).tolist()
    first = [components.index(component) for component in range(max(components, default=-1) + 1)]
    return points[first], finite[first].tolist()


def random_basis(n: int, d: int, seed: int) -> Tensor:
    """n orthonormal directions `(n, d)`, uniformly random (Fumero et al., ICLR 2026, sec. 4: the paper's baseline)."""
    columns, triangle = torch.linalg.qr(torch.from_numpy(normal_rows(n, d, seed, "weights: random basis")).T)
    return (columns * triangle.diagonal().sign()).T


def principal_directions(latents: Tensor, n: int) -> Tensor:
    """At most n directions `(<= n, d)`: the mean, then the principal components orthogonal to it.

    The mean is an atom because a sparse code has no intercept.
    """
    mean = latents.mean(0)
    mean = mean / mean.norm().clamp(min=torch.finfo(latents.dtype).tiny)
    rest = latents - (latents @ mean)[:, None] * mean
    _, values, directions = torch.linalg.svd(rest, full_matrices=False)
    kept = directions[values > values.max() * max(rest.shape) * torch.finfo(rest.dtype).eps]
    return torch.cat([mean[None], kept])[:n]


def effective_rank(atoms: Tensor) -> float:
    """exp of the entropy of the unit atoms' singular values, normalised to sum 1 (Roy & Vetterli 2007)."""
    units = torch.nn.functional.normalize(atoms.double(), dim=1)
    values = torch.linalg.eigvalsh(units @ units.T).clamp(min=0).sqrt()
    shares = values[values > 0] / values.sum()
    return float((-(shares * shares.log()).sum()).exp())


def bootstrap(values: Mapping[str, np.ndarray], resamples: int, seed: int) -> dict[str, dict[str, float]]:
    """Mean and 95% percentile interval over images of each series, on the same resamples."""
    count = len(next(iter(values.values())))
    draws = generator(seed, 0, "weights: bootstrap").integers(count, size=(resamples, count))
    summary = {}
    for name, series in values.items():
        low, high = np.quantile(series[draws].mean(1), (0.025, 0.975))
        summary[name] = {"mean": float(series.mean()), "low": float(low), "high": float(high)}
    return summary
