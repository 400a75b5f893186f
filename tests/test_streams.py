"""Everything random in fmprobe has a stream of its own: a law over the code, and what it is for."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fmprobe
from fmprobe import seeding
from fmprobe.autoencoder import from_functions
from fmprobe.probes.alignment.perturbation import perturbed
from fmprobe.probes.contraction import noise_images
from fmprobe.probes.weights.dictionaries import GAUSSIAN, random_basis

ROOT = Path(__file__).parents[1]
FILES = sorted(path for part in ("fmprobe", "adapters", "recipes") for path in (ROOT / part).rglob("*.py"))
# What takes a stream, and at which place.
TAKES = {"generator": 2, "normal_rows": 3, "torch_generator": 1, "torch_seed": 1, "seed_torch": 1}
TAKES |= {"batch.normal": 1, "batch.uniform": 1}  # of a surrogate's training
DRAWS = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "normal", "bernoulli", "multinomial"}
DRAWS |= {"poisson", "binomial"}
IN_PLACE = {"normal_", "uniform_", "bernoulli_", "random_", "exponential_", "geometric_", "log_normal_", "cauchy_"}
IN_PLACE |= {"trunc_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_", "orthogonal_"}
# What starts from random numbers of its own, unless it is given where to start.
HIDDEN = {
    "svd_lowrank",
    "pca_lowrank",
    "lobpcg",
    "svds",
    "eigs",
    "eigsh",
    "KMeans",
    "TSNE",
    "train_test_split",
    "resample",
}
GIVEN = ("generator=", "random_state=", "v0=")
SEEDS = {"manual_seed", "manual_seed_all", "seed", "default_rng", "RandomState", "Generator"}
STATE = {"getstate", "setstate", "get_state", "set_state"}
RANDOM_MODULES = ("random", "numpy.random", "secrets", "uuid")
# Functions that draw, or seed, without a stream, and why.
EXCEPTIONS = {
    "fmprobe/seeding.py": "makes the streams",
    "fmprobe/surrogates/bodies.py": "a module's weights, drawn as those of its layers are: under the caller's seed",
    "fmprobe/surrogates/training.py:initial_weights": "seeds the CPU's generator alone, by a stream",
    "fmprobe/modules.py:weights_drawn": "seeds the CPU's generator alone, by a stream",
    "fmprobe/fingerprint.py": "tells processes apart, and decides no number",
    "fmprobe/files.py": "the name of a file that is not yet whole",
    "fmprobe/nodes.py:_marked": "the name of a file that no other folder holds",
    "fmprobe/images.py:_digits": "a fixed split, which decided what the demo model learned",
    "recipes/train_demo_model.py": "made the demo model that fmprobe ships, and is to make it again",
}


def functions(tree: ast.AST, name: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Every node, with the outermost function or class that holds it."""
    for child in ast.iter_child_nodes(tree):
        held = name or getattr(child, "name", "") if isinstance(child, DEFINITIONS) else name
        yield held, child
        yield from functions(child, held)


DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def called(node: ast.AST) -> str | None:
    """The last name of what a call calls; of a batch's methods the whole."""
    if not isinstance(node, ast.Call):
        return None
    whole = ast.unparse(node.func)
    return whole if whole.startswith("batch.") else whole.rsplit(".", 1)[-1]


def stream_of(call: ast.Call) -> ast.expr | None:
    """What stands where a stream is expected."""
    named = [keyword.value for keyword in call.keywords if keyword.arg == "stream"]
    place = TAKES[str(called(call))]
    return named[0] if named else call.args[place] if len(call.args) > place else None


def streams(path: Path) -> Iterator[tuple[str, str | None, int]]:
    """Function, stream (None: not said by name) and line of every call that takes one."""
    for function, node in functions(ast.parse(path.read_text())):
        if called(node) not in TAKES:
            continue
        given = stream_of(node)  # type: ignore[arg-type]
        if isinstance(given, ast.Constant) and isinstance(given.value, str):
            yield function, given.value, node.lineno  # type: ignore[attr-defined]
        elif isinstance(given, ast.Name) and given.id.isupper():
            yield function, getattr(seeding, given.id, None), node.lineno  # type: ignore[attr-defined]
        elif isinstance(given, ast.Attribute | ast.Name) and "stream" in ast.unparse(given):
            continue  # handed on; the name is looked for where it was given
        elif given is not None:
            yield function, None, node.lineno  # type: ignore[attr-defined]


