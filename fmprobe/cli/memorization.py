"""fmprobe memorization: are a model's attractors, found from noise, its training images?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from fmprobe.cli import options as o

Data = Annotated[str, typer.Option(help="Training images, SOURCE[:split][#column].")]
Test = Annotated[str | None, typer.Option(help="Images it was not trained on: the null level, and the test error.")]
Images = Annotated[int, typer.Option("--images", min=1, help="At most so many of each, spread evenly.")]


@o.grouped(plan=o.PLAN, load=o.LOAD)
def memorization(
    model: o.Model,
    data: Data,
    test: Test = None,
    images: Images = 1000,
    use_ends: o.UseEnds = False,
    out: o.Out = None,
    seed: o.Seed = 0,
    verbose: o.Verbose = False,
    resume: o.Resume = True,
    *,
    plan: dict[str, Any],
    load: dict[str, Any],
) -> Path:
    """Hold a model's decoded attractors against its training images, beside what is as near without memory.

    The attractors are those of `probe` under the same options: what its run folder holds is not computed again.
    """
    from fmprobe.cli.memorization_run import run_memorization

    return run_memorization(
        model,
        out,
        data=data,
        test=test,
        images=images,
        ends=use_ends,
        load=load,
        plan=plan,
        seed=seed,
        resume=resume,
        verbose=verbose,
    )
