"""The diagram over capacity: a linear encoder, whose exponents are known, and the rules by which a diagram is read."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.surrogates import tiny_encoder
from typer.testing import CliRunner

import fmprobe
from fmprobe.autoencoder import Autoencoder
from fmprobe.cli import app
from fmprobe.errors import InputError
from fmprobe.probes.capacity.diagram import Agreement, Point, agreement_of
from fmprobe.probes.capacity.reading import read_capacity

QUICK = {"n_images": 40, "starts": 6, "max_steps": 30, "progress": False}


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder()


@pytest.fixture(scope="module")
def found(encoder):
    return fmprobe.probe_capacity(encoder, [2, 8], null=tiny_encoder(seed=1), **QUICK)


def test_a_point_for_each_set_and_k_and_one_with_all_features(found):
    assert [(point.set, point.k, point.form) for point in found.points] == [
        (name, k, form)
        for name in ("A", "B", "null")
        for k, form in ((2, "bottleneck"), (8, "bottleneck"), (384, "ridge"))
    ]
    assert [one.k for one in found.agreements] == [2, 8]
    assert {point.l1_median for point in found.points if point.set == "A"} == {found.points[0].l1_median}
    ridge = [point.l1 for point in found.points if point.form == "ridge"]
    assert max(ridge[:2]) < min(point.l1 for point in found.points if point.form == "bottleneck")


def radius(model: Any, at: torch.Tensor) -> float:
    """The spectral radius of the latent map's Jacobian at a latent."""
    jacobian = torch.func.jacrev(lambda z: model.latent_map(z[None])[0].flatten())(at).reshape(at.numel(), -1)
    return float(np.abs(np.linalg.eigvals(jacobian.double().numpy())).max())


def test_the_exponents_of_a_linear_encoder_are_those_of_its_map():
    """E copies pixels, so that f is linear, and its exponent the logarithm of its spectral radius."""
    model = Autoencoder(
        lambda x: x.flatten(1), None, image_shape=(3, 8, 8), latent_shape=(192,), provenance={"model": "copy"}
    )
    found = fmprobe.probe_capacity(model, [3, 12], null=False, **QUICK)
    for point in found.points:
        exact = math.log(radius(found.models[point.set, point.k][0], torch.zeros(point.k)))
        assert point.exponent == pytest.approx(exact, abs=0.02)
    assert found.reading.of_the_encoder is None


def test_where_orbits_settle_the_exponent_is_that_of_the_attractor():
    mix = torch.randn(192, 40, generator=torch.Generator().manual_seed(0)) / 8
    model = Autoencoder(
        lambda x: torch.tanh(x.flatten(1) @ mix), None, image_shape=(3, 8, 8), latent_shape=(40,), provenance={}
    )
    found = fmprobe.probe_capacity(model, [2, 4, 8], null=False, **{**QUICK, "max_steps": 300})
    alone = [point for point in found.points if point.settled == point.starts and point.attractors == 1]
    assert alone
    for point in alone:
        whole, attractors = found.models[point.set, point.k]
        assert point.exponent == pytest.approx(math.log(radius(whole, attractors.latents[0])), abs=0.02)
        assert point.regime == "settled"


def test_the_sets_are_disjoint_and_the_result_is_decided_by_the_seed(encoder, found):
    again = fmprobe.probe_capacity(encoder, [8, 2, 2], null=tiny_encoder(seed=1), **QUICK)
    assert again.entries() == found.entries()
    parts = fmprobe.probe_capacity(encoder, [2, 8], null=False, batch_size=4, **QUICK)
    for one, other in zip(found.points[:6], parts.points, strict=True):
        assert (one.settled, one.attractors, one.regime) == (other.settled, other.attractors, other.regime)
    other = fmprobe.probe_capacity(encoder, [2], null=False, **QUICK, seed=3)
    assert other.points[0].exponent != found.points[0].exponent
    a, b = (found.models[name, 8][0].surrogate for name in "AB")
    assert not torch.equal(a.weight, b.weight)


def test_a_surrogate_agrees_with_itself(found):
    whole = found.models["A", 2]
    one = agreement_of(2, whole, whole)
    assert one.matched == one.of == whole[1].count
    assert one.correlation == pytest.approx(1)


def test_a_result_shows_itself_and_is_json(found):
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.reading.sentence.partition("'")[0] in found._repr_html_()
    assert found.plot().axes


def point(name: str, k: int = 384, form: str = "ridge", **changes: Any) -> Point:
    settled = Point(k, form, name, 10, 10, 1, -0.5, (-0.6, -0.4), None, "settled", 0.1, 0.2)
    return replace(settled, **changes)


MOVES = {
    "settled": 0,
    "attractors": 0,
    "regime": "chaotic",
    "exponent": 0.3,
    "standard_error": 0.02,
    "interval": (None,) * 2,
}
WEAK = {**MOVES, "exponent": 0.05}
EDGE = {**MOVES, "regime": "quasi-periodic", "exponent": 0.0}


