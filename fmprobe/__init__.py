"""fmprobe: vision foundation models as dynamical systems.

The latent map f(z) = E(D(z)) of an autoencoder is iterated, and its trajectories end in attractors (Fumero, Moschella,
Rodolà, Locatello, ICLR 2026, arXiv 2505.22785).
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmprobe.attractors import AttractorSet, find_attractors
    from fmprobe.autoencoder import Autoencoder, from_functions
    from fmprobe.convolutional import ConvAutoencoder, DenseAutoencoder
    from fmprobe.dynamics.fields import Plane
    from fmprobe.dynamics.iterate import iterate
    from fmprobe.dynamics.lyapunov import lyapunov_exponents
    from fmprobe.dynamics.matching_pursuit import orthogonal_matching_pursuit
    from fmprobe.dynamics.orbits import Orbits, Status
    from fmprobe.dynamics.readings import read_orbits
    from fmprobe.errors import InputError
    from fmprobe.images import load_images
    from fmprobe.loading import demo_model, load
    from fmprobe.probes.alignment.comparison import compare
    from fmprobe.probes.capacity import probe_capacity
    from fmprobe.probes.contraction import probe_contraction
    from fmprobe.probes.convergence import probe_convergence
    from fmprobe.probes.field import vector_field
    from fmprobe.probes.memorization.coefficient import probe_memorization
    from fmprobe.probes.ood.detector import TrajectoryDetector
    from fmprobe.probes.ood.metrics import ood_metrics
    from fmprobe.probes.residuals import probe_residuals
    from fmprobe.probes.surrogate_report import surrogate_report
    from fmprobe.probes.training import AttractorTracker
    from fmprobe.probes.weights.curves import probe_weights
    from fmprobe.procedural import procedural_images
    from fmprobe.runs.folder import RunFolder
    from fmprobe.surrogates.fit import fit_decoder
    from fmprobe.surrogates.latent import LatentSurrogate
    from fmprobe.surrogates.pixel import PixelDecoder
    from fmprobe.training import train_autoencoder, train_autoencoders

__version__ = version("fmprobe")

# Names are resolved on first use, so that neither `import fmprobe` nor `fmprobe --help` imports torch.
_HOMES = {
    "AttractorTracker": "fmprobe.probes.training",
    "AttractorSet": "fmprobe.attractors",
    "Autoencoder": "fmprobe.autoencoder",
    "InputError": "fmprobe.errors",
    "find_attractors": "fmprobe.attractors",
    "ConvAutoencoder": "fmprobe.convolutional",
    "DenseAutoencoder": "fmprobe.convolutional",
    "train_autoencoder": "fmprobe.training",
    "train_autoencoders": "fmprobe.training",
    "load_images": "fmprobe.images",
    "fit_decoder": "fmprobe.surrogates.fit",
    "LatentSurrogate": "fmprobe.surrogates.latent",
    "PixelDecoder": "fmprobe.surrogates.pixel",
    "RunFolder": "fmprobe.runs.folder",
    "from_functions": "fmprobe.autoencoder",
    "Plane": "fmprobe.dynamics.fields",
    "vector_field": "fmprobe.probes.field",
    "iterate": "fmprobe.dynamics.iterate",
    "Orbits": "fmprobe.dynamics.orbits",
    "Status": "fmprobe.dynamics.orbits",
    "load": "fmprobe.loading",
    "demo_model": "fmprobe.loading",
    "lyapunov_exponents": "fmprobe.dynamics.lyapunov",
    "orthogonal_matching_pursuit": "fmprobe.dynamics.matching_pursuit",
    "read_orbits": "fmprobe.dynamics.readings",
    "compare": "fmprobe.probes.alignment.comparison",
    "probe_capacity": "fmprobe.probes.capacity",
    "probe_contraction": "fmprobe.probes.contraction",
    "probe_residuals": "fmprobe.probes.residuals",
    "probe_convergence": "fmprobe.probes.convergence",
    "probe_memorization": "fmprobe.probes.memorization.coefficient",
    "probe_weights": "fmprobe.probes.weights.curves",
    "ood_metrics": "fmprobe.probes.ood.metrics",
    "TrajectoryDetector": "fmprobe.probes.ood.detector",
    "procedural_images": "fmprobe.procedural",
    "surrogate_report": "fmprobe.probes.surrogate_report",
}

__all__ = [
    "AttractorSet",
    "AttractorTracker",
    "Autoencoder",
    "ConvAutoencoder",
    "DenseAutoencoder",
    "InputError",
    "LatentSurrogate",
    "Orbits",
    "PixelDecoder",
    "Plane",
    "RunFolder",
    "Status",
    "TrajectoryDetector",
    "compare",
    "demo_model",
    "find_attractors",
    "fit_decoder",
    "from_functions",
    "iterate",
    "load",
    "load_images",
    "lyapunov_exponents",
    "ood_metrics",
    "orthogonal_matching_pursuit",
    "probe_capacity",
    "probe_contraction",
    "probe_convergence",
    "probe_memorization",
    "probe_residuals",
    "probe_weights",
    "procedural_images",
    "read_orbits",
    "surrogate_report",
    "train_autoencoder",
    "train_autoencoders",
    "vector_field",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fmprobe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
