"""Processes that share starts by a counter, simulated event by event at given costs.

A process goes through those lines of `fmprobe.runs.search.Search.iterate` and of the engine's loop that take time or
ask the store. Left out are the launch, loading, a disk that several processes write to at once, and what the main
process does alone at the end.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from fmprobe.runs.search import EVERY
from fmprobe.sharing import PATIENCE, Abandoned

CHUNK = 4  # working batches
Events = Iterator[float]  # the times at which a process goes on
Draw = Callable[[int, int, int, int], int]  # starts wanted, starts left, who draw, batch size -> starts drawn


@dataclass(frozen=True)
class Costs:
    """What things take, in seconds.

    Attributes:
        step: one step of a working batch, by its number of latents; the first entry, of none, is not used.
        ending: the verdict on orbits that ended at one step, and the starts that take their places.
        service: what the store takes for a request.
        travel: the way of a request to the store, and that of its answer.
        shard: writing a shard, whatever it holds.
        row: writing one orbit of a shard.
    """

    step: Sequence[float]
    ending: float = 0.0
    service: float = 0.0
    travel: float = 0.0
    shard: float = 0.0
    row: float = 0.0


@dataclass(frozen=True)
class Scheme:
    """How processes draw starts, and how often they ask the store for anything else.

    Attributes:
        draw: how many starts are drawn at a time, at least those that are wanted. The rest is kept for later.
        frugal: whether ended orbits are counted only when a process looks at the others, nothing is drawn once no
            starts are left, and a process that waits for the last asks every `EVERY` instead of every `PATIENCE`.
        node: number of processes with a counter of their own, which is filled from the shared one; 0 for no such.
    """

    draw: Draw = lambda wanted, left, drawers, batch: wanted
    frugal: bool = False
    node: int = 0


def a_batch(wanted: int, left: int, drawers: int, batch: int) -> int:
    """Draw as many starts as a working batch holds."""
    return max(wanted, batch)


def guided(wanted: int, left: int, drawers: int, batch: int) -> int:
    """Draw half of an equal share of what is left, at most `CHUNK` working batches (guided self-scheduling,
    Polychronopoulos and Kuck 1987; the half is that of factoring, Hummel et al. 1992).
    """
    return max(wanted, min(left // (2 * drawers), CHUNK * batch))


TODAY = Scheme()
SCHEMES: Mapping[str, Scheme] = {
    "today": TODAY,
    "frugal": Scheme(frugal=True),
    "frugal, a batch at a time": Scheme(a_batch, frugal=True),
    "frugal, guided": Scheme(guided, frugal=True),
    "frugal, a counter for 8, guided": Scheme(guided, frugal=True, node=8),
}


@dataclass(frozen=True)
class Task:
    """Orbits to follow.

    Attributes:
        lengths: number of steps of each orbit.
        batch_size: largest size of a working batch, as in `Plan`.
        rows: number of orbits in a shard.
    """

    lengths: Sequence[int]
    batch_size: int
    rows: int


@dataclass(frozen=True)
class Death:
    """A process is killed and keeps nothing more. The others end when they next look, and keep what has ended.

    Attributes:
        process: its number.
        seconds: when it dies.
    """

    process: int
    seconds: float


@dataclass(frozen=True)
class Simulated:
    """What was simulated.

    Attributes:
        seconds: when the last process has written what it had and has told the store so.
        waiting: share of all processes' time in which they wait for the store while they have work.
        idle: share of all processes' time in which they wait for the last of them.
        requests: number of requests to the shared store up to the end.
        busy: seconds in which each process computed or wrote.
        kept: the orbits that each process wrote, by their places in `lengths`.
        begun: number of orbits that were begun.
    """

    seconds: float
    waiting: float
    idle: float
    requests: int
    busy: list[float]
    kept: list[list[int]]
    begun: int


class Store:
    """Answers requests one after the other, in the order in which they are asked."""

    def __init__(self, costs: Costs) -> None:
        self.costs, self.free, self.requests = costs, 0.0, 0

    def answered(self, asked: float) -> float:
        """When the answer to what is asked now arrives."""
        self.requests += 1
        self.free = max(self.free, asked + self.costs.travel) + self.costs.service
        return self.free + self.costs.travel


@dataclass
class Stock:
    """Starts that were drawn and not begun.

    Attributes:
        ranges: their places.
        drawn: how many starts all had drawn when the shared counter was last asked.
    """

    ranges: list[range] = field(default_factory=list)
    drawn: int = 0

    def __len__(self) -> int:
        return sum(map(len, self.ranges))

    def take(self, count: int) -> list[int]:
        """At most so many of them."""
        taken: list[int] = []
        while self.ranges and len(taken) < count:
            first, missing = self.ranges[0], count - len(taken)
            taken.extend(first[:missing])
            self.ranges[:1] = [first[missing:]] if len(first) > missing else []
        return taken


class _Team:
    """What the processes share."""

    def __init__(self, task: Task, size: int, costs: Costs, scheme: Scheme, death: Death | None) -> None:
        self.task, self.size, self.costs, self.scheme, self.death = task, size, costs, scheme, death
        self.total = len(task.lengths)
        self.batch_size = max(1, min(task.batch_size, -(-self.total // size)))  # as in `Search.iterate`
        self.store = Store(costs)
        self.taken = self.arrived = self.begun = 0
        nodes = [(Store(costs), Stock()) for _ in range(0, size, scheme.node)] if scheme.node else []
        self.local = [nodes[rank // scheme.node] if nodes else (None, Stock()) for rank in range(size)]
        self.drawers = len(nodes) or size


class _Process:
    """One process. Its methods give the times at which it goes on."""

    def __init__(self, team: _Team, rank: int, slowness: float) -> None:
        self.team, self.slowness = team, slowness
        self.counter, self.stock = team.local[rank]
        self.now = self.done = self.waited = self.busy = 0.0
        self.looked = -EVERY
        self.steps = 0  # of the working batch so far
        self.batch: list[tuple[int, int]] = []  # when each orbit ends, in steps, and its place; a heap
        self.waiting: list[int] = []  # orbits that have ended and are in no shard
        self.kept: list[int] = []

    def run(self) -> Events:
        """`Search.iterate`."""
        try:
            yield from self.take(self.team.batch_size)
            while self.batch:
                yield from self.step()
                yield from self.look()
            yield from self.write()
            yield from self.meet()
        except Abandoned:
            yield from self.write()
            self.done = self.now

    def spend(self, seconds: float) -> Events:
        """Compute."""
        self.now += seconds
        self.busy += seconds
        yield self.now

    def ask(self, store: Store) -> Events:
        """Wait for an answer."""
        before, self.now = self.now, store.answered(self.now)
        yield self.now
        self.waited += self.now - before

    def take(self, wanted: int) -> Events:
        """Put starts into the working batch, as many as are wanted and left."""
        team = self.team
        if self.counter:
            yield from self.ask(self.counter)
        if len(self.stock) < wanted and not (team.scheme.frugal and self.stock.drawn >= team.total):
            left = max(0, team.total - self.stock.drawn)
            amount = team.scheme.draw(wanted - len(self.stock), left, team.drawers, team.batch_size)
            first, team.taken = team.taken, team.taken + amount
            yield from self.ask(team.store)
            self.stock.drawn = first + amount
            self.stock.ranges.append(range(min(first, team.total), min(first + amount, team.total)))
        for place in self.stock.take(wanted):
            heappush(self.batch, (self.steps + team.task.lengths[place], place))
            team.begun += 1

    def step(self) -> Events:
        """Step the working batch until orbits end, which new starts replace, or until it is time to look."""
        cost = self.team.costs.step[len(self.batch)] * self.slowness
        count = self.batch[0][0] - self.steps
        if cost:
            count = min(count, max(1, math.floor((self.looked + EVERY - self.now) / cost) + 1))
        self.steps += count
        yield from self.spend(count * cost)
        ended = []
        while self.batch and self.batch[0][0] == self.steps:
            ended.append(heappop(self.batch)[1])
        if ended:
            yield from self.keep(ended)
            yield from self.take(len(ended))

    def keep(self, ended: list[int]) -> Events:
        """Take in orbits that have ended, and write a shard when it is full."""
        yield from self.spend(self.team.costs.ending * self.slowness)
        if not self.team.scheme.frugal:
            yield from self.ask(self.team.store)
        self.waiting += ended
        if len(self.waiting) >= self.team.task.rows:
            yield from self.write()

    def write(self) -> Events:
        """Write a shard of what has ended."""
        if self.waiting:
            costs = self.team.costs
            yield from self.spend(costs.shard + costs.row * len(self.waiting))
            self.kept += self.waiting
            self.waiting = []

    def look(self) -> Events:
        """Ask now and then whether another process has failed, and how many orbits have ended."""
        if self.now - self.looked > EVERY:
            self.looked = self.now
            yield from self.check()
            yield from self.ask(self.team.store)

    def check(self) -> Events:
        """Ask whether another process has failed, and end if so."""
        yield from self.ask(self.team.store)
        if self.team.death and self.now >= self.team.death.seconds:
            raise Abandoned

    def meet(self) -> Events:
        """Wait for the others, as `Team.barrier` does."""
        team, waited = self.team, self.waited
        team.arrived += 1
        yield from self.ask(team.store)
        self.done = self.now
        while team.arrived < team.size:
            yield from self.ask(team.store)
            yield from self.check()
            yield from self.look()
            self.now += EVERY if team.scheme.frugal else PATIENCE
            yield self.now
        self.waited = waited


def simulate(
    task: Task,
    size: int,
    costs: Costs,
    scheme: Scheme = TODAY,
    slowness: Sequence[float] | None = None,
    death: Death | None = None,
) -> Simulated:
    """Simulate a search by `size` processes, from the first draw until all have ended or one has died.

    Args:
        task: the orbits.
        size: number of processes.
        costs: what things take.
        scheme: how starts are drawn.
        slowness: of each process, how many times as long it computes; by default all are equal.
        death: when one of them dies, if so.
    """
    team = _Team(task, size, costs, scheme, death)
    processes = [_Process(team, rank, slowness[rank] if slowness else 1.0) for rank in range(size)]
    running = [process.run() for process in processes]
    due = [(0.0, rank) for rank in range(size)]  # sorted, and so a heap
    while due:
        now, rank = heappop(due)
        if death and rank == death.process and now >= death.seconds:
            continue
        if (then := next(running[rank], None)) is not None:
            heappush(due, (then, rank))
    living = [process for rank, process in enumerate(processes) if not (death and rank == death.process)] or processes
    seconds = max(process.done for process in living)
    whole = size * seconds or 1.0
    return Simulated(
        seconds,
        sum(process.waited for process in processes) / whole,
        sum(seconds - process.done for process in processes) / whole,
        team.store.requests,
        [process.busy for process in processes],
        [process.kept for process in processes],
        team.begun,
    )


def rerun(task: Task, first: Simulated) -> Task:
    """What is left to a run that goes on after another."""
    kept = {place for of_process in first.kept for place in of_process}
    return Task([steps for i, steps in enumerate(task.lengths) if i not in kept], task.batch_size, task.rows)
