"""The simulation of processes that share a counter agrees with what can be computed by hand."""

from dataclasses import replace
from itertools import chain

import pytest
from _simulation import SCHEMES, TODAY, Costs, Death, Scheme, Task, rerun, simulate

from fmprobe.seeding import generator
from fmprobe.sharing import PATIENCE

FREE = Costs(step=[0.0] + [1.0] * 8)
COSTLY = Costs(step=[0.0, 0.01, 0.015, 0.02, 0.03], ending=0.002, service=1e-5, travel=2e-5, shard=0.01, row=1e-4)
SKEWED = [int(steps) for steps in generator(0, 0, "tests: orbits").geometric(0.05, 400)]
every_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=list(SCHEMES))


@every_scheme
def test_one_process_takes_the_sum_of_the_orbits(scheme):
    found = simulate(Task(SKEWED, 1, 1000), 1, FREE, scheme)
    assert found.seconds == pytest.approx(sum(SKEWED))
    assert (found.waiting, found.idle, found.begun) == (0, 0, len(SKEWED))


def test_everything_that_one_process_does_is_paid_for():
    """Orbits of 3 steps, one by one, with a shard for each two of them."""
    costs = Costs(step=[0.0, 1e-3], ending=1e-4, service=1e-6, travel=2e-6, shard=1e-3, row=1e-5)
    found = simulate(Task([3] * 10, 1, 2), 1, costs)
    computed = 10 * (3 * 1e-3 + 1e-4) + 5 * 1e-3 + 10 * 1e-5
    asked = 1 + 10 * 2 + 2 + 1  # the first draw, two for each orbit, a look, and the arrival
    assert found.requests == asked
    assert found.seconds == pytest.approx(computed + asked * 5e-6)
    assert found.busy == [pytest.approx(computed)]


@pytest.mark.parametrize("scheme", [TODAY, SCHEMES["frugal"]], ids=["today", "frugal"])
@pytest.mark.parametrize(("n", "size"), [(12, 4), (13, 4), (3, 4), (64, 16)])
def test_equal_orbits_and_a_free_counter_take_as_many_rounds_as_are_needed(scheme, n, size):
    """Where nothing is drawn ahead, so that no process holds what another could begin."""
    found = simulate(Task([7] * n, 1, 1000), size, FREE, scheme)
    assert found.seconds == pytest.approx(7 * -(-n // size))


def test_a_batch_steps_together_and_shrinks():
    """Two orbits of 2 and 5 steps: two steps of two latents, three of one."""
    found = simulate(Task([2, 5], 2, 1000), 1, Costs(step=[0, 1.0, 1.5]))
    assert found.seconds == pytest.approx(2 * 1.5 + 3)


def test_a_counter_that_dominates_sets_the_time():
    """Orbits that take no time: each asks the counter twice, to be counted and for the next."""
    service, n = 1e-5, 10_000
    costs = Costs(step=[0.0, 0.0], service=service)
    found = simulate(Task([1] * n, 1, 10**9), 50, costs)
    assert found.seconds == pytest.approx(found.requests * service, rel=1e-3)
    assert found.seconds == pytest.approx(2 * n * service, rel=0.03)
    assert found.waiting > 0.99
    frugal = simulate(Task([1] * n, 1, 10**9), 50, costs, SCHEMES["frugal"])
    assert frugal.seconds == pytest.approx(n * service, rel=0.03)


@every_scheme
@pytest.mark.parametrize("size", [1, 3, 16, 500])
def test_every_start_is_done_once(scheme, size):
    found = simulate(Task(SKEWED, 4, 16), size, COSTLY, scheme)
    assert sorted(chain(*found.kept)) == list(range(len(SKEWED)))
    assert found.begun == len(SKEWED)


@every_scheme
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_every_start_is_done_once_although_a_process_dies(scheme, share):
    task = Task(SKEWED, 4, 16)
    whole = simulate(task, 8, COSTLY, scheme)
    first = simulate(task, 8, COSTLY, scheme, death=Death(3, share * whole.seconds))
    kept = sorted(chain(*first.kept))
    assert len(set(kept)) == len(kept) < len(SKEWED)
    left = rerun(task, first)
    assert len(left.lengths) == len(SKEWED) - len(kept)
    assert sum(left.lengths) == sum(SKEWED) - sum(SKEWED[i] for i in kept)
    second = simulate(left, 8, COSTLY, scheme)
    assert sorted(chain(*second.kept)) == list(range(len(left.lengths)))


def test_who_dies_loses_what_is_in_no_shard_and_the_others_what_they_had_not_ended():
    """Four processes with one orbit each at a time. They notice after 0.2 s at most."""
    task = Task([10] * 40, 1, 1000)
    costs = Costs(step=[0.0, 0.01])
    first = simulate(task, 4, costs, death=Death(0, 0.75))
    assert first.kept[0] == []
    assert all(8 <= len(kept) <= 9 for kept in first.kept[1:])
    assert 0.75 <= first.seconds <= 0.75 + 0.2 + 0.01 + PATIENCE


def test_slow_processes_draw_less_and_lengthen_the_end():
    task = Task([5] * 400, 1, 1000)
    found = simulate(task, 4, FREE, slowness=[4, 1, 1, 1])
    shares = [len(kept) for kept in found.kept]
    assert shares[0] == pytest.approx(400 / 13, abs=1)
    assert found.seconds >= 2000 / (3 + 1 / 4)


def test_a_draw_ahead_asks_less_often():
    task, costs = Task(SKEWED, 4, 1000), COSTLY
    asked = [simulate(task, 4, costs, scheme).requests for scheme in (Scheme(), *list(SCHEMES.values())[1:4])]
    assert asked == sorted(asked, reverse=True)
    assert asked[0] > 2 * asked[-1]


def test_a_slower_store_never_makes_a_run_faster():
    seconds = [simulate(Task(SKEWED, 4, 16), 8, replace(COSTLY, service=s)).seconds for s in (0, 1e-3, 1e-2, 1e-1)]
    assert seconds == sorted(seconds)
    assert seconds[-1] > 2 * seconds[0]
