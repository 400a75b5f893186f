"""fmprobe probe: what a model's latent map does, from its name alone."""

from pathlib import Path

from fmprobe.cli import options as o


def probe(
    model: o.Model,
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
    device_map: o.DeviceMap = None,
    autocast: o.Autocast = None,
    compile: o.Compile = None,
    polish: o.Polish = None,
    deterministic: o.Deterministic = False,
    verbose: o.Verbose = False,
    resume: o.Resume = True,
) -> Path:
    """Find a model's attractors from noise starts and write a run folder with a report.

    An encoder without a decoder gets a surrogate, fitted on procedural images and kept in the cache.
    """
    from fmprobe.cli.session import run_prototypes

    return run_prototypes(
        model,
        out,
        load={
            "revision": revision,
            "decoder": decoder,
            "image_size": image_size,
            "tokens": tokens,
            "device": device,
            "dtype": dtype,
            "device_map": device_map,
            "autocast": autocast,
            "compile": compile,
            "deterministic": deterministic,
        },
        plan={
            "n": starts,
            "max_steps": max_steps,
            "tol": tol,
            "measure": measure,
            "merge": merge,
            "batch_size": batch_size,
            "polish": polish,
        },
        seed=seed,
        resume=resume,
        verbose=verbose,
    )
