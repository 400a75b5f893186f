"""load: from a name to a model, or to one clear line."""

import json
import shutil

import pytest
import torch

import fmprobe


def test_the_registry_lists_families_without_a_model_library():
    import subprocess
    import sys

    script = (
        "import sys; from fmprobe.loading import adapters; print(sorted(adapters()));"
        "print([m for m in ('torch', 'transformers', 'timm', 'diffusers', 'datasets') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "dinov2" in out
    assert "mae" in out
    assert out.splitlines()[1] == "[]"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such-model", "neither a folder nor a hub id"),
        ("acme/not-cached", "not in the local cache"),
        ("a/b/c", "neither a folder nor a hub id"),
        (3, "expected a hub id"),
    ],
)
def test_a_name_that_leads_nowhere(name, message):
    with pytest.raises(fmprobe.InputError, match=message):
        fmprobe.load(name)


def test_a_folder_without_config(tmp_path):
    with pytest.raises(fmprobe.InputError, match=r"holds no config\.json"):
        fmprobe.load(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_broken_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(fmprobe.InputError, match=r"config\.json of"):
        fmprobe.load(tmp_path)


def test_an_unknown_family_lists_what_is_there(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov"}))
    with pytest.raises(fmprobe.InputError, match=r"did you mean dinov2.*vit_mae"):
        fmprobe.load(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "pickle only", "no processor"])
def test_damaged_checkpoints(tiny_mae, tmp_path, damage):
    folder = shutil.copytree(tiny_mae, tmp_path / "m")
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "pickle only":
        weights.unlink()
        torch.save({}, folder / "pytorch_model.bin")
    else:
        (folder / "preprocessor_config.json").unlink()
    with pytest.raises(fmprobe.InputError) as raised:
        fmprobe.load(folder)
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize(("keyword", "value"), [("device", "abacus"), ("dtype", "int3"), ("image_size", -4)])
def test_settings_that_make_no_sense(tiny_mae, keyword, value):
    with pytest.raises(fmprobe.InputError, match=str(value)):
        fmprobe.load(tiny_mae, **{keyword: value})


def test_the_fingerprint_is_that_of_the_content(tiny_mae, tmp_path):
    copy = shutil.copytree(tiny_mae, tmp_path / "copy")
    same = fmprobe.load(copy).provenance["fingerprint"]
    assert same == fmprobe.load(tiny_mae).provenance["fingerprint"]
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    assert fmprobe.load(copy).provenance["fingerprint"] != same


def test_an_adapter_of_another_package_is_found(tmp_path):
    """The README's "Add a model", as a package of its own: one file and one entry point."""
    import os
    import re
    import subprocess
    import sys
    from pathlib import Path

    readme = (Path(__file__).parents[1] / "README.md").read_text()
    source = re.search(r"```python\n(# fmprobe_mean\.py\n.*?)```", readme, re.DOTALL)
    assert source is not None
    (tmp_path / "fmprobe_mean.py").write_text(source[1])
    about = tmp_path / "fmprobe_mean-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fmprobe-mean\nVersion: 1.0\n")
    entry = re.search(r'^(mean = "(fmprobe_mean:\w+)")$', readme, re.MULTILINE)
    assert entry is not None
    (about / "entry_points.txt").write_text(f"[fmprobe.adapters]\nmean = {entry[2]}\n")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "mean-colour", "side": 8}')
    from safetensors.torch import save_file

    save_file({"gain": torch.tensor([2.0, 3.0, 4.0])}, model / "model.safetensors")
    script = (
        "import sys, torch, fmprobe; m = fmprobe.load(sys.argv[1]); print(m.provenance['family'], "
        "m.encode(torch.full((1, 3, 8, 8), 0.5)).tolist(), m.latent_map(torch.ones(1, 3)).tolist())"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    listed, done = (
        subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, check=False)
        for command in (["-m", "fmprobe", "models"], ["-c", script, str(model)])
    )
    assert (listed.returncode, done.returncode) == (0, 0), listed.stderr + done.stderr
    assert "mean" in listed.stdout
    family, *values = done.stdout.replace("[", "").replace("]", "").replace(",", "").split()
    assert family == "mean"
    assert [float(value) for value in values] == pytest.approx([1.0, 1.5, 2.0, 1.0, 1.0, 1.0], rel=1e-6)


def test_a_missing_extra_names_the_command(tiny, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "diffusers" else found(name))
    with pytest.raises(fmprobe.InputError, match=r'pip install "fmprobe\[diffusers\]"'):
        fmprobe.load(tiny("kl"))