def excused(path: Path, function: str) -> bool:
    name = path.relative_to(ROOT).as_posix()
    return any(f"{name}:{function}".startswith(known) for known in EXCEPTIONS)


def test_no_two_places_share_a_stream():
    users = defaultdict(set)
    for path in FILES:
        for function, stream, line in streams(path):
            assert stream is not None or excused(path, function), f"{path}:{line}: name the stream by a string"
            users[stream].add(f"{path.relative_to(ROOT)}:{line}:{function}")
    users.pop(None, None)
    assert len(users) > 20, "the calls were found"
    assert {stream: who for stream, who in users.items() if len(who) > 1} == {}


def drawn_without_a_stream(tree: ast.AST) -> Iterator[tuple[str, int, str]]:
    """Function, line and text of what draws from no generator that is given, seeds, or brings in what does."""
    for function, node in functions(tree):
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            brought = node.module in RANDOM_MODULES or (node.module == "torch" and names & (DRAWS | SEEDS))
            if brought:
                yield function, node.lineno, ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        name, text, whole = str(called(node)), ast.unparse(node.func), ast.unparse(node)
        unseeded = not any(given in whole for given in GIVEN)
        draws = (name in DRAWS and text.startswith("torch.")) or name in IN_PLACE or name in HIDDEN
        seeds = name in SEEDS and not text.startswith("self.")
        other = text.startswith(("np.random.", "numpy.random.", "random.", "secrets.", "uuid.")) and name not in STATE
        if (draws and unseeded) or seeds or other:
            yield function, node.lineno, text


def test_a_seed_of_numpy_is_the_number_that_it_is():
    for kind in (np.int64, np.int32, np.uint8):
        seed: Any = kind(7)
        assert np.array_equal(seeding.normal_rows(2, 3, seed, "a"), seeding.normal_rows(2, 3, 7, "a"))


def test_nothing_draws_without_a_stream():
    """Where something is drawn, it is from a generator that a stream made; where something is seeded, by a stream."""
    found = [
        f"{path.relative_to(ROOT)}:{line} {text}"
        for path in FILES
        for function, line, text in drawn_without_a_stream(ast.parse(path.read_text()))
        if not excused(path, function)
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.randn(3)",
        "torch.manual_seed(0)",
        "torch.Generator().manual_seed(0)",
        "weight.normal_()",
        "nn.init.normal_(weight)",
        "np.random.default_rng(0)",
        "np.random.rand(3)",
        "random.shuffle(rows)",
        "from random import shuffle",
        "from numpy.random import default_rng",
        "from torch import randn",
        "torch.svd_lowrank(x)",
        "scipy.sparse.linalg.svds(x, 3)",
    ],
)
def test_the_law_sees_every_way_of_drawing(line):
    assert list(drawn_without_a_stream(ast.parse(line)))


@pytest.mark.parametrize(
    "line", ["torch.randn(3, generator=g)", "rng.normal(3)", "svds(x, 3, v0=start)", "np.random.get_state()"]
)
def test_the_law_lets_pass_what_is_given_its_numbers(line):
    assert not list(drawn_without_a_stream(ast.parse(line)))


def test_every_exception_is_needed():
    for place in EXCEPTIONS:
        path, _, function = place.partition(":")
        sources = [file for file in FILES if file.relative_to(ROOT).as_posix().startswith(path)]
        found = [held for file in sources for held, _, _ in drawn_without_a_stream(ast.parse(file.read_text()))]
        assert any(held.startswith(function) for held in found), place


# What it is for. Independent vectors of d numbers have a cosine of deviation 1/sqrt(d), so 5 of them are never met.


def outside(rows: torch.Tensor, others: torch.Tensor) -> float:
    """Share of the rows' squared norm outside the span of others: 1 - n/d in the mean where they are independent."""
    basis = torch.linalg.qr(others.T.double())[0]
    rows = rows.double()
    return float((rows - rows @ basis @ basis.T).square().sum() / rows.square().sum())


