"""fmprobe demo: the main job on the embedded model, offline."""

from pathlib import Path

from fmprobe.cli import options as o


def demo(out: o.Out = None, seed: o.Seed = 0, resume: o.Resume = True) -> Path:
    """Probe the embedded model, a small ViT-MAE trained on scikit-learn's digits: offline, in under 90 seconds."""
    from importlib.resources import as_file, files

    from fmprobe.cli.session import run_prototypes

    with as_file(files("fmprobe.demo") / "vit-mae-digits") as folder:
        load, plan = o.defaults(o.LOAD) | {"device": "cpu"}, o.defaults(o.PLAN) | {"n": 64}
        return run_prototypes(str(folder), out or Path("runs/demo"), load=load, plan=plan, seed=seed, resume=resume)
