"""Compare Orthogonal Matching Pursuit of many targets with scikit-learn's, and with what the machine can do.

    python recipes/benchmark_omp.py                     # 4096 atoms of dimension 4096, 256 selected, 64 targets
    python recipes/benchmark_omp.py --scaling omp.png   # the first, and time against targets and atoms, plotted

All sides run on the same cores, in rounds that alternate between them, and include the products of all atoms.
Medians over the rounds are printed, with the range. scikit-learn's `orthogonal_mp_gram` takes one target after another,
so it is timed on the first few. The order of the matrix it is given decides its speed, so it is timed in several ways:
as `numpy.dot` makes the matrix, with and without `copy_Gram`, and in Fortran order, which suits it best (there
`copy_Gram=False` would spoil the matrix for the next target).

The time has two parts: the products of all atoms, which are arithmetic, and the steps, which read the rows of all atoms
chosen before. Their rates are printed beside those of one product of matrices and of one copy, in the same rounds.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch
from sklearn.linear_model import orthogonal_mp_gram
from torch import Tensor

import fmprobe
from fmprobe.dynamics.matching_pursuit import BUDGET, UnitAtoms
from fmprobe.seeding import torch_generator
from fmprobe.sharing import alone

SKLEARN: dict[str, tuple[str, Literal["C", "F"], bool]] = {
    "scikit-learn, float32, copy_Gram=False": ("float32", "C", False),
    "scikit-learn, float32, Fortran order": ("float32", "F", True),
    "scikit-learn, float64, copy_Gram=False": ("float64", "C", False),
    "scikit-learn, float64, as it comes": ("float64", "C", True),
    "scikit-learn, float64, Fortran order": ("float64", "F", True),
}
FMPROBE = "fmprobe, float32"


def problem(atoms: int, dim: int, targets: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit atoms, as scikit-learn expects, in directions drawn from N(0, I), and N(0, I) targets."""
    g = torch_generator(seed, "benchmark_omp recipe: atoms and targets")
    dictionary = torch.nn.functional.normalize(torch.randn(atoms, dim, generator=g), dim=1)
    return dictionary, torch.randn(targets, dim, generator=g)


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def by_fmprobe(dictionary: Tensor, targets: Tensor, select: int) -> tuple[Tensor, float]:
    """Chosen atoms and seconds for all targets."""
    began = time.perf_counter()
    codes = fmprobe.orthogonal_matching_pursuit(dictionary, targets, select)
    assert bool(codes.coefficients.isfinite().all())
    return codes.indices, time.perf_counter() - began


def by_sklearn(
    dictionary: Tensor, targets: Tensor, select: int, first: int, dtype: str, order: Literal["C", "F"], copy: bool
) -> tuple[list[set], float]:
    """Sets of chosen atoms of the first targets, and the seconds that all targets would take."""
    atoms, points = dictionary.numpy().astype(dtype), targets.numpy().astype(dtype)
    began = time.perf_counter()
    gram = np.dot(atoms, atoms.T)
    gram = gram.T if order == "F" else gram  # symmetric, so only its memory order changes
    products = time.perf_counter() - began
    began = time.perf_counter()
    right = np.asfortranarray(np.dot(atoms, points[:first].T))
    codes = np.asarray(orthogonal_mp_gram(gram, right, n_nonzero_coefs=select, copy_Gram=copy, copy_Xy=False))
    each = (time.perf_counter() - began) / first
    sets = [set(np.flatnonzero(row).tolist()) for row in codes.reshape(len(atoms), -1).T]
    return sets, products + each * len(targets)


def compare(arguments: argparse.Namespace) -> None:
    """fmprobe, scikit-learn and the machine on one problem."""
    dictionary, targets = problem(arguments.atoms, arguments.dim, arguments.targets)
    few, select = min(arguments.sklearn_targets, len(targets)), arguments.select
    by_fmprobe(dictionary, targets[:4], min(8, select))  # warms up
    seconds: dict[str, list[float]] = {name: [] for name in (FMPROBE, *SKLEARN)}
    measured: list[dict[str, float]] = []
    equal = 0
    for _ in range(arguments.rounds):
        chosen, ours = by_fmprobe(dictionary, targets, select)
        seconds[FMPROBE].append(1000 * ours / len(targets))
        measured.append(rates(dictionary, targets, select))
        for name, way in SKLEARN.items():
            sets, theirs = by_sklearn(dictionary, targets, select, few, *way)
            seconds[name].append(1000 * theirs / len(targets))
            equal = sum(set(row) == other for row, other in zip(chosen[:few].tolist(), sets, strict=True))
    print(
        f"{len(dictionary)} atoms of dimension {dictionary.shape[1]}, {select} selected, {len(targets)} targets, ",
        end="",
    )
    print(f"{torch.get_num_threads()} threads, {arguments.rounds} rounds; ms a target, all atoms' products included")
    base = median(seconds[FMPROBE])
    for name, values in seconds.items():
        ratio = "" if name == FMPROBE else f", {median(values) / base:.1f} times fmprobe's"
        print(f"  {name:46}{median(values):8.1f}  ({min(values):.1f} to {max(values):.1f}){ratio}")
    print(f"  the same atoms as scikit-learn (float64) for {equal} of {few} targets")
    for name in measured[0]:
        values = [found[name] for found in measured]
        print(f"  {name:46}{median(values):8.1f}  ({min(values):.1f} to {max(values):.1f})", flush=True)


