"""fmprobe demo: the main job on the embedded model, offline."""

from pathlib import Path

from fmprobe.runs import options as o


def demo(out: o.Out = None, seed: o.Seed = 0, resume: o.Resume = True) -> Path:
    """Probe the embedded model, offline, in under 90 seconds.

    It is a small ViT-MAE that was trained on scikit-learn's digits.

    Example: fmprobe demo -o runs/digits
    """
    from importlib.resources import as_file, files

    from fmprobe.probes.prototypes import open_prototypes

    options = {"out": out or Path("runs/demo"), "seed": seed, "resume": resume, "verbose": False}
    plan, load = o.defaults(o.PLAN) | {"n": 64}, o.defaults(o.LOAD) | {"device": "cpu"}
    with (
        as_file(files("fmprobe.demo") / "vit-mae-digits") as folder,
        open_prototypes(str(folder), options, plan, load) as (run, _),
    ):
        return run.finish()
