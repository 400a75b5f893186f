"""One place decides when orbits end by default, and every door reads it."""

import inspect
from dataclasses import is_dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from support.atlas import children_here
from support.commands import COMMANDS as ALL_COMMANDS
from support.commands import Reached, options_of, save_sources, stub
from support.maps import double_well, draws
from support.surrogates import QUICK, narrow
from typer.testing import CliRunner

import fmprobe
from fmprobe.cli import app
from fmprobe.dynamics.protocols import FOR_DEVICE, FOUNDATION, SMALL, protocol_for
from fmprobe.probes import convergence
from fmprobe.probes import surrogate_report as surrogates
from fmprobe.runs import plan as plans

SHAPE = (1, 16, 16)
IMAGES = torch.rand(24, *SHAPE, generator=torch.Generator().manual_seed(0))
RULE = ("tol", "measure", "max_steps")


small = pytest.fixture(narrow, scope="module", autouse=True)


def model_of(protocol):
    made = fmprobe.DenseAutoencoder(2, 4, SHAPE).autoencoder()
    made.protocol = protocol
    return made


# Each door as a user opens it with no word on when orbits end.
DOORS = {
    "find_attractors": lambda model: fmprobe.find_attractors(model, 4, progress=False),
    "vector_field": lambda model: fmprobe.vector_field(model, resolution=2),
    "compare": lambda model: fmprobe.compare(model, model, IMAGES),
    "probe_memorization": lambda model: fmprobe.probe_memorization(model, IMAGES, n=4),
    "AttractorTracker": lambda model: fmprobe.AttractorTracker(IMAGES, IMAGES, starts=4, adapt=lambda _: model)(
        0, torch.nn.Linear(1, 1)
    ),
    "TrajectoryDetector": lambda model: fmprobe.TrajectoryDetector(model).fit(IMAGES, progress=False),
}


def rules_followed(door, model):
    """What `iterate` was asked for, each time that a door of this model searched for attractors."""
    seen, iterate = [], fmprobe.attractors.iterate

    def spy(f, starts, **settings):
        if len(starts) > 1:  # one start: settings are tried out
            seen.append(tuple(settings[name] for name in RULE))
        return iterate(f, starts, **settings)

    with mock.patch("fmprobe.attractors.iterate", spy):
        DOORS[door](model)
    return seen


@pytest.mark.parametrize("protocol", [SMALL, FOUNDATION], ids=lambda protocol: protocol.name)
@pytest.mark.parametrize("door", DOORS)
def test_the_defaults_of_every_door_are_the_protocol_of_the_model(door, protocol):
    found = rules_followed(door, model_of(protocol))
    assert found
    assert set(found) == {tuple(getattr(protocol, name) for name in RULE)}


def test_iterate_itself_takes_the_protocol_of_a_bare_map():
    parameters = inspect.signature(fmprobe.iterate).parameters
    assert all(parameters[name].default == getattr(SMALL, name) for name in RULE)
    assert fmprobe.find_attractors(double_well, starts=draws(4, 2)).orbits.protocol["name"] == SMALL.name


def test_what_is_loaded_is_a_foundation_model_and_its_decoder_changes_nothing(tiny_mae, tiny_dinov2):
    assert fmprobe.load(tiny_mae).protocol is FOUNDATION
    encoder = fmprobe.load(tiny_dinov2)
    assert encoder.protocol is encoder.derived().protocol is FOUNDATION
    assert model_of(SMALL).protocol is fmprobe.ConvAutoencoder(2).autoencoder().protocol is SMALL


def test_several_models_take_the_looser_protocol():
    assert protocol_for(model_of(SMALL), model_of(FOUNDATION)) is FOUNDATION
    assert protocol_for(model_of(SMALL)) is protocol_for(double_well) is SMALL


@pytest.mark.parametrize("protocol", [SMALL, FOUNDATION], ids=lambda protocol: protocol.name)
def test_a_result_names_what_was_followed(protocol):
    model = model_of(protocol)
    own = {name: getattr(protocol, name) for name in RULE}

    def name(**given):
        return fmprobe.find_attractors(model, 4, progress=False, **given).orbits.protocol["name"]

    assert name() == name(**own) == protocol.name
    for other in ({"tol": 1e-3}, {"tol": 0.0}, {"measure": "rms"}, {"max_steps": 7}):
        assert name(**other) == "as given"
    lowered = plans.make_plan(model, 4)
    assert (lowered.name == protocol.name) == (lowered.max_steps == protocol.max_steps)
    assert plans.make_plan(model, 4, 7).name == "as given"
    assert protocol.named(**{**own, "max_steps": 150}, reason=FOR_DEVICE) == (
        f"{protocol.name}; max_steps lowered to 150 for this device"
    )


def test_a_slow_cpu_takes_fewer_steps_and_says_so():
    with mock.patch("fmprobe.runs.plan._seconds_per_row", return_value=0.01):
        plan = plans.make_plan(model_of(FOUNDATION), 64)
    assert plan.max_steps == int(150 / (64 * 0.01))
    assert plan.name == f"{FOUNDATION.name}; max_steps lowered to {plan.max_steps} for this device"
    assert plan.tol == FOUNDATION.tol


