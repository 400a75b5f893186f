"""fmprobe demo: the main job on the embedded model, offline."""

from pathlib import Path

from fmprobe.runs import options as o


def demo(out: o.Out = None, seed: o.Seed = 0, resume: o.Resume = True) -> Path:
    """Probe the embedded model, offline, in under 90 seconds.

    It is a small ViT-MAE that was trained on 30 of scikit-learn's digits, with which its attractors are compared.

    Example: fmprobe demo -o runs/digits
    """
    from importlib.resources import as_file, files

    from fmprobe.demo import training_digits
    from fmprobe.probes.memorization import compare_once
    from fmprobe.probes.prototypes import open_prototypes

    options = {"out": out or Path("runs/demo"), "seed": seed, "resume": resume, "verbose": False}
    plan, load = o.defaults(o.PLAN) | {"n": 64}, o.defaults(o.LOAD) | {"device": "cpu"}
    with (
        as_file(files("fmprobe.demo") / "vit-mae-digits") as folder,
        open_prototypes(str(folder), options, plan, load) as (run, model),
    ):
        sources = {"train": "30 digits of scikit-learn"}
        compare_once(run, model, {"train": training_digits()[0]}, sources, sources, ends=False, seed=seed)
        return run.finish()
