"""fmprobe probe: what a model's latent map does, from its name alone."""

from pathlib import Path
from typing import Any

from fmprobe.cli import options as o


@o.grouped(plan=o.PLAN, load=o.LOAD)
def probe(
    model: o.Model,
    out: o.Out = None,
    seed: o.Seed = 0,
    verbose: o.Verbose = False,
    resume: o.Resume = True,
    *,
    plan: dict[str, Any],
    load: dict[str, Any],
) -> Path:
    """Find a model's attractors from noise starts and write a run folder with a report.

    An encoder without a decoder gets a surrogate, fitted on procedural images and kept in the cache.
    """
    from fmprobe.cli.session import run_prototypes

    return run_prototypes(
        model,
        out,
        load=load,
        plan=plan,
        seed=seed,
        resume=resume,
        verbose=verbose,
    )