def independent(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = a.flatten().double(), b.flatten().double()
    a, b = a - a.mean(), b - b.mean()
    return abs(float(a @ b / (a.norm() * b.norm()))) < 5 / len(a) ** 0.5


@pytest.fixture(scope="module")
def model():
    return from_functions(lambda x: x.flatten(1), lambda z: z.reshape(-1, 3, 16, 16), **SHAPES)


SHAPES = {"image_shape": (3, 16, 16), "latent_shape": (768,)}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("others", range(3))
def test_the_random_basis_lies_outside_the_span_of_the_starts(model, seed, others):
    n, d = 48, 768
    share = outside(random_basis(n, d, seed), model.sample_latents(n, seed=others))
    assert share == pytest.approx(1 - n / d, abs=5 * (2 * n / d / d) ** 0.5 + 0.01)


@pytest.mark.parametrize("seed", range(4))
def test_what_stands_beside_the_starts_is_independent_of_them(model, seed):
    found = fmprobe.find_attractors(lambda z: 0.5 * z + z.sign(), starts=model.sample_latents(8, seed), stability_cap=0)
    from fmprobe.probes.memorization.coefficient import _noise_images
    from fmprobe.probes.ood.controls import control_images
    from fmprobe.probes.weights.dictionaries import make_dictionaries

    made = make_dictionaries(model, found, ends=False, seed=seed, null_attractors=None, reference=None).atoms
    starts, n = model.sample_latents(8, seed), len(found)
    assert independent(made[GAUSSIAN], starts[:n])
    assert independent(made[GAUSSIAN], random_basis(n, 768, seed))
    (inputs,) = noise_images(8, (3, 16, 16), seed, 8)
    noise = _noise_images(model, seed)[:8]
    controls = control_images(torch.full((8, 3, 16, 16), 0.5), seed)
    assert independent(inputs, starts)
    assert independent(noise, starts)
    assert independent(controls["noise"], starts)
    assert independent(controls["noise"], noise)


@pytest.mark.parametrize("seed", range(4))
def test_weight_noise_is_independent_of_weights_that_torch_drew_under_the_same_seed(seed):
    torch.manual_seed(seed)
    layer = nn.Linear(40, 50, bias=False)
    with torch.no_grad():
        layer.weight.normal_(generator=torch.Generator().manual_seed(seed))
    noise = perturbed(layer, 0.01, seed).weight - layer.weight
    assert independent(noise.detach(), layer.weight.detach())


def test_weight_noise_does_not_depend_on_how_tensors_are_shared_out():
    from fmprobe.probes.alignment.perturbation import perturb

    tensors = {"a": torch.ones(3, 4), "b": torch.ones(3, 4)}
    whole = perturb(tensors)
    assert torch.equal(whole["b"], perturb({"b": tensors["b"]})["b"])
    assert not torch.equal(whole["a"], whole["b"])


@pytest.mark.parametrize("seed", range(3))
def test_random_weights_are_not_those_that_torch_draws_under_the_same_seed(seed):
    """Else a null is what the model was trained from, wherever its training began with torch.manual_seed(seed)."""
    from importlib.resources import files

    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    folder = str(files("fmprobe.demo") / "vit-mae-digits")
    null = fmprobe.load(folder, random_weights=seed, device="cpu")
    torch.manual_seed(seed)
    from transformers import ViTImageProcessor

    begun = fmprobe.load(
        ViTMAEForPreTraining(ViTMAEConfig.from_pretrained(folder)).eval(),
        processor=ViTImageProcessor.from_pretrained(folder),
        device="cpu",
    )
    z = null.sample_latents(8)
    with torch.no_grad():
        assert (null.decode(z) - begun.decode(z)).abs().max() > 0.01
        again = fmprobe.load(folder, random_weights=seed, device="cpu")
        assert torch.equal(null.decode(z), again.decode(z))


def test_the_order_of_the_images_does_not_depend_on_the_noise_that_is_drawn():
    """The variants of an autoencoder see the same batches, so that they differ by what they are."""
    seen: dict[str, list] = {}
    for variant in ("plain", "denoising", "masked"):

        class Recording(fmprobe.ConvAutoencoder):
            def loss(self, images, generator):
                seen.setdefault(self.variant, []).append(images[:, 0, 0, 0].clone())
                return super().loss(images, generator)

        network = Recording(2, 2, (1, 16, 16), variant=variant)
        images = torch.linspace(0, 1, 10)[:, None, None, None].expand(-1, 1, 16, 16).clone()
        fmprobe.train_autoencoder(network, images, epochs=3, batch_size=4, progress=False)
    for variant in ("denoising", "masked"):
        assert all(torch.equal(a, b) for a, b in zip(seen["plain"], seen[variant], strict=True))
    assert not torch.equal(torch.cat(seen["plain"][:3]), torch.cat(seen["plain"][3:6]))
