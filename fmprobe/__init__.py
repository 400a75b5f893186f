"""fmprobe: vision foundation models as dynamical systems.

The latent map f(z) = E(D(z)) of an autoencoder is iterated; where its trajectories end are the attractors
(Fumero, Moschella, Rodolà, Locatello, ICLR 2026, arXiv 2505.22785).
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmprobe.autoencoder import Autoencoder, from_functions
    from fmprobe.errors import InputError
    from fmprobe.loading import load
    from fmprobe.surrogates.fit import fit_decoder
    from fmprobe.surrogates.procedural import procedural_images

__version__ = version("fmprobe")

# Names are resolved on first use, so that `import fmprobe` and the command line's help do not import torch.
_HOMES = {
    "Autoencoder": "fmprobe.autoencoder",
    "InputError": "fmprobe.errors",
    "fit_decoder": "fmprobe.surrogates.fit",
    "from_functions": "fmprobe.autoencoder",
    "load": "fmprobe.loading",
    "procedural_images": "fmprobe.surrogates.procedural",
}

__all__ = [
    "Autoencoder",
    "InputError",
    "fit_decoder",
    "from_functions",
    "load",
    "procedural_images",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fmprobe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