def rates(dictionary: Tensor, targets: Tensor, select: int) -> dict[str, float]:
    """GFLOP/s and GB/s of both parts, each followed by the machine's own."""
    n, d = dictionary.shape
    side, values = torch.ones(2048, 2048), torch.ones(1 << 26)
    copied = torch.zeros_like(values)
    product, copy = seconds_of(lambda: side @ side), seconds_of(lambda: copied.copy_(values))
    products = seconds_of(lambda: UnitAtoms(dictionary, with_gram=True))
    whole = seconds_of(lambda: fmprobe.orthogonal_matching_pursuit(dictionary, targets, select))
    read = dictionary.element_size() * len(targets) * n * select * (select - 1) / 2
    return {
        "products of all atoms, GFLOP/s": n * n * d / products / 1e9,  # the half of them that is computed
        "one product of matrices, GFLOP/s": 2 * len(side) ** 3 / product / 1e9,
        "steps, GB/s read": read / max(whole - products, 1e-9) / 1e9,
        "one copy, GB/s read and written": 2 * values.nbytes / copy / 1e9,
    }


def memory(peak: bool) -> int:
    """Bytes of memory that the process holds, or their peak since the last call without `peak`. Linux only."""
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")
    name = "VmHWM" if peak else "VmRSS"
    return 1024 * next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )


def large(arguments: argparse.Namespace) -> None:
    """Select many atoms and print whether all is finite and how memory grew. Runs in a process of its own."""
    dictionary, targets = problem(arguments.atoms, arguments.dim, arguments.targets)
    fmprobe.orthogonal_matching_pursuit(dictionary[:64, :64], targets[:4, :64], 4).reconstruct(4)
    before = memory(peak=False)
    began = time.perf_counter()
    codes = fmprobe.orthogonal_matching_pursuit(dictionary, targets, arguments.large)
    seconds = time.perf_counter() - began
    grew = memory(peak=True) - before
    result = codes.factors.nbytes + codes.indices.nbytes
    fit = codes.reconstruct(arguments.large)
    share = float(((targets - fit).norm(dim=1) / targets.norm(dim=1)).mean())
    repeated = any(len(set(row)) < len(row) for row in codes.indices.tolist())
    print(f"{arguments.large} selected: {1000 * seconds / len(targets):.0f} ms a target; memory grew by", end=" ")
    print(f"{grew / 2**20:.0f} MiB ({result / 2**20:.0f} of them the result), budget {BUDGET / 2**20:.0f};", end=" ")
    print(
        f"finite: {bool(fit.isfinite().all())}; an atom twice: {repeated}; {int(codes.n_selected.min())} atoms", end=" "
    )
    print(f"a target at least; residual {share:.3f} of the norm", flush=True)


def scaling(arguments: argparse.Namespace, path: Path) -> None:
    """Plot milliseconds per target against the number of targets, of selected atoms and of all atoms."""
    from matplotlib.figure import Figure

    atoms, dim, targets, select = arguments.atoms, arguments.dim, arguments.targets, arguments.select
    axes_of: dict[str, tuple[list[int], Callable[[int], tuple[int, int, int]]]] = {
        "targets": ([1, 4, 16, 64, 256], lambda value: (atoms, value, select)),
        "atoms selected": ([32, 64, 128, 256, 512], lambda value: (atoms, targets, value)),
        "atoms": ([512, 1024, 2048, 4096, 8192], lambda value: (value, targets, select)),
    }
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for ax, (label, (values, setting)) in zip(figure.subplots(1, 3, sharey=True), axes_of.items(), strict=True):
        curves: dict[str, list[float]] = {"fmprobe": [], "scikit-learn, float32, at its best": []}
        for value in values:
            n, count, k = setting(value)
            dictionary, points = problem(n, dim, count)
            curves["fmprobe"].append(1000 * by_fmprobe(dictionary, points, k)[1] / count)
            theirs = by_sklearn(dictionary, points, k, min(2, count), "float32", "F", True)[1]
            curves["scikit-learn, float32, at its best"].append(1000 * theirs / count)
            print(
                f"  {label} {value}: " + ", ".join(f"{name} {c[-1]:.1f} ms" for name, c in curves.items()), flush=True
            )
        for name, curve in curves.items():
            ax.plot(values, curve, "o-", label=name)
        ax.set(xscale="log", yscale="log", xlabel=label)
        ax.set_xticks(values, [str(value) for value in values])
        ax.set_xticks([], minor=True)
        ax.legend(frameon=False, fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("ms a target")
    figure.savefig(path, dpi=120)
    print(f"plotted: {path}")


@alone()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atoms", type=int, default=4096, help="Number of atoms.")
    parser.add_argument("--dim", type=int, default=4096, help="Dimension of the atoms.")
    parser.add_argument("--select", type=int, default=256, help="Number of atoms to select.")
    parser.add_argument("--targets", type=int, default=64, help="Number of targets.")
    parser.add_argument("--large", type=int, default=1024, help="Number of atoms to select in the test of memory.")
    parser.add_argument(
        "--sklearn-targets", type=int, default=4, help="Number of targets that scikit-learn is timed on."
    )
    parser.add_argument("--rounds", type=int, default=5, help="Number of rounds.")
    parser.add_argument("--scaling", type=Path, help="PNG to plot the scaling into.")
    parser.add_argument("--only-large", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only_large:
        return large(arguments)
    compare(arguments)
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only-large"], check=True)
    if arguments.scaling:
        scaling(arguments, arguments.scaling)
    return None


if __name__ == "__main__":
    main()
