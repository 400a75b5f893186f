"""fmprobe weights: do a model's attractors, found from noise, reconstruct images of data sets it is shown?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from fmprobe.cli import options as o

Data = Annotated[list[str], typer.Option(help="Images to reconstruct, SOURCE[:split][#column]; may be given again.")]
Atoms = Annotated[str | None, typer.Option(help="Numbers of atoms, as in 32,64,128. [default: powers of two]")]
Images = Annotated[int, typer.Option("--images", min=2, help="Images of each data set.")]
Null = Annotated[bool, typer.Option("--null/--no-null", help="Attractors of random weights as a baseline, or not.")]


@o.grouped(plan=o.PLAN, load=o.LOAD)
def weights(
    model: o.Model,
    data: Data,
    atoms: Atoms = None,
    images: Images = 64,
    use_ends: o.UseEnds = False,
    null: Null = True,
    out: o.Out = None,
    seed: o.Seed = 0,
    verbose: o.Verbose = False,
    resume: o.Resume = True,
    *,
    plan: dict[str, Any],
    load: dict[str, Any],
) -> Path:
    """Reconstruct images from a model's attractors by matching pursuit, against bases of chance and of data.

    The attractors are those of `probe` under the same options: what its run folder holds is not computed again.
    """
    from fmprobe.cli.weights_run import run_weights

    return run_weights(
        model,
        out,
        data=data,
        atoms=atoms,
        images=images,
        ends=use_ends,
        null=null,
        load=load,
        plan=plan,
        seed=seed,
        resume=resume,
        verbose=verbose,
    )
