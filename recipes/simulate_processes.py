"""Simulate a search by up to 1,024 processes, at costs that are measured in the same run.

    python recipes/simulate_processes.py                       # 100,000 starts
    python recipes/simulate_processes.py -n 1000000

Measured are a request to a store of torch.distributed whose server is another process, a step of the model of
`benchmark_processes.py` by the size of its batch, the lengths of its orbits, and the writing of a shard.
`_simulation.py` follows what `fmprobe probe` does with them. The ideal time is that of one process over the number of
processes; with slow ones, over what they do together. As a check, one and two real processes follow the orbits that
were measured.

Rule: sharing stops scaling at the first number of processes whose efficiency, ideal over simulated time, is below 90%,
and has stopped below 50%.
"""

import argparse
import math
import tempfile
import threading
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import benchmark_processes
import numpy as np
import torch
from _simulation import SCHEMES, TODAY, Costs, Death, Scheme, Simulated, Task, rerun, simulate
from torch import Tensor
from torch import multiprocessing as mp
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

import fmprobe
from fmprobe.dynamics.engine import Ended
from fmprobe.runs.shards import Shards, rows_of_a_shard
from fmprobe.seeding import generator
from fmprobe.sharing import alone

CLIENTS = 8  # that ask at once
REQUESTS = 4000  # of each way of asking
STEPS = 41  # that a step is timed by
REPEATS = 7
SOME, MOST = 0.9, 0.5  # efficiencies below which sharing stops scaling, and has stopped
WORKERS = [2**i for i in range(3, 11)]


@dataclass(frozen=True)
class Measured:
    """What the simulation takes from real runs.

    Attributes:
        costs: what things take.
        lengths: steps of each orbit that was followed.
        latent: number of values in a latent.
        batch_size: largest number of latents iterated together.
    """

    costs: Costs
    lengths: list[int]
    latent: int
    batch_size: int

    def task(self, lengths: list[int]) -> Task:
        """The task of following orbits of these lengths."""
        return Task(lengths, self.batch_size, rows_of_a_shard(len(lengths), self.latent))

    def one(self, lengths: list[int]) -> float:
        """Seconds that one process takes for them."""
        return simulate(self.task(lengths), 1, self.costs).seconds

    def faster(self, times: float) -> "Measured":
        """The same with a map, and an engine, that take less time."""
        step = [seconds / times for seconds in self.costs.step]
        return replace(self, costs=replace(self.costs, step=step, ending=self.costs.ending / times))

    def drawn(self, n: int, seed: int) -> list[int]:
        """`n` of the lengths, drawn with replacement."""
        draws = generator(seed, 0, "simulate_processes recipe: orbits").integers(len(self.lengths), size=n)
        return np.array(self.lengths)[draws].tolist()


def serve(told: Connection) -> None:
    """Hold a store, and tell its port and, each time that somebody asks, the processor seconds so far."""
    store: Any = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told.send(store.port)
    while told.recv():
        told.send(time.process_time())


