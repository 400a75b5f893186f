"""Decoded attractors without a run folder."""

from typing import Any

import fmprobe
from fmprobe.probes.prototypes.found import Prototypes, prototypes_of


def prototypes(model: Any, n: int, **search: Any) -> Prototypes:
    """The decoded attractors of `n` starts, as a run of `fmprobe probe` finds them."""
    attractors = fmprobe.find_attractors(model, n, progress=False, **search)
    return prototypes_of(model, attractors, {"steps": [], "norms": []}, batch_size=search.get("batch_size", 32))
