"""One place decides when orbits end by default, and every door reads it."""

import inspect
from unittest import mock

import pytest
import torch
from support.maps import double_well, draws

import fmprobe
from fmprobe.dynamics.protocols import FOR_DEVICE, FOUNDATION, SMALL, protocol_for
from fmprobe.probes import convergence, prototypes

SHAPE = (1, 16, 16)
IMAGES = torch.rand(24, *SHAPE, generator=torch.Generator().manual_seed(0))
RULE = ("tol", "measure", "max_steps")


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
    "find_prototypes": lambda model: prototypes.find_prototypes(model, prototypes.make_plan(model, 4)),
}


def rules_followed(door, model):
    """What `iterate` was asked for, each time that a door of this model searched for attractors."""
    seen, iterate = [], fmprobe.dynamics.attractors.iterate

    def spy(f, starts, **settings):
        if len(starts) > 1:  # one start: settings are tried out
            seen.append(tuple(settings[name] for name in RULE))
        return iterate(f, starts, **settings)

    with mock.patch("fmprobe.dynamics.attractors.iterate", spy):
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
    lowered = prototypes.make_plan(model, 4)
    assert (lowered.name == protocol.name) == (lowered.max_steps == protocol.max_steps)
    assert prototypes.make_plan(model, 4, 7).name == "as given"
    assert protocol.named(**{**own, "max_steps": 150}, reason=FOR_DEVICE) == (
        f"{protocol.name}; max_steps lowered to 150 for this device"
    )


def test_a_slow_cpu_takes_fewer_steps_and_says_so():
    with mock.patch("fmprobe.probes.prototypes._seconds_per_row", return_value=0.01):
        plan = prototypes.make_plan(model_of(FOUNDATION), 64)
    assert plan.max_steps == int(150 / (64 * 0.01))
    assert plan.name == f"{FOUNDATION.name}; max_steps lowered to {plan.max_steps} for this device"
    assert plan.tol == FOUNDATION.tol


def test_the_threshold_of_merging_has_two_names_and_one_value():
    starts = draws(30, 2)
    for threshold in (0.0, 0.5, 10.0):
        one = fmprobe.find_attractors(double_well, starts=starts, threshold=threshold)
        two = fmprobe.find_attractors(double_well, starts=starts, merge_threshold=threshold)
        assert one.to_dict() == two.to_dict()
        assert two.merge["threshold"] == threshold
    with pytest.raises(ValueError, match="two names of one setting"):
        fmprobe.find_attractors(double_well, starts=starts, threshold=0.1, merge_threshold=0.1)


def test_convergence_follows_both_of_its_orbits_by_the_measure_asked_for():
    seen, iterate = [], convergence.iterate

    def spy(*arguments, **settings):
        seen.append(settings.get("measure"))
        return iterate(*arguments, **settings)

    with mock.patch("fmprobe.probes.convergence.iterate", spy):
        fmprobe.probe_convergence(double_well, starts=draws(8, 2), measure="rms")
    assert seen == ["rms"]