@pytest.mark.parametrize(
    ("a", "b", "null", "shared", "of_the_encoder", "words"),
    [
        (MOVES, MOVES, EDGE, True, True, "chaotic in both sets of images, and not so under random"),
        (MOVES, MOVES, MOVES, True, False, "as well: this is not a finding"),
        (MOVES, MOVES, {**MOVES, "exponent": 0.9}, True, True, "chaotic too, but at another rate"),
        (MOVES, {**MOVES, "exponent": 0.6}, {**MOVES, "exponent": 0.8}, True, False, "not a finding"),
        (MOVES, EDGE, EDGE, False, False, "do not share a regime, so what orbits do is the surrogate's"),
        (MOVES, MOVES, None, True, None, "no null to compare with"),
        ({}, {}, {**MOVES}, True, True, "settling in both sets of images, and not so under random weights"),
        (WEAK, WEAK, EDGE, True, False, "and random weights lie too near: this is not a finding"),
        (
            {**MOVES, "l1": 0.3},
            MOVES,
            EDGE,
            True,
            False,
            "the surrogates paint worse than each image's own median colour",
        ),
    ],
)
def test_a_finding_is_the_encoders_where_both_sets_share_it_and_the_null_does_not(
    a, b, null, shared, of_the_encoder, words
):
    points = [point("A", **a), point("B", **b)] + ([point("null", **null)] if null is not None else [])
    reading = read_capacity(points, [])
    assert (reading.shared, reading.of_the_encoder) == (shared, of_the_encoder)
    assert words in reading.sentence
    if not reading.paints:
        assert "is the surrogates' as well" in reading.surrogate


def test_the_error_of_an_exponent_is_no_smaller_than_what_the_starts_show():
    """A quarter of the interval over starts, half the difference of the sets, and the error of one orbit."""
    a, b = point("A", **MOVES), point("B", **{**MOVES, "exponent": 0.4})
    assert read_capacity([a, b], []).error == pytest.approx(0.05)
    wide = {**MOVES, "interval": (-0.3, 0.9)}
    assert read_capacity([point("A", **wide), point("B", **wide)], []).error == pytest.approx(0.3 / math.sqrt(2))
    exact = [point("A", **MOVES), point("B", **MOVES)]
    assert read_capacity(exact, []).error == pytest.approx(0.02 / math.sqrt(2))


def test_up_to_which_k_orbits_settle_and_from_where_on_they_are_chaotic():
    def at(k, a, b):
        return [point("A", k, "bottleneck", **a), point("B", k, "bottleneck", **b)]

    few = {"settled": 8}
    points = [*at(2, {}, {}), *at(4, {}, few), *at(8, {"settled": 9}, {}), *at(16, MOVES, EDGE), *at(32, MOVES, MOVES)]
    points += [point("A", **MOVES), point("B", **MOVES)]
    agreements = [Agreement(2, 1, 1, 0.0, 1.0), Agreement(8, 1, 2, 0.5, 0.2), Agreement(32, 1, 1, 0.0, 1.0)]
    reading = read_capacity(points, agreements)
    assert (reading.settles_to, reading.chaos_from, reading.matched_at) == (8, 32, 2)
    assert "up to 8 principal components, and up to 2 the attractors of both sets are the same" in reading.surrogate
    assert "is the surrogate's" in read_capacity(points, agreements[1:]).surrogate
    none = read_capacity([point("A", **MOVES), point("B")], [])
    assert (none.settles_to, none.chaos_from) == (None, None)
    assert "At no number of components" in none.surrogate


@pytest.mark.usefixtures("draws")
def test_the_command_writes_the_diagram_and_its_page(tiny_dinov2, tmp_path):
    words = f"capacity {tiny_dinov2} --k 2 --k 6 --images 20 -n 4 --max-steps 10 --image-size 28 -o {tmp_path / 'r'}"
    done = CliRunner().invoke(app, words.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    assert [(row["set"], row["k"]) for row in results["capacity"]][:3] == [("A", 2), ("A", 6), ("A", 384)]
    assert {"k", "set", "starts", "settled", "attractors", "exponent", "interval"} <= set(results["capacity"][0])
    assert results["what_survives"]["sentence"] in " ".join(done.output.split())
    page = (tmp_path / "r" / "report.html").read_text()
    assert "What survives" in page
    assert "random weights" in page
    assert (tmp_path / "r" / "capacity.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--k 20 --images 20", "k must be at most 19, one below the numbers of images"),
        ("--images 1", "--images"),
        ("--k 0", "--k"),
        ("--tol nan", "--tol"),
    ],
)
def test_bad_numbers_end_in_one_line_and_leave_nothing(tiny_dinov2, tmp_path, options, message):
    words = f"capacity {tiny_dinov2} --image-size 28 {options} -o {tmp_path / 'r'}"
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 2 or isinstance(done.exception, InputError)
    assert message in f"{done.output}{done.exception}"
    assert not (tmp_path / "r" / "results.json").exists()


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda x: torch.full((len(x), 4, 3), torch.nan), "not finite"),
        (lambda x: torch.zeros(len(x), 4, 3), "the same latents for every image"),
        (lambda x: x.mean((1, 2, 3))[:, None, None].expand(-1, 4, 3), "1 components that vary"),
    ],
)
def test_encoders_that_give_nothing_to_decompose_end_in_one_line(encode, message):
    model = Autoencoder(encode, None, image_shape=(3, 8, 8), latent_shape=(4, 3), provenance={"model": "odd"})
    with pytest.raises(InputError, match=message):
        fmprobe.probe_capacity(model, [2], null=False, **QUICK)


def test_all_features_are_no_number_of_principal_components():
    points = [point(name, k, "bottleneck", **MOVES) for k in (4, 8) for name in "AB"] + [point("A"), point("B")]
    assert read_capacity(points, []).settles_to is None
