"""What the documents show works: every block of Python runs, and every command line is one that its command takes."""

import doctest
import re
import shlex
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from support.hub import Hub, asked_here
from support.surrogates import quick

import fmprobe
from fmprobe.cli import app

ROOT = Path(__file__).parents[1]
DEMO = Path(fmprobe.__file__).parent / "demo" / "vit-mae-digits"
PAGES = ROOT / ".docs" / "pages"
TEXTS = [ROOT / "README.md", ROOT / "recipes" / "README.md", *(PAGES / f"{n}.md" for n in ("tutorial", "how-to"))]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]


def blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def lines() -> list[tuple[str, str]]:
    """Every line of a document that calls fmprobe, without its comment."""
    called = re.compile(r"^    (?:.* -m )?(fmprobe [a-z].*?)(?:  +#.*)?$", re.MULTILINE)
    return [(path.stem, line) for path in TEXTS for line in called.findall(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("document", "line"), lines())
def test_every_command_of_a_document_is_taken(document, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/x").mkdir(parents=True)
    Path("runs/x/config.yaml").write_text("command: probe\nmodel: acme/base\n")
    _, command, *words = shlex.split(line)
    COMMANDS[command].make_context(command, words)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders of pictures, under the names that the documents use."""
    root = tmp_path_factory.mktemp("documents")
    noise = torch.randint(0, 256, (80, 28, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name in ("folder/of/pictures", "in-distribution"):
        (root / name).mkdir(parents=True)
        for i, values in enumerate(noise):
            Image.fromarray(values.numpy()).save(root / name / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def hub(tiny, written, tmp_path_factory):
    """A hub with models, a decoder and a run, as the lines on sharing find them."""
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(tiny("dinov2"), root / "models" / "acme" / "base")
    shutil.copytree(DEMO, root / "models" / "acme" / "digits")
    with Hub(root) as hub, asked_here(hub, tmp_path_factory.mktemp("cache")):
        quick(fmprobe.load("acme/base")).push_to_hub("acme/decoder")
        fmprobe.RunFolder(written("run")).push_to_hub("acme/run")
        yield hub


SHARED = {"TrajectoryDetector": "detector", "detector.": "detector", "PixelDecoder": "decoder"}


def shared(line: str) -> str:
    """A line on sharing with the repository of its kind."""
    name = next((name for word, name in SHARED.items() if word in line), "run")
    return line.replace("ORG/NAME", f"acme/{name}")


def test_the_python_of_the_readme_runs(pictures, hub, monkeypatch):
    """In the order of the text, with small models, no graphics card, and a folder for a data set of the hub."""
    monkeypatch.chdir(pictures)
    own = [block for block in blocks(ROOT / "README.md") if not block.startswith("# fmprobe_mean.py")]
    assert len(own) >= 5
    text = "\n".join(map(shared, "".join(own).splitlines()))
    for said, here in {
        '"facebook/vit-mae-base"': '"acme/digits"',
        '"ILSVRC/imagenet-1k:train", 512, streaming=True': '"in-distribution", 16',
        '"cuda"': '"cpu"',
        "n=256": "n=64",
        "probe_capacity(encoder)": "probe_capacity(encoder, [2, 6], n_images=24, starts=4, max_steps=10)",
        "lyapunov_exponents(model, starts)": "lyapunov_exponents(model, starts[:1], steps=20, burn_in=2)",
        "compare(model, other, images)": "compare(model, other, images[:12], max_steps=20)",
        "probe_contraction(model)": "probe_contraction(model, n=4, starts=2)",
        "probe_residuals(model)": "probe_residuals(model, n=4)",
        "probe_convergence(model)": "probe_convergence(model, n=8)",
        "(3, 64, 64), latent_shape=(32, 8, 8)": "(1, 4, 4), latent_shape=(16,)",
    }.items():
        assert said in text
        text = text.replace(said, here)
    model, noise = fmprobe.demo_model(), torch.Generator().manual_seed(1)
    encoder = fmprobe.load("acme/base")
    images = torch.rand(40, *model.image_shape, generator=noise)
    dictionary, targets = torch.randn(300, 8, generator=noise), torch.randn(3, 8, generator=noise)
    network = fmprobe.DenseAutoencoder(2, 4, (3, 16, 16))
    given = {
        "new": images[:4],
        "train": images[:20],
        "test": images[20:],
        "id_scores": torch.rand(20, generator=noise),
        "ood_scores": torch.rand(20, generator=noise),
        "dictionary": dictionary,
        "targets": targets,
        "other": model,
        "encoder": encoder,
        "starts": model.sample_latents(4, 0),
        "encode": lambda images: images.flatten(1) / 2,
        "decode": lambda latents: latents.unflatten(1, (1, 4, 4)),
        "f": model.latent_map,
    }
    exec(compile(text, "README.md", "exec"), {"epoch": 0, "network": network, **given})


def test_the_outputs_of_the_tutorial_are_true(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
    found = blocks(PAGES / "tutorial.md")
    assert len(found) >= 6
    for number, block in zip(count(1), found, strict=False):
        assert ">>>" in block
        test = parser.get_doctest(block, names, f"block {number}", "tutorial.md", 0)
        runner.run(test, clear_globs=False)
        names = test.globs  # the next block goes on with them
    assert runner.summarize(verbose=False).failed == 0


def test_the_python_of_the_how_to_page_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile("".join(blocks(PAGES / "how-to.md")), "how-to.md", "exec"), {})
