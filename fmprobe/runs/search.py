"""The search for attractors as a run: processes share it, shards keep it, and it is resumed after a kill."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
import typer
from torch import Tensor

from fmprobe.attractors import AttractorSet
from fmprobe.autoencoder import Autoencoder
from fmprobe.dynamics.attractors import attractors_of
from fmprobe.dynamics.curves import ResidualCurves
from fmprobe.dynamics.distances import typical_size
from fmprobe.dynamics.engine import Ended
from fmprobe.dynamics.iterate import progress_bar, stream_orbits
from fmprobe.dynamics.orbits import Rules, protocol_of
from fmprobe.nodes import is_apart
from fmprobe.runs.folder import RunFolder
from fmprobe.runs.plan import Plan, make_plan
from fmprobe.runs.run import Run
from fmprobe.runs.shards import Shards, rows_of_a_shard
from fmprobe.sharing import Team, team
from fmprobe.stopping import Stopped, pending, section

Found = tuple[AttractorSet, dict[str, Any]]  # attractors, and the residual curves of the first starts
EVERY = 0.2  # seconds between two looks at the other processes


def search(
    model: Autoencoder,
    run: Run,
    asked: Mapping[str, Any],
    seed: int,
    name: str,
    watched: int = 0,
    **settings: Any,
) -> tuple[Plan, Found | None]:
    """Search for attractors from noise starts, with all processes together.

    The plan is pinned when a search begins, since its defaults depend on the speed of the machine at that time. The
    versions and the decoder are pinned with it.

    Args:
        model: the model whose latent map is iterated.
        run: the run whose folder keeps intermediate results.
        asked: settings of the plan, as `make_plan` takes them.
        seed: seed of the starts.
        name: distinguishes several searches of one run.
        watched: number of starts, from the first, whose residual curves are kept.
        settings: fields of the plan that hold whatever is asked for.

    Returns:
        The plan, and what was found; None in place of the latter for all but the main process.

    Raises:
        InputError: the search was begun under other versions, on another device or with another decoder.
        Stopped: a signal came; what has been found is kept.
        WriteError: the disk is full.
    """
    plan = Plan(**run.pin(name, lambda: asdict(replace(make_plan(model, seed=seed, **asked), **settings))))
    run.pin_circumstances(model, name)
    typer.echo(str(plan))
    return plan, iterated(model, plan, run.folder, name, watched)


def iterated(model: Autoencoder, plan: Plan, folder: RunFolder, name: str = "shards", watched: int = 0) -> Found | None:
    """What the starts of a plan lead to, found by all processes together; None for all but the main process."""
    crew = team()
    work = Search(model, plan, folder, crew, name, min(watched, plan.n))
    work.iterate()
    return work.attractors() if crew.is_main else None


class Search:
    """Noise starts that the processes of a team follow to attractors.

    Args:
        model: the model whose latent map is iterated.
        plan: the plan.
        folder: the run folder.
        team: the processes.
        name: distinguishes several searches of one run folder, and is the name of the folder of its shards.
        watched: number of starts, from the first, whose residual curves are kept.
    """

    def __init__(
        self, model: Autoencoder, plan: Plan, folder: RunFolder, team: Team, name: str, watched: int = 0
    ) -> None:
        self.model, self.plan, self.folder, self.team, self.name = model, plan, folder, team, name
        rows = rows_of_a_shard(plan.n, math.prod(model.latent_shape))
        self.shards = Shards(folder.path / name, plan.n, model.latent_shape, rows)
        self.curves = ResidualCurves(watched, plan.max_steps)
        self._squares = torch.zeros(plan.n, dtype=torch.float64)  # squared norm of each start
        self._taken, self._ended = team.counter(), team.counter()
        self._looked = 0.0

    def iterate(self, progress: bool | None = None) -> None:
        """Follow the starts that no shard holds, until the processes together have ended all of them.

        Raises:
            Stopped: a signal came.
        """
        plan, team = self.plan, self.team
        left = torch.tensor(team.told(lambda: self.shards.missing().tolist()), dtype=torch.long)
        team.barrier()  # they begin together
        kept = plan.n - len(left)
        if team.is_main:
            self.folder.tell("iterate", search=self.name, starts=plan.n, kept=kept, processes=team.size)

        def take(count: int) -> tuple[Tensor, Tensor]:
            first = self._taken(count) - count
            return self._starts(left[first : first + count])

        with section(), progress_bar(progress if team.is_main else False, plan.n) as report:

            def looked() -> None:
                self._look(lambda: report(kept + self._ended(0), plan.n))

            try:
                stream_orbits(
                    self.model.latent_map,
                    take,
                    self._keep,
                    tol=plan.tol,
                    measure=plan.measure,
                    max_steps=plan.max_steps,
                    batch_size=max(1, min(plan.batch_size, -(-len(left) // team.size))),
                    observer=self.curves,
                    looked=looked,
                )
            finally:
                self._wrote(self.shards.flush())
            team.barrier(looked)
            self._look(lambda: report(plan.n, plan.n), now=True)

    def attractors(self) -> tuple[AttractorSet, dict[str, Any]]:
        """The attractors that the orbits of the shards lead to, and the residual curves; for one process, after
        `iterate`.
        """
        plan = self.plan
        rule = protocol_of(plan.measure, plan.tol, plan.max_steps, plan.batch_size, Rules())
        protocol = {"name": plan.name, **rule}
        orbits, more = self.shards.gather(protocol)
        watched = len(self.curves.norms)
        self.curves.restore(more["curves"][:watched], orbits.steps[:watched])
        scale = typical_size(float(more["squares"].sum()) / orbits.ends.numel())
        found = attractors_of(
            self.model.latent_map,
            orbits,
            scale,
            merge=plan.merge,
            threshold=plan.merge_threshold,
            stability_cap=plan.stability_cap,
            polish=plan.polish,
            device=self.model.device,
        )
        return AttractorSet.of(found, self.model), self.curves.to_dict()

    def _starts(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The starts of an ascending index, drawn in runs without gaps."""
        gaps = (index.diff() != 1).nonzero()[:, 0] + 1
        runs = index.tensor_split(gaps) if len(index) else ()
        rows = [self.model.sample_latents(len(run), self.plan.seed, int(run[0])) for run in runs]
        starts = torch.cat(rows) if rows else self.model.sample_latents(0)
        self._squares[index] = starts.flatten(1).double().square().sum(1).cpu()
        return index.to(starts.device), starts

    def _keep(self, ended: Ended) -> None:
        """Keep orbits that have ended."""
        index = ended.index.cpu()
        self._ended(len(index))
        self._wrote(self.shards.keep(ended, squares=self._squares[index], curves=self.curves.rows(index)))

    def _wrote(self, orbits: int) -> None:
        """Record that a shard was written."""
        if orbits:
            self.folder.tell("shard", search=self.name, orbits=orbits, process=self.team.rank)

    def _look(self, report: Callable[[], None], now: bool = False) -> None:
        """Stop if a signal came or another process failed; report the progress."""
        if (number := pending()) is not None:
            self._wrote(self.shards.flush())
            done = self.plan.n - len(self.shards.missing())
            if not is_apart(self.folder.path):  # which has not seen what the others keep
                self.folder.tell("stopped", search=self.name, kept=done, process=self.team.rank)
            raise Stopped(number, f"{done} of {self.plan.n} starts are kept in {self.folder.path}")
        if now or time.monotonic() - self._looked > EVERY:
            self._looked = time.monotonic()
            self.team.check()
            report()