def measure_store() -> tuple[float, float]:
    """Seconds that one client waits for an answer, and processor seconds of the server for each of many requests."""
    context = mp.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there,))
    server.start()
    port = here.recv()
    stores = [TCPStore("127.0.0.1", port, is_master=False) for _ in range(CLIENTS)]

    def ask(store: Any, times: list[float]) -> None:
        for _ in range(REQUESTS):
            began = time.perf_counter()
            store.add("counter", 1)
            times.append(time.perf_counter() - began)

    def spent() -> float:
        here.send(True)
        return here.recv()

    waits: list[float] = []
    ask(stores[0], waits)
    before = spent()
    threads = [threading.Thread(target=ask, args=(store, [])) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    service = (spent() - before) / (CLIENTS * REQUESTS)
    here.send(False)
    server.join()
    return median(waits), service


def measure_steps(model: fmprobe.Autoencoder, starts: Tensor, batch_size: int) -> list[float]:
    """Processor seconds of one step of a working batch of 0, 1, … `batch_size` latents, between sizes that are powers
    of 2 by interpolation.
    """

    def seconds(rows: Tensor) -> float:
        calls: list[float] = []

        def f(z: Tensor) -> Tensor:
            calls.append(time.process_time())
            return model.latent_map(z)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a tolerance of 0, so that no orbit ends early
            fmprobe.iterate(f, rows, tol=0.0, max_steps=STEPS, progress=False)
        return float(np.median(np.diff(calls[:STEPS])))  # later calls are those of verdicts

    sizes = sorted({*(2**i for i in range(batch_size.bit_length())), batch_size})
    found = [seconds(starts[torch.arange(size) % len(starts)]) for size in sizes]
    return [0.0, *np.interp(range(1, batch_size + 1), sizes, found).tolist()]


def measure_shard(starts: Tensor) -> tuple[float, float]:
    """Seconds for a shard of one orbit, and for each further one."""

    def seconds(ends: Tensor) -> float:
        n = len(ends)
        counts, values = torch.zeros(n, dtype=torch.long), torch.zeros(n)
        ended = Ended(torch.arange(n), ends, counts, values, counts, values, counts, counts, 0)
        with tempfile.TemporaryDirectory() as folder:
            shards = Shards(Path(folder), n, tuple(ends.shape[1:]), n)
            began = time.perf_counter()
            shards.keep(ended)
            return time.perf_counter() - began

    one, many = (median(seconds(starts[:n]) for _ in range(REPEATS)) for n in (1, len(starts)))
    return one, max(0.0, many - one) / max(1, len(starts) - 1)


def measure(n: int, batch_size: int) -> Measured:
    """Measure all costs, and follow `n` orbits for their lengths."""
    torch.set_num_threads(1)
    model = benchmark_processes.skewed_model()
    starts = model.sample_latents(n)
    wait, service = measure_store()
    shard, row = measure_shard(starts)
    plan = benchmark_processes.plan_of(n, batch_size)
    began = time.process_time()
    orbits = fmprobe.iterate(model.latent_map, starts, batch_size=batch_size, progress=False, **plan.rule)
    spent = time.process_time() - began
    # Orbits that go on for long need no verdict after a few steps.
    step = measure_steps(model, starts[orbits.steps.argsort(descending=True)], batch_size)
    found = Measured(
        Costs(step, 0.0, service, max(0.0, wait - service) / 2, shard, row),
        orbits.steps.tolist(),
        math.prod(model.latent_shape),
        batch_size,
    )
    # What the real run took beyond its steps is shared among the times that orbits ended.
    counted = simulate(found.task(found.lengths), 1, Costs([0.0] * (batch_size + 1), ending=1.0)).seconds
    beyond = spent - simulate(found.task(found.lengths), 1, Costs(step)).seconds
    return replace(found, costs=replace(found.costs, ending=max(0.0, beyond) / counted))


def stragglers(size: int, share: float, slowness: float) -> list[float]:
    """How many times as long each process computes: a share of them, spread evenly, is slow."""
    return [slowness if int((i + 1) * share) > int(i * share) else 1.0 for i in range(size)]


@dataclass(frozen=True)
class Scale:
    """A simulated search by a number of processes.

    Attributes:
        size: number of processes.
        ideal: seconds that it would take if processes shared the time of one process without loss.
        found: what was simulated.
        again: orbits that a rerun begins again, where one process died halfway; None where none died.
        longer: by which share of the time the search and its rerun take longer than without a death.
    """

    size: int
    ideal: float
    found: Simulated
    again: int | None = None
    longer: float = 0.0

    @property
    def efficiency(self) -> float:
        return self.ideal / self.found.seconds

    def __str__(self) -> str:
        found = self.found
        cells = [
            f"{self.size:,}",
            f"{self.ideal:.1f}",
            f"{found.seconds:.1f}",
            f"{self.efficiency:.0%}",
            f"{found.waiting:.1%}",
            f"{found.idle:.1%}",
            f"{found.requests / found.seconds:,.0f}",
        ]
        return " | ".join([*cells, "-" if self.again is None else f"{self.again:,} orbits, {self.longer:+.0%} time"])


HEAD = "processes | ideal s | simulated s | efficiency | waits for the counter | idle at the end | requests a second"


def scaled(
    measured: Measured,
    lengths: Mapping[int, list[int]],
    one: Mapping[int, float],
    scheme: Scheme = TODAY,
    slow: tuple[float, float] | None = None,
    dies: bool = False,
) -> Iterable[Scale]:
    """Searches by each number of processes.

    Args:
        measured: what was measured.
        lengths: the orbits of each.
        one: seconds that one process takes for them.
        scheme: how starts are drawn.
        slow: share of slow processes, and how many times as long they compute.
        dies: whether to simulate as well that a process is killed halfway.
    """
    for size, some in lengths.items():
        task, slowness = measured.task(some), stragglers(size, *slow) if slow else None
        found = simulate(task, size, measured.costs, scheme, slowness)
        made = Scale(size, one[size] / sum(1 / times for times in slowness or [1.0] * size), found)
        if dies:
            first = simulate(task, size, measured.costs, scheme, slowness, Death(size // 2, found.seconds / 2))
            left = rerun(task, first)
            second = simulate(left, size, measured.costs, scheme, slowness)
            again = first.begun - (len(some) - len(left.lengths))
            made = replace(made, again=again, longer=(first.seconds + second.seconds) / found.seconds - 1)
        yield made


def print_measured(found: Measured) -> None:
    """Say what was measured."""
    costs, steps = found.costs, np.array(found.lengths)
    lines = [
        f"orbits        {len(steps)} of {steps.mean():.0f} steps on average, median {np.median(steps):.0f}, at most "
        f"{steps.max()}",
        f"a step        {1e3 * costs.step[1]:.2f} ms of 1 latent, {1e3 * costs.step[-1]:.2f} ms of {found.batch_size}",
        f"an ending     {1e3 * costs.ending:.2f} ms for all orbits that end at one step",
        f"a request     {1e6 * (costs.service + 2 * costs.travel):.1f} us, {1e6 * costs.service:.2f} us of them in the "
        f"server, which answers at most {1 / costs.service:,.0f} a second",
        f"a shard       {1e3 * costs.shard:.1f} ms, and {1e3 * costs.row:.3f} ms an orbit",
    ]
    print("\n".join(lines))


def print_check(measured: Measured, port: int) -> None:
    """Print what two processes gain over one, simulated and real, for the same orbits."""
    n, size = len(measured.lengths), measured.batch_size
    one, two = (simulate(measured.task(measured.lengths), workers, measured.costs) for workers in (1, 2))
    real_one, real_two = (benchmark_processes.measure(workers, n, size, port + workers) for workers in (1, 2))
    print(f"one process: {one.seconds:.2f} s simulated, {real_one[1][0]:.2f} processor seconds measured")
    for what, simulated, real in (
        ("wall-clock seconds", one.seconds / two.seconds, real_one[0] / real_two[0]),
        ("processor seconds, to the busier", one.busy[0] / max(two.busy), real_one[1][0] / max(real_two[1])),
    ):
        print(f"one process to two, ratio of {what}: {simulated:.2f} simulated, {real:.2f} measured")


def print_table(title: str, scales: Iterable[Scale]) -> None:
    """Print a table of searches, and where they stop scaling."""
    print(f"\n{title}\n| {HEAD} | a death halfway |\n{'|---' * 8}|")
    done = []
    for one in scales:
        done.append(one)
        print(f"| {one} |", flush=True)
    for least in (SOME, MOST):
        print(f"efficiency below {least:.0%}: {stops(done, least)}")


def stops(scales: Sequence[Scale], least: float) -> str:
    """The first number of processes with an efficiency below `least`, in words."""
    below = next((one.size for one in scales if one.efficiency < least), None)
    return f"not up to {scales[-1].size:,} processes" if below is None else f"from {below:,} processes on"


def print_schemes(
    title: str, measured: Measured, lengths: list[int], sizes: list[int], slow: tuple[float, float] | None = None
) -> None:
    """Print the efficiency of other ways to draw, and how long processes wait for the counter under them."""
    print(f"\n{title}: efficiency, and share of the time in which processes wait for the counter")
    print(f"| how starts are drawn | {' | '.join(f'{size:,}' for size in sizes)} |\n{'|---' * (len(sizes) + 1)}|")
    one = dict.fromkeys(sizes, measured.one(lengths))
    for name, scheme in SCHEMES.items():
        found = scaled(measured, dict.fromkeys(sizes, lengths), one, scheme, slow)
        cells = [f"{each.efficiency:.0%}, {each.found.waiting:.0%}" for each in found]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


@alone()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--starts", type=int, default=100_000, help="Number of starts of a simulated search.")
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="Numbers of simulated processes.")
    parser.add_argument("--measured", type=int, default=512, help="Number of starts of the real runs.")
    parser.add_argument("--batch-size", type=int, default=16, help="Number of latents iterated together.")
    parser.add_argument("--share", type=int, default=1000, help="Number of starts for each process, where it is fixed.")
    parser.add_argument("--faster", type=float, default=100.0, help="How many times as fast another map is.")
    parser.add_argument("--slow-share", type=float, default=0.125, help="Share of processes that are slow.")
    parser.add_argument("--slowness", type=float, default=4.0, help="How many times as long these compute.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the lengths of the orbits.")
    parser.add_argument("--no-check", action="store_true", help="Do not run real processes beside the simulation.")
    parser.add_argument("--port", type=int, default=29427, help="The two ports after this one are free, for the check.")
    options = parser.parse_args()

    measured = measure(options.measured, options.batch_size)
    print_measured(measured)
    if not options.no_check:
        print_check(measured, options.port)
    sizes, slow = sorted(options.workers), (options.slow_share, options.slowness)
    drawn = measured.drawn(max(options.starts, options.share * sizes[-1]), options.seed)
    lengths = drawn[: options.starts]
    strong, one = dict.fromkeys(sizes, lengths), dict.fromkeys(sizes, measured.one(lengths))
    weak = {size: drawn[: options.share * size] for size in sizes}
    alike = {size: size * measured.one(drawn[: options.share]) for size in sizes}
    title = f"{options.starts:,} starts"
    slowly = f"{title}, {slow[0]:.1%} of the processes {slow[1]:g} times as slow"
    print_table(title, scaled(measured, strong, one, dies=True))
    print_table(slowly, scaled(measured, strong, one, slow=slow))
    print_table(f"{options.share:,} starts for each process", scaled(measured, weak, alike))
    print_schemes(title, measured, lengths, sizes)
    print_schemes(slowly, measured, lengths, sizes, slow)
    print_schemes(f"{title}, a map {options.faster:g} times as fast", measured.faster(options.faster), lengths, sizes)


if __name__ == "__main__":
    main()