def test_the_former_name_of_the_merge_threshold_has_its_value_and_says_so():
    starts = draws(30, 2)
    for threshold in (0.0, 0.5, 10.0):
        with pytest.warns(DeprecationWarning, match="now called merge_threshold"):
            one = fmprobe.find_attractors(double_well, starts=starts, threshold=threshold)
        two = fmprobe.find_attractors(double_well, starts=starts, merge_threshold=threshold)
        assert one.to_dict() == two.to_dict()
        assert two.merge["threshold"] == threshold
    with pytest.raises(ValueError, match="two names of one setting"):
        fmprobe.find_attractors(double_well, starts=starts, threshold=0.1, merge_threshold=0.1)


@pytest.mark.parametrize("protocol", [SMALL, FOUNDATION], ids=lambda protocol: protocol.name)
def test_a_detector_names_what_it_follows(protocol):
    model = model_of(protocol)
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, protocol.name),
        ({"tol": 1e-3}, "as given"),
        ({"max_steps": 7}, "as given"),
    ]
    for given, name in cases:
        assert fmprobe.TrajectoryDetector(model, **given).fit(IMAGES, progress=False).describe()["protocol"] == name


def test_a_report_on_surrogates_follows_the_protocol_of_the_encoder(tiny_dinov2):
    """Down to the searches: each of its five surrogates is followed alike."""
    seen, search = [], surrogates.find_attractors

    def spy(whole, **settings):
        seen.append((whole.protocol, *(settings[name] for name in RULE)))
        return search(whole, **settings)

    model = fmprobe.load(tiny_dinov2, image_size=28)
    with mock.patch("fmprobe.probes.surrogate_report.find_attractors", spy):
        fmprobe.surrogate_report(model, settings=QUICK, n=2, progress=False)
    assert seen == [(FOUNDATION, FOUNDATION.tol, FOUNDATION.measure, FOUNDATION.max_steps)] * 5


COMMANDS = {  # that search for attractors, and the door that each gives its rule to
    "probe m": "fmprobe.runs.search.iterated",
    "prototypes m": "fmprobe.runs.search.iterated",
    "weights m --data D": "fmprobe.runs.search.iterated",
    "memorization m --data D": "fmprobe.runs.search.iterated",
    "capacity m": "fmprobe.probes.capacity.probe_capacity",
    "field m": "fmprobe.runs.search.iterated",
    "compare m k --data D": "fmprobe.probes.alignment.comparison.compare",
    "ood m --data D": "fmprobe.probes.ood.probe.fit_detector",
    "atlas m": "fmprobe.runs.search.iterated",
}


def rule_in(call):
    """`tol`, `measure` and `max_steps` in the arguments of a call, of a plan or of settings, None where left out."""
    given = {}
    for argument in (*call.args, *call.kwargs.values(), call.kwargs):
        there = vars(argument) if is_dataclass(argument) else argument if isinstance(argument, dict) else {}
        given |= {name: there[name] for name in RULE if name in there}
    return tuple(given.get(name) for name in RULE)


@pytest.mark.parametrize("protocol", [SMALL, FOUNDATION], ids=lambda protocol: protocol.name)
@pytest.mark.parametrize("command", COMMANDS)
def test_the_defaults_of_every_command_are_the_protocol_of_the_model(command, protocol, tmp_path):
    places = save_sources(tmp_path)

    def loaded(*_, **__):
        made = stub()
        made.protocol = protocol
        return made

    arguments = [str(places.get(part, part)) for part in command.split()]
    with (
        mock.patch("fmprobe.loading.load", loaded),
        mock.patch("fmprobe.runs.plan._seconds_per_row", return_value=1e-9),
        mock.patch("fmprobe.probes.alignment.perturbation.perturbed_checkpoint", return_value=tmp_path),
        mock.patch(COMMANDS[command], side_effect=Reached) as door,
        children_here(),
        pytest.raises(Reached),
    ):
        CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "run")], catch_exceptions=False)
    for given, right in zip(rule_in(door.call_args), (getattr(protocol, name) for name in RULE), strict=True):
        assert given in (None, right)  # None: the door's own default, which the tests above hold to the protocol


def test_every_command_that_searches_is_held_to_the_protocol():
    searching = {name for name in ALL_COMMANDS if {"tol", "merge_threshold"} <= set(options_of(name))}
    assert searching == {command.split()[0] for command in COMMANDS}
    assert all(
        {"tol", "merge_threshold"} & set(options_of(n)) in (set(), {"tol", "merge_threshold"}) for n in ALL_COMMANDS
    )


def test_convergence_follows_both_of_its_orbits_by_the_measure_asked_for():
    seen, iterate = [], fmprobe.iterate

    def spy(*arguments, **settings):
        seen.append(settings.get("measure"))
        return iterate(*arguments, **settings)

    with mock.patch("fmprobe.dynamics.iterate.iterate", spy):
        convergence.probe_convergence(double_well, starts=draws(8, 2), measure="rms")
    assert seen == ["rms"]
