"""fmprobe weights: do a model's attractors, found from noise, reconstruct images of data sets it is shown?"""

from pathlib import Path
from typing import Annotated

import typer

from fmprobe.cli import options as o

Data = Annotated[list[str], typer.Option(help="Images to reconstruct, SOURCE[:split][#column]; may be given again.")]
Atoms = Annotated[str | None, typer.Option(help="Numbers of atoms, as in 32,64,128. [default: powers of two]")]
Images = Annotated[int, typer.Option("--images", min=2, help="Images of each data set.")]
UseEnds = Annotated[bool, typer.Option("--use-ends", help="Take where orbits are after the last step, settled or not.")]
Null = Annotated[bool, typer.Option("--null/--no-null", help="Attractors of random weights as a baseline, or not.")]


def weights(
    model: o.Model,
    data: Data,
    atoms: Atoms = None,
    images: Images = 64,
    use_ends: UseEnds = False,
    null: Null = True,
    out: o.Out = None,
    starts: o.Starts = None,
    max_steps: o.MaxSteps = None,
    tol: o.Tol = None,
    measure: o.Measure = None,
    merge: o.Merge = None,
    batch_size: o.BatchSize = None,
    device: o.Device = "auto",
    dtype: o.Dtype = None,
    seed: o.Seed = 0,
    revision: o.Revision = None,
    decoder: o.Decoder = None,
    image_size: o.ImageSize = None,
    tokens: o.Tokens = None,
    resume: o.Resume = True,
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
        load={
            "revision": revision,
            "decoder": decoder,
            "image_size": image_size,
            "tokens": tokens,
            "device": device,
            "dtype": dtype,
        },
        plan={
            "n": starts,
            "max_steps": max_steps,
            "tol": tol,
            "measure": measure,
            "merge": merge,
            "batch_size": batch_size,
        },
        seed=seed,
        resume=resume,
    )
