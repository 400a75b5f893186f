"""fmprobe memorization: are a model's attractors, found from noise, its training images?"""

from typing import Annotated

import typer

from fmprobe.cli import options as o

Data = Annotated[str, typer.Option(help="Training images, SOURCE[:split][#column].")]
Test = Annotated[str | None, typer.Option(help="Images it was not trained on: the null level, and the test error.")]
Images = Annotated[int, typer.Option("--images", min=1, help="At most so many of each, spread evenly.")]
UseEnds = Annotated[bool, typer.Option("--use-ends", help="Take where orbits are after the last step, settled or not.")]


def memorization(
    model: o.Model,
    data: Data,
    test: Test = None,
    images: Images = 1000,
    use_ends: UseEnds = False,
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
) -> None:
    """Hold a model's decoded attractors against its training images, beside what is as near without memory.

    The attractors are those of `probe` under the same options: what its run folder holds is not computed again.
    """
    from fmprobe.cli.memorization_run import run_memorization

    run_memorization(
        model,
        out,
        data=data,
        test=test,
        images=images,
        ends=use_ends,
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
