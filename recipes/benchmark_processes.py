"""Time two processes against one, on starts whose orbits differ in length by a factor of about 100.

    python recipes/benchmark_processes.py

Each process has one thread. A step of the map costs what a small transformer costs, and one coordinate of the start
sets its rate, so that one orbit in eight is long. Both runs do what `fmprobe probe` does from the first start to the
last orbit, with shards on disk. Loading, merging and the Jacobians are left out: the main process does them alone.

Processes draw starts from a shared counter, so that none idles while starts are left. On a busy machine read the
processor time: it shows what an idle machine would do.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import multiprocessing as mp

import fmprobe
from fmprobe.runs.folder import RunFolder, read_events
from fmprobe.runs.plan import Plan
from fmprobe.runs.search import Search
from fmprobe.seeding import seed_torch
from fmprobe.sharing import alone, team

WIDTH, TOKENS = 192, 16


def skewed_model() -> fmprobe.Autoencoder:
    """A map that contracts at rate 0.3, or 0.97 where the first coordinate, which f keeps, is over 1.15."""
    seed_torch(0, "benchmark_processes recipe: weights")
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, batch_first=True, norm_first=True)
    network = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval().requires_grad_(False)

    def f(z: Tensor) -> Tensor:
        kept = z[:, :1, :1]
        rate = torch.where(kept > 1.15, 0.97, 0.3)
        after = rate * z + 1e-9 * network(z)
        return torch.cat([torch.cat([kept, after[:, :1, 1:]], dim=2), after[:, 1:]], dim=1)

    shape = (1, TOKENS, WIDTH)
    return fmprobe.from_functions(
        lambda images: images[:, 0], lambda z: f(z)[:, None], image_shape=shape, latent_shape=shape[1:], name="skewed"
    )


def plan_of(starts: int, batch_size: int) -> Plan:
    """What is done with the starts."""
    return Plan(starts, max_steps=1000, batch_size=batch_size)


def work(rank: int, size: int, starts: int, batch_size: int, folder: str, port: int, figures: "mp.Queue") -> None:
    """Run as one process and report its wall-clock and processor seconds, from when all processes are ready."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    model, together = skewed_model(), team()
    with torch.no_grad():
        model.latent_map(model.sample_latents(batch_size))  # the first call is slower
    with together.main_first():
        run = RunFolder.open(Path(folder), {"processes": size}) if rank == 0 else RunFolder(Path(folder))
    plan = plan_of(starts, batch_size)
    together.barrier()
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    Search(model, plan, run, together, "shards").iterate(progress=False)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    figures.put((wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    together.leave()


def measure(size: int, starts: int, batch_size: int, port: int) -> tuple[float, list[float]]:
    """Wall-clock seconds of a run by `size` processes, and the processor seconds of each."""
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("spawn")
        figures = context.Queue()
        arguments = (size, starts, batch_size, folder, port, figures)
        processes = [context.Process(target=work, args=(rank, *arguments)) for rank in range(size)]
        for process in processes:
            process.start()
        found = [figures.get() for _ in processes]
        for process in processes:
            process.join()
        shards = [event for event in read_events(Path(folder)) if event["event"] == "shard"]
        shares = [sum(event["orbits"] for event in shards if event["process"] == rank) for rank in range(size)]
    wall, cpu = max(wall for wall, _ in found), [cpu for _, cpu in found]
    spent = ", ".join(f"{seconds:.1f}" for seconds in cpu)
    print(f"{size} process{'es' if size > 1 else ''}: {wall:.1f} s; orbits {shares}, processor seconds {spent}")
    return wall, cpu


@alone()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--starts", type=int, default=512, help="Number of starts.")
    parser.add_argument("--batch-size", type=int, default=16, help="Number of latents iterated together.")
    parser.add_argument("--port", type=int, default=29417, help="First of two free ports of this machine.")
    options = parser.parse_args()
    one, one_cpu = measure(1, options.starts, options.batch_size, options.port)
    two, two_cpu = measure(2, options.starts, options.batch_size, options.port + 1)
    print(f"ratio of wall-clock seconds {one / two:.2f} (2 would be perfect)")
    print(f"ratio of processor seconds, one process to the busier of two {one_cpu[0] / max(two_cpu):.2f}")


if __name__ == "__main__":
    main()
